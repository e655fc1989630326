"""Attention of runs of new tokens over what was cached and over themselves: prefill, chunked prefill, forced text.

The Triton form is FlashAttention's (Dao, arXiv 2307.08691): tiles of queries walk the keys with a running softmax, so
that no scores are ever written and the extra memory is that of the output. The query heads of one KV head share a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .plain_attention import attend, slots_of
from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("extend_attention", Implementation("triton", ".triton.extend_attention:extend_attention"))
def extend_attention(
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
    scale: float,
    logit_cap: float = 0.0,
    window: int | None = None,
    causal: bool = True,
    max_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """q [T, heads, D] -> out [T, heads, D] in q's dtype, lse [T, heads] float32.

    k, v [T, kv_heads, D] are the new rows' own; the cache and the table as in `decode_attention`. All else [B] int64:
    request b has num_rows[b] new rows from row_starts[b] on; row i of them, of index prefix_lens[b] + i, sees the
    cached keys prefix_starts[b]..prefix_lens[b] - 1 and the new rows up to itself (all of them if not `causal`), with a
    `window` only keys of an index above its own less the window. Rows that belong to no request come out as they may.
    `max_rows` is a bound on num_rows that spares a look at the device.
    """
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
    requests = zip(*(x.tolist() for x in (rows, row_starts, num_rows, prefix_starts, prefix_lens)), strict=True)
    for row, first, count, start, prefix in requests:
        new = slice(first, first + count)
        slots = slots_of(table, row, start, prefix)
        keys, values = torch.cat([k_cache[slots], k[new]]), torch.cat([v_cache[slots], v[new]])
        index = torch.cat([torch.arange(start, start + len(slots)), prefix + torch.arange(count)]).to(q.device)
        own = prefix + torch.arange(count, device=q.device).unsqueeze(1)
        sees = index <= own if causal else torch.ones(count, len(index), dtype=torch.bool, device=q.device)
        if window is not None:
            sees &= index > own - window
        found = attend(q[new], keys, values, sees, scale, logit_cap)
        out[new], lse[new] = found[0].to(q.dtype), found[1]
    return out, lse
