"""A checkpoint's own image processor: transformers' class, from the settings in the model's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...core.errors import ModelLoadError, RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from .picture import Pixels


_VIDEO_FIELDS = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def video_settings(folder: Path) -> dict[str, Any]:
    """What the folder says of a video's frames in place of a picture's: options for `ImageProcessor.__call__`.

    Raises ModelLoadError for a file that is no JSON object.
    """
    own, shared = folder / "video_preprocessor_config.json", folder / "processor_config.json"
    found: Any = _object(own) if own.is_file() else {}
    if not found and shared.is_file():
        found = _object(shared).get("video_processor") or {}
    made = {name: found[name] for name in _VIDEO_FIELDS if found.get(name) is not None}
    low, high = found.get("min_pixels"), found.get("max_pixels")
    if low is not None and high is not None:  # as published Qwen2-VL folders write it
        made["size"] = {"shortest_edge": low, "longest_edge": high}
    return made


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot be read: {error}", path=str(path)) from None
    if not isinstance(found, dict):
        raise ModelLoadError("must hold a JSON object", path=str(path))
    return found


class ImageProcessor:
    """Calls transformers' processor on one picture at a time, so that a picture's pixels never depend on others.

    `settings` is all of its options as JSON. Raises ModelLoadError where the folder has none, or pillow is missing.
    """

    def __init__(self, folder: Path) -> None:
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((folder / name).is_file() for name in files):
            raise ModelLoadError(
                f"has neither {files[0]} nor {files[1]}, which say how the model wants its pictures", path=str(folder)
            )
        try:
            from transformers import AutoImageProcessor

            load: Any = AutoImageProcessor.from_pretrained
            self.inner = load(str(folder), local_files_only=True)
        except ImportError as error:
            raise ModelLoadError(
                f"its image processor needs a package: {error} (pip install 'dslc[vision]')", path=str(folder)
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"its image processor cannot be made: {error}", path=str(folder)) from error
        self.settings = json.dumps(self.inner.to_dict(), sort_keys=True, default=str)

    def __call__(self, pixels: Pixels, **options: Any) -> dict[str, Any]:
        """uint8 [H, W, 3] -> the processor's tensors by name. Raises RequestError for a size that it refuses."""
        from PIL import Image

        try:
            return dict(self.inner(Image.fromarray(pixels), return_tensors="pt", **options))
        except ValueError as error:
            raise RequestError(f"the model's processor refuses it: {error}", field="image") from None
