"""A checkpoint's own image processor: transformers' class, from the settings in the model's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...core.errors import ModelLoadError, RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from .picture import Pixels


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
