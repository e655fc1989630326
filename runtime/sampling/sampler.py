"""From logits to tokens.

The order, for each row: repetition penalty, frequency and presence penalty, logit bias, end tokens barred until
min_new_tokens, the request's own logit processor, the constraint's mask; then for greedy rows the largest logit (ties:
the lowest id), for the others temperature, top-k, top-p, min-p, and a draw by `random.race`. A row's result depends on
its own logits and parameters.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.registry import TORCH, choose
from .filters import candidates
from .logprobs import Logprobs, rows_keep_bits, token_logprobs
from .random import argmax_rows, race

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .batch import RowKind, SamplingBatch

    Draw = Callable[[Tensor, RowKind, Tensor], Tensor]

NOTHING = -1  # the id of a row without any token that can be drawn


class Sampler:
    """Draws tokens. Has no state: what a row needs to remember is in the SamplingBatch."""

    def __init__(self, deterministic: bool = False, device: torch.device | str = "cpu") -> None:
        self.deterministic = deterministic
        self._apply_mask = choose("apply_token_mask", device=device, dtype=torch.float32).run
        self._plain: Draw = _plain
        self._ranked: Draw = _ranked
        self._argmax: Callable[[Tensor], Tensor] = argmax_rows
        # in plain torch the engine has forms of its own, which do less than the kernels' twins
        draw = choose("sample_rows", device=device, dtype=torch.float32)
        if draw.name != TORCH:
            self._plain = self._ranked = partial(_by_kernel, draw.run)
        argmax = choose("argmax_rows", device=device, dtype=torch.float32)
        if argmax.name != TORCH:
            self._argmax = argmax.run

    @torch.inference_mode()
    def sample(
        self,
        logits: Tensor,
        batch: SamplingBatch,
        mask: Tensor | None = None,
        steps: Tensor | None = None,
        process: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """[B] int64: the next id of each row; -1 for a row with no possible token (all barred) or with NaN logits.

        logits [B, V] float32, left as they are; mask [B, W] int32 as in `apply_token_mask_`; steps [B] int64 the number
        of output tokens each row has so far, forced ones included (None: 0 everywhere); `process` changes logits in
        place. Does not `append` the ids.
        """
        if logits.shape[0] != len(batch):
            raise ValueError(f"{logits.shape[0]} rows of logits for a batch of {len(batch)}")
        if logits.shape[0] == 0:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        if steps is None:
            steps = torch.zeros(len(batch), dtype=torch.int64, device=logits.device)
        if batch.changes_logits or mask is not None or process is not None:
            logits = logits.clone()
            batch.change_logits_(logits, steps)
            if process is not None:
                process(logits)
            if mask is not None:
                self._apply_mask(logits, mask)
        ids = self._draw_all(logits, batch, steps)
        return ids.masked_fill_(~torch.isfinite(logits.amax(dim=1)), NOTHING)

    @torch.inference_mode()
    def logprobs(
        self, logits: Tensor, ids: Tensor, top: int = 0, given: Sequence[Sequence[int]] | None = None
    ) -> Logprobs:
        """Log-probs under raw logits [R, V] of ids [R], of the `top` likeliest, and of the ids `given[r]` in row r.

        For a prompt's: logits of the row at position i with the id at i + 1, known whatever the chunks.
        """
        return token_logprobs(logits, ids, top, given, row_by_row=self.works_row_by_row(logits))

    def works_row_by_row(self, logits: Tensor) -> bool:
        """Whether each row must be done alone, so that its bits do not depend on the others."""
        if not self.deterministic or logits.shape[0] == 1:
            return False
        return logits.device.type != "cpu" or not rows_keep_bits(logits.shape[1], torch.get_num_threads())

    def _draw_all(self, logits: Tensor, batch: SamplingBatch, steps: Tensor) -> Tensor:
        if batch.all_greedy:
            return self._argmax(logits)
        ids = torch.empty(len(batch), dtype=torch.int64, device=logits.device)
        kinds = batch.kinds
        for kind, draw in ((kinds.greedy, self._greedy), (kinds.plain, self._plain), (kinds.ranked, self._ranked)):
            if kind is None:
                continue
            if kind.rows is None:
                return self._draw(draw, logits, kind, steps)
            drawn = self._draw(draw, logits.index_select(0, kind.rows), kind, steps.index_select(0, kind.rows))
            ids.index_copy_(0, kind.rows, drawn)
        return ids

    def _greedy(self, logits: Tensor, kind: RowKind, steps: Tensor) -> Tensor:
        return self._argmax(logits)

    def _draw(self, draw: Draw, logits: Tensor, kind: RowKind, steps: Tensor) -> Tensor:
        if not self.works_row_by_row(logits):
            return draw(logits, kind, steps)
        rows = range(logits.shape[0])
        return torch.cat([draw(logits[i : i + 1].clone(), kind.row(i), steps[i : i + 1]) for i in rows])


def _plain(logits: Tensor, kind: RowKind, steps: Tensor) -> Tensor:
    return race(_min_p_(_weights(logits, kind), kind), None, kind.keys, steps)


def _ranked(logits: Tensor, kind: RowKind, steps: Tensor) -> Tensor:
    weights, ids = candidates(_weights(logits, kind), kind.top_k, kind.top_p)
    place = race(_min_p_(weights, kind), ids, kind.keys, steps)
    return place if ids is None else ids.gather(1, place[:, None]).squeeze(1)


def _by_kernel(sample_rows: Callable[..., Tensor], logits: Tensor, kind: RowKind, steps: Tensor) -> Tensor:
    temperature, min_p = kind.temperature.squeeze(1), kind.min_p.squeeze(1)
    return sample_rows(logits, temperature, kind.top_k, kind.top_p, min_p, kind.keys, steps)


def _weights(logits: Tensor, kind: RowKind) -> Tensor:
    """[b, V] probabilities after temperature, up to a factor: the largest is 1."""
    weights = logits - logits.amax(dim=1, keepdim=True)
    return weights.div_(kind.temperature).exp_()


def _min_p_(weights: Tensor, kind: RowKind) -> Tensor:
    """Drop what is below min_p times the likeliest token's probability, in place. That token's weight is 1."""
    return weights.masked_fill_(weights < kind.min_p, 0.0) if kind.has_min_p else weights
