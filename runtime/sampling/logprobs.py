"""Log-probs: of the raw distribution at temperature 1, before penalties, bias and masks; natural logarithm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.events import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of R rows, on the device: of one id each [R], of the `top` likeliest [R, k], and of given ids [R, m].

    `top_values` are in descending order, equal ones by ascending id. `given` are the ids asked for, row by row.
    """

    ids: Tensor
    chosen: Tensor
    top_ids: Tensor
    top_values: Tensor
    given: tuple[tuple[int, ...], ...]
    given_values: Tensor

    def rows(self, tops: Sequence[int] | None = None) -> list[TokenLogprob]:
        """As values on the host, one per row, with all alternatives or with `tops[i]` of them. Id -1 has None."""
        found = zip(self.ids.tolist(), self.chosen.tolist(), strict=True)
        best = zip(self.top_ids.tolist(), self.top_values.tolist(), strict=True)
        asked = zip(self.given, self.given_values.tolist(), strict=True)
        result = []
        for i, ((token_id, value), (top_ids, top_values), (ids, values)) in enumerate(
            zip(found, best, asked, strict=True)
        ):
            count = len(top_ids) if tops is None else tops[i]
            top = tuple(zip(top_ids[:count], top_values[:count], strict=True))
            chosen = tuple(zip(ids, values[: len(ids)], strict=True))
            result.append(TokenLogprob(token_id, value if token_id >= 0 else None, top, chosen))
        return result


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    top: int = 0,
    given: Sequence[Sequence[int]] | None = None,
    row_by_row: bool = False,
) -> Logprobs:
    """Log-probs under logits [R, V] float32 of `ids` [R] (-1: none), of the `top` likeliest, of `given[r]` in row r.

    `row_by_row` makes each row's bits independent of the other rows.
    """
    lse = logsumexp(logits, row_by_row)
    chosen = logits.gather(1, ids.clamp(min=0)[:, None]).squeeze(1) - lse
    values, top_ids = top_logits(logits, top)
    asked = tuple(tuple(row) for row in given) if given is not None else ((),) * logits.shape[0]
    width = max((len(row) for row in asked), default=0)
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in asked], dtype=torch.int64, device=logits.device)
    given_values = logits.gather(1, padded.view(logits.shape[0], width)) - lse[:, None]
    return Logprobs(ids, chosen, top_ids, values - lse[:, None], asked, given_values)


def logsumexp(logits: Tensor, row_by_row: bool = False) -> Tensor:
    """[R, V] -> [R]."""
    if row_by_row and logits.shape[0] > 1:
        return torch.cat([logits[i : i + 1].clone().logsumexp(dim=1) for i in range(logits.shape[0])])
    return logits.logsumexp(dim=1)


@cache
def rows_keep_bits(vocab_size: int, num_threads: int) -> bool:
    """Whether a row of logits has the same bits among others as alone, in all that the sampler does along rows.

    True on one CPU thread wherever a trial finds it so; with more threads rows are shared out by their number, and that
    changes the order of sums. Elementwise steps and orders of comparison are not in question.
    """
    if num_threads > 1:
        return False
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(0)) * 4
    logits[3] = 0.0

    def along_rows(x: Tensor) -> tuple[Tensor, ...]:
        weights = (x - x.amax(dim=1, keepdim=True)).div_(0.7).exp_()
        return (
            weights,
            torch.log1p(-0.5 * weights),
            weights.sum(dim=1, dtype=torch.float64),
            weights.flip(1).cumsum(dim=1, dtype=torch.float64),
            x.logsumexp(dim=1),
        )

    together = along_rows(logits.clone())
    return all(
        torch.equal(one[0], many[i])
        for i in range(len(logits))
        for one, many in zip(along_rows(logits[i : i + 1].clone()), together, strict=True)
    )


def top_logits(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """(values, ids), each [R, top]: the largest logits in descending order, equal ones by ascending id."""
    top = min(top, logits.shape[1])
    if top == 0:
        return logits[:, :0], torch.empty(logits.shape[0], 0, dtype=torch.int64, device=logits.device)
    # topk may pick any of several equal values at its end: rank by value and id among all that reach it
    least = logits.topk(top, dim=1).values[:, -1:]
    if bool(((logits >= least).sum(dim=1) > top).any()):
        values, ids = logits.sort(dim=1, descending=True, stable=True)
        return values[:, :top], ids[:, :top]
    ids = logits.topk(top, dim=1).indices.sort(dim=1).values
    values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)
