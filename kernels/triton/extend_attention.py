"""Extend and tree attention: a program per tile of rows, KV head, request and split of its cached keys.

A tile holds a few rows with all query heads of one KV head, so that each key is read once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decode_attention import MIN_SPLIT, MOST_SPLITS, keys_per_step, precision_of
from .launch import ceil_div, num_units, power_of_2
from .merge_states import merge_into
from .tiles import cached_keys, finished, scored, stepped


@triton.jit
def _extend(
    q_ptr, k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, table_ptr, rows_ptr, row_starts_ptr, num_rows_ptr,
    prefix_starts_ptr, prefix_lens_ptr, sees_ptr, depths_ptr, out_ptr, lse_ptr, scale, cap, window,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, kv_stride, kv_head_stride, table_stride,
    sees_stride, num_words, out_stride, out_part_stride, out_head_stride, lse_stride, lse_part_stride, num_splits,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, TREE: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(1)
    request = tl.program_id(2) // num_splits
    split = tl.program_id(2) % num_splits
    num_rows = tl.load(num_rows_ptr + request).to(tl.int32)
    first_row = tl.program_id(0) * ROWS
    if first_row < num_rows:
        place = tl.arange(0, BLOCK_M)
        local = first_row + place // GROUP
        heads = kv_head * GROUP + place % GROUP
        exists = (place < ROWS * GROUP) & (local < num_rows)
        columns = tl.arange(0, BLOCK_D)
        in_head = columns < SIZE
        inside = exists[:, None] & in_head[None, :]
        row_start = tl.load(row_starts_ptr + request)
        row = row_start + local
        q = tl.load(
            q_ptr + row[:, None] * q_stride + heads[:, None] * q_head_stride + columns[None, :],
            mask=inside, other=0.0,
        )  # fmt: skip
        prefix_len = tl.load(prefix_lens_ptr + request).to(tl.int32)
        if TREE:
            positions = prefix_len + tl.load(depths_ptr + row, mask=exists, other=0).to(tl.int32)
        else:
            positions = prefix_len + local
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)

        begin = tl.load(prefix_starts_ptr + request).to(tl.int32)
        if HAS_WINDOW:  # a tree's rows may stand at the prefix's end, however many there are
            begin = tl.maximum(begin, prefix_len + (0 if TREE else first_row) - window + 1)
        per_split = tl.cdiv(tl.cdiv(tl.maximum(prefix_len - begin, 0), num_splits), BLOCK_N) * BLOCK_N
        begin += split * per_split
        table = table_ptr + tl.load(rows_ptr + request) * table_stride
        acc, top, total = cached_keys(
            q, acc, top, total, k_cache_ptr, v_cache_ptr, table, kv_head * kv_head_stride, kv_stride,
            begin, tl.minimum(prefix_len, begin + per_split), scale, cap, positions, window,
            SIZE, BLOCK_D, BLOCK_N, HAS_CAP, HAS_WINDOW, PRECISION,
        )  # fmt: skip

        new_begin = 0
        new_end = num_rows
        if CAUSAL:
            new_end = tl.minimum(num_rows, first_row + ROWS)
            if HAS_WINDOW and not TREE:
                new_begin = tl.maximum(0, first_row - window + 1)
        if split != num_splits - 1:  # the last split has the new rows
            new_end = new_begin
        for first in range(new_begin, new_end, BLOCK_N):
            keys = first + tl.arange(0, BLOCK_N)
            key_exists = keys < new_end
            key_row = row_start + keys
            k = tl.load(
                k_ptr + key_row[None, :] * k_stride + kv_head * k_head_stride + columns[:, None],
                mask=key_exists[None, :] & in_head[:, None], other=0.0,
            )  # fmt: skip
            scores = scored(q, k.to(q.dtype), scale, cap, HAS_CAP, PRECISION)
            sees = key_exists[None, :]
            if TREE:
                words = tl.load(
                    sees_ptr + row[:, None] * sees_stride + (keys // 32)[None, :],
                    mask=exists[:, None] & (keys // 32 < num_words)[None, :], other=0,
                )  # fmt: skip
                sees = sees & (((words >> (keys % 32)[None, :]) & 1) != 0)
            elif CAUSAL:
                sees = sees & (keys[None, :] <= local[:, None])
            if HAS_WINDOW:
                if TREE:
                    key_positions = prefix_len + tl.load(depths_ptr + key_row, mask=key_exists, other=0).to(tl.int32)
                else:
                    key_positions = prefix_len + keys
                sees = sees & (key_positions[None, :] > positions[:, None] - window)
            scores = tl.where(sees, scores, float("-inf"))
            v = tl.load(
                v_ptr + key_row[:, None] * v_stride + kv_head * v_head_stride + columns[None, :],
                mask=key_exists[:, None] & in_head[None, :], other=0.0,
            )  # fmt: skip
            acc, top, total = stepped(acc, top, total, scores, v.to(q.dtype), PRECISION)

        out, lse = finished(acc, top, total)
        out_at = out_ptr + row[:, None] * out_stride + split * out_part_stride
        out_at += heads[:, None] * out_head_stride + columns[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(lse_ptr + row * lse_stride + split * lse_part_stride + heads, lse, mask=exists)


def extend_splits(device: torch.device, num_programs: int, max_prefix: int) -> int:
    """Into how many splits the cached keys are worth cutting: few tiles before a long prefix leave a device idle."""
    return max(1, min(MOST_SPLITS, num_units(device) // max(1, num_programs), ceil_div(max_prefix, 4 * MIN_SPLIT)))


def rows_per_tile(group: int, size: int, max_rows: int) -> int:
    """BLOCK_M: heads times rows of a tile, at least 16, at most 128 (64 for heads over 128 wide)."""
    largest = 64 if size > 128 else 128
    return max(16, power_of_2(group), min(largest, power_of_2(group * max_rows)))


def num_tiles(max_rows: int, heads: int, kv_heads: int, size: int) -> int:
    """How many tiles the rows of one request, or of one group, and KV head take."""
    group = heads // kv_heads
    return ceil_div(max_rows, rows_per_tile(group, size, max_rows) // group)


def extend_into(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor,
    rows: Tensor, row_starts: Tensor, num_rows: Tensor, prefix_starts: Tensor, prefix_lens: Tensor, scale: float,
    logit_cap: float, window: int | None, causal: bool, max_rows: int,
    sees: Tensor | None = None, depths: Tensor | None = None,
) -> None:  # fmt: skip
    """Results of the requests' rows into out [T, splits, heads, D] and lse [T, splits, heads] float32.

    Arguments as for `extend_attention`, and with `sees` as for `tree_attention`.
    """
    _, splits, heads, size = out.shape
    num_requests, kv_heads = rows.shape[0], k_cache.shape[1]
    if num_requests == 0 or max_rows == 0:
        return
    group = heads // kv_heads
    block_m, block_d = rows_per_tile(group, size, max_rows), power_of_2(size)
    grid = (num_tiles(max_rows, heads, kv_heads, size), kv_heads, num_requests * splits)
    _extend[grid](
        q, k, v, k_cache, v_cache, table, rows, row_starts, num_rows, prefix_starts, prefix_lens, sees, depths,
        out, lse, scale, logit_cap, window or 0,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(0), k_cache.stride(1), table.stride(0),
        0 if sees is None else sees.stride(0), 0 if sees is None else sees.shape[1],
        out.stride(0), out.stride(1), out.stride(2), lse.stride(0), lse.stride(1), splits,
        GROUP=group, SIZE=size, BLOCK_D=block_d, BLOCK_M=block_m, BLOCK_N=keys_per_step(q.dtype, block_d),
        CAUSAL=causal, TREE=sees is not None, HAS_CAP=logit_cap != 0.0, HAS_WINDOW=window is not None,
        PRECISION=precision_of(q.dtype), num_warps=8 if block_m * block_d >= 1 << 14 else 4, num_stages=2,
    )  # fmt: skip


def extend_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, row_starts: Tensor,
    num_rows: Tensor, prefix_starts: Tensor, prefix_lens: Tensor, scale: float, logit_cap: float = 0.0,
    window: int | None = None, causal: bool = True, max_rows: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _attended(
        q, k, v, k_cache, v_cache, table, rows, row_starts, num_rows, prefix_starts, prefix_lens, scale, logit_cap,
        window, causal, max_rows, None, None,
    )  # fmt: skip


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, row_starts: Tensor,
    num_rows: Tensor, prefix_starts: Tensor, prefix_lens: Tensor, sees: Tensor, depths: Tensor, scale: float,
    logit_cap: float = 0.0, window: int | None = None, max_rows: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _attended(
        q, k, v, k_cache, v_cache, table, rows, row_starts, num_rows, prefix_starts, prefix_lens, scale, logit_cap,
        window, True, max_rows, sees, depths,
    )  # fmt: skip


def _attended(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, rows: Tensor, row_starts: Tensor,
    num_rows: Tensor, prefix_starts: Tensor, prefix_lens: Tensor, scale: float, logit_cap: float, window: int | None,
    causal: bool, max_rows: int | None, sees: Tensor | None, depths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_tokens, heads, size = q.shape
    if max_rows is None:
        max_rows = int(num_rows.max()) if num_rows.numel() else 0
    kv_heads = k_cache.shape[1]
    tiles = rows.shape[0] * num_tiles(max_rows, heads, kv_heads, size)
    splits = extend_splits(q.device, tiles * kv_heads, table.shape[1])
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((num_tokens, heads), dtype=torch.float32, device=q.device)
    outs, lses = out.unsqueeze(1), lse.unsqueeze(1)
    if splits > 1:
        outs = torch.empty((num_tokens, splits, heads, size), dtype=torch.float32, device=q.device)
        lses = torch.empty((num_tokens, splits, heads), dtype=torch.float32, device=q.device)
    extend_into(
        outs, lses, q, k, v, k_cache, v_cache, table, rows, row_starts, num_rows, prefix_starts, prefix_lens,
        scale, logit_cap, window, causal, max_rows, sees, depths,
    )  # fmt: skip
    if splits > 1:
        merge_into(out, outs, lses, None, lse)
    return out, lse
