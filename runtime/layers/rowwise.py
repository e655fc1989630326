"""Layers whose output row t depends on input row t alone, and how that is made exact.

A GEMM of 3 rows and one of 300 may add up the same products in different orders, so a row's last bits depend on its
batch. In deterministic mode each row-wise layer is run in tiles of a fixed number of rows, the last one padded: then
always the same kernel runs on the same shape, and a row's bits depend on the row alone. (That they do not depend on
the row's place in the tile either is checked when the model is loaded: `place_independent`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

TILE_ROWS = 16


class RowWise(nn.Module):
    """Base of row-wise layers: a subclass writes `rows(x)`; `tile_rows` None runs it on all rows at once.

    `in_features` is the size of the last dimension of x.
    """

    in_features: int
    tile_rows: int | None = None

    def rows(self, x: Tensor) -> Tensor:
        """[T, ...] -> [T, ...], row by row."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x) if self.tile_rows is None else in_tiles(self.rows, x, self.tile_rows)


def in_tiles(rows: Callable[[Tensor], Tensor], x: Tensor, tile_rows: int) -> Tensor:
    """rows(x), computed on contiguous tiles of exactly `tile_rows` rows."""
    num_rows = x.shape[0]
    out: Tensor | None = None
    for start in range(0, num_rows, tile_rows):
        end = min(start + tile_rows, num_rows)
        tile = x[start:end]
        if end - start < tile_rows or not x.is_contiguous():
            tile = x.new_zeros((tile_rows, *x.shape[1:]))
            tile[: end - start] = x[start:end]
        done = rows(tile)
        if out is None:
            out = done.new_empty((num_rows, *done.shape[1:]))
        out[start:end] = done[: end - start]
    return rows(x) if out is None else out


def place_independent(rows: Callable[[Tensor], Tensor], example: Tensor, tile_rows: int) -> bool:
    """Whether a row gives the same bits at every place of a tile, among whatever rows.

    `example` [tile_rows, ...] is rotated through all places, so each of its rows stands once in each.
    """
    at_home = rows(example.clone())
    return all(torch.equal(rows(example.roll(shift, 0)).roll(-shift, 0), at_home) for shift in range(1, tile_rows))


def fix_tiles(model: nn.Module, act_dtype: torch.dtype, device: torch.device) -> None:
    """Have all row-wise layers of a model work in fixed tiles: of TILE_ROWS rows, or of one where places differ."""
    sizes: dict[tuple[object, ...], int] = {}  # layers of one class and shape do the same
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        if not isinstance(module, RowWise):
            continue
        kind = (type(module), *(param.shape for param in module.parameters(recurse=False)), module.in_features)
        if kind not in sizes:
            example = torch.randn(TILE_ROWS, module.in_features, generator=rng).to(act_dtype).to(device)
            sizes[kind] = TILE_ROWS if place_independent(module.rows, example, TILE_ROWS) else 1
        module.tile_rows = sizes[kind]
