"""The reference backend: plain torch on any device.

The rows of a batch are put into buckets of similar lengths, so that a batch of decodes is a few padded matrix products
and not a Python loop. What a bucket needs (slots to gather, masks) is worked out once per forward, for all layers that
see the same.

The row of a sequence's token i has index i. It sees the keys of indices 0..i, with a sliding window w only those above
i - w. A row of a tree sees the prefix, its ancestors and itself; its index is prefix_len + depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layers.attention import AttentionType
from . import trees
from .base import AttentionBackend, register_attention_backend
from .ops import attend, attend_lse, merge_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool

SCRATCH = "torch_native"
QUERY_BLOCK = 512  # rows of a long extend that are done together, so that its mask stays small
ALONE_FROM = 64  # an extend of more rows has a bucket of its own
MAX_BUCKET_KEYS = 32768  # keys gathered at once, unless one sequence alone has more
MIN_GROUP_ROWS = 4  # a shared prefix is read once for all where that saves more than joining the results costs
MIN_GROUP_LEN = 64

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class Span:
    """Rows of one request: `num_rows` from row `first_row` of the batch on, the first of index `first_index`.

    They may see the keys of indices [start, end).
    """

    request: int
    first_row: int
    num_rows: int
    first_index: int
    start: int
    end: int
    parents: tuple[int, ...] | None = None

    @property
    def num_keys(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class Part:
    """Padded rows and keys that are attended in one call: n sequences, up to L rows and S keys each.

    `rows` are the n * L batch rows (padding repeats a row), `real` the places among them that are no padding (None:
    all). `slots` are the n * S pool slots, None where the keys are the new rows themselves (then `causal`).
    """

    n: int
    rows: Tensor | slice
    real: Tensor | None
    real_rows: Tensor | None
    slots: Tensor | slice | None
    mask: Tensor | None
    causal: bool = False


@dataclass(slots=True)
class Plan:
    """All parts of a forward. `joined`: rows may stand in several parts, whose results are merged."""

    parts: list[Part]
    joined: bool


@register_attention_backend("torch_native")
class TorchNativeBackend(AttentionBackend):
    """Plain torch; see the module. All options of the attention layer, tree masks, shared prefixes."""

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch[SCRATCH] = {}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        plan = self._plan(layer, fb)
        keys, values = kv_pool.layer(layer.layer_id)
        if not plan.joined and len(plan.parts) == 1 and plan.parts[0].real_rows is None:
            return self._attend(plan.parts[0], q, k, v, keys, values, layer)
        if not plan.joined:
            out = torch.empty_like(q)
            for part in plan.parts:
                done = self._attend(part, q, k, v, keys, values, layer)
                out.index_copy_(0, _rows(part), done if part.real is None else done.index_select(0, part.real))
            return out
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
        for part in plan.parts:
            done, done_lse = self._attend_lse(part, q, keys, values, layer)
            if part.real is not None:
                done, done_lse = done.index_select(0, part.real), done_lse.index_select(0, part.real)
            merge_rows(out, lse, _rows(part), done, done_lse)
        return out.to(q.dtype)

    def _attend(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention
    ) -> Tensor:
        """[n * L, heads, D]"""
        q = _padded(q, part.rows, part.n)
        if part.slots is None:
            k, v = _padded(k, part.rows, part.n), _padded(v, part.rows, part.n)
        else:
            k, v = _padded(keys, part.slots, part.n).to(q.dtype), _padded(values, part.slots, part.n).to(q.dtype)
        out = attend(q, k, v, _like(part.mask, q), layer.scaling, layer.logit_cap, part.causal)
        return out.transpose(1, 2).flatten(0, 1)

    def _attend_lse(
        self, part: Part, q: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention
    ) -> tuple[Tensor, Tensor]:
        """[n * L, heads, D], [n * L, heads]"""
        assert part.slots is not None
        q = _padded(q, part.rows, part.n)
        k, v = _padded(keys, part.slots, part.n).to(q.dtype), _padded(values, part.slots, part.n).to(q.dtype)
        out, lse = attend_lse(q, k, v, _like(part.mask, q), layer.scaling, layer.logit_cap)
        return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)

    def _plan(self, layer: RadixAttention, fb: ForwardBatch) -> Plan:
        plans = fb.scratch[SCRATCH]
        assert isinstance(plans, dict)
        kind = (layer.sliding_window, layer.attn_type)
        if kind not in plans:
            plans[kind] = _Planner(fb, self.req_to_token.host, *kind).plan()
        plan: Plan = plans[kind]
        return plan


class _Planner:
    """Works out the parts of one forward for layers with one window and attention type. Everything on the host."""

    def __init__(
        self, fb: ForwardBatch, table: npt.NDArray[np.int32], window: int | None, attn_type: AttentionType
    ) -> None:
        self.fb = fb
        self.table = table
        self.window = window
        self.bidirectional = attn_type is AttentionType.ENCODER_ONLY
        self.device = fb.input_ids.device
        self.request_rows = fb.req_rows.tolist()

    def plan(self) -> Plan:
        shared = self._shared_spans() if self.window is None and not self.bidirectional else []
        own_start = [0] * self.fb.num_requests
        parts = []
        for spans in shared:
            parts.append(self._shared_part(spans))
            for span in spans:
                own_start[span.request] = span.end
        parts += [self._part(bucket) for bucket in _buckets(self._own_spans(own_start))]
        if len(parts) == 1 and parts[0].real is None and self._is_whole(parts[0]):
            parts[0].real_rows = None
        return Plan(parts, joined=bool(shared))

    def _is_whole(self, part: Part) -> bool:
        rows = part.real_rows
        return rows is not None and rows.numel() == self.fb.num_rows and bool((rows[1:] > rows[:-1]).all())

    def _own_spans(self, own_start: list[int]) -> Iterable[Span]:
        """The rows of each request with the keys they see after own_start; long extends cut into blocks."""
        fb = self.fb
        first_row = 0
        for b, (prefix, num_rows) in enumerate(zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, strict=True)):
            parents = None if fb.tree_parents is None else fb.tree_parents[b]
            whole = parents is not None or self.bidirectional or (prefix == 0 and self.window is None)
            block = num_rows if whole else QUERY_BLOCK
            for begin in range(0, num_rows, max(1, block)):
                rows = min(block, num_rows - begin)
                first = prefix + begin
                end = prefix + num_rows if whole else first + rows
                start = own_start[b] if self.window is None else max(0, first - self.window + 1)
                tree = None if parents is None else tuple(parents.tolist())
                yield Span(b, first_row + begin, rows, first, start, end, tree)
            first_row += num_rows

    def _shared_spans(self) -> list[list[Span]]:
        """For each group worth it: its requests' rows, with the shared keys that no smaller group of theirs covers."""
        fb = self.fb
        starts = np.concatenate([[0], np.cumsum(fb.extend_lens_cpu)])
        covered = [0] * fb.num_requests
        result = []
        for group in sorted(fb.groups, key=lambda group: group.shared_len):
            start = covered[group.rows[0]]
            num_rows = sum(fb.extend_lens_cpu[b] for b in group.rows)
            nested = all(covered[b] == start for b in group.rows)
            cached = all(fb.prefix_lens_cpu[b] >= group.shared_len for b in group.rows)
            if not nested or not cached or num_rows < MIN_GROUP_ROWS or group.shared_len - start < MIN_GROUP_LEN:
                continue
            spans = []
            for b in group.rows:
                spans.append(
                    Span(b, int(starts[b]), fb.extend_lens_cpu[b], fb.prefix_lens_cpu[b], start, group.shared_len)
                )
                covered[b] = group.shared_len
            result.append(spans)
        return result

    def _shared_part(self, spans: list[Span]) -> Part:
        rows = np.concatenate([np.arange(s.first_row, s.first_row + s.num_rows) for s in spans])
        first = spans[0]
        real_rows = self._tensor(rows)
        slots = self._slots(self.table[self.request_rows[first.request], first.start : first.end].astype(np.int64))
        return Part(1, real_rows, None, real_rows, slots, None)

    def _part(self, bucket: list[Span]) -> Part:
        n = len(bucket)
        num_rows = max(s.num_rows for s in bucket)
        num_keys = max(s.num_keys for s in bucket)
        place = np.arange(num_rows)
        last = np.array([s.num_rows - 1 for s in bucket])[:, None]
        rows = np.array([s.first_row for s in bucket])[:, None] + np.minimum(place, last)
        is_real = place <= last
        real = None if is_real.all() else self._tensor(np.flatnonzero(is_real))
        real_rows = self._tensor(rows[is_real])
        if n == 1 and self._is_fresh(bucket[0]):
            span = bucket[0]
            new = slice(span.first_row, span.first_row + span.num_rows)
            return Part(1, new, None, real_rows, None, None, causal=not self.bidirectional)
        keys = np.array([s.start for s in bucket])[:, None] + np.arange(num_keys)
        table_rows = np.array([self.request_rows[s.request] for s in bucket])[:, None]
        slots = self.table[table_rows, np.minimum(keys, self.table.shape[1] - 1)].astype(np.int64)
        mask = self._mask(bucket, num_rows, keys)
        flat_rows = slice(int(rows[0, 0]), int(rows[0, -1]) + 1) if n == 1 else self._tensor(rows.reshape(-1))
        return Part(n, flat_rows, real, real_rows, self._slots(slots.reshape(-1)), mask)

    def _is_fresh(self, span: Span) -> bool:
        """Whether the rows' keys are just the new rows, so that nothing need be gathered."""
        fits = self.window is None or span.end <= self.window
        return span.parents is None and span.first_index == 0 and span.end == span.num_rows and fits

    def _mask(self, bucket: list[Span], num_rows: int, keys: IntArray) -> Tensor | None:
        """[n, 1, L, S] additive, or None when every row sees every key."""
        ends = np.array([s.end for s in bucket])[:, None, None]
        key = keys[:, None, :]
        if bucket[0].parents is not None:
            sees = self._tree_mask(bucket[0])
        elif self.bidirectional:
            sees = np.broadcast_to(key < ends, (len(bucket), num_rows, keys.shape[1]))
        else:
            first = np.array([s.first_index for s in bucket])[:, None, None]
            last = first + np.array([s.num_rows - 1 for s in bucket])[:, None, None]
            index = np.minimum(first + np.arange(num_rows)[:, None], last)
            sees = key <= index
            if self.window is not None:
                sees &= key > index - self.window
        if sees.all():
            return None
        mask = np.where(sees, np.float32(0), np.float32("-inf"))[:, None]
        return torch.from_numpy(mask).to(self.device)

    def _tree_mask(self, span: Span) -> npt.NDArray[np.bool_]:
        """[1, L, S] for a tree's rows over keys [start, end), the last L of which are the rows themselves."""
        assert span.parents is not None
        prefix = span.first_index
        sees_rows = trees.ancestors(span.parents)
        sees_prefix = np.ones((len(span.parents), prefix - span.start), dtype=np.bool_)
        if self.window is not None:
            depth = trees.depths(span.parents)
            index = prefix + depth[:, None]
            sees_prefix &= np.arange(span.start, prefix) > index - self.window
            sees_rows &= prefix + depth[None, :] > index - self.window
        sees: npt.NDArray[np.bool_] = np.concatenate([sees_prefix, sees_rows], axis=1)[None]
        return sees

    def _slots(self, slots: IntArray) -> Tensor | slice:
        """The slots as a tensor, or as a slice where they are neighbours: then nothing need be gathered."""
        if len(slots) and slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
            return slice(int(slots[0]), int(slots[-1]) + 1)
        return self._tensor(slots)

    def _tensor(self, values: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self.device)


def _buckets(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans that are padded to a common size: trees and long extends alone, the others with their like."""
    alone: list[list[Span]] = []
    by_rows: dict[int, list[Span]] = {}
    for span in spans:
        if span.parents is not None or span.num_rows > ALONE_FROM:
            alone.append([span])
        else:
            by_rows.setdefault((span.num_rows - 1).bit_length(), []).append(span)
    buckets = []
    for similar in by_rows.values():
        similar.sort(key=lambda span: span.num_keys)
        bucket: list[Span] = []
        for span in similar:
            if bucket and (
                span.num_keys > 1.5 * bucket[0].num_keys + 32 or span.num_keys * (len(bucket) + 1) > MAX_BUCKET_KEYS
            ):
                buckets.append(bucket)
                bucket = []
            bucket.append(span)
        buckets.append(bucket)
    for bucket in buckets:
        bucket.sort(key=lambda span: span.first_row)
    return buckets + alone


def _padded(x: Tensor, rows: Tensor | slice, n: int) -> Tensor:
    """Rows of x [T, heads, D] as [n, heads, L, D]."""
    picked = x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
    return picked.view(n, -1, *x.shape[1:]).transpose(1, 2)


def _like(mask: Tensor | None, q: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(q.dtype)


def _rows(part: Part) -> Tensor:
    assert part.real_rows is not None
    return part.real_rows
