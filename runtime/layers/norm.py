"""RMS normalisation (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rowwise import RowWise


class RMSNorm(RowWise):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the dtype of x (sums in float32)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.in_features = size
        self.eps = eps

    def rows(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
