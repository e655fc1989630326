"""Joining of attention states: a program per row and head, all parts in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import power_of_2
from .tiles import LN2, LOG2E


@triton.jit
def _merge(
    outs_ptr, lses_ptr, rows_ptr, out_ptr, lse_ptr, parts, row_stride, part_stride, head_stride, lse_row_stride,
    lse_part_stride, out_row_stride, out_head_stride, num_heads,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LSE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_D)
    lses = tl.load(
        lses_ptr + row * lse_row_stride + part * lse_part_stride + head, mask=part < parts, other=float("-inf")
    )
    top = tl.max(lses, 0)
    seen = top > float("-inf")
    weights = tl.where(lses > float("-inf"), tl.exp2((lses - tl.where(seen, top, 0.0)) * LOG2E), 0.0)
    total = tl.sum(weights, 0)
    at = row * row_stride + part[:, None] * part_stride + head * head_stride + columns[None, :]
    outs = tl.load(outs_ptr + at, mask=(weights > 0.0)[:, None] & (columns < SIZE)[None, :], other=0.0)
    out = tl.sum(outs.to(tl.float32) * weights[:, None], 0) / tl.where(seen, total, 1.0)
    target = row
    if HAS_ROWS:
        target = tl.load(rows_ptr + row)
    tl.store(
        out_ptr + target * out_row_stride + head * out_head_stride + columns,
        out.to(out_ptr.dtype.element_ty), mask=columns < SIZE,
    )  # fmt: skip
    if HAS_LSE:
        lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)) * LN2, float("-inf"))
        tl.store(lse_ptr + target * num_heads + head, lse)


def merge_into(out: Tensor, outs: Tensor, lses: Tensor, rows: Tensor | None, lse: Tensor | None) -> None:
    """outs [n, parts, heads, D], lses [n, parts, heads] joined into rows `rows` (None: 0..n) of out and lse."""
    n, parts, heads, size = outs.shape
    if n == 0:
        return
    block_d, block_p = power_of_2(size), power_of_2(parts)
    _merge[(n, heads)](
        outs, lses, rows, out, lse, parts, outs.stride(0), outs.stride(1), outs.stride(2), lses.stride(0),
        lses.stride(1), out.stride(0), out.stride(1), heads,
        SIZE=size, BLOCK_D=block_d, BLOCK_P=block_p, HAS_ROWS=rows is not None, HAS_LSE=lse is not None,
        num_warps=min(8, max(1, block_d * block_p // 1024)),
    )  # fmt: skip


def merge_states(outs: Tensor, lses: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    n, _, heads, size = outs.shape
    out = torch.empty((n, heads, size), dtype=dtype, device=outs.device)
    lse = torch.empty((n, heads), dtype=torch.float32, device=outs.device)
    merge_into(out, outs, lses.contiguous(), None, lse)
    return out, lse
