"""Attention of padded batches: softmax(cap(q k^T scale) + mask) v, and joining of two such over different keys.

Shapes: q [n, heads, L, D], k and v [n, kv_heads, S, D]; query head h reads KV head h * kv_heads // heads. `mask` is
additive, [n or 1, 1, L or 1, S] in q's dtype, -inf where a row does not see a key; None: all is seen. Every row must
see something.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float = 0.0, causal: bool = False
) -> Tensor:
    """[n, heads, L, D]. `causal` (L == S, no mask): row i sees keys 0..i."""
    if cap:
        return attend_plain(q, k, v, causal_mask(q) if causal else mask, scale, cap)[0]
    n, heads, length, dim = q.shape
    if length == 1:  # the query heads of one KV head become rows: fewer, larger products
        rows = q.reshape(n, k.shape[1], heads // k.shape[1], dim)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale).reshape(n, heads, 1, dim)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=heads != k.shape[1]
    )


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `attend`, and log(sum(exp(scores))) [n, heads, L] with it, by which two results can be joined."""
    if cap or q.device.type != "cpu":
        return attend_plain(q, k, v, mask, scale, cap)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # what SDPA runs here; SDPA drops the lse
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return out, lse


def attend_plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`attend_lse` written out: the specification, the way with a soft cap, and the fallback."""
    n, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    folded = q.reshape(n, kv_heads, heads // kv_heads * length, dim)
    scores = torch.matmul(folded, k.transpose(2, 3)).float().view(n, heads, length, keys) * scale
    if cap:
        scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).to(v.dtype).view(n, kv_heads, -1, keys)
    return torch.matmul(weights, v).view(n, heads, length, dim), lse


def merge_rows(out: Tensor, lse: Tensor, rows: Tensor, new_out: Tensor, new_lse: Tensor) -> None:
    """Join new results for some rows, over keys not seen so far, into out [T, heads, D] and lse [T, heads] (float32).

    new_out [m, heads, D], new_lse [m, heads]; rows [m] without repeats. An lse of -inf means nothing was seen yet.
    """
    old = lse.index_select(0, rows)
    both = torch.logaddexp(old, new_lse)
    kept = out.index_select(0, rows) * torch.exp(old - both).unsqueeze(-1)
    out.index_copy_(0, rows, kept + new_out * torch.exp(new_lse - both).unsqueeze(-1))
    lse.index_copy_(0, rows, both)


def causal_mask(q: Tensor) -> Tensor:
    """[1, 1, L, L] additive: row i sees keys 0..i."""
    length = q.shape[2]
    return torch.full((1, 1, length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
