"""RMS normalisation: a program per row, the row in registers, read once and written once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .launch import as_rows, power_of_2, warps_for

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _normed(x, weight_ptr, columns, inside, size, eps):
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return x * scale * weight


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, x_stride, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    out = _normed(x, weight_ptr, columns, inside, size, eps)
    tl.store(out_ptr + row * size + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, x_stride, residual_stride, size, eps, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    total = (x + residual).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * size + columns, total, mask=inside)
    out = _normed(total.to(tl.float32), weight_ptr, columns, inside, size, eps)
    tl.store(out_ptr + row * size + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = as_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0]:
        block = power_of_2(rows.shape[1])
        _rms_norm[(rows.shape[0],)](
            rows, weight, out, rows.stride(0), rows.shape[1], eps, BLOCK=block, num_warps=warps_for(block)
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, residual_rows = as_rows(x), as_rows(residual)
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if rows.shape[0]:
        block = power_of_2(rows.shape[1])
        _add_rms_norm[(rows.shape[0],)](
            rows, residual_rows, weight, out, total, rows.stride(0), residual_rows.stride(0), rows.shape[1], eps,
            BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
    return out, total
