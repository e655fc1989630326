"""Attention whose bits depend on a row's own sequence alone: not on its batch, chunks, cache hits, or pages.

Every product has one shape. The rows of a sequence are cut into tiles at multiples of TILE_ROWS, its keys into blocks
at multiples of BLOCK_KEYS, both counted from the beginning of the sequence: a row stands at the same place of the same
tile whether it comes alone or with others (missing rows and keys are padding). Blocks are taken in order, with the
online softmax of Milakov and Gimelshein (arXiv 1805.02867); a block that a row does not see changes none of its bits.

Rows of a tree are done one by one over the keys of their own path: each equals the last row of a plain sequence.
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
    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool

SCRATCH = "torch_deterministic"
TILE_ROWS = 16
BLOCK_KEYS = 64
BARRED = (
    -1e30
)  # finite: a block barred for a row leaves exp(BARRED - BARRED) = 1 behind, which the next block wipes out


@dataclass(slots=True)
class Sequence:
    """Keys of one sequence and the rows that look at them.

    `slots` [blocks * BLOCK_KEYS] pool slots by index, padded with 0; `length` the number of real ones. Row i of the
    batch rows `first_row`, ... has index `first_index` + i.
    """

    slots: Tensor
    length: int
    first_row: int
    num_rows: int
    first_index: int


@register_attention_backend("torch_deterministic")
class TorchDeterministicBackend(AttentionBackend):
    """Fixed tiles and blocks; see the module. Ignores shared-prefix groups: they would change the order of sums."""

    is_deterministic = True

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch[SCRATCH] = list(self._sequences(fb))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        keys, values = kv_pool.layer(layer.layer_id)
        out = torch.empty_like(q)
        sequences = fb.scratch[SCRATCH]
        assert isinstance(sequences, list)
        for seq in sequences:
            blocks = (_blocks(keys, seq.slots), _blocks(values, seq.slots))
            done = 0
            while done < seq.num_rows:
                index = seq.first_index + done
                place = index % TILE_ROWS
                count = min(TILE_ROWS - place, seq.num_rows - done)
                rows = slice(seq.first_row + done, seq.first_row + done + count)
                tile = q.new_zeros((TILE_ROWS, *q.shape[1:]), dtype=torch.float32)
                tile[place : place + count] = q[rows]
                out[rows] = _attend_tile(tile, index - place, seq, blocks, layer)[place : place + count]
                done += count
        return out

    def _sequences(self, fb: ForwardBatch) -> list[Sequence]:
        result = []
        first_row = 0
        table = self.req_to_token.host
        device = fb.input_ids.device
        rows = fb.req_rows.tolist()
        for b, (prefix, num_rows) in enumerate(zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, strict=True)):
            slots = table[rows[b], : prefix + num_rows]
            tree = None if fb.tree_parents is None else fb.tree_parents[b]
            chain, parents = (num_rows, ()) if tree is None else trees.split_chain(tree.tolist())
            end = prefix + chain
            result.append(_sequence(slots[:end], device, first_row, chain, prefix))
            for i in range(len(parents)):
                own = trees.path(parents, i)
                path_slots = np.concatenate([slots[:end], slots[end + np.array(own)]])
                result.append(_sequence(path_slots, device, first_row + chain + i, 1, end + len(own) - 1))
            first_row += num_rows
        return result


def _sequence(
    slots: npt.NDArray[np.int32], device: torch.device, first_row: int, num_rows: int, first_index: int
) -> Sequence:
    padded = np.zeros(-(-len(slots) // BLOCK_KEYS) * BLOCK_KEYS, dtype=np.int64)
    padded[: len(slots)] = slots
    return Sequence(torch.from_numpy(padded).to(device), len(slots), first_row, num_rows, first_index)


def _blocks(pool: Tensor, slots: Tensor) -> Tensor:
    """[blocks, kv_heads, BLOCK_KEYS, D] float32, each block in its own contiguous memory."""
    gathered = pool.index_select(0, slots).view(-1, BLOCK_KEYS, *pool.shape[1:])
    return gathered.transpose(1, 2).float().contiguous()


def _attend_tile(
    tile: Tensor, first_index: int, seq: Sequence, blocks: tuple[Tensor, Tensor], layer: RadixAttention
) -> Tensor:
    """tile [TILE_ROWS, heads, D] of indices first_index, ... -> the same, attended."""
    kv_heads, group = layer.num_kv_heads, layer.num_heads // layer.num_kv_heads
    q = tile.view(TILE_ROWS, kv_heads, group, -1).permute(1, 2, 0, 3).reshape(kv_heads, group * TILE_ROWS, -1)
    index = torch.arange(first_index, first_index + TILE_ROWS, device=tile.device)[:, None]
    best = q.new_full((kv_heads, group * TILE_ROWS, 1), BARRED)
    total = torch.zeros_like(best)
    out = torch.zeros_like(q)
    bidirectional = layer.attn_type is AttentionType.ENCODER_ONLY
    last = seq.length - 1 if bidirectional else min(first_index + TILE_ROWS, seq.length) - 1
    first = 0 if layer.sliding_window is None else max(0, first_index - layer.sliding_window + 1)
    for number in range(first // BLOCK_KEYS, last // BLOCK_KEYS + 1):
        key = torch.arange(number * BLOCK_KEYS, (number + 1) * BLOCK_KEYS, device=tile.device)
        sees = (key < seq.length).expand(TILE_ROWS, -1) if bidirectional else key <= index
        if layer.sliding_window is not None:
            sees = sees & (key > index - layer.sliding_window)
        scores = torch.bmm(q, blocks[0][number].transpose(1, 2)) * layer.scaling
        if layer.logit_cap:
            scores = torch.tanh(scores / layer.logit_cap) * layer.logit_cap
        scores = scores.view(kv_heads, group, TILE_ROWS, BLOCK_KEYS).masked_fill(~sees, BARRED).view_as(scores)
        new_best = torch.maximum(best, scores.amax(dim=-1, keepdim=True))
        weights = torch.exp(scores - new_best)
        kept = torch.exp(best - new_best)
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        out = out * kept + torch.bmm(weights, blocks[1][number])
        best = new_best
    out = out / total
    return out.view(kv_heads, group, TILE_ROWS, -1).permute(2, 0, 1, 3).reshape(tile.shape)
