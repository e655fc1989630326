"""Writing keys and values of new tokens to their slots, and copying those of some slots to others.

k_cache, v_cache [slots, kv_heads, D] of one layer, of any dtype (values are cast to it); slots int64.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .registry import Implementation, operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PADDING_SLOT = 0  # takes the writes of padding rows, in any order
CHECK_SLOTS = "DSLC_CHECK_SLOTS"


@operation("store_kv", Implementation("triton", ".triton.kv_cache:store_kv"))
def store_kv(k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """k, v [T, kv_heads, D] to slots [T], in place. Slots other than 0 must not repeat; see `checked`."""
    k_cache.index_copy_(0, slots, k.to(k_cache.dtype))
    v_cache.index_copy_(0, slots, v.to(v_cache.dtype))


@operation("copy_kv", Implementation("triton", ".triton.kv_cache:copy_kv"))
def copy_kv(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
    """Slots `target` [n] become what slots `source` [n] are, in place. No slot is in both; targets do not repeat."""
    k_cache.index_copy_(0, target, k_cache.index_select(0, source))
    v_cache.index_copy_(0, target, v_cache.index_select(0, source))


def checks_slots() -> bool:
    """Whether DSLC_CHECK_SLOTS=1 asks for every write to be looked over."""
    return os.environ.get(CHECK_SLOTS, "0") == "1"


def checked(store: Callable[..., Any]) -> Callable[..., Any]:
    """`store_kv` that looks for repeated slots first, where DSLC_CHECK_SLOTS=1 asks for it; else `store` itself.

    It reads the slots on the host, so it is for debugging. What it returns raises ValueError naming the slot.
    """
    if not checks_slots():
        return store

    def store_checked(k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        seen: set[int] = set()
        for row, slot in enumerate(slots.tolist()):
            if slot in seen:
                raise ValueError(f"two rows of one forward write KV slot {slot}; the second is row {row}")
            if not 0 <= slot < k_cache.shape[0]:
                raise ValueError(f"row {row} writes KV slot {slot} of a pool of {k_cache.shape[0]}")
            if slot != PADDING_SLOT:
                seen.add(slot)
        store(k_cache, v_cache, slots, k, v)

    return store_checked
