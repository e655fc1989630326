"""KV store and copy: a program per token, which writes keys and values."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import power_of_2, warps_for


@triton.jit
def _store_kv(
    k_cache_ptr, v_cache_ptr, slots_ptr, k_ptr, v_ptr, cache_stride, k_stride, v_stride, size, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    k = tl.load(k_ptr + row * k_stride + columns, mask=inside)
    v = tl.load(v_ptr + row * v_stride + columns, mask=inside)
    tl.store(k_cache_ptr + slot * cache_stride + columns, k.to(k_cache_ptr.dtype.element_ty), mask=inside)
    tl.store(v_cache_ptr + slot * cache_stride + columns, v.to(v_cache_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _copy_kv(k_cache_ptr, v_cache_ptr, source_ptr, target_ptr, cache_stride, size, BLOCK: tl.constexpr):
    source = tl.load(source_ptr + tl.program_id(0)) * cache_stride
    target = tl.load(target_ptr + tl.program_id(0)) * cache_stride
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    tl.store(k_cache_ptr + target + columns, tl.load(k_cache_ptr + source + columns, mask=inside), mask=inside)
    tl.store(v_cache_ptr + target + columns, tl.load(v_cache_ptr + source + columns, mask=inside), mask=inside)


def store_kv(k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    size = k.shape[1] * k.shape[2]
    if slots.shape[0] == 0:
        return
    block = power_of_2(size)
    k, v = _packed(k), _packed(v)
    _store_kv[(slots.shape[0],)](
        k_cache, v_cache, slots, k, v, k_cache.stride(0), k.stride(0), v.stride(0), size,
        BLOCK=block, num_warps=warps_for(block),
    )  # fmt: skip


def copy_kv(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
    size = k_cache.shape[1] * k_cache.shape[2]
    if source.shape[0] == 0:
        return
    block = power_of_2(size)
    _copy_kv[(source.shape[0],)](
        k_cache, v_cache, source, target, k_cache.stride(0), size, BLOCK=block, num_warps=warps_for(block)
    )


def _packed(x: Tensor) -> Tensor:
    """x [T, heads, D] whose heads lie side by side; rows may be far apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
