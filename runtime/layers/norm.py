"""Normalisations: RMS (Zhang and Sennrich, arXiv 1910.07467) and layer norm (Ba et al., arXiv 1607.06450)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.registry import choose
from ...kernels.rms_norm import add_rms_norm, rms_norm
from .rowwise import RowWise

if TYPE_CHECKING:
    from collections.abc import Callable


class RMSNorm(RowWise):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the dtype of x (sums in float32)."""

    kernel: Callable[[Tensor, Tensor, float], Tensor] = staticmethod(rms_norm)
    add_kernel: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = staticmethod(add_rms_norm)

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.in_features = size
        self.eps = eps

    def choose_kernels(self, device: torch.device, act_dtype: torch.dtype) -> None:
        self.kernel = choose("rms_norm", device=device, dtype=act_dtype, size=self.in_features).run
        self.add_kernel = choose("add_rms_norm", device=device, dtype=act_dtype, size=self.in_features).run

    def rows(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.weight, self.eps)

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        if self.counts is not None:
            return super().after(x, residual)
        return self.add_kernel(x, residual, self.weight, self.eps)


class GemmaRMSNorm(RMSNorm):
    """x / sqrt(mean(x^2) + eps) * (1 + weight): Gemma's checkpoints hold the weight's distance from 1."""

    after = RowWise.after

    def rows(self, x: Tensor) -> Tensor:
        return self.kernel(x, 1.0 + self.weight, self.eps)


class LayerNorm(RowWise):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension."""

    def __init__(self, size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self.in_features = size
        self.eps = eps

    def rows(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
