"""The MLP without a gate."""

from __future__ import annotations

from torch import Tensor, nn

from .activation import Activation
from .linear import Linear


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, hidden_size: int, inner_size: int, act: str, bias: bool) -> None:
        super().__init__()
        self.up_proj = Linear(hidden_size, inner_size, bias)
        self.act = Activation(inner_size, act)
        self.down_proj = Linear(inner_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        out: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return out
