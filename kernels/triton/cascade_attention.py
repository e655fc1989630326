"""Cascade attention: a program per tile of a group's rows, KV head, group and split of the shared keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decode_attention import decode_splits, keys_per_step, precision_of
from .extend_attention import num_tiles, rows_per_tile
from .launch import power_of_2
from .merge_states import merge_into
from .tiles import cached_keys, finished


@triton.jit
def _cascade(
    q_ptr, k_ptr, v_ptr, table_ptr, rows_ptr, starts_ptr, ends_ptr, members_ptr, member_starts_ptr, q_rows_ptr,
    out_ptr, lse_ptr, scale, cap,
    q_stride, q_head_stride, kv_stride, kv_head_stride, table_stride, out_stride, out_part_stride, out_head_stride,
    lse_stride, lse_part_stride, num_splits,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(1)
    segment = tl.program_id(2) // num_splits
    split = tl.program_id(2) % num_splits
    first = tl.load(member_starts_ptr + segment) + tl.program_id(0) * ROWS
    last = tl.load(member_starts_ptr + segment + 1)
    if first < last:
        place = tl.arange(0, BLOCK_M)
        member = first + place // GROUP
        exists = (place < ROWS * GROUP) & (member < last)
        heads = kv_head * GROUP + place % GROUP
        columns = tl.arange(0, BLOCK_D)
        inside = exists[:, None] & (columns < SIZE)[None, :]
        row = tl.load(members_ptr + member, mask=exists, other=0)
        q_row = row
        if HAS_ROWS:
            q_row = tl.load(q_rows_ptr + row, mask=exists, other=0)
        q = tl.load(
            q_ptr + q_row[:, None] * q_stride + heads[:, None] * q_head_stride + columns[None, :],
            mask=inside, other=0.0,
        )  # fmt: skip
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        start = tl.load(starts_ptr + segment).to(tl.int32)
        end = tl.load(ends_ptr + segment).to(tl.int32)
        per_split = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), num_splits), BLOCK_N) * BLOCK_N
        begin = start + split * per_split
        table = table_ptr + tl.load(rows_ptr + segment) * table_stride
        acc, top, total = cached_keys(
            q, acc, top, total, k_ptr, v_ptr, table, kv_head * kv_head_stride, kv_stride,
            begin, tl.minimum(end, begin + per_split), scale, cap, place, 0,
            SIZE, BLOCK_D, BLOCK_N, HAS_CAP, False, PRECISION,
        )  # fmt: skip
        out, lse = finished(acc, top, total)
        out_at = out_ptr + row[:, None] * out_stride + split * out_part_stride
        out_at += heads[:, None] * out_head_stride + columns[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(lse_ptr + row * lse_stride + split * lse_part_stride + heads, lse, mask=exists)


def cascade_parts(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, starts: Tensor, ends: Tensor,
    members: Tensor, member_starts: Tensor, outs: Tensor, lses: Tensor, scale: float, logit_cap: float,
    max_members: int, q_rows: Tensor | None = None,
) -> None:  # fmt: skip
    """Partial results of the groups' rows, one per split, into outs [n, splits, heads, D] and lses [n, splits, heads].

    Arguments as for `cascade_attention`. With q_rows [n] the members name rows of outs, and row i of outs is row
    q_rows[i] of q. Rows in no group are left as they are.
    """
    _, splits, heads, size = outs.shape
    num_groups, kv_heads = rows.shape[0], k_cache.shape[1]
    if num_groups == 0 or max_members == 0:
        return
    group = heads // kv_heads
    block_m, block_d = rows_per_tile(group, size, max_members), power_of_2(size)
    grid = (num_tiles(max_members, heads, kv_heads, size), kv_heads, num_groups * splits)
    _cascade[grid](
        q, k_cache, v_cache, table, rows, starts, ends, members, member_starts, q_rows, outs, lses, scale, logit_cap,
        q.stride(0), q.stride(1), k_cache.stride(0), k_cache.stride(1), table.stride(0),
        outs.stride(0), outs.stride(1), outs.stride(2), lses.stride(0), lses.stride(1), splits,
        GROUP=group, SIZE=size, BLOCK_D=block_d, BLOCK_M=block_m, BLOCK_N=keys_per_step(q.dtype, block_d),
        HAS_CAP=logit_cap != 0.0, HAS_ROWS=q_rows is not None, PRECISION=precision_of(q.dtype),
        num_warps=8 if block_m * block_d >= 1 << 14 else 4, num_stages=2,
    )  # fmt: skip


def cascade_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, starts: Tensor, ends: Tensor,
    members: Tensor, member_starts: Tensor, scale: float, logit_cap: float = 0.0, max_members: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_rows, heads, size = q.shape
    if max_members is None:
        max_members = int(member_starts.diff().max()) if rows.numel() else 0
    kv_heads = k_cache.shape[1]
    tiles = rows.shape[0] * kv_heads * num_tiles(max_members, heads, kv_heads, size)
    splits = decode_splits(q.device, tiles, table.shape[1])
    outs = torch.empty((num_rows, splits, heads, size), dtype=torch.float32, device=q.device)
    lses = torch.full((num_rows, splits, heads), float("-inf"), dtype=torch.float32, device=q.device)
    cascade_parts(
        q, k_cache, v_cache, table, rows, starts, ends, members, member_starts, outs, lses, scale, logit_cap,
        max_members,
    )  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((num_rows, heads), dtype=torch.float32, device=q.device)
    merge_into(out, outs, lses, None, lse)
    return out, lse
