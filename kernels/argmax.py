"""The largest value of each row: greedy choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("argmax_rows", Implementation("triton", ".triton.argmax:argmax_rows", dtypes=(torch.float32,)))
def argmax_rows(x: Tensor) -> Tensor:
    """x [B, V] float32 -> [B] int64: the first column with the largest value; the first NaN where there is one."""
    return x.argmax(dim=1)
