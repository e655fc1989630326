"""A token drawn from each row of logits: temperature, top-k, top-p, min-p, and an exponential race.

weights w_i = exp((logit_i - max) / temperature). Tokens are ranked by weight, equal ones by id. top-k keeps the k
first; top-p (Holtzman et al., arXiv 1904.09751) of what is left the shortest beginning whose share of the sum is p;
min-p drops what is below min_p times the largest weight. Then each id gets a uniform number u_i of its own
(`counter_hash`), and the id with the largest w_i / -log(1 - u_i) wins, which draws i with probability w_i / sum(w). A
row's draw depends on its own numbers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .counter_hash import hash_ids
from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = -1
LATEST = 30.0  # cap of an exponential: an id with any weight never has a race value of zero


@operation("sample_rows", Implementation("triton", ".triton.sample:sample_rows", dtypes=(torch.float32,)))
def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor, steps: Tensor
) -> Tensor:
    """logits [B, V] float32 -> [B] int64 ids; -1 for a row whose largest logit is not finite (all barred, or a NaN).

    temperature (above 0), top_p (1: off) and min_p (0: off) [B] float32, top_k [B] int64 (V or more: off), keys [B, 2]
    and steps [B] int64 as in `counter_hash`.
    """
    num_ids = logits.shape[1]
    largest = logits.amax(dim=1, keepdim=True)
    weights = ((logits - largest) / temperature[:, None]).exp()
    ranked = weights.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(num_ids, device=logits.device)
    in_top_k = rank < top_k[:, None]
    cumulated = ranked.values.double().masked_fill(~in_top_k, 0.0).cumsum(dim=1)
    enough = torch.where(top_p < 1, top_p.double() * cumulated[:, -1], torch.inf)
    num_kept = 1 + torch.searchsorted(cumulated, enough[:, None])
    kept = torch.zeros_like(in_top_k).scatter(1, ranked.indices, in_top_k & (rank < num_kept))
    weights = weights.masked_fill(~kept | (weights < min_p[:, None]), 0.0)
    uniform = (hash_ids(rank, keys, steps).float() + 0.5) * 2.0**-32
    exponential = torch.log1p(-uniform).neg().clamp(max=LATEST)
    ids = (weights / exponential).argmax(dim=1)
    return ids.masked_fill(~torch.isfinite(largest.squeeze(1)), NOTHING)
