"""RMS normalisation (Zhang and Sennrich, arXiv 1910.07467), alone and joined with the residual sum before it.

x * rsqrt(mean(x^2) + eps) * weight over the last dimension: computed in float32, rounded to x's dtype at the end.
x [..., N] float32, float16 or bfloat16; weight [N].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .registry import Implementation, operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LARGEST_ROW = 65536  # a row is one block of a Triton program


def _limit(shape: Mapping[str, int]) -> str | None:
    size = shape.get("size", 0)
    return None if size <= LARGEST_ROW else f"rows of {size} are longer than {LARGEST_ROW}"


@operation("rms_norm", Implementation("triton", ".triton.rms_norm:rms_norm", limit=_limit))
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., N] -> [..., N]."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    # F.rms_norm goes over the row seven times in a CPU's cache; here what is done to whole rows is done in three
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)


@operation("add_rms_norm", Implementation("triton", ".triton.rms_norm:add_rms_norm", limit=_limit))
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual, rounded to the dtype before it is normalised. All [..., N]."""
    total = x + residual
    return rms_norm(total, weight, eps), total
