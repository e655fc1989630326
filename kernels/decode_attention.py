"""Attention of one new token per request over its paged keys (vLLM's PagedAttention, Kwon et al., arXiv 2309.06180).

The Triton form cuts long sequences into splits that run side by side and joins them by log-sum-exp (FlashDecoding, Dao
et al. 2023), so that one sequence fills a GPU. It needs memory of the order of rows x splits, never rows x keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .plain_attention import attend, slots_of
from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("decode_attention", Implementation("triton", ".triton.decode_attention:decode_attention"))
def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    starts: Tensor,
    ends: Tensor,
    scale: float,
    logit_cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """q [B, heads, D] -> out [B, heads, D] in q's dtype, lse [B, heads] float32.

    k_cache, v_cache [slots, kv_heads, D]; table [R, context] int32; rows, starts, ends [B] int64: request b sees keys
    starts[b]..ends[b] - 1 of the sequence in row rows[b]. A sliding window is a start; no keys at all give 0 and -inf.
    """
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
    for b, (row, start, end) in enumerate(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        slots = slots_of(table, row, start, end)
        found = attend(q[b : b + 1], k_cache[slots], v_cache[slots], None, scale, logit_cap)
        out[b], lse[b] = found[0][0].to(q.dtype), found[1][0]
    return out, lse
