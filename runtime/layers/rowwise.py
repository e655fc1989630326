"""Layers whose output row t depends on input row t alone, and how that is made exact.

A GEMM of 3 rows and one of 300 may add up the same products in different orders, so a row's last bits depend on its
batch. In deterministic mode each row-wise layer therefore runs only on row counts that were found, when the model was
loaded, to give each row the same bits whatever its place (`agreeing_counts`): most libraries change their kernel at one
or two sizes, so nearly all counts agree. A batch is cut into pieces of such counts, the last one padded (`pieces`).
Where not even the places in a tile of TILE_ROWS agree, the layer works row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TILE_ROWS = 16  # the count that others are compared with
VECTOR = 64  # a multiple of what a vector loop does at once
COUNTS = (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)


class RowWise(nn.Module):
    """Base of row-wise layers: a subclass writes `rows(x)`; `counts` None runs it on all rows at once.

    `in_features` is the size of the last dimension of x.
    """

    in_features: int
    counts: tuple[int, ...] | None = None

    def rows(self, x: Tensor) -> Tensor:
        """[T, ...] -> [T, ...], row by row."""
        raise NotImplementedError

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(self(s), s) with s = x + residual: what stands between two blocks of a model."""
        total = x + residual
        return self(total), total

    def choose_kernels(self, device: torch.device, act_dtype: torch.dtype) -> None:
        """Take the kernels for this device and dtype from the registry, once. Until then plain torch runs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x) if self.counts is None else in_pieces(self.rows, x, self.counts)


def pieces(num: int, counts: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(start, end, count) of the pieces of `num` items, end - start <= count; `counts` ascending.

    Only the last one is padded, by less than TILE_ROWS items or half as many as there are.
    """
    start = 0
    while start < num:
        left = num - start
        above = min((count for count in counts if count >= left), default=0)
        below = max((count for count in counts if count <= left), default=0)
        pads_little = above and (above <= TILE_ROWS or 2 * above <= 3 * left)
        count = above if pads_little or not below else below
        yield start, min(num, start + count), count
        start += count


def in_pieces(rows: Callable[[Tensor], Tensor], x: Tensor, counts: tuple[int, ...]) -> Tensor:
    """rows(x), computed on contiguous pieces of exactly these numbers of rows."""
    num_rows = x.shape[0]
    if num_rows in counts:
        return rows(x.contiguous())
    out: Tensor | None = None
    for start, end, count in pieces(num_rows, counts):
        piece = x[start:end]
        if end - start < count or not x.is_contiguous():
            piece = x.new_zeros((count, *x.shape[1:]))
            piece[: end - start] = x[start:end]
        done = rows(piece)
        if out is None:
            if end == num_rows:
                return done[:num_rows]
            out = done.new_empty((num_rows, *done.shape[1:]))
        out[start:end] = done[: end - start]
    return rows(x) if out is None else out


def evenly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), elementwise, with the same bits wherever an element stands.

    Vector loops do what is left over at the end by other instructions; so x is padded until nothing is left over.
    """
    flat = x.reshape(-1)
    padded = flat.new_zeros(-(-len(flat) // VECTOR) * VECTOR)
    padded[: len(flat)] = flat
    return function(padded)[: len(flat)].view(x.shape)


def place_independent(rows: Callable[[Tensor], Tensor], example: Tensor) -> bool:
    """Whether a row gives the same bits at every place among the rows of `example`, whatever the others are.

    `example` [T, ...] is rotated through all places, so each of its rows stands once in each.
    """
    at_home = rows(example.clone())
    num = example.shape[0]
    return all(torch.equal(rows(example.roll(shift, 0)).roll(-shift, 0), at_home) for shift in range(1, num))


def agreeing_counts(rows: Callable[[Tensor], Tensor], example: Tensor) -> tuple[int, ...]:
    """Which of COUNTS, up to the rows of `example`, give each row the bits that it has in a tile of TILE_ROWS.

    (1,) where rows in such a tile depend on their place.
    """
    if not place_independent(rows, example[:TILE_ROWS]):
        return (1,)
    expected = torch.cat([rows(example[i : i + TILE_ROWS].clone()) for i in range(0, len(example), TILE_ROWS)])

    def agrees(count: int) -> bool:
        first, last = example[:count].clone(), example[-count:].clone()
        return torch.equal(rows(first), expected[:count]) and torch.equal(rows(last), expected[-count:])

    return tuple(count for count in COUNTS if count <= example.shape[0] and agrees(count))


def fix_counts(model: nn.Module, act_dtype: torch.dtype, device: torch.device) -> None:
    """Have all row-wise layers of a model work on agreeing row counts only; found out once for each shape."""
    found: dict[tuple[object, ...], tuple[int, ...]] = {}  # layers of one class and shape do the same
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        if not isinstance(module, RowWise) or getattr(module, "native", None) is not None:
            continue  # what is done in C++ has its own bits for each row
        kind = (type(module), *(param.shape for param in module.parameters(recurse=False)), module.in_features)
        if kind not in found:
            example = torch.randn(COUNTS[-1], module.in_features, generator=rng).to(act_dtype).to(device)
            found[kind] = agreeing_counts(module.rows, example)
        module.counts = found[kind]
