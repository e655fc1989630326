"""Counter-based randomness: the draw of token t of choice c is a pure function of (seed, c, t) and the distribution.

Each token id i of the vocabulary gets its own uniform number u_i, and the id with the largest w_i / e_i wins, where w_i
is its weight (probability, up to a factor) and e_i = -log(1 - u_i) is exponentially distributed: an exponential race,
which draws i with probability w_i / sum(w) (the same as adding Gumbel noise to the logits). Because u_i belongs to the
id, a draw does not depend on batch mates, on sorting, or on ids that cannot be drawn, and a small change of the weights
rarely changes it.

The formula, in 32-bit unsigned arithmetic (^ is exclusive or, >> a logical shift):

    mix(x):     x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16
    lo, hi      = the halves of splitmix64(splitmix64(seed mod 2^64) ^ c), splitmix64(z) as published, z + 0x9e37...15
    s           = mix(t + 0x9e3779b9 mod 2^32)
    a           = mix(lo ^ s)
    b           = mix(hi ^ mix(a + s))
    h_i         = second(first(mix(i + 1) ^ a) ^ b)
                  first(x) = (x ^ x >> 16) * 0x7feb352d,  second(x) = y ^ y >> 16 with y = (x ^ x >> 15) * 0x846ca68b
    u_i         = (h_i + 0.5) / 2^32

(`mix` is a low-bias hash found by C. Wellons' hash-prospector; splitmix64 is Steele, Lea and Flood's, OOPSLA 2014.)
`counter_hash` has it for numpy (the CPU, where numpy's unsigned arithmetic is several times faster than torch's) and
for torch on any device; both give the same bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...kernels.counter_hash import M1, M2, MASK32, WEYL, hash_ids

MASK64 = (1 << 64) - 1
LATEST = 30.0  # cap of e_i: an id with any weight never has a race value of zero

UInts = npt.NDArray[np.uint32]


def splitmix64(z: int) -> int:
    """A 64-bit hash of a 64-bit number."""
    z = (z + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK64
    return z ^ z >> 31


def stream_key(seed: int, choice: int) -> tuple[int, int]:
    """(lo, hi): the 32-bit halves of the key of one choice's draws. `seed` may be any 64-bit number, signed or not."""
    key = splitmix64(splitmix64(seed & MASK64) ^ choice)
    return key & MASK32, key >> 32


def uniform(lo: int, hi: int, step: int, token_id: int) -> float:
    """u of one token id, in plain Python: the specification of what the vectorised forms compute."""

    def mix(x: int) -> int:
        return second(first(x))

    def first(x: int) -> int:
        return ((x ^ x >> 16) * M1) & MASK32

    def second(x: int) -> int:
        x = ((x ^ x >> 15) * M2) & MASK32
        return x ^ x >> 16

    s = mix((step + WEYL) & MASK32)
    a = mix(lo ^ s)
    b = mix(hi ^ mix((a + s) & MASK32))
    return (second(first(mix(token_id + 1) ^ a) ^ b) + 0.5) / 2**32


def race(weights: Tensor, ids: Tensor | None, keys: Tensor, steps: Tensor) -> Tensor:
    """[B] the winning column of each row.

    weights [B, N] float32, at least 0, each row with a positive one; ids [B, N] the token id of each column (None: the
    column number); keys [B, 2] int64 (`stream_key`); steps [B] int64. A column of weight 0 never wins.
    """
    e = torch.log1p(exponential_arguments(ids, weights.shape[1], keys, steps)).neg_().clamp_(max=LATEST)
    return argmax_rows(torch.div(weights, e, out=e))


def argmax_rows(x: Tensor) -> Tensor:
    """[B] the first column with the largest value of each row [B, N]; the first NaN where there is one."""
    if x.device.type == "cpu":  # numpy's is vectorised
        return torch.from_numpy(np.argmax(x.numpy(), axis=1))
    return x.argmax(dim=1)


def exponential_arguments(ids: Tensor | None, num_ids: int, keys: Tensor, steps: Tensor) -> Tensor:
    """[B, N] float32: -u of the ids of each row."""
    if keys.device.type == "cpu":
        hashed = _hash_numpy(None if ids is None else ids.numpy(), num_ids, keys.numpy(), steps.numpy())
        floats = torch.from_numpy(hashed.astype(np.float32))
    else:
        floats = _hash_torch(ids, num_ids, keys, steps).to(torch.float32)
    return floats.add_(0.5).mul_(-(2.0**-32))


def counter_hash(ids: Tensor | None, num_ids: int, keys: Tensor, steps: Tensor) -> Tensor:
    """[B, N] int64 in [0, 2^32): h of the ids [B, N] (None: 0..num_ids-1) for the rows' keys [B, 2] and steps [B]."""
    if keys.device.type == "cpu":
        hashed = _hash_numpy(None if ids is None else ids.numpy(), num_ids, keys.numpy(), steps.numpy())
        return torch.from_numpy(hashed.astype(np.int64))
    return _hash_torch(ids, num_ids, keys, steps)


def _hash_numpy(
    ids: npt.NDArray[np.int64] | None, num_ids: int, keys: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> UInts:
    lo, hi = keys[:, :1].astype(np.uint32), keys[:, 1:].astype(np.uint32)
    s = _mix_numpy((steps[:, None] + WEYL).astype(np.uint32))
    a = _mix_numpy(lo ^ s)
    b = _mix_numpy(hi ^ _mix_numpy(a + s))
    table = _id_table(num_ids) if ids is None else _mix_numpy((ids + 1).astype(np.uint32))
    x: UInts = table ^ a
    y = x >> np.uint32(16)
    x ^= y
    x *= np.uint32(M1)
    x ^= b
    np.right_shift(x, np.uint32(15), out=y)
    x ^= y
    x *= np.uint32(M2)
    np.right_shift(x, np.uint32(16), out=y)
    x ^= y
    return x


@lru_cache(maxsize=8)
def _id_table(num_ids: int) -> UInts:
    return _mix_numpy(np.arange(1, num_ids + 1, dtype=np.uint32))


def _mix_numpy(x: UInts) -> UInts:
    x = (x ^ x >> np.uint32(16)) * np.uint32(M1)
    x = (x ^ x >> np.uint32(15)) * np.uint32(M2)
    return x ^ x >> np.uint32(16)


def _hash_torch(ids: Tensor | None, num_ids: int, keys: Tensor, steps: Tensor) -> Tensor:
    return hash_ids(torch.arange(num_ids, device=keys.device) if ids is None else ids, keys, steps)
