"""Gated activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .rowwise import RowWise


class SiluAndMul(RowWise):
    """[T, 2 N] -> [T, N]: silu of the first half times the second (SwiGLU, Shazeer, arXiv 2002.05202)."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features

    def rows(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
