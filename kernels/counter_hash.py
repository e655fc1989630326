"""Counter-based random bits: a hash of (key, step, token id), the same on every device.

In 32-bit unsigned arithmetic (^ is exclusive or, >> a logical shift), with lo, hi the halves of a row's 64-bit key, t
its step and i a token id:

    mix(x):     x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16
    s           = mix(t + 0x9e3779b9 mod 2^32)
    a           = mix(lo ^ s)
    b           = mix(hi ^ mix(a + s))
    h_i         = second(first(mix(i + 1) ^ a) ^ b)
                  first(x) = (x ^ x >> 16) * 0x7feb352d,  second(x) = y ^ y >> 16 with y = (x ^ x >> 15) * 0x846ca68b

(`mix` is a low-bias hash found by C. Wellons' hash-prospector.) Here it is for torch, whose integers have a sign and 64
bits; for what the keys are and what is made of the bits see `runtime/sampling/random.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

M1, M2 = 0x7FEB352D, 0x846CA68B
WEYL = 0x9E3779B9
MASK32 = 0xFFFFFFFF


def hash_ids(ids: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
    """[B, N] int64 in [0, 2^32): h of the ids [N] or [B, N] for the rows' keys [B, 2] and steps [B], all int64."""
    s = _mix((steps[:, None] + WEYL) & MASK32)
    a = _mix(keys[:, :1] ^ s)
    b = _mix(keys[:, 1:] ^ _mix((a + s) & MASK32))
    return _second(_first(_mix((ids + 1) & MASK32) ^ a) ^ b)


def _mix(x: Tensor) -> Tensor:
    return _second(_first(x))


def _first(x: Tensor) -> Tensor:
    return ((x ^ x >> 16) * M1) & MASK32


def _second(x: Tensor) -> Tensor:
    # M2 - 2^32 is M2 modulo 2^32, and small enough that the 64-bit product cannot overflow
    x = ((x ^ x >> 15) * (M2 - (1 << 32))) & MASK32
    return x ^ x >> 16
