"""Activations, plain and gated."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from ...kernels.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from ...kernels.registry import choose
from .rowwise import RowWise

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

_gelu_tanh = partial(F.gelu, approximate="tanh")

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""By the names that config.json has for them."""

GATED: dict[Callable[[Tensor], Tensor], tuple[str, Callable[[Tensor], Tensor]]] = {
    F.silu: ("silu_and_mul", silu_and_mul),
    F.gelu: ("gelu_and_mul", gelu_and_mul),
    _gelu_tanh: ("gelu_tanh_and_mul", gelu_tanh_and_mul),
}
"""Which of them have a kernel that multiplies too, and its plain form."""


class Activation(RowWise):
    """[T, N] -> [T, N]."""

    def __init__(self, in_features: int, act: str) -> None:
        super().__init__()
        self.in_features = in_features
        self.act = act

    def rows(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.act](x)


class GatedActivation(RowWise):
    """[T, 2 N] -> [T, N]: act of the first half times the second (GLU variants, Shazeer, arXiv 2002.05202)."""

    def __init__(self, in_features: int, act: str) -> None:
        super().__init__()
        self.in_features = in_features
        self.act = act
        function = FUNCTIONS[act]
        self.operation: str | None = None
        self.kernel: Callable[[Tensor], Tensor] = partial(_act_and_mul, function)
        if function in GATED:
            self.operation, self.kernel = GATED[function]

    def choose_kernels(self, device: torch.device, act_dtype: torch.dtype) -> None:
        if self.operation is not None:
            self.kernel = choose(self.operation, device=device, dtype=act_dtype, size=self.in_features // 2).run

    def rows(self, x: Tensor) -> Tensor:
        return self.kernel(x)


class SiluAndMul(GatedActivation):
    """silu of the first half times the second (SwiGLU, in the same paper)."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, "silu")


def gated(in_features: int, act: str) -> RowWise:
    """The gated activation of that name over [T, in_features]."""
    return SiluAndMul(in_features) if act == "silu" else GatedActivation(in_features, act)


def _act_and_mul(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return function(gate) * up
