"""Gated activations: a program per piece of a row; both halves are read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .launch import as_rows, ceil_div, power_of_2, warps_for

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_BLOCK = 2048


@triton.jit
def tanh(x):
    """Within 1e-7 of the real one: enough where a float32 of order 1 is made of it."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _activated(x, ACT: tl.constexpr):
    if ACT == "silu":
        return x / (1.0 + tl.exp(-x))
    if ACT == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def _act_and_mul(x_ptr, out_ptr, x_stride, size, ACT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + size + columns, mask=inside, other=0.0)
    act = _activated(gate, ACT).to(up.dtype).to(tl.float32)  # rounded in between, as two operations would
    tl.store(out_ptr + row * size + columns, (act * up.to(tl.float32)).to(up.dtype), mask=inside)


def _gated(x: Tensor, act: str) -> Tensor:
    rows = as_rows(x)
    size = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], size), dtype=x.dtype, device=x.device)
    if out.numel():
        block = min(LARGEST_BLOCK, power_of_2(size))
        grid = (rows.shape[0], ceil_div(size, block))
        _act_and_mul[grid](rows, out, rows.stride(0), size, ACT=act, BLOCK=block, num_warps=warps_for(block))
    return out


def silu_and_mul(x: Tensor) -> Tensor:
    return _gated(x, "silu")


def gelu_and_mul(x: Tensor) -> Tensor:
    return _gated(x, "gelu")


def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    return _gated(x, "gelu_tanh")
