"""Argmax of long rows: a program per row and split, then one per row over the splits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, num_units, power_of_2

BLOCK = 4096
MOST_SPLITS = 64
LAST = tl.constexpr(2**31 - 1)


@triton.jit
def ranked(x):
    """NaN above everything, as torch has it."""
    return tl.where(x != x, float("inf"), x), (x != x).to(tl.int32)


@triton.jit
def _argmax_splits(x_ptr, values_ptr, places_ptr, x_stride, size, per_split, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    begin = split * per_split
    end = tl.minimum(size, begin + per_split)
    columns = tl.arange(0, BLOCK)
    # each lane keeps its own best; the first of equal ones, since columns ascend
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_nan = tl.zeros([BLOCK], tl.int32)
    place = begin + columns
    for first in range(begin, end, BLOCK):
        at = first + columns
        x = tl.load(x_ptr + row * x_stride + at, mask=at < end, other=float("-inf"))
        value, is_nan = ranked(x)
        better = (is_nan > best_nan) | ((is_nan == best_nan) & (value > best))
        best = tl.where(better, value, best)
        best_nan = tl.where(better, is_nan, best_nan)
        place = tl.where(better, at, place)
    any_nan = tl.max(best_nan, 0)
    best = tl.where(best_nan == any_nan, best, float("-inf"))
    top = tl.max(best, 0)
    here = (best_nan == any_nan) & (best == top)
    out = row * tl.num_programs(1) + split
    tl.store(values_ptr + out, tl.where(any_nan > 0, float("nan"), top))
    tl.store(places_ptr + out, tl.min(tl.where(here, place, LAST), 0))


@triton.jit
def _argmax_join(values_ptr, places_ptr, out_ptr, splits, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK)
    x = tl.load(values_ptr + row * splits + split, mask=split < splits, other=float("-inf"))
    place = tl.load(places_ptr + row * splits + split, mask=split < splits, other=LAST)
    value, is_nan = ranked(x)
    any_nan = tl.max(is_nan, 0)
    value = tl.where(is_nan == any_nan, value, float("-inf"))
    here = (is_nan == any_nan) & (value == tl.max(value, 0))
    tl.store(out_ptr + row, tl.min(tl.where(here, place, LAST), 0).to(tl.int64))


def argmax_rows(x: Tensor) -> Tensor:
    num_rows, size = x.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=x.device)
    if num_rows == 0:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    block = min(BLOCK, power_of_2(size))
    splits = max(1, min(MOST_SPLITS, ceil_div(size, block), ceil_div(num_units(x.device), num_rows)))
    per_split = ceil_div(ceil_div(size, splits), block) * block
    splits = ceil_div(size, per_split)
    values = torch.empty((num_rows, splits), dtype=torch.float32, device=x.device)
    places = torch.empty((num_rows, splits), dtype=torch.int32, device=x.device)
    _argmax_splits[(num_rows, splits)](
        x, values, places, x.stride(0), size, per_split, BLOCK=block, num_warps=8 if block >= 2048 else 4
    )
    _argmax_join[(num_rows,)](values, places, out, splits, BLOCK=power_of_2(splits), num_warps=1)
    return out
