"""Decode attention: a program per request, KV head and split; the KV head's query heads are the rows of its tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, num_units, power_of_2
from .merge_states import merge_into
from .tiles import cached_keys, finished

MIN_SPLIT = 128  # keys: a shorter split costs more than it saves
MOST_SPLITS = 64


@triton.jit
def _decode(
    q_ptr, k_ptr, v_ptr, table_ptr, rows_ptr, starts_ptr, ends_ptr, q_rows_ptr, out_ptr, lse_ptr, scale, cap,
    q_stride, q_head_stride, kv_stride, kv_head_stride, table_stride, out_stride, out_part_stride, out_head_stride,
    lse_stride, lse_part_stride, num_splits,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MIN_KEYS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    member = tl.arange(0, BLOCK_M)
    heads = kv_head * GROUP + member
    exists = member < GROUP
    start = tl.load(starts_ptr + request).to(tl.int32)
    end = tl.load(ends_ptr + request).to(tl.int32)
    # how many splits are worth their while is the request's own matter, so that the grid can stay the same
    splits = tl.minimum(num_splits, tl.cdiv(tl.maximum(end - start, 1), MIN_KEYS))
    per_split = tl.cdiv(tl.cdiv(tl.maximum(end - start, 1), splits), BLOCK_N) * BLOCK_N
    begin = start + split * per_split
    end = tl.minimum(end, begin + per_split)
    lse_at = lse_ptr + request * lse_stride + split * lse_part_stride + heads
    if begin >= end:
        tl.store(lse_at, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=exists)
        if num_splits == 1:  # nobody merges
            columns = tl.arange(0, BLOCK_D)
            out_at = out_ptr + request * out_stride + heads[:, None] * out_head_stride + columns[None, :]
            zeros = tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty)
            tl.store(out_at, zeros, mask=exists[:, None] & (columns < SIZE)[None, :])
    else:
        columns = tl.arange(0, BLOCK_D)
        inside = exists[:, None] & (columns < SIZE)[None, :]
        q_row = request
        if HAS_ROWS:
            q_row = tl.load(q_rows_ptr + request)
        q = tl.load(
            q_ptr + q_row * q_stride + heads[:, None] * q_head_stride + columns[None, :], mask=inside, other=0.0
        )
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        table = table_ptr + tl.load(rows_ptr + request) * table_stride
        acc, top, total = cached_keys(
            q, acc, top, total, k_ptr, v_ptr, table, kv_head * kv_head_stride, kv_stride, begin, end, scale, cap,
            member, 0, SIZE, BLOCK_D, BLOCK_N, HAS_CAP, False, PRECISION,
        )  # fmt: skip
        out, lse = finished(acc, top, total)
        out_at = out_ptr + request * out_stride + split * out_part_stride
        out_at += heads[:, None] * out_head_stride + columns[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(lse_at, lse, mask=exists)


def decode_splits(device: torch.device, num_programs: int, max_keys: int | None = None) -> int:
    """Into how many splits a decode of so many (request, KV head) pairs is worth cutting, to fill the device.

    `max_keys` None (not known: a captured graph) leaves it to the kernel to use fewer.
    """
    splits = ceil_div(2 * num_units(device), max(1, num_programs))
    if max_keys is not None:
        splits = min(splits, ceil_div(max_keys, MIN_SPLIT))
    return max(1, min(MOST_SPLITS, splits))


def decode_parts(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, starts: Tensor, ends: Tensor,
    outs: Tensor, lses: Tensor, scale: float, logit_cap: float = 0.0, q_rows: Tensor | None = None,
) -> None:  # fmt: skip
    """Partial results of each request, one per split: into outs [B, splits, heads, D], lses [B, splits, heads].

    Arguments as for `decode_attention`. q_rows [B]: the row of q that is request b's (None: row b). outs may be of any
    dtype and strides; a split without keys leaves its outs as they are, unless there is one split only.
    """
    num_requests, splits, heads, size = outs.shape
    kv_heads = k_cache.shape[1]
    if num_requests == 0:
        return
    group = heads // kv_heads
    block_m = max(16, power_of_2(group))
    block_d = power_of_2(size)
    _decode[(num_requests, kv_heads, splits)](
        q, k_cache, v_cache, table, rows, starts, ends, q_rows, outs, lses, scale, logit_cap,
        q.stride(0), q.stride(1), k_cache.stride(0), k_cache.stride(1), table.stride(0),
        outs.stride(0), outs.stride(1), outs.stride(2), lses.stride(0), lses.stride(1), splits,
        GROUP=group, SIZE=size, BLOCK_D=block_d, BLOCK_M=block_m,
        BLOCK_N=keys_per_step(q.dtype, block_d), MIN_KEYS=MIN_SPLIT,
        HAS_CAP=logit_cap != 0.0, HAS_ROWS=q_rows is not None, PRECISION=precision_of(q.dtype),
        num_warps=4, num_stages=4,
    )  # fmt: skip


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, starts: Tensor, ends: Tensor,
    scale: float, logit_cap: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_requests, heads, size = q.shape
    splits = decode_splits(q.device, num_requests * k_cache.shape[1], table.shape[1])
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((num_requests, heads), dtype=torch.float32, device=q.device)
    if splits == 1:
        decode_parts(
            q, k_cache, v_cache, table, rows, starts, ends, out.unsqueeze(1), lse.unsqueeze(1), scale, logit_cap
        )
        return out, lse
    outs = torch.empty((num_requests, splits, heads, size), dtype=torch.float32, device=q.device)
    lses = torch.empty((num_requests, splits, heads), dtype=torch.float32, device=q.device)
    decode_parts(q, k_cache, v_cache, table, rows, starts, ends, outs, lses, scale, logit_cap)
    merge_into(out, outs, lses, None, lse)
    return out, lse


def keys_per_step(dtype: torch.dtype, block_d: int) -> int:
    """Keys of one step of the inner loop: what two stages of K and V leave room for in shared memory."""
    return 32 if dtype == torch.float32 or block_d > 128 else 64


def precision_of(dtype: torch.dtype) -> str:
    """Products of float32 are computed as such, not in tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"
