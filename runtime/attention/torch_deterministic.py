"""Attention whose bits depend on a row's own sequence alone: not on its batch, chunks, cache hits, or pages.

The keys of a sequence are cut into blocks at multiples of BLOCK_KEYS, counted from its beginning. Each row attends to
each block by itself, and the results of its blocks are joined in order, by their largest scores and sums (Milakov and
Gimelshein, arXiv 1805.02867). A block that a row does not see takes part with the weight 0, which changes none of its
bits: so it does not matter which blocks other rows make it go through.

Within a block, rows and blocks are done together, in batched products. Those have the same bits for a row whatever
else they hold, but only in most shapes: libraries change their kernels for few rows. So `_Shapes` finds out which
shapes agree with one block and TILE_ROWS rows, and only those are used; rows and blocks are padded to them.

Rows of a tree are done one by one over the keys of their own path: each equals the last row of a plain sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layers.attention import AttentionType
from ..layers.rowwise import TILE_ROWS, evenly, pieces, place_independent
from . import trees
from .base import AttentionBackend, register_attention_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool

SCRATCH = "torch_deterministic"
BLOCK_KEYS = 64
ROW_COUNTS = (1, 2, 4, 8, 16, 64)  # rows of a sequence that may be done together
PAIR_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # (rows, block) pairs that may be done in one product
MAX_ELEMENTS = 1 << 22  # of the larger factor of one product
MAX_KEPT_ROWS = 32768  # whose blocks' results are kept until they are joined, unless one sequence alone has more
BARRED = -1e30  # added to scores; finite, so that a block barred for a row gives a number, which the joining wipes out


@dataclass(slots=True)
class Span:
    """`num_rows` rows of one sequence, the first of index `first_index`: rows `first_row`, ... of the batch.

    `slots` are the pool slots of the sequence's keys by index, `blocks` the numbers of the key blocks that some row may
    see, `count` how many rows it is padded to. `last_keys` [num_rows] are the last keys that the rows see; None: their
    own.
    """

    slots: npt.NDArray[np.int32]
    first_index: int
    num_rows: int
    first_row: int
    blocks: range
    count: int
    last_keys: npt.NDArray[np.int64] | None = None


@dataclass(slots=True)
class Bundle:
    """n spans of `count` rows each, done together, as P (span, block) pairs. Step s has every span's s-th block.

    The spans are in descending order of their blocks: step s is that of the first steps[s]. Pairs are ordered by step,
    and padded to whole `parts`, each (start, end) one product. `rows` [n * count] are batch rows (padding repeats one),
    `spans` [P] the span of each pair, `slots` [P, BLOCK_KEYS] its keys, `bars` [P, 1, 1, count, BLOCK_KEYS] float32
    what is added to its scores.
    """

    count: int
    steps: list[int]
    parts: list[tuple[int, int]]
    rows: Tensor
    spans: Tensor
    slots: Tensor
    bars: Tensor
    gathers: dict[int, Tensor] = field(default_factory=dict)

    def gather(self, kv_heads: int) -> Tensor:
        """[P, kv_heads, BLOCK_KEYS] int64: where the keys stand in a pool seen as [slots * kv_heads, D]."""
        if kv_heads not in self.gathers:
            heads = torch.arange(kv_heads, device=self.slots.device)
            self.gathers[kv_heads] = self.slots[:, None] * kv_heads + heads[:, None]
        return self.gathers[kv_heads]


@dataclass(slots=True)
class Plan:
    """All rows of a forward. `places` [T] is where each batch row stands among the padded rows of all bundles."""

    places: Tensor
    bundles: list[Bundle]


@register_attention_backend("torch_deterministic")
class TorchDeterministicBackend(AttentionBackend):
    """Fixed blocks; see the module. Ignores shared-prefix groups: they would change the order of sums."""

    is_deterministic = True

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch[SCRATCH] = {}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        plan = self._plan(layer, fb)
        if not plan.bundles:
            return torch.empty_like(q)
        keys, values = (pool.flatten(0, 1) for pool in kv_pool.layer(layer.layer_id))
        done = [_attend(bundle, q, keys, values, layer) for bundle in plan.bundles]
        rows = done[0] if len(done) == 1 else torch.cat(done)
        return rows.index_select(0, plan.places).to(q.dtype)

    def _plan(self, layer: RadixAttention, fb: ForwardBatch) -> Plan:
        plans = fb.scratch[SCRATCH]
        assert isinstance(plans, dict)
        shapes = _shapes(
            layer.num_kv_heads, layer.num_heads // layer.num_kv_heads, layer.head_dim, layer.logit_cap,
            fb.input_ids.device, torch.get_num_threads(),
        )  # fmt: skip
        kind = (layer.sliding_window, layer.attn_type, shapes)
        if kind not in plans:
            plans[kind] = self._make_plan(layer, fb, shapes)
        plan: Plan = plans[kind]
        return plan

    def _make_plan(self, layer: RadixAttention, fb: ForwardBatch, shapes: _Shapes) -> Plan:
        bidirectional = layer.attn_type is AttentionType.ENCODER_ONLY
        spans = list(self._spans(fb, layer.sliding_window, bidirectional, shapes.row_counts))
        spans.sort(key=lambda span: (span.count, -len(span.blocks)))
        places = np.zeros(fb.num_rows, dtype=np.int64)
        bundles, at, begin = [], 0, 0
        while begin < len(spans):
            end, kept = begin + 1, spans[begin].count * len(spans[begin].blocks)
            while end < len(spans) and spans[end].count == spans[begin].count:
                kept += spans[end].count * len(spans[end].blocks)
                if kept > MAX_KEPT_ROWS:
                    break
                end += 1
            bundles.append(_bundle(spans[begin:end], layer.sliding_window, bidirectional, shapes, fb.input_ids.device))
            for span in spans[begin:end]:
                places[span.first_row : span.first_row + span.num_rows] = np.arange(at, at + span.num_rows)
                at += span.count
            begin = end
        return Plan(torch.from_numpy(places).to(fb.input_ids.device), bundles)

    def _spans(
        self, fb: ForwardBatch, window: int | None, bidirectional: bool, counts: tuple[int, ...]
    ) -> Iterator[Span]:
        for slots, row, num_rows, index, last_keys in self._runs(fb):
            for start, end, count in pieces(num_rows, counts):
                first, last = index + start, index + end - 1
                own = None if last_keys is None else last_keys[start:end]
                seen = len(slots) if bidirectional else last + 1 if own is None else int(own.max()) + 1
                from_key = 0 if window is None else max(0, first - window + 1)
                blocks = range(from_key // BLOCK_KEYS, (seen - 1) // BLOCK_KEYS + 1)
                yield Span(slots, first, end - start, row + start, blocks, count, own)

    def _runs(
        self, fb: ForwardBatch
    ) -> Iterator[tuple[npt.NDArray[np.int32], int, int, int, npt.NDArray[np.int64] | None]]:
        """(slots of the keys, first batch row, number of rows, index of the first, last keys where they are not the
        rows' own) of each run of plain rows."""
        table = self.req_to_token.host
        row = 0
        for b, (prefix, num_rows) in enumerate(zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, strict=True)):
            slots = table[int(fb.req_rows[b]), : prefix + num_rows]
            tree = None if fb.tree_parents is None else fb.tree_parents[b]
            chain, parents = (num_rows, ()) if tree is None else trees.split_chain(tree.tolist())
            end = prefix + chain
            if chain:
                yield slots[:end], row, chain, prefix, None if fb.last_keys is None else fb.last_keys[b]
            for i in range(len(parents)):
                path = np.array(trees.path(parents, i))
                yield np.concatenate([slots[:end], slots[end + path]]), row + chain + i, 1, end + len(path) - 1, None
            row += num_rows


def _bundle(
    spans: list[Span], window: int | None, bidirectional: bool, shapes: _Shapes, device: torch.device
) -> Bundle:
    count = spans[0].count
    num_blocks = np.array([len(span.blocks) for span in spans])
    steps = [int(np.count_nonzero(num_blocks > step)) for step in range(int(num_blocks[0]))]
    num_pairs = sum(steps)
    parts, size = [], 0
    for start, _, padded in pieces(num_pairs, shapes.pair_counts(count)):
        size = start + padded
        parts.append((start, size))
    span_of = np.zeros(size, dtype=np.int64)
    span_of[:num_pairs] = np.concatenate([np.arange(active) for active in steps])
    first_key = np.zeros(size, dtype=np.int64)
    step_of = np.repeat(np.arange(len(steps)), steps)
    begins = np.array([span.blocks.start for span in spans])
    first_key[:num_pairs] = (begins[span_of[:num_pairs]] + step_of) * BLOCK_KEYS
    slots = np.zeros((size, BLOCK_KEYS), dtype=np.int64)
    slots[:num_pairs] = _blocks_of(spans)[(np.cumsum(num_blocks) - num_blocks)[span_of[:num_pairs]] + step_of]
    key = (first_key[:, None] + np.arange(BLOCK_KEYS))[:, None, :]
    own = np.array([span.first_index for span in spans])[:, None] + np.arange(count)
    index, last_key = own[span_of][:, :, None], _last_keys(spans, own)[span_of][:, :, None]
    ends = np.array([len(span.slots) for span in spans])[span_of][:, None, None]
    sees = np.broadcast_to(key < ends, (size, count, BLOCK_KEYS)) if bidirectional else key <= last_key
    if window is not None:
        sees = sees & (key > index - window)
    bars = np.where(sees, np.float32(0), np.float32(BARRED))[:, None, None]
    first_row = np.array([span.first_row for span in spans])[:, None]
    last = np.array([span.num_rows - 1 for span in spans])[:, None]
    rows = (first_row + np.minimum(np.arange(count), last)).reshape(-1)
    rows_, spans_, slots_, bars_ = (torch.from_numpy(values).to(device) for values in (rows, span_of, slots, bars))
    return Bundle(count, steps, parts, rows_, spans_, slots_, bars_)


def _last_keys(spans: list[Span], index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n, count] the last key of each row; `index` are the rows' own."""
    if all(span.last_keys is None for span in spans):
        return index
    found = index.copy()
    for i, span in enumerate(spans):
        if span.last_keys is not None:
            found[i, : span.num_rows] = span.last_keys
    return found


def _blocks_of(spans: list[Span]) -> npt.NDArray[np.int32]:
    """[blocks of all spans, BLOCK_KEYS] the slots of their keys, span by span; 0, the padding slot, behind the last."""
    blocks = np.zeros((sum(len(span.blocks) for span in spans), BLOCK_KEYS), dtype=np.int32)
    flat, at = blocks.reshape(-1), 0
    for span in spans:
        own = span.slots[span.blocks.start * BLOCK_KEYS : span.blocks.stop * BLOCK_KEYS]
        flat[at : at + len(own)] = own
        at += len(span.blocks) * BLOCK_KEYS
    return blocks


def _attend(bundle: Bundle, q: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention) -> Tensor:
    """q [T, heads, D], keys and values [slots * kv_heads, D] -> [n * count, heads, D] float32."""
    kv_heads, dim = layer.num_kv_heads, layer.head_dim
    rows = q.index_select(0, bundle.rows).float().view(-1, bundle.count, kv_heads, layer.num_heads // kv_heads, dim)
    rows = rows.permute(0, 2, 3, 1, 4).contiguous()  # [n, kv_heads, heads per kv_head, count, D]
    gather = bundle.gather(kv_heads)
    done = []
    for start, end in bundle.parts:
        where = gather[start:end].reshape(-1)
        shape = (end - start, kv_heads, BLOCK_KEYS, dim)
        k, v = (pool.index_select(0, where).float().view(shape) for pool in (keys, values))
        same = len(bundle.steps) == 1 and end - start == len(rows)
        own = rows if same else rows.index_select(0, bundle.spans[start:end])
        done.append(_attend_blocks(own, k, v, bundle.bars[start:end], layer.scaling, layer.logit_cap))
    out, best, top = done[0] if len(done) == 1 else [torch.cat(part) for part in zip(*done, strict=True)]
    n = bundle.steps[0]
    if len(bundle.steps) == 1:
        out, most, total = out[:n], best[:n], top[:n].reciprocal()
    else:
        out, most, total = _join(bundle, out, best, top)
    if layer.sinks is not None:
        lse = most + evenly(torch.log, total)
        out = out * evenly(torch.sigmoid, lse - layer.sinks.float().view(kv_heads, -1, 1, 1))
    return out.permute(0, 3, 1, 2, 4).reshape(-1, layer.num_heads, dim)


def _attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, bars: Tensor, scaling: float, logit_cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """P rows [P, kv_heads, heads, count, D] over one block each [P, kv_heads, BLOCK_KEYS, D]: the result [like q], the
    largest score and the largest weight, each [P, kv_heads, heads, count, 1]."""
    p, kv_heads, heads, count, dim = q.shape
    scores = torch.bmm(q.view(p * kv_heads, heads * count, dim), k.view(-1, BLOCK_KEYS, dim).transpose(1, 2))
    scores = scores.mul_(scaling).view(p, kv_heads, heads, count, BLOCK_KEYS)
    if logit_cap:
        scores = torch.tanh(scores / logit_cap).mul_(logit_cap)
    scores = scores.add_(bars)
    weights = torch.softmax(scores, dim=-1)
    out = torch.bmm(weights.view(p * kv_heads, heads * count, BLOCK_KEYS), v.view(-1, BLOCK_KEYS, dim))
    return out.view_as(q), scores.amax(dim=-1, keepdim=True), weights.amax(dim=-1, keepdim=True)


def _join(bundle: Bundle, out: Tensor, best: Tensor, top: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks' results of each span [P, ...] as one [n, ...], added up in their order; their largest scores, and the
    sums of exp(score - largest).

    A block's weights sum to 1, its largest being exp(0) / sum: so sum = 1 / top, and the block counts with
    exp(best) / top. With one block only that is x / x = 1, as if nothing had been joined.
    """
    n = bundle.steps[0]
    most, starts = best[:n].clone(), np.cumsum([0, *bundle.steps]).tolist()
    for start, active in zip(starts[1:], bundle.steps[1:], strict=False):
        torch.maximum(most[:active], best[start : start + active], out=most[:active])
    share = (best - most.index_select(0, bundle.spans)).exp_().div_(top)
    total = share[:n].clone()
    for start, active in zip(starts[1:], bundle.steps[1:], strict=False):
        total[:active] += share[start : start + active]
    out = out.mul_(share.div_(total.index_select(0, bundle.spans)))
    joined = out[:n]
    for start, active in zip(starts[1:], bundle.steps[1:], strict=False):
        joined[:active] += out[start : start + active]
    return joined, most, total


class _Shapes:
    """Which shapes of `_attend_blocks` give a row the same bits, for one kind of layer. Found out when first wanted.

    `row_counts` are the counts of rows that may be done together, `pair_counts(rows)` the counts of pairs with so many
    rows each; both hold the smallest.
    """

    def __init__(self, kv_heads: int, heads: int, dim: int, logit_cap: float, device: torch.device) -> None:
        rng = torch.Generator().manual_seed(0)
        most = ROW_COUNTS[-1]
        self._logit_cap = logit_cap
        self._max_pairs = {
            rows: max(1, MAX_ELEMENTS // (kv_heads * dim * max(heads * rows, BLOCK_KEYS))) for rows in ROW_COUNTS
        }
        num = min(PAIR_COUNTS[-1], max(self._max_pairs.values()))
        self._q = torch.randn(8, kv_heads, heads, most, dim, generator=rng).to(device)
        self._kv = torch.randn(num, kv_heads, BLOCK_KEYS, dim, generator=rng).to(device)
        bars = (torch.rand(num, 1, 1, most, BLOCK_KEYS, generator=rng) < 0.3).float() * BARRED
        bars[0, :, :, 0] = BARRED
        self._bars = bars.to(device)
        self._pair_counts: dict[int, tuple[int, ...]] = {}
        one_tile = self._q[0].permute(2, 0, 1, 3)[:TILE_ROWS]
        if place_independent(self._of_rows, one_tile):
            self.row_counts = tuple(
                count for count in ROW_COUNTS if count == TILE_ROWS or self._agrees((count, 1), (TILE_ROWS, 1))
            )
        else:
            self.row_counts = (1,)

    def pair_counts(self, rows: int) -> tuple[int, ...]:
        """How many pairs of so many rows may be done at once."""
        if rows not in self._pair_counts:
            good = [1]
            for count in PAIR_COUNTS[1:]:
                if count <= self._max_pairs[rows] and self._agrees((rows, count), (rows, good[-1])):
                    good.append(count)
            self._pair_counts[rows] = tuple(good)
        return self._pair_counts[rows]

    def _agrees(self, shape: tuple[int, int], known: tuple[int, int]) -> bool:
        """Whether products of shape (rows, pairs) have the bits of those of the smaller or larger shape `known`."""
        rows, pairs = max(shape[0], known[0]), max(shape[1], known[1])
        ours, theirs = self._in(shape, rows, pairs), self._in(known, rows, pairs)
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def _in(self, shape: tuple[int, int], rows: int, pairs: int) -> list[Tensor]:
        """`rows` rows of each of `pairs` pairs, done in pieces of `shape`."""
        by_pairs = []
        for pair in range(0, pairs, shape[1]):
            some = slice(pair, pair + shape[1])
            q = self._q[torch.arange(pair, pair + shape[1]) % len(self._q)]
            by_rows = [
                _attend_blocks(
                    q[:, :, :, row : row + shape[0]].contiguous(), self._kv[some], self._kv[some],
                    self._bars[some, :, :, row : row + shape[0]], 0.1, self._logit_cap,
                )
                for row in range(0, rows, shape[0])
            ]  # fmt: skip
            by_pairs.append([torch.cat(part, dim=3) for part in zip(*by_rows, strict=True)])
        return [torch.cat(part) for part in zip(*by_pairs, strict=True)]

    def _of_rows(self, q: Tensor) -> Tensor:
        """[count, kv_heads, heads, D] over one block -> the same, attended."""
        bars = torch.zeros(1, 1, 1, q.shape[0], BLOCK_KEYS, device=q.device)
        own = q.permute(1, 2, 0, 3).contiguous()[None]
        return _attend_blocks(own, self._kv[:1], self._kv[:1], bars, 0.1, self._logit_cap)[0][0].permute(2, 0, 1, 3)


@cache
def _shapes(kv_heads: int, heads: int, dim: int, logit_cap: float, device: torch.device, num_threads: int) -> _Shapes:
    """`num_threads` matters to what is found."""
    return _Shapes(kv_heads, heads, dim, logit_cap, device)
