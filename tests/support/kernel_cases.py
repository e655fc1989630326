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
