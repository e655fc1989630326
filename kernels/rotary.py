"""Rotary position embedding (Su et al., arXiv 2104.09864): pairs of a head's dimensions turned by given angles.

Pair i is (i, i + d / 2) as in GPT-NeoX and Llama, or (2 i, 2 i + 1) where `interleaved`, as in GPT-J. Only the first d
dimensions of a head turn; the rest goes through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("rotary_embedding", Implementation("triton", ".triton.rotary:rotary_embedding"))
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x [T, heads, D], cos and sin [T, 1, d / 2] float32 -> [T, heads, D] in x's dtype, computed in float32."""
    half = cos.shape[-1]
    turning = x[..., : 2 * half].float()
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., :half], turning[..., half:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    out = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat([out.to(x.dtype), x[..., 2 * half :]], dim=-1)
