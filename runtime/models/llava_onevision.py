"""LLaVA-OneVision (arXiv 2408.03326): LLaVA-NeXT's tiles, made fewer where they are many; and videos.

picture = base, then the rows of the tiles' joined grid, scaled down to the area of `anyres_max_N` tiles, each row ended
video   = each frame's grid scaled down by 2, then one newline
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ...core.errors import ModelLoadError
from ..media.image_processor import video_settings
from ..media.picture import Processed
from .llava_next import LlavaNextForConditionalGeneration, LlavaNextProcessor, joined_tiles, with_newlines

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from ..media.picture import Pixels
    from ..model_config import ModelConfig

PREFIX = "anyres_max_"


def scaled(grid: Tensor, rows: int, columns: int) -> Tensor:
    """[B, R, C, hidden] -> [B, rows, columns, hidden], bilinear."""
    if tuple(grid.shape[1:3]) == (rows, columns):
        return grid
    return F.interpolate(grid.permute(0, 3, 1, 2), (rows, columns), mode="bilinear").permute(0, 2, 3, 1)


class LlavaOnevisionProcessor(LlavaNextProcessor):
    """A picture with its tiles, whatever else is in the prompt; a video's frames without."""

    kinds = frozenset({"image", "video"})

    def __init__(
        self, folder: Path, patch_size: int, image_id: int, side: int, candidates: list[Any], max_tiles: int
    ) -> None:
        super().__init__(folder, patch_size, 0, image_id, side, candidates)
        self.max_tiles = max_tiles
        self.video_options = {**video_settings(folder), "image_grid_pinpoints": [[side, side]]}
        self.settings = f"{self.settings} {self.video_options}"

    def grid_size(self, rows: int, columns: int) -> tuple[int, int]:
        """At most `max_tiles` tiles' area (and a fifth) is kept."""
        per = self.side // self.patch_size
        ratio = math.sqrt(rows * columns / (self.max_tiles * per**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        values = torch.stack([self.inner(frame, **self.video_options)["pixel_values"][0, 0] for frame in frames])
        per_frame = math.ceil(self.side // self.patch_size / 2) ** 2
        return Processed({"frames": values}, len(frames) * per_frame + 1)


class LlavaOnevisionForConditionalGeneration(LlavaNextForConditionalGeneration):
    """See the module."""

    DEFAULT_LAYER = -1
    DEFAULT_STRATEGY = "full"

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        path = str(config.path / "config.json")
        if self.vision_tower.is_clip and not self.drops_class:
            raise ModelLoadError(
                "field 'vision_feature_select_strategy' must be 'default' with CLIP's encoder: tiles have no place for "
                "its class row",
                path=path,
            )
        ratio = str(self.outer("vision_aspect_ratio", "anyres_max_9"))
        if not ratio.startswith(PREFIX) or not ratio[len(PREFIX) :].isdecimal() or int(ratio[len(PREFIX) :]) < 1:
            raise ModelLoadError(f"field 'vision_aspect_ratio' must be {PREFIX}N, not {ratio!r}", path=path)
        self.max_tiles = int(ratio[len(PREFIX) :])

    def processor(self) -> LlavaOnevisionProcessor:
        fields = self.outer("vision_config")
        side = int(fields["image_size"])
        steps = [side * number for number in range(1, 7)]
        candidates = self.outer("image_grid_pinpoints", [[high, wide] for high in steps for wide in steps])
        return LlavaOnevisionProcessor(
            self.config.path, fields["patch_size"], self.image_id(), side, candidates, self.max_tiles
        )

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        if "frames" not in pixels:
            found = self.projected(pixels["pixels"])
            grid = joined_tiles(found[1:], pixels["layout"])
            rows, columns = pixels["grid"].tolist()
            return torch.cat([found[0], with_newlines(scaled(grid[None], rows, columns)[0], self.image_newline)])
        found = self.projected(pixels["frames"])
        per = int(found.shape[1] ** 0.5)
        half = math.ceil(per / 2)
        small = scaled(found.view(len(found), per, per, -1), half, half).flatten(0, 2)
        return torch.cat([small, self.image_newline.to(small.dtype)[None]])


EntryClass = LlavaOnevisionForConditionalGeneration
