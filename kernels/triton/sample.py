"""Drawing a token from each row: one program per row, nothing sorted.

The cuts of top-k and top-p are found digit by digit: the bits of a positive float32 order as its value does, so the
largest weight w with count(weights >= w) >= k, or with sum(weights >= w) >= p * sum, is built from its highest bits
down, three bits a pass (radix selection). Weights lie in a scratch tensor between passes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import power_of_2

BLOCK = 2048
M1, M2 = tl.constexpr(0x7FEB352D), tl.constexpr(0x846CA68B)
WEYL, MASK32 = tl.constexpr(0x9E3779B9), tl.constexpr(0xFFFFFFFF)
LATEST = tl.constexpr(30.0)
DIGITS = tl.constexpr(10)  # of three bits: weights are at most 1.0, whose bits are below 2^30


@triton.jit
def first_half(x):
    return (x ^ (x >> 16)) * tl.full((), M1, tl.uint32)


@triton.jit
def second_half(x):
    x = (x ^ (x >> 15)) * tl.full((), M2, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def mix(x):
    return second_half(first_half(x))


@triton.jit
def row_words(keys_ptr, steps_ptr, row):
    """(a, b) of `counter_hash` for a row."""
    lo = (tl.load(keys_ptr + 2 * row) & MASK32).to(tl.uint32)
    hi = (tl.load(keys_ptr + 2 * row + 1) & MASK32).to(tl.uint32)
    s = mix(((tl.load(steps_ptr + row) + WEYL) & MASK32).to(tl.uint32))
    a = mix(lo ^ s)
    return a, mix(hi ^ mix(a + s))


@triton.jit
def exponential(ids, a, b):
    """-log(1 - u) of the ids, at most LATEST: within 2 ulp on every device, whose own logarithms differ by more."""
    hashed = second_half(first_half(mix((ids + 1).to(tl.uint32)) ^ a) ^ b)
    u = (hashed.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    w = 1.0 - u
    rounding = ((1.0 - w) - u) / tl.where(w > 0.0, w, 1.0)  # what 1 - u lost, in units of w
    # log(w), w = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)]: FreeBSD's logf
    bits = tl.where(w > 0.0, w, 1.0).to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = z * (0.66666662693 + z * (0.40000972152 + z * (0.28498786688 + z * 0.24279078841)))
    half = 0.5 * f * f
    scale = k.to(tl.float32)
    log = scale * 0.69313812256 - ((half - (s * (half + series) + scale * 9.0580006145e-06)) - f)
    return tl.where(w > 0.0, tl.minimum(-(log + rounding), LATEST), LATEST)


@triton.jit
def _sample(
    logits_ptr, weights_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, keys_ptr, steps_ptr, ids_ptr,
    logits_stride, size, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    logits = logits_ptr + row * logits_stride
    weights = weights_ptr + row * size

    best = tl.full([BLOCK], float("-inf"), tl.float32)
    strange = tl.zeros([BLOCK], tl.int32)
    for first in range(0, size, BLOCK):
        x = tl.load(logits + first + columns, mask=first + columns < size, other=float("-inf"))
        strange += (x != x).to(tl.int32)
        best = tl.maximum(best, tl.where(x != x, float("-inf"), x))
    largest = tl.max(best, 0)
    if (tl.sum(strange, 0) > 0) | (largest == float("-inf")) | (largest == float("inf")):
        tl.store(ids_ptr + row, tl.full((), -1, tl.int64))
    else:
        temperature = tl.load(temperature_ptr + row)
        total = tl.zeros((), tl.float64)
        for first in range(0, size, BLOCK):
            inside = first + columns < size
            x = tl.load(logits + first + columns, mask=inside, other=float("-inf"))
            w = tl.exp((x - largest) / temperature)
            tl.store(weights + first + columns, w, mask=inside)
            total += tl.sum(w, 0).to(tl.float64)
        tl.debug_barrier()

        # `cut`: bits of the smallest weight kept; `num_equal`: how many of exactly that weight are
        cut = tl.zeros((), tl.int32)
        num_equal = tl.zeros((), tl.int64) + size
        digits = tl.arange(0, 8)
        top_k = tl.load(top_k_ptr + row)
        if top_k < size:
            for digit in range(DIGITS):
                shift = 27 - 3 * digit
                pivots = cut + (digits << shift)
                counts = tl.zeros([8], tl.int32)
                for first in range(0, size, BLOCK):
                    w = tl.load(weights + first + columns, mask=first + columns < size, other=-1.0)
                    bits = w.to(tl.int32, bitcast=True)
                    counts += tl.sum((bits[:, None] >= pivots[None, :]).to(tl.int32), 0)
                cut += (tl.sum((counts >= top_k).to(tl.int32), 0) - 1) << shift
            heavier = tl.zeros((), tl.int32)
            heavier_sum = tl.zeros((), tl.float64)
            for first in range(0, size, BLOCK):
                w = tl.load(weights + first + columns, mask=first + columns < size, other=-1.0)
                is_heavier = w.to(tl.int32, bitcast=True) > cut
                heavier += tl.sum(is_heavier.to(tl.int32), 0)
                heavier_sum += tl.sum(tl.where(is_heavier, w, 0.0), 0).to(tl.float64)
            num_equal = top_k - heavier
            total = heavier_sum + num_equal.to(tl.float64) * cut.to(tl.float32, bitcast=True).to(tl.float64)

        top_p = tl.load(top_p_ptr + row)
        if top_p < 1.0:
            enough = top_p.to(tl.float64) * total
            least, least_equal = cut, num_equal
            cut = tl.zeros((), tl.int32)
            for digit in range(DIGITS):
                shift = 27 - 3 * digit
                pivots = cut + (digits << shift)
                sums = tl.zeros([8], tl.float64)
                for first in range(0, size, BLOCK):
                    w = tl.load(weights + first + columns, mask=first + columns < size, other=-1.0)
                    bits = w.to(tl.int32, bitcast=True)
                    here = (bits[:, None] >= pivots[None, :]) & (bits >= 0)[:, None]
                    sums += tl.sum(tl.where(here, w[:, None], 0.0), 0).to(tl.float64)
                # at or below what top-k keeps the sum is all of it, whatever ties are beyond
                reached = (pivots <= least) | (sums >= enough)
                cut += (tl.sum(reached.to(tl.int32), 0) - 1) << shift
            heavier_sum = tl.zeros((), tl.float64)
            for first in range(0, size, BLOCK):
                w = tl.load(weights + first + columns, mask=first + columns < size, other=-1.0)
                heavier_sum += tl.sum(tl.where(w.to(tl.int32, bitcast=True) > cut, w, 0.0), 0).to(tl.float64)
            weight = cut.to(tl.float32, bitcast=True).to(tl.float64)
            missing = (enough - heavier_sum) / tl.where(weight > 0.0, weight, 1.0)
            num_equal = tl.maximum(1, tl.ceil(missing).to(tl.int64))
            if cut == least:
                num_equal = tl.minimum(num_equal, least_equal)

        a, b = row_words(keys_ptr, steps_ptr, row)
        min_p = tl.load(min_p_ptr + row)
        winner = tl.zeros((), tl.int64)
        winning = tl.full((), -1.0, tl.float32)
        equal_before = tl.zeros((), tl.int64)
        for first in range(0, size, BLOCK):
            ids = first + columns
            w = tl.load(weights + ids, mask=ids < size, other=-1.0)
            bits = w.to(tl.int32, bitcast=True)
            equal = (bits == cut).to(tl.int32)
            place = equal_before + tl.cumsum(equal, 0)
            equal_before += tl.sum(equal, 0)
            kept = (w > 0.0) & (w >= min_p) & ((bits > cut) | ((bits == cut) & (place <= num_equal)))
            value = tl.where(kept, w / exponential(ids, a, b), -1.0)
            top = tl.max(value, 0)
            if top > winning:
                winning = top
                winner = tl.min(tl.where(value == top, ids, 2147483647), 0).to(tl.int64)
        tl.store(ids_ptr + row, winner)


def sample_rows(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor, steps: Tensor
) -> Tensor:
    num_rows, size = logits.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return ids
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    weights = torch.empty((num_rows, size), dtype=torch.float32, device=logits.device)
    block = min(BLOCK, power_of_2(size))
    _sample[(num_rows,)](
        logits, weights, temperature.contiguous(), top_k.contiguous(), top_p.contiguous(), min_p.contiguous(),
        keys.contiguous(), steps.contiguous(), ids, logits.stride(0), size,
        BLOCK=block, num_warps=8 if block >= 1024 else 4,
    )  # fmt: skip
    return ids
