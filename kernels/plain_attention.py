"""Attention written out, in float32: what the torch forms of all attention operations are made of.

Query head h reads KV head h * kv_heads // heads. Scores are q k^T * scale, and with a soft cap c (0: none)
c * tanh(scores / c). The keys of a request are found by its row of the table: key i lies in slot table[row, i] of
k_cache and v_cache [slots, kv_heads, D].
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, scale: float, logit_cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """q [n, heads, D], k and v [m, kv_heads, D], sees [n, m] bool (None: all) -> out [n, heads, D], lse [n, heads].

    Both float32. lse is the log of the sum of the exponentiated scores; a row that sees nothing has -inf there, and
    zeros in out.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(groups, dim=1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->nhm", q.float(), k) * scale
    if logit_cap:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    if sees is not None:
        scores = scores.masked_fill(~sees.unsqueeze(1), float("-inf"))
    lse = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0).unsqueeze(-1))
    return torch.einsum("nhm,mhd->nhd", weights, v), lse


def slots_of(table: Tensor, row: int, start: int, end: int) -> Tensor:
    """[end - start] int64: the slots of keys start..end of the request in that row; none where end <= start."""
    return table[row, start : max(start, end)].long()
