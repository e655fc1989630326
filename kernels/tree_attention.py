"""Attention of new tokens that form a tree on the end of a prefix: a trie of choices, a draft tree.

All paths are computed at once (SpecInfer, Miao et al., arXiv 2305.09781): a row sees the prefix, its ancestors and
itself. Who sees whom among the new rows comes as packed bits, 1/8 of a byte for each pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .plain_attention import attend, slots_of
from .registry import Implementation, operation
from .token_bitmask import unpack_mask

if TYPE_CHECKING:
    from torch import Tensor


@operation("tree_attention", Implementation("triton", ".triton.extend_attention:tree_attention"))
def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    row_starts: Tensor,
    num_rows: Tensor,
    prefix_starts: Tensor,
    prefix_lens: Tensor,
    sees: Tensor,
    depths: Tensor,
    scale: float,
    logit_cap: float = 0.0,
    window: int | None = None,
    max_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `extend_attention`, with who sees whom among the new rows given.

    sees [T, W] int32: bit j % 32 of word j // 32 of row t says whether it sees new row j of its request (`pack_mask`;
    beyond the words: no). No row sees one that stands after it. depths [T] int64: the index of row t is prefix_len +
    depths[t]; only a window looks at it.
    """
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
    requests = zip(*(x.tolist() for x in (rows, row_starts, num_rows, prefix_starts, prefix_lens)), strict=True)
    for row, first, count, start, prefix in requests:
        new = slice(first, first + count)
        slots = slots_of(table, row, start, prefix)
        keys, values = torch.cat([k_cache[slots], k[new]]), torch.cat([v_cache[slots], v[new]])
        own = prefix + depths[new]
        index = torch.cat([torch.arange(start, start + len(slots), device=q.device), own])
        seen = torch.cat([sees.new_ones(count, len(slots)).bool(), unpack_mask(sees[new], count)], dim=1)
        if window is not None:
            seen &= index > own.unsqueeze(1) - window
        found = attend(q[new], keys, values, seen, scale, logit_cap)
        out[new], lse[new] = found[0].to(q.dtype), found[1]
    return out, lse
