"""Joining of attention over different keys by log-sum-exp (Ye et al., arXiv 2501.01005, section 2.2).

out = sum_p out_p exp(lse_p - lse),  lse = log(sum_p exp(lse_p)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .registry import Implementation, operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

MOST_PARTS = 256


def _limit(shape: Mapping[str, int]) -> str | None:
    parts = shape.get("parts", 0)
    return None if parts <= MOST_PARTS else f"{parts} parts are more than {MOST_PARTS}"


@operation("merge_states", Implementation("triton", ".triton.merge_states:merge_states", limit=_limit))
def merge_states(outs: Tensor, lses: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """outs [n, parts, heads, D], lses [n, parts, heads] -> out [n, heads, D] in `dtype`, lse [n, heads]; lses float32.

    An lse of -inf says that a part saw nothing: whatever stands in its out is not read. Where no part saw anything out
    is 0 and lse -inf.
    """
    lse = lses.logsumexp(dim=1)
    weights = torch.exp(lses - lse.masked_fill(lse.isneginf(), 0.0).unsqueeze(1))
    parts = outs.float().masked_fill((weights == 0).unsqueeze(-1), 0.0)
    return (parts * weights.unsqueeze(-1)).sum(dim=1).to(dtype), lse
