"""Matrix products with the weights of a checkpoint, alone or several in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rowwise import RowWise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear with a weight in oneDNN's order."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


class Linear(RowWise):
    """y = x W^T + b, weight [out, in] in the checkpoint's dtype. x is cast to that dtype and y back to x's.

    The weight may stand there once more in an order that products like better (see `packing`): `native` is the product
    in C++, for float32 x; `packed` the weight in oneDNN's order, for products of `packed_from` rows or more; `single`
    weight and bias in float32, for one row of float32.
    """

    native: Callable[[Tensor], Tensor] | None = None
    packed: Tensor | None = None
    packed_from = 1
    single: tuple[Tensor, Tensor | None] | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def rows(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if self.native is not None and dtype == torch.float32:
            return self.native(x)
        if self.single is not None and x.shape[0] == 1 and dtype == torch.float32:
            return F.linear(x, *self.single)
        if dtype != self.weight.dtype:
            x = x.to(self.weight.dtype)
        if self.packed is not None and x.shape[0] >= self.packed_from:
            return packed_product(x, self.packed, self.bias).to(dtype)
        return F.linear(x, self.weight, self.bias).to(dtype)

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, where its values go) of each tensor this layer takes; `prefix` is the layer's own name."""
        for name, param in self.named_parameters(recurse=False):
            yield f"{prefix}.{name}", param.data


class MergedLinear(Linear):
    """Several products of the same input in one: the parts' weights stand one under the other.

    `parts` are the checkpoint's names (the last component of each, such as `q_proj`) and output sizes, in order.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], bias: bool = False) -> None:
        super().__init__(in_features, sum(parts.values()), bias)
        self.parts = dict(parts)
        self.sizes = tuple(parts.values())

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        parent = prefix.rpartition(".")[0]
        for name, param in self.named_parameters(recurse=False):
            start = 0
            for part, size in self.parts.items():
                yield f"{parent}.{part}.{name}" if parent else f"{part}.{name}", param.data[start : start + size]
                start += size
