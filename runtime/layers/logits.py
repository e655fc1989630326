"""Hidden states to logits, of the wanted rows only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .linear import Linear


class LogitsProcessor(nn.Module):
    """float32 logits of rows of the final hidden states; c * tanh(x / c) where the model has a final soft cap c."""

    def __init__(self, final_logit_cap: float = 0.0) -> None:
        super().__init__()
        self.final_logit_cap = final_logit_cap

    def forward(self, hidden: Tensor, lm_head: Linear) -> Tensor:
        """[R, H] -> [R, V] float32."""
        logits: Tensor = lm_head(hidden).float()
        if self.final_logit_cap:
            logits = torch.tanh(logits / self.final_logit_cap) * self.final_logit_cap
        return logits
