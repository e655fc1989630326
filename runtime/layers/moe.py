"""Mixtures of experts: which experts a row goes to, and their MLPs over packed weights.

A row's result depends on the row alone: on the experts that its own scores name, summed up in the order of their
scores. The rows of an expert are done together; in deterministic mode on agreeing row counts only, as in `rowwise`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activation import gated
from .rowwise import RowWise, in_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Routes = tuple[Tensor, Tensor]  # weights [T, k] float32, expert numbers [T, k] int64


class Gate(RowWise):
    """Scores of all experts, in float32 whatever the weights are: [T, hidden] -> [T, experts]."""

    def __init__(self, hidden_size: int, num_experts: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = hidden_size
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if bias else None

    def rows(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


def softmax_top_k(scores: Tensor, k: int, renormalise: bool) -> Routes:
    """The k likeliest experts by softmax over all; their probabilities, made to sum to 1 again if `renormalise`."""
    weights, ids = scores.softmax(dim=-1).topk(k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights), ids


def top_k_softmax(scores: Tensor, k: int) -> Routes:
    """The k highest scores, and softmax over these (gpt-oss)."""
    weights, ids = scores.topk(k, dim=-1)
    return weights.softmax(dim=-1), ids


def grouped_top_k(
    affinity: Tensor, k: int, num_groups: int, kept_groups: int, *, bias: Tensor | None = None, best: int = 1
) -> Routes:
    """Top k of the experts in the `kept_groups` best groups (DeepSeek-V2, arXiv 2405.04434, and V3, arXiv 2412.19437).

    A group is as good as its `best` highest affinities together. With a `bias` [experts] groups and experts are chosen
    by affinity + bias, but weighted by affinity.
    """
    choice = affinity if bias is None else affinity + bias
    groups = choice.view(len(choice), num_groups, choice.shape[-1] // num_groups)
    kept = groups.topk(best, dim=-1).values.sum(dim=-1).topk(kept_groups, dim=-1).indices
    barred = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(1, kept, False)
    choice = groups.masked_fill(barred.unsqueeze(-1), float("-inf")).flatten(1)
    ids = choice.topk(k, dim=-1).indices
    return affinity.gather(1, ids), ids


class Experts(RowWise):
    """E gated MLPs with packed weights: w13 [E, 2 I, H] (gate above up) and w2 [E, H, I], in the checkpoint's dtype.

    `names` are what the checkpoint calls gate, up and down of one expert, whose number stands before them.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        inner_size: int,
        act: str,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self.in_features = hidden_size
        self.num_experts = num_experts
        self.inner_size = inner_size
        self.names = names
        self.w13 = nn.Parameter(torch.empty(num_experts, 2 * inner_size, hidden_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_size, inner_size))
        self.act = gated(2 * inner_size, act)

    def one(self, x: Tensor, expert: int) -> Tensor:
        """One expert's MLP over rows [n, H]."""
        inner = self.act.rows(F.linear(x.to(self.w13.dtype), self.w13[expert]))
        return F.linear(inner, self.w2[expert]).to(x.dtype)

    def rows(self, x: Tensor) -> Tensor:
        """What agreeing row counts are found with: all experts have the same shapes."""
        return self.one(x, 0)

    def mix(self, x: Tensor, routes: Routes) -> Tensor:
        """[T, H] -> [T, H]: the routed experts' results, weighted and added up in the order of the routes."""
        weights, ids = routes
        num_rows, k = ids.shape
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=self.num_experts).tolist()
        sorted_x = x.index_select(0, order // k)
        done = torch.empty_like(sorted_x)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                one: Callable[[Tensor], Tensor] = partial(self.one, expert=expert)
                rows = sorted_x[start : start + count]
                done[start : start + count] = one(rows) if self.counts is None else in_pieces(one, rows, self.counts)
                start += count
        parts = torch.empty_like(done).index_copy_(0, order, done).view(num_rows, k, x.shape[-1])
        scale = weights.to(x.dtype).unsqueeze(-1)
        out = parts[:, 0] * scale[:, 0]
        for slot in range(1, k):
            out = out + parts[:, slot] * scale[:, slot]
        return out

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        gate, up, down = self.names
        for expert in range(self.num_experts):
            at = f"{prefix}.{expert}."
            yield f"{at}{gate}.weight", self.w13.data[expert, : self.inner_size]
            yield f"{at}{up}.weight", self.w13.data[expert, self.inner_size :]
            yield f"{at}{down}.weight", self.w2.data[expert]
