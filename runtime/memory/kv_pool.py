"""The keys and values of all tokens in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.kv_cache import checked
from ...kernels.registry import choose

CACHE_LINE = 64


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's KV is: `num_kv_heads` are those of this rank."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    is_latent: bool = False  # one vector is key and value at once (multi-head latent attention)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers."""
        return (1 if self.is_latent else 2) * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


def tokens_in_budget(num_bytes: int, shape: KVShape, page_size: int = 1) -> int:
    """How many tokens a pool of at most `num_bytes` holds: whole pages, the padding page paid from the budget too.

    0 when not even one page fits beside the padding page.
    """
    num_pages = num_bytes // (shape.bytes_per_token * page_size)
    return max(0, num_pages - 1) * page_size


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """torch.zeros; on the CPU of memory that the system gives, page by page, to who first touches it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    raw = torch.from_numpy(np.zeros(num_bytes + CACHE_LINE, dtype=np.uint8))
    start = -raw.data_ptr() % CACHE_LINE
    return raw[start : start + num_bytes].view(dtype).view(size)


class KVPool:
    """One K and one V tensor per layer, each `[num_tokens + page_size, kv_heads, head_dim]`.

    Slots 0..page_size-1 (page 0) take the writes of padding rows and are never read by a real request. One tensor per
    layer, never one for all: a write into a slice of a stacked tensor makes torch.compile copy the whole stack.
    """

    def __init__(self, num_tokens: int, shape: KVShape, page_size: int = 1, device: str | torch.device = "cpu") -> None:
        if num_tokens < page_size or num_tokens % page_size:
            raise ValueError(f"num_tokens must be a positive multiple of page_size {page_size}, not {num_tokens}")
        self.num_tokens = num_tokens
        self.page_size = page_size
        self.shape = shape
        size = (num_tokens + page_size, shape.num_kv_heads, shape.head_dim)
        self.k = [_zeros(size, shape.dtype, device) for _ in range(shape.num_layers)]
        self.v = self.k
        self._store = checked(choose("store_kv", device=device, dtype=shape.dtype).run)
        if not shape.is_latent:
            self.v = [_zeros(size, shape.dtype, device) for _ in range(shape.num_layers)]

    @property
    def num_pages(self) -> int:
        """Pages that can be handed out (the padding page not counted)."""
        return self.num_tokens // self.page_size

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, the padding page included."""
        return (self.num_tokens + self.page_size) * self.shape.bytes_per_token

    def store(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write k, v `[T, kv_heads, head_dim]` (cast to the pool's dtype) to `slots` `[T]` int64 of one layer.

        Of a latent pool k and v are one. Slots other than 0 must not repeat; which of several rows lands in slot 0 is
        left open.
        """
        if self.shape.is_latent:
            self.k[layer].index_copy_(0, slots, k.to(self.shape.dtype))
        else:
            self._store(self.k[layer], self.v[layer], slots, k, v)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """K and V of one layer, each `[num_tokens + page_size, kv_heads, head_dim]`."""
        return self.k[index], self.v[index]
