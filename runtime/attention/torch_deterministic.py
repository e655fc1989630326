"""Attention whose bits depend on a row's own sequence alone: not on its batch, chunks, cache hits, or pages.

The rows of a sequence are cut into tiles at multiples of TILE_ROWS, its keys into blocks at multiples of BLOCK_KEYS,
both counted from the beginning of the sequence: a row stands at the same place of the same tile whether it comes alone
or with others (missing rows and keys are padding), and every product has one shape. Blocks are taken in order, with
the online softmax of Milakov and Gimelshein (arXiv 1805.02867); a block that a row does not see changes none of its
bits.

GROUP tiles, of whatever sequences, are done in one batched product where a check finds that this, too, leaves the bits;
otherwise one by one. Rows of a tree are done one by one over the keys of their own path: each equals the last row of a
plain sequence.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool
    from ..memory.request_table import ReqToTokenPool

SCRATCH = "torch_deterministic"
TILE_ROWS = 16
BLOCK_KEYS = 64
GROUP = 8  # tiles done together
MIN_GROUP = 3  # fewer than this are done one by one
BARRED = (
    -1e30
)  # finite: a block barred for a row leaves exp(BARRED - BARRED) = 1 behind, which the next block wipes out
PARALLEL_FROM = 32768  # elements from which torch splits an elementwise operation over threads
VECTOR = 64  # a split at multiples of this many elements leaves each of them in a vectorised loop


@dataclass(slots=True)
class Tile:
    """TILE_ROWS rows of one sequence, the first of index `first_index`, `num_rows` real ones from place `place` on.

    The real rows are rows `first_row`, ... of the batch; `slots` are the pool slots of the sequence's keys by index.
    """

    slots: npt.NDArray[np.int32]
    first_index: int
    place: int
    num_rows: int
    first_row: int


@dataclass(slots=True)
class Group:
    """`size` tiles done together: in step s each sees one block of its keys.

    slots [steps, size * BLOCK_KEYS] int64, barred [steps, size, 1, 1, TILE_ROWS, BLOCK_KEYS] bool. `first` is the place
    of its first tile among all tiles.
    """

    size: int
    first: int
    slots: Tensor
    barred: Tensor


@dataclass(slots=True)
class Plan:
    """All tiles of a forward. `places` [T] is where each batch row stands among the num_tiles * TILE_ROWS tile rows."""

    places: Tensor
    num_tiles: int
    groups: list[Group]


@register_attention_backend("torch_deterministic")
class TorchDeterministicBackend(AttentionBackend):
    """Fixed tiles and blocks; see the module. Ignores shared-prefix groups: they would change the order of sums."""

    is_deterministic = True

    def __init__(self, req_to_token: ReqToTokenPool) -> None:
        super().__init__(req_to_token)
        self._can_group: dict[tuple[int, int, int], bool] = {}

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch[SCRATCH] = {}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        plan = self._plan(layer, fb)
        if plan.num_tiles == 0:
            return torch.empty_like(q)
        keys, values = kv_pool.layer(layer.layer_id)
        kv_heads, dim = layer.num_kv_heads, layer.head_dim
        tiles = torch.zeros(plan.num_tiles * TILE_ROWS, *q.shape[1:], device=q.device)
        tiles.index_copy_(0, plan.places, q.float())
        tiles = tiles.view(plan.num_tiles, TILE_ROWS, kv_heads, -1, dim).permute(0, 2, 3, 1, 4).contiguous()
        for group in plan.groups:
            some = slice(group.first, group.first + group.size)
            tiles[some] = _attend(tiles[some], keys, values, group, layer.scaling, layer.logit_cap)
        rows = tiles.permute(0, 3, 1, 2, 4).reshape(-1, *q.shape[1:])
        return rows.index_select(0, plan.places).to(q.dtype)

    def _plan(self, layer: RadixAttention, fb: ForwardBatch) -> Plan:
        plans = fb.scratch[SCRATCH]
        assert isinstance(plans, dict)
        kind = (layer.sliding_window, layer.attn_type)
        if kind not in plans:
            plans[kind] = self._make_plan(layer, fb)
        plan: Plan = plans[kind]
        return plan

    def _make_plan(self, layer: RadixAttention, fb: ForwardBatch) -> Plan:
        device = fb.input_ids.device
        bidirectional = layer.attn_type is AttentionType.ENCODER_ONLY
        pieces = [(tile, _blocks(tile, layer.sliding_window, bidirectional)) for tile in self._tiles(fb)]
        pieces.sort(key=lambda piece: len(piece[1]))  # few padded steps; the order of tiles means nothing
        places = np.zeros(fb.num_rows, dtype=np.int64)
        for number, (tile, _) in enumerate(pieces):
            first = number * TILE_ROWS + tile.place
            places[tile.first_row : tile.first_row + tile.num_rows] = np.arange(first, first + tile.num_rows)
        group_size = GROUP if self._may_group(layer, device) else 1
        groups = []
        at = 0
        while at < len(pieces):
            together = pieces[at : at + group_size] if len(pieces) - at >= MIN_GROUP else pieces[at : at + 1]
            size = 1 if len(together) == 1 else group_size
            groups.append(_group(together, size, at, layer.sliding_window, bidirectional, device))
            at += len(together)
        num_tiles = max((group.first + group.size for group in groups), default=0)
        return Plan(torch.from_numpy(places).to(device), num_tiles, groups)

    def _tiles(self, fb: ForwardBatch) -> Iterator[Tile]:
        table = self.req_to_token.host
        row = 0
        for b, (prefix, num_rows) in enumerate(zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, strict=True)):
            slots = table[int(fb.req_rows[b]), : prefix + num_rows]
            tree = None if fb.tree_parents is None else fb.tree_parents[b]
            chain, parents = (num_rows, ()) if tree is None else trees.split_chain(tree.tolist())
            end = prefix + chain
            yield from _tiles_of(slots[:end], row, chain, prefix)
            for i in range(len(parents)):
                path = np.array(trees.path(parents, i))
                own = np.concatenate([slots[:end], slots[end + path]])
                yield from _tiles_of(own, row + chain + i, 1, end + len(path) - 1)
            row += num_rows

    def _may_group(self, layer: RadixAttention, device: torch.device) -> bool:
        """Whether GROUP tiles together have the bits of each alone, for this shape on this device; found out once."""
        shape = (layer.num_kv_heads, layer.num_heads // layer.num_kv_heads, layer.head_dim)
        if shape not in self._can_group:
            self._can_group[shape] = _splits_evenly(layer.num_heads) and _group_leaves_bits(*shape, device)
        return self._can_group[shape]


def _tiles_of(slots: npt.NDArray[np.int32], first_row: int, num_rows: int, first_index: int) -> Iterator[Tile]:
    done = 0
    while done < num_rows:
        place = (first_index + done) % TILE_ROWS
        count = min(TILE_ROWS - place, num_rows - done)
        yield Tile(slots, first_index + done - place, place, count, first_row + done)
        done += count


def _blocks(tile: Tile, window: int | None, bidirectional: bool) -> range:
    """Numbers of the key blocks that some row of the tile may see."""
    end = len(tile.slots) if bidirectional else min(tile.first_index + TILE_ROWS, len(tile.slots))
    start = 0 if window is None else max(0, tile.first_index - window + 1)
    return range(start // BLOCK_KEYS, (end - 1) // BLOCK_KEYS + 1)


def _group(
    pieces: list[tuple[Tile, range]],
    size: int,
    first: int,
    window: int | None,
    bidirectional: bool,
    device: torch.device,
) -> Group:
    steps = max(len(blocks) for _, blocks in pieces)
    slots = np.zeros((steps, size, BLOCK_KEYS), dtype=np.int64)
    barred = np.ones((steps, size, 1, 1, TILE_ROWS, BLOCK_KEYS), dtype=np.bool_)
    for i, (tile, blocks) in enumerate(pieces):
        index = tile.first_index + np.arange(TILE_ROWS)[:, None]
        for step, number in enumerate(blocks):
            key = np.arange(number * BLOCK_KEYS, (number + 1) * BLOCK_KEYS)
            own = tile.slots[key[0] : key[0] + BLOCK_KEYS]
            slots[step, i, : len(own)] = own
            sees = np.broadcast_to(key < len(tile.slots), (TILE_ROWS, BLOCK_KEYS)) if bidirectional else key <= index
            if window is not None:
                sees = sees & (key > index - window)
            barred[step, i, 0, 0] = ~sees
    on_device = torch.from_numpy(slots.reshape(steps, -1)).to(device)
    return Group(size, first, on_device, torch.from_numpy(barred).to(device))


def _attend(tiles: Tensor, keys: Tensor, values: Tensor, group: Group, scaling: float, logit_cap: float) -> Tensor:
    """tiles [N, kv_heads, heads per kv_head, TILE_ROWS, D] float32 -> the same, attended."""
    n, kv_heads, heads, _, dim = tiles.shape
    q = tiles.reshape(n * kv_heads, heads * TILE_ROWS, dim)
    best = q.new_full((n * kv_heads, heads * TILE_ROWS, 1), BARRED)
    total, out = torch.zeros_like(best), torch.zeros_like(q)
    for slots, barred in zip(group.slots, group.barred, strict=True):
        k, v = (
            pool.index_select(0, slots)
            .view(n, BLOCK_KEYS, kv_heads, dim)
            .transpose(1, 2)
            .float()
            .contiguous()
            .flatten(0, 1)
            for pool in (keys, values)
        )
        scores = torch.bmm(q, k.transpose(1, 2)) * scaling
        if logit_cap:
            scores = torch.tanh(scores / logit_cap) * logit_cap
        scores = scores.view(n, kv_heads, heads, TILE_ROWS, BLOCK_KEYS).masked_fill_(barred, BARRED).view_as(scores)
        new_best = torch.maximum(best, scores.amax(dim=-1, keepdim=True))
        weights = scores.sub_(new_best).exp_()
        kept = best.sub_(new_best).exp_()
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        out = out * kept + torch.bmm(weights, v)
        best = new_best
    return (out / total).view_as(tiles)


def _splits_evenly(num_heads: int) -> bool:
    """Whether torch, giving each thread its share of a group's scores, cuts between whole vectors."""
    elements = GROUP * num_heads * TILE_ROWS * BLOCK_KEYS
    threads = min(torch.get_num_threads(), -(-elements // PARALLEL_FROM))
    return elements % (threads * VECTOR) == 0


def _group_leaves_bits(kv_heads: int, heads: int, dim: int, device: torch.device) -> bool:
    rng = torch.Generator().manual_seed(0)
    steps = 3
    slots = torch.arange(steps * GROUP * BLOCK_KEYS).view(steps, -1).to(device)
    keys, values = (torch.randn(slots.numel(), kv_heads, dim, generator=rng).to(device) for _ in range(2))
    barred = (torch.rand(steps, GROUP, 1, 1, TILE_ROWS, BLOCK_KEYS, generator=rng) < 0.3).to(device)
    tiles = torch.randn(GROUP, kv_heads, heads, TILE_ROWS, dim, generator=rng).to(device)
    together = _attend(tiles, keys, values, Group(GROUP, 0, slots, barred), dim**-0.5, 0.0)
    for i in range(GROUP):
        own = slots.view(steps, GROUP, BLOCK_KEYS)[:, i].contiguous()
        one = Group(1, 0, own, barred[:, i : i + 1])
        if not torch.equal(_attend(tiles[i : i + 1], keys, values, one, dim**-0.5, 0.0)[0], together[i]):
            return False
    return True
