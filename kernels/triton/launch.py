"""What the wrappers of Triton kernels share: block sizes, warps, and what is known of the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

CPU_UNITS = 4  # the interpreter's tests see several splits with this


def power_of_2(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, by: int) -> int:
    return -(-n // by)


def warps_for(block: int) -> int:
    """Warps of a program over a block of so many values: 8 values a thread, up to 16 warps."""
    return min(16, max(1, power_of_2(block // 256)))


def as_rows(x: Tensor) -> Tensor:
    """[..., N] as [R, N] with neighbouring columns, copied only where it has to be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@cache
def _num_units(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def num_units(device: torch.device) -> int:
    """Multiprocessors of the device: how many programs run side by side, at least."""
    return _num_units(device.index or 0) if device.type == "cuda" else CPU_UNITS
