"""Comparison of a kernel with its twin."""

from __future__ import annotations

from typing import Any

import torch

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
ODD = (1, 3, 17, 33, 129)


def assert_twins(got: Any, expected: Any, scale: float = 1.0) -> None:
    """Equal shapes and dtypes, values within the dtype's tolerance (times `scale`), element by element."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_twins(one, other, scale)
        return
    assert got.shape == expected.shape and got.dtype == expected.dtype
    atol, rtol = TOLERANCE.get(expected.dtype, (0, 0))
    torch.testing.assert_close(got, expected, atol=atol * scale, rtol=rtol * scale)


class Paged:
    """Sequences in a scattered KV cache whose other slots hold large numbers that must have no influence."""

    def __init__(
        self, lens: list[int], *, kv_heads: int, dim: int, page: int = 1, dtype: torch.dtype = torch.float32,
        context: int = 0, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)
        pages = [-(-length // page) for length in lens]
        order = torch.randperm(sum(pages), generator=rng) + 1
        num_slots = (sum(pages) + 1) * page
        self.k, self.v = ((torch.randn(num_slots, kv_heads, dim, generator=rng) * 1e3).to(dtype) for _ in range(2))
        self.table = torch.zeros(len(lens) + 1, max([context, *lens]) + 1, dtype=torch.int32)
        self.rows = torch.randperm(len(lens), generator=rng)
        for row, length, mine in zip(self.rows.tolist(), lens, order.split(pages), strict=True):
            slots = (mine[:, None] * page + torch.arange(page)).flatten()[:length]
            self.table[row, :length] = slots.int()
            for cache in (self.k, self.v):
                cache[slots] = torch.randn(length, kv_heads, dim, generator=rng).to(dtype)
        self.lens = torch.tensor(lens)
        self.rng = rng
        for name in ("k", "v", "table", "rows", "lens"):
            setattr(self, name, getattr(self, name).to(device))

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.rng).to(self.k.dtype).to(self.k.device)

    @property
    def cache(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What attention operations take: k_cache, v_cache, table."""
        return self.k, self.v, self.table
