"""Packed masks applied to logits: a program per row and block; rows that allow everything are not touched."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, power_of_2, warps_for

LARGEST_BLOCK = 4096


@triton.jit
def _apply_token_mask(logits_ptr, mask_ptr, logits_stride, mask_stride, size, num_words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(mask_ptr + row * mask_stride + ids // 32, mask=ids // 32 < num_words, other=0)
    barred = ((words >> (ids % 32)) & 1) == 0
    if tl.program_id(1) * BLOCK + BLOCK > num_words * 32:
        # ids beyond the words are barred where the row is a constraint, that is, where some word of it bars something
        num_barring = tl.zeros((), tl.int32)
        for first in range(0, num_words, BLOCK):
            at = first + tl.arange(0, BLOCK)
            row_words = tl.load(mask_ptr + row * mask_stride + at, mask=at < num_words, other=-1)
            num_barring += tl.sum((row_words != -1).to(tl.int32), 0)
        barred = tl.where(num_barring > 0, barred, barred & (ids < num_words * 32))
    minus = tl.full([BLOCK], float("-inf"), logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * logits_stride + ids, minus, mask=barred & (ids < size))


def apply_token_mask_(logits: Tensor, mask: Tensor) -> None:
    num_rows, size = logits.shape
    if logits.numel() == 0:
        return
    if logits.stride(1) != 1 or mask.stride(1) != 1:
        raise ValueError("the columns of logits and mask must be neighbours in memory")
    block = min(LARGEST_BLOCK, power_of_2(size))
    _apply_token_mask[(num_rows, ceil_div(size, block))](
        logits, mask, logits.stride(0), mask.stride(0), size, mask.shape[1], BLOCK=block, num_warps=warps_for(block)
    )
