"""Token ids to vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """weight [vocab, hidden] in the checkpoint's dtype; the vectors come out in `dtype`, the activations' own."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[T] int64 -> [T, hidden]."""
        return F.embedding(ids, self.weight).to(dtype)
