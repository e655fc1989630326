"""The reference backend: plain torch on any device.

The rows of a batch are put into buckets of similar lengths, so that a batch of decodes is a few padded matrix products
and not a Python loop. What a bucket needs (slots to gather, masks) is worked out once per forward, for all layers that
see the same.

The row of a sequence's token i has index i. It sees the keys of indices 0..i, with a sliding window w only those above
i - w. A row of a tree sees the prefix, its ancestors and itself; its index is prefix_len + depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import AttentionBackend, register_attention_backend
from .ops import attend, attend_lse, causal_mask, merge_rows
from .planner import Part, Plan, Planner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool
    from ..memory.request_table import ReqToTokenPool

SCRATCH = "torch_native"
GATHERED_BYTES = 1 << 20  # keys and values gathered at once on a CPU: they are read again while its cache holds them


@register_attention_backend("torch_native")
class TorchNativeBackend(AttentionBackend):
    """Plain torch; see the module. All options of the attention layer, tree masks, shared prefixes."""

    def __init__(self, req_to_token: ReqToTokenPool) -> None:
        super().__init__(req_to_token)
        self._gathered: dict[
            str, Tensor
        ] = {}  # keys and values of one call: memory kept, as new pages cost more than it

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch[SCRATCH] = {}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        plan = self._plan(layer, fb)
        keys, values = kv_pool.layer(layer.layer_id)
        joined = plan.joined or layer.sinks is not None
        if not joined and len(plan.parts) == 1 and plan.parts[0].real_rows is None:
            return self._attend(plan.parts[0], q, k, v, keys, values, layer)
        if not joined:
            out = torch.empty_like(q)
            for part in plan.parts:
                done = self._attend(part, q, k, v, keys, values, layer)
                out.index_copy_(0, _rows(part), done if part.real is None else done.index_select(0, part.real))
            return out
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
        for part in plan.parts:
            done, done_lse = self._attend_lse(part, q, k, v, keys, values, layer)
            if part.real is not None:
                done, done_lse = done.index_select(0, part.real), done_lse.index_select(0, part.real)
            rows = torch.arange(q.shape[0], device=q.device) if part.real_rows is None else part.real_rows
            merge_rows(out, lse, rows, done, done_lse)
        if layer.sinks is not None:
            out *= torch.sigmoid(lse - layer.sinks.float()).unsqueeze(-1)
        return out.to(q.dtype)

    def _attend(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention
    ) -> Tensor:
        """[n * L, heads, D]"""
        q = _padded(q, part.rows, part.n)
        mask = part.mask_like(q)
        if part.slots is None:
            k, v = _padded(k, part.rows, part.n), _padded(v, part.rows, part.n)
            out = attend(q, k, v, mask, layer.scaling, layer.logit_cap, part.causal)
            return out.transpose(1, 2).flatten(0, 1)
        done = []
        for some, slots in _pieces(part, keys):
            k, v = self._gather("keys", keys, slots, q[some]), self._gather("values", values, slots, q[some])
            out = attend(q[some], k, v, mask if mask is None else mask[some], layer.scaling, layer.logit_cap)
            done.append(out.transpose(1, 2).flatten(0, 1))
        return done[0] if len(done) == 1 else torch.cat(done)

    def _attend_lse(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention
    ) -> tuple[Tensor, Tensor]:
        """[n * L, heads, D], [n * L, heads]"""
        q = _padded(q, part.rows, part.n)
        mask = part.mask_like(q)
        done = []
        if part.slots is None:
            k, v = _padded(k, part.rows, part.n), _padded(v, part.rows, part.n)
            mask = causal_mask(q) if part.causal else mask
            done.append(attend_lse(q, k, v, mask, layer.scaling, layer.logit_cap))
        else:
            for some, slots in _pieces(part, keys):
                k, v = self._gather("keys", keys, slots, q[some]), self._gather("values", values, slots, q[some])
                mine = mask if mask is None else mask[some]
                done.append(attend_lse(q[some], k, v, mine, layer.scaling, layer.logit_cap))
        outs, lses = zip(
            *((out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)) for out, lse in done), strict=True
        )
        return (outs[0], lses[0]) if len(done) == 1 else (torch.cat(outs), torch.cat(lses))

    def _gather(self, name: str, pool: Tensor, slots: Tensor | slice, q: Tensor) -> Tensor:
        """Keys or values [n, kv_heads, S, D] of n = len(q) requests in q's dtype; they hold until the next call with
        this name."""
        if isinstance(slots, slice):
            return _padded(pool, slots, len(q)).to(q.dtype)
        kept = self._gathered.get(name)
        if kept is None or len(kept) < len(slots) or kept.shape[1:] != pool.shape[1:] or kept.dtype != pool.dtype:
            kept = self._gathered[name] = pool.new_empty((len(slots), *pool.shape[1:]))
        picked = torch.index_select(pool, 0, slots, out=kept[: len(slots)])
        return picked.view(len(q), -1, *pool.shape[1:]).transpose(1, 2).to(q.dtype)

    def _plan(self, layer: RadixAttention, fb: ForwardBatch) -> Plan:
        plans = fb.scratch[SCRATCH]
        assert isinstance(plans, dict)
        kind = (layer.sliding_window, layer.attn_type)
        if kind not in plans:
            plans[kind] = Planner(fb, self.req_to_token.host, *kind).plan()
        plan: Plan = plans[kind]
        return plan


def _pieces(part: Part, pool: Tensor) -> Iterator[tuple[slice, Tensor | slice]]:
    """Which of a part's sequences are done together, with their slots: on a CPU as many as its cache has room for."""
    slots = part.slots
    assert slots is not None
    if isinstance(slots, slice) or part.n == 1 or pool.device.type != "cpu":
        yield slice(0, part.n), slots
        return
    num_keys = len(slots) // part.n
    at_once = max(1, GATHERED_BYTES // (2 * num_keys * pool[0].nbytes))
    for first in range(0, part.n, at_once):
        end = min(part.n, first + at_once)
        yield slice(first, end), slots[first * num_keys : end * num_keys]


def _padded(x: Tensor, rows: Tensor | slice, n: int) -> Tensor:
    """Rows of x [T, heads, D] as [n, heads, L, D]."""
    picked = x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
    return picked.view(n, -1, *x.shape[1:]).transpose(1, 2)


def _rows(part: Part) -> Tensor:
    assert part.real_rows is not None
    return part.real_rows
