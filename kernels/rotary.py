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
    if interleaved:
        first, second = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    else:
        first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]  # of narrower x in float32, as cos and sin are
    if x.dtype != cos.dtype:
        turned = [part.to(x.dtype) for part in turned]
    if interleaved:
        turned = [torch.stack(turned, dim=-1).flatten(-2)]
    return torch.cat(turned if 2 * half == x.shape[-1] else [*turned, x[..., 2 * half :]], dim=-1)
