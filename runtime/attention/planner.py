"""How the rows of a forward are put together for attention: buckets of similar rows, gathers, masks.

Everything is worked out on the host, from lengths and slots, once per forward and kind of layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..batch import ForwardMode
from ..layers.attention import AttentionType
from . import trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..batch import ForwardBatch

QUERY_BLOCK = 512  # rows of a long extend that are done together, so that its mask stays small
ALONE_FROM = 64  # an extend of more rows has a bucket of its own
LARGE_MASK = 1 << 22  # elements from which a mask is made anew for each layer rather than kept for all of them
MAX_BUCKET_KEYS = 32768  # keys gathered at once, unless one sequence alone has more
MIN_GROUP_ROWS = 4  # a shared prefix is read once for all where that saves more than joining the results costs
MIN_GROUP_LEN = 64

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class Span:
    """Rows of one request: `num_rows` from row `first_row` of the batch on, the first of index `first_index`.

    They may see the keys of indices [start, end). `last_keys` are the rows' own last ones; None: themselves.
    """

    request: int
    first_row: int
    num_rows: int
    first_index: int
    start: int
    end: int
    parents: tuple[int, ...] | None = None
    last_keys: IntArray | None = None

    @property
    def num_keys(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class Part:
    """Padded rows and keys that are attended in one call: n sequences, up to L rows and S keys each.

    `rows` are the n * L batch rows (padding repeats a row), `real` the places among them that are no padding (None:
    all), `real_rows` the batch rows of those (None: all rows of the batch, in order). `slots` are the n * S pool slots,
    None where the keys are the new rows themselves (then `causal`).
    """

    n: int
    rows: Tensor | slice
    real: Tensor | None
    real_rows: Tensor | None
    slots: Tensor | slice | None
    mask: Tensor | Callable[[], Tensor | None] | None
    causal: bool = False

    def mask_like(self, q: Tensor) -> Tensor | None:
        """The additive mask in q's dtype."""
        mask = self.mask() if callable(self.mask) else self.mask
        return None if mask is None else mask.to(q.dtype)


@dataclass(slots=True)
class Plan:
    """All parts of a forward. `joined`: rows may stand in several parts, whose results are merged."""

    parts: list[Part]
    joined: bool


class Planner:
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
        decodes = self._decodes_alike()
        if decodes is not None:
            return Plan([decodes], joined=False)
        shared = shared_spans(self.fb) if self.window is None and not self.bidirectional else []
        own_start = [0] * self.fb.num_requests
        parts = []
        for spans in shared:
            parts.append(self._shared_part(spans))
            for span in spans:
                own_start[span.request] = span.end
        parts += [self._part(bucket, bool(shared)) for bucket in _buckets(self._own_spans(own_start))]
        return Plan(parts, joined=bool(shared))

    def _decodes_alike(self) -> Part | None:
        """All rows as one part, where each is a request's only one, without groups, and their lengths are similar.

        What most forwards are: the way below comes to the same.
        """
        fb = self.fb
        if fb.mode is not ForwardMode.DECODE or fb.groups or self.window is not None or self.bidirectional:
            return None
        lens, n = fb.seq_lens_cpu, fb.num_requests
        longest = max(lens)
        if longest > 1.5 * min(lens) + 32 or longest * n > MAX_BUCKET_KEYS or fb.num_rows != n or longest == 1:
            return None
        if n == 1:
            slots = self.table[self.request_rows[0], :longest].astype(np.int64)
            return Part(1, slice(0, 1), None, None, self._slots(slots), None)
        slots = self.table[self.request_rows, :longest].astype(np.int64)
        mask = None
        if min(lens) < longest:
            ahead = np.arange(longest) >= np.array(lens)[:, None]
            mask = torch.from_numpy(np.where(ahead, np.float32("-inf"), np.float32(0))[:, None, None]).to(self.device)
        return Part(n, slice(0, n), None, None, self._slots(slots.reshape(-1)), mask)

    def _own_spans(self, own_start: list[int]) -> Iterator[Span]:
        """The rows of each request with the keys they see from own_start on."""
        fb = self.fb
        row = 0
        for b, (prefix, num_rows) in enumerate(zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, strict=True)):
            tree = None if fb.tree_parents is None else fb.tree_parents[b]
            chain = num_rows
            if tree is not None:  # a run of tokens with a tree at its end: the run is a plain extend
                chain, parents = trees.split_chain(tree.tolist())
                if parents:
                    index = prefix + chain
                    start = self._start(own_start[b], index)
                    yield Span(b, row + chain, len(parents), index, start, index + len(parents), parents)
            yield from self._run(b, row, chain, prefix, own_start[b])
            row += num_rows

    def _run(self, request: int, row: int, num_rows: int, prefix: int, own_start: int) -> Iterator[Span]:
        """Plain rows; many of them in blocks, each with the keys that some row of it sees."""
        whole = self.bidirectional or (prefix == 0 and self.window is None)
        block = num_rows if whole else QUERY_BLOCK
        last_keys = None if self.fb.last_keys is None else self.fb.last_keys[request]
        for begin in range(0, num_rows, max(1, block)):
            rows = min(block, num_rows - begin)
            first = prefix + begin
            end = prefix + num_rows if whole else first + rows
            own = None if last_keys is None else last_keys[begin : begin + rows]
            if own is not None:
                end = max(end, int(own.max()) + 1)
            yield Span(request, row + begin, rows, first, self._start(own_start, first), end, None, own)

    def _start(self, own_start: int, first_index: int) -> int:
        return own_start if self.window is None else max(0, first_index - self.window + 1)

    def _shared_part(self, spans: list[Span]) -> Part:
        rows = np.concatenate([np.arange(s.first_row, s.first_row + s.num_rows) for s in spans])
        first = spans[0]
        real_rows = self._tensor(rows)
        slots = self._slots(self.table[self.request_rows[first.request], first.start : first.end].astype(np.int64))
        return Part(1, real_rows, None, real_rows, slots, None)

    def _part(self, bucket: list[Span], joined: bool) -> Part:
        n = len(bucket)
        num_rows = max(s.num_rows for s in bucket)
        num_keys = max(s.num_keys for s in bucket)
        place = np.arange(num_rows)
        last = np.array([s.num_rows - 1 for s in bucket])[:, None]
        rows = np.array([s.first_row for s in bucket])[:, None] + np.minimum(place, last)
        is_real = place <= last
        real = None if is_real.all() else self._tensor(np.flatnonzero(is_real))
        kept = rows[is_real]
        whole = not joined and real is None and len(kept) == self.fb.num_rows and bool((np.diff(kept) > 0).all())
        real_rows = None if whole else self._tensor(kept)
        if n == 1 and not joined and self._is_fresh(bucket[0]):  # joined results need the keys' slots
            span = bucket[0]
            new = slice(span.first_row, span.first_row + span.num_rows)
            return Part(1, new, None, real_rows, None, None, causal=not self.bidirectional)
        keys = np.array([s.start for s in bucket])[:, None] + np.arange(num_keys)
        table_rows = np.array([self.request_rows[s.request] for s in bucket])[:, None]
        slots = self.table[table_rows, np.minimum(keys, self.table.shape[1] - 1)].astype(np.int64)
        make_mask = partial(self._mask, bucket, num_rows, keys)
        mask = make_mask if n * num_rows * num_keys > LARGE_MASK else make_mask()
        flat_rows = slice(int(rows[0, 0]), int(rows[0, -1]) + 1) if n == 1 else self._tensor(rows.reshape(-1))
        return Part(n, flat_rows, real, real_rows, self._slots(slots.reshape(-1)), mask)

    def _is_fresh(self, span: Span) -> bool:
        """Whether the rows' keys are just the new rows, so that nothing need be gathered."""
        fits = self.window is None or span.end <= self.window
        is_plain = span.parents is None and span.last_keys is None
        return is_plain and span.first_index == 0 and span.end == span.num_rows and fits

    def _mask(self, bucket: list[Span], num_rows: int, keys: IntArray) -> Tensor | None:
        """[n, 1, L, S] additive, or None when every row sees every key."""
        key = keys[:, None, :]
        if bucket[0].parents is not None:
            sees = np.zeros((len(bucket), num_rows, keys.shape[1]), dtype=np.bool_)
            for i, span in enumerate(bucket):
                tree = self._tree_mask(span)
                sees[i, : len(tree), : tree.shape[1]] = tree
                sees[i, len(tree) :, : tree.shape[1]] = tree[-1]
        elif self.bidirectional:
            ends = np.array([s.end for s in bucket])[:, None, None]
            sees = np.broadcast_to(key < ends, (len(bucket), num_rows, keys.shape[1]))
        else:
            first = np.array([s.first_index for s in bucket])[:, None, None]
            last = first + np.array([s.num_rows - 1 for s in bucket])[:, None, None]
            index = np.minimum(first + np.arange(num_rows)[:, None], last)
            sees = key <= (index if all(s.last_keys is None for s in bucket) else _last_keys(bucket, index))
            if self.window is not None:
                sees &= key > index - self.window
        if sees.all():
            return None
        mask = np.where(sees, np.float32(0), np.float32("-inf"))[:, None]
        return torch.from_numpy(mask).to(self.device)

    def _tree_mask(self, span: Span) -> npt.NDArray[np.bool_]:
        """[L, S] for a tree's rows over keys [start, end), the last L of which are the rows themselves."""
        assert span.parents is not None
        prefix = span.first_index
        sees_rows = trees.ancestors(span.parents)
        sees_prefix = np.ones((len(span.parents), prefix - span.start), dtype=np.bool_)
        if self.window is not None:
            depth = trees.depths(span.parents)
            index = prefix + depth[:, None]
            sees_prefix &= np.arange(span.start, prefix) > index - self.window
            sees_rows &= prefix + depth[None, :] > index - self.window
        return np.concatenate([sees_prefix, sees_rows], axis=1)

    def _slots(self, slots: IntArray) -> Tensor | slice:
        """The slots as a tensor, or as a slice where they are neighbours: then nothing need be gathered."""
        if len(slots) and slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
            return slice(int(slots[0]), int(slots[-1]) + 1)
        return self._tensor(slots)

    def _tensor(self, values: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self.device)


def _last_keys(bucket: list[Span], index: IntArray) -> IntArray:
    """[n, L, 1] the last key of each row; `index` are the rows' own."""
    found = index.copy()
    for i, span in enumerate(bucket):
        if span.last_keys is not None:
            found[i, : span.num_rows, 0] = span.last_keys
            found[i, span.num_rows :, 0] = span.last_keys[-1]
    return found


def shared_spans(fb: ForwardBatch, among: Sequence[bool] | None = None) -> list[list[Span]]:
    """For each group worth it: its requests' rows, with the shared keys that no smaller group of theirs covers.

    `among` names the requests that count, by number; None: all.
    """
    starts = np.concatenate([[0], np.cumsum(fb.extend_lens_cpu)])
    covered = [0] * fb.num_requests
    result = []
    for group in sorted(fb.groups, key=lambda group: group.shared_len):
        members = group.rows if among is None else [b for b in group.rows if among[b]]
        num_rows = sum(fb.extend_lens_cpu[b] for b in members)
        if num_rows < MIN_GROUP_ROWS:
            continue
        start = covered[members[0]]
        nested = all(covered[b] == start for b in members)
        cached = all(fb.prefix_lens_cpu[b] >= group.shared_len for b in members)
        if not nested or not cached or group.shared_len - start < MIN_GROUP_LEN:
            continue
        spans = []
        for b in members:
            spans.append(Span(b, int(starts[b]), fb.extend_lens_cpu[b], fb.prefix_lens_cpu[b], start, group.shared_len))
            covered[b] = group.shared_len
        result.append(spans)
    return result


def _buckets(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans that are padded to a common size: long ones alone, the others with their like."""
    alone: list[list[Span]] = []
    by_rows: dict[tuple[bool, int], list[Span]] = {}
    for span in spans:
        if span.num_rows > ALONE_FROM:
            alone.append([span])
        else:
            by_rows.setdefault((span.parents is None, (span.num_rows - 1).bit_length()), []).append(span)
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
