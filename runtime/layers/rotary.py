"""Rotary position embedding: turn each pair of dimensions (i, i + d/2) of a head by an angle, position times frequency.

The stretched variants differ only in their frequencies: `inverse_frequencies` has the formula of each.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...kernels.registry import choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model_config import RopeConfig

BLOCK = 1024  # positions whose angles are computed together


def inverse_frequencies(rope: RopeConfig, context_length: int) -> Tensor:
    """[rotary_dim / 2] float32: angle of pair i per position.

    `context_length` matters to dynamic rope and longrope: the base is stretched to that length, or the long factors
    taken, once and for all positions, so that keys in the cache never go stale. (transformers decides batch by batch;
    a context no longer than the original one gives both the same.)
    """
    dim, base = rope.rotary_dim, rope.theta
    if rope.kind == "dynamic" and context_length > rope.original_context:
        stretch = rope.factor * context_length / rope.original_context - (rope.factor - 1)
        base = base * stretch ** (dim / (dim - 2))
    if rope.kind == "longrope":
        stretched = rope.long_factor if context_length > rope.original_context else rope.short_factor
        pairs = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        return 1.0 / (torch.tensor(stretched, dtype=torch.float32) * base**pairs)
    freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    if rope.kind == "linear":
        return freq / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, freq)
    if rope.kind == "yarn":
        return _yarn(rope, freq)
    return freq


def _llama3(rope: RopeConfig, freq: Tensor) -> Tensor:
    """Long waves (over original_context / low_freq_factor positions) are stretched, short ones kept, others blended."""
    turns = rope.original_context * freq / (2 * math.pi)
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - keep) * freq / rope.factor + keep * freq


def _yarn(rope: RopeConfig, freq: Tensor) -> Tensor:
    """Pairs that turn more than beta_fast times over the original context are kept, under beta_slow stretched."""
    dim = rope.rotary_dim

    def pair_turning(times: float) -> float:
        return dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return freq / rope.factor * stretched + freq * (1 - stretched)


class RotaryTable:
    """cos and sin of all positions so far asked for, float32; one per model, shared by its layers.

    It has no state in the checkpoint and fills itself on the device of the positions it is asked for.
    """

    def __init__(self, rope: RopeConfig, context_length: int) -> None:
        self.rope = rope
        self.context_length = context_length
        self._cos = self._sin = torch.empty(0, rope.rotary_dim // 2, device="cpu")

    def at(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """cos, sin of [T] positions, all below `end`: each [T, 1, rotary_dim / 2], to be broadcast over heads."""
        self.fill(end, positions.device)
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def fill(self, end: int, device: torch.device) -> None:
        """Have the angles of all positions below `end` on the device; a table that grows is another tensor."""
        if end <= self._cos.shape[0] and self._cos.device == device:
            return
        # In blocks of one size, each computed alone: an angle's bits do not depend on how large the table is.
        freq = inverse_frequencies(self.rope, self.context_length)
        cos, sin = [], []
        for start in range(0, max(end, min(2 * self._cos.shape[0], self.context_length)), BLOCK):
            angles = torch.arange(start, start + BLOCK, dtype=torch.float32)[:, None] * freq
            cos.append(angles.cos() * self.rope.attention_factor)
            sin.append(angles.sin() * self.rope.attention_factor)
        self._cos, self._sin = torch.cat(cos).to(device), torch.cat(sin).to(device)


def fill_tables(model: nn.Module, end: int, device: torch.device) -> None:
    """Fill every table of a model's modules, so that none grows below `end` any more."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, RotaryTable):
                value.fill(end, device)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate`, for models whose pairs are neighbours (2 i, 2 i + 1). The turned pairs come out as (i, i + d / 2).

    That is another order of dimensions, the same for queries and keys, so that scores are not touched.
    """
    half = cos.shape[-1]
    pairs = x[..., : 2 * half].view(*x.shape[:-1], half, 2).transpose(-1, -2).flatten(-2)
    return rotate(torch.cat((pairs, x[..., 2 * half :]), dim=-1), cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, head_dim] turned by cos, sin [T, 1, d / 2] in its first d dimensions; the rest goes through."""
    return _kernel(x.device.type, x.dtype)(x, cos, sin)


@cache
def _kernel(device: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return choose("rotary_embedding", device=device, dtype=dtype).run
