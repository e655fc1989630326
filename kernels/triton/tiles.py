"""The inner step that all attention kernels share: scores of a tile, and the running softmax (FlashAttention)."""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import tanh

LOG2E = tl.constexpr(1.4426950408889634)  # exponentials are powers of two on a GPU
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scored(q, k, scale, cap, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr):
    """q [M, D], k [D, N] -> scores in units of log2(e), float32 [M, N]."""
    scores = tl.dot(q, k, input_precision=PRECISION) * scale
    if HAS_CAP:
        scores = cap * tanh(scores / cap)
    return scores * LOG2E


@triton.jit
def stepped(acc, top, total, scores, v, PRECISION: tl.constexpr):
    """(acc, top, total) after the keys of `scores` [M, N] (-inf: not seen) with values v [N, D]."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # rows that have seen nothing yet stay at nothing
    kept = tl.exp2(top - base)
    weights = tl.exp2(scores - base[:, None])
    acc = acc * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return acc, new_top, total * kept + tl.sum(weights, 1)


@triton.jit
def finished(acc, top, total):
    """(out [M, D], lse [M]) of a running softmax; 0 and -inf for rows that saw nothing."""
    seen = total > 0.0
    out = acc / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, (top + tl.log2(tl.where(seen, total, 1.0))) * LN2, float("-inf"))
    return out, lse


@triton.jit
def cached_keys(
    q, acc, top, total, k_ptr, v_ptr, table_ptr, head_offset, kv_stride, begin, end, scale, cap, positions, window,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax of q [M, D] over keys begin..end of one sequence, whose row of the table `table_ptr` is.

    With a window row m sees keys above positions[m] - window only.
    """
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < SIZE
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        exists = keys < end
        slots = tl.load(table_ptr + keys, mask=exists, other=0).to(tl.int64)
        at = slots * kv_stride + head_offset
        k = tl.load(k_ptr + at[None, :] + columns[:, None], mask=exists[None, :] & in_head[:, None], other=0.0)
        scores = scored(q, k.to(q.dtype), scale, cap, HAS_CAP, PRECISION)
        sees = exists[None, :]
        if HAS_WINDOW:
            sees = sees & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(sees, scores, float("-inf"))
        v = tl.load(v_ptr + at[:, None] + columns[None, :], mask=exists[:, None] & in_head[None, :], other=0.0)
        acc, top, total = stepped(acc, top, total, scores, v.to(q.dtype), PRECISION)
    return acc, top, total
