"""Gated activations: act(gate) * up, where x [..., 2 N] is gate and up side by side (Shazeer, arXiv 2002.05202).

SwiGLU with silu(x) = x sigmoid(x); GEGLU with gelu(x) = x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415), exact or by
its tanh form. float32, float16 or bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("silu_and_mul", Implementation("triton", ".triton.activation:silu_and_mul"))
def silu_and_mul(x: Tensor) -> Tensor:
    """[..., 2 N] -> [..., N]: silu of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@operation("gelu_and_mul", Implementation("triton", ".triton.activation:gelu_and_mul"))
def gelu_and_mul(x: Tensor) -> Tensor:
    """[..., 2 N] -> [..., N]: gelu, by the error function, of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate) * up


@operation("gelu_tanh_and_mul", Implementation("triton", ".triton.activation:gelu_tanh_and_mul"))
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """[..., 2 N] -> [..., N]: gelu in its tanh form of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up
