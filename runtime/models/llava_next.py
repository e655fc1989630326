"""LLaVA-NeXT (LLaVA 1.6): a picture is seen whole, then in tiles at the resolution that fits it best.

picture = base, then the rows of the tiles' joined grid without its padding, each row ended by a learnt newline
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..media.image_processor import ImageProcessor
from ..media.picture import Processed
from .llava import LlavaForConditionalGeneration, LlavaProcessor

if TYPE_CHECKING:
    from pathlib import Path

    from ..media.picture import Pixels
    from ..model_config import ModelConfig


def best_resolution(size: tuple[int, int], candidates: list[Any]) -> tuple[int, int]:
    """Of (height, width) candidates the one that keeps most of a picture's pixels, then wastes the fewest."""
    height, width = size

    def worth(candidate: Any) -> tuple[int, int]:
        scale = min(candidate[1] / width, candidate[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    best = max(candidates, key=worth)
    return int(best[0]), int(best[1])


def unpadded(grid: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Which rows and columns of a grid of features show a picture of this (height, width), not its padding."""
    (rows, columns), (height, width) = grid, size
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(padding, columns - padding)


def joined_tiles(tiles: Tensor, layout: Tensor) -> Tensor:
    """[tiles, patches, hidden] -> [rows, columns, hidden]: side by side, without the picture's padding."""
    high, wide, top, bottom, left, right = layout.tolist()
    per = int(tiles.shape[1] ** 0.5)
    grid = tiles[:, : per * per].view(high, wide, per, per, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    return grid[top:bottom, left:right]


def with_newlines(grid: Tensor, newline: Tensor) -> Tensor:
    """[rows, columns, hidden] -> [rows * (columns + 1), hidden]: a newline after each row."""
    ends = newline.to(grid.dtype).expand(grid.shape[0], 1, -1)
    return torch.cat([grid, ends], dim=1).flatten(0, 1)


class LlavaNextProcessor(LlavaProcessor):
    """A picture and its tiles. Shapes follow from its size."""

    def __init__(
        self, folder: Path, patch_size: int, num_extra: int, image_id: int, side: int, candidates: list[Any]
    ) -> None:
        self.image_place = image_id, (), ()
        self.inner = ImageProcessor(folder)
        self.settings = self.inner.settings
        self.patch_size, self.num_extra, self.side, self.candidates = patch_size, num_extra, side, candidates

    def image(self, pixels: Pixels) -> Processed:
        values: Tensor = self.inner(pixels)["pixel_values"][0]
        size = (pixels.shape[0], pixels.shape[1])
        per = self.side // self.patch_size
        best = best_resolution(size, self.candidates)
        tiles = (best[0] // self.side, best[1] // self.side)
        values = values[: 1 + tiles[0] * tiles[1]]
        rows, columns = unpadded((tiles[0] * per, tiles[1] * per), size)
        layout = torch.tensor([*tiles, rows.start, rows.stop, columns.start, columns.stop])
        grid = self.grid_size(rows.stop - rows.start, columns.stop - columns.start)
        num = per * per + self.num_extra + grid[0] * (grid[1] + 1)
        return Processed({"pixels": values, "layout": layout, "grid": torch.tensor(grid)}, num)

    def grid_size(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns of the tiles' joined grid stand in the prompt: all."""
        return rows, columns


class LlavaNextForConditionalGeneration(LlavaForConditionalGeneration):
    """See the module."""

    RENAMED = {  # noqa: RUF012
        **LlavaForConditionalGeneration.RENAMED,
        "image_newline": ("image_newline", "model.image_newline"),
    }

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.image_newline = nn.Parameter(torch.empty(config.hidden_size))

    def processor(self) -> LlavaNextProcessor:
        fields = self.outer("vision_config")
        num_extra = int(self.vision_tower.is_clip) - int(self.drops_class)
        return LlavaNextProcessor(
            self.config.path, fields["patch_size"], num_extra, self.image_id(), fields["image_size"],
            self.outer("image_grid_pinpoints"),
        )  # fmt: skip

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        found = self.projected(pixels["pixels"])
        return torch.cat([found[0], with_newlines(joined_tiles(found[1:], pixels["layout"]), self.image_newline)])


EntryClass = LlavaNextForConditionalGeneration
