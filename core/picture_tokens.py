"""How many tokens a picture takes in the prompts of a model, told from the files of its folder, without loading it.

For those that ask before a run: `dslc check`, `dslc compile --explain`. The engine counts what its processor made; a
test holds that both agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .media import image_size

Size = tuple[int, int]  # height, width
Bounds = tuple[int, float]  # least and most


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """What pictures cost in the prompts of one model, with the marks around them; `of_video` None: it takes none."""

    of_image: Callable[[Size | None], Bounds]
    of_video: Callable[[int, Size | None], Bounds] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of media that the model takes."""
        return frozenset({"image"} if self.of_video is None else {"image", "video"})

    def of(self, kind: str, source: object = None, num_frames: object = None) -> Bounds:
        """Tokens of what a program names, as far as that tells them: of the picture at a path, if it can be read."""
        if kind == "image":
            return self.of_image(image_size(source) if isinstance(source, str) else None)
        if self.of_video is None or not isinstance(num_frames, int) or num_frames < 1:
            return 1, math.inf
        return self.of_video(num_frames, None)


def picture_tokens(folder: str | Path | None) -> PictureTokens | None:
    """What is known of the model of a folder; None for one that takes text only, or is not known here."""
    if folder is None:
        return None
    files = _Files(Path(folder))
    names = files.config.get("architectures")
    family = _FAMILIES.get(names[0]) if isinstance(names, list) and names else None
    if family is None:
        return None
    try:
        return family(files)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # the loader says what is wrong with such a folder


class _Files:
    """What a model's folder says of its pictures."""

    def __init__(self, folder: Path) -> None:
        self.config = _read(folder / "config.json")
        shared = _read(folder / "processor_config.json")
        self.image = _read(folder / "preprocessor_config.json") or shared.get("image_processor") or {}
        self.video = _read(folder / "video_preprocessor_config.json") or shared.get("video_processor") or {}

    @property
    def per_side(self) -> int:
        """Patches along a side of a picture of fixed size."""
        return int(self.config["vision_config"]["image_size"]) // int(self.config["vision_config"]["patch_size"])

    @property
    def num_extra(self) -> int:
        """1 where the class row of CLIP is kept."""
        keeps = self.config.get("vision_feature_select_strategy", "default") != "default"
        return int(keeps and self.config["vision_config"].get("model_type") == "clip_vision_model")

    def candidates(self, default: list[list[int]]) -> list[Size]:
        """(rows, columns) of the grids of tiles that a picture may have."""
        side = int(self.config["vision_config"]["image_size"])
        return [(int(h) // side, int(w) // side) for h, w in self.config.get("image_grid_pinpoints", default)]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _llava(files: _Files) -> PictureTokens:
    num = files.per_side**2 + files.num_extra
    return PictureTokens(lambda size: (num, num))


def _llava_next(files: _Files) -> PictureTokens:
    """The whole picture, and at least one row of one tile, at most all tiles with an end to each row."""
    per, whole = files.per_side, files.per_side**2 + files.num_extra
    most = max(rows * per * (columns * per + 1) for rows, columns in files.candidates([]))
    return PictureTokens(lambda size: (whole + 1, whole + most))


def _llava_onevision(files: _Files) -> PictureTokens:
    """As LLaVA-NeXT, the tiles scaled down to the area of so many, and a tenth more in each direction."""
    per, side = files.per_side, int(files.config["vision_config"]["image_size"])
    max_tiles = int(files.config.get("vision_aspect_ratio", "anyres_max_9").rpartition("_")[2])
    steps = [side * number for number in range(1, 7)]
    grids = files.candidates([[high, wide] for high in steps for wide in steps])
    area = min(math.ceil(1.21 * max_tiles * per**2), max(rows * columns for rows, columns in grids) * per**2)
    most = per**2 + area + max(rows for rows, _ in grids) * per
    half = math.ceil(per / 2) ** 2
    return PictureTokens(
        lambda size: (per**2 + 1, most), lambda num_frames, size: (num_frames * half + 1, num_frames * half + 1)
    )


def _gemma3(files: _Files) -> PictureTokens:
    """Two marks, and two line breaks on each side, which may be one token with those of the text there."""
    num = int(files.config.get("mm_tokens_per_image", 256)) + 2
    return PictureTokens(lambda size: (num, num + 4))


def _mllama(files: _Files) -> PictureTokens:
    """One place, from which the picture is looked at."""
    return PictureTokens(lambda size: (1, 1))


def _qwen_vl(files: _Files) -> PictureTokens:
    """Two marks, and one for each square of patches of the picture, brought to a number of pixels within limits; of a
    video two frames are one picture."""
    factor = int(files.image.get("patch_size", 14)) * int(files.image.get("merge_size", 2))
    picture = _Resized(factor, *_limits(files.image, (56 * 56, 28 * 28 * 1280)))
    frame = _Resized(factor, *_limits(files.video, (picture.low, picture.high)))

    def of_video(num_frames: int, size: Size | None) -> Bounds:
        least, most = frame(size)
        pairs = -(-num_frames // 2)
        return 2 + pairs * least, 2 + pairs * most

    def of_image(size: Size | None) -> Bounds:
        least, most = picture(size)
        return 2 + least, 2 + most

    return PictureTokens(of_image, of_video)


def _limits(settings: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """The least and the most pixels."""
    low, high = settings.get("min_pixels"), settings.get("max_pixels")
    size = settings.get("size") or {}
    if low is None or high is None:
        low, high = size.get("shortest_edge", default[0]), size.get("longest_edge", default[1])
    return int(low), int(high)


@dataclass(frozen=True, slots=True)
class _Resized:
    """How many squares of `factor` pixels a picture has once it is brought to between `low` and `high` pixels."""

    factor: int
    low: int
    high: int

    def __call__(self, size: Size | None) -> Bounds:
        if size is None:
            return math.ceil(self.low / self.factor**2), self.high // self.factor**2
        height, width = size
        rows, columns = round(height / self.factor), round(width / self.factor)
        if rows * columns * self.factor**2 > self.high:
            scale = math.sqrt(height * width / self.high)
            rows, columns = (max(1, math.floor(side / scale / self.factor)) for side in size)
        elif rows * columns * self.factor**2 < self.low:
            scale = math.sqrt(self.low / (height * width))
            rows, columns = (math.ceil(side * scale / self.factor) for side in size)
        return rows * columns, rows * columns


_FAMILIES: dict[str, Callable[[_Files], PictureTokens]] = {
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "LlavaOnevisionForConditionalGeneration": _llava_onevision,
    "Gemma3ForConditionalGeneration": _gemma3,
    "MllamaForConditionalGeneration": _mllama,
    "Qwen2VLForConditionalGeneration": _qwen_vl,
    "Qwen2_5_VLForConditionalGeneration": _qwen_vl,
}
