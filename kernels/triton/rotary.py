"""Rotary embedding: a program per row and block of heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, power_of_2

HEADS = 8  # of one program


@triton.jit
def _rotary(
    x_ptr, cos_ptr, sin_ptr, out_ptr, x_stride, x_head_stride, cos_stride, sin_stride, num_heads,
    SIZE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_D)
    inside = (heads < num_heads)[:, None] & (pair < HALF)[None, :]
    cos = tl.load(cos_ptr + row * cos_stride + pair, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + row * sin_stride + pair, mask=pair < HALF, other=0.0)[None, :]
    if INTERLEAVED:
        first_at, second_at = 2 * pair, 2 * pair + 1
    else:
        first_at, second_at = pair, pair + HALF
    x_at = x_ptr + row * x_stride + heads[:, None] * x_head_stride
    out_at = out_ptr + (row * num_heads + heads[:, None]) * SIZE
    first = tl.load(x_at + first_at[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_at + second_at[None, :], mask=inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_at + first_at[None, :], (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(out_at + second_at[None, :], (second * cos + first * sin).to(dtype), mask=inside)
    if 2 * HALF < SIZE:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        is_rest = (heads < num_heads)[:, None] & (rest < SIZE)
        tl.store(out_at + rest, tl.load(x_at + rest, mask=is_rest), mask=is_rest)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    num_rows, num_heads, size = x.shape
    half = cos.shape[-1]
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        _rotary[(num_rows, ceil_div(num_heads, HEADS))](
            x, cos, sin, out, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0), num_heads,
            SIZE=size, HALF=half, INTERLEAVED=interleaved, BLOCK_H=HEADS, BLOCK_D=power_of_2(half),
            BLOCK_REST=power_of_2(max(1, size - 2 * half)), num_warps=2,
        )  # fmt: skip
    return out
