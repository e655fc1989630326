"""top-k, then top-p: which tokens may be drawn. (min-p needs no ranking: it is a threshold on the weights.)

Tokens are ranked by weight, equal ones by id. top-k keeps the k first; top-p keeps, of what is left and normalised
anew, the shortest beginning whose probabilities sum to at least p.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_WIDTH = 64  # how many candidates are looked at before it is known how many top-p keeps
WIDEN = 8


def candidates(weights: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """(weights, ids), each [B, N]: the ranked candidates of each row, weight 0 where a filter drops one.

    weights [B, V] float32 (a row's largest is 1), top_k [B] int64 (V or more: off), top_p [B] float32 (1: off).
    Only as many tokens are ranked as it takes to settle all rows.
    """
    vocab_size = weights.shape[1]
    top_k = top_k.clamp(max=vocab_size)
    limited = top_k[top_k < vocab_size]
    width = max(int(limited.max()) + 1 if limited.numel() else 0, FIRST_WIDTH if limited.numel() < len(top_k) else 0)
    total = weights.sum(dim=1, dtype=torch.float64)
    while True:
        width = min(width, vocab_size)
        ranked, ids = _rank(weights, width)
        kept = _kept(ranked, top_k, top_p, total)
        # The last kept token must outweigh the last ranked one; otherwise its equals may lie beyond the width.
        last_kept = ranked.gather(1, (kept.sum(dim=1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        if width == vocab_size or bool((last_kept > ranked[:, -1]).all()):
            return ranked * kept, ids
        width *= WIDEN


def _rank(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest weights of each row in descending order, equal ones by ascending id, and their ids."""
    if 4 * width >= weights.shape[1]:
        ranked, ids = weights.sort(dim=1, descending=True, stable=True)
        return ranked[:, :width], ids[:, :width]
    ids = weights.topk(width, dim=1, sorted=False).indices.sort(dim=1).values
    ranked, order = weights.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ranked, ids.gather(1, order)


def _kept(ranked: Tensor, top_k: Tensor, top_p: Tensor, total: Tensor) -> Tensor:
    """[B, N] bool, true on a beginning of each row."""
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    in_k = rank < top_k[:, None]
    cumulated = (ranked * in_k).cumsum(dim=1, dtype=torch.float64)
    has_k = top_k <= ranked.shape[1]  # otherwise k is off, and the mass is that of the whole row
    mass = torch.where(has_k, cumulated[:, -1], total)
    before = cumulated - ranked
    in_p = (before < (top_p.double() * mass)[:, None]) | (top_p >= 1)[:, None]
    return in_k & in_p & (ranked > 0)
