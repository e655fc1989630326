"""LLaVA 1.5 (arXiv 2310.03744): features of a vision transformer, through two linear layers, stand as tokens.

picture = linear_2(gelu(linear_1(vit(pixels)))),  one row for each patch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..media.image_processor import ImageProcessor
from ..media.picture import Processed
from .vision.base import VisionLM
from .vision.vit import VisionTransformer, activation

if TYPE_CHECKING:
    from pathlib import Path

    from ..media.picture import Pixels
    from ..model_config import ModelConfig


class Projector(nn.Module):
    """From the encoder's width to the decoder's."""

    def __init__(self, in_features: int, out_features: int, act: str, has_bias: bool, path: str) -> None:
        super().__init__()
        self.act = activation(act, path)
        self.linear_1 = nn.Linear(in_features, out_features, bias=has_bias)
        self.linear_2 = nn.Linear(out_features, out_features, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(self.act(self.linear_1(x)))
        return out


class LlavaProcessor:
    """A picture of one size; the number of its places follows from its patches."""

    kinds = frozenset({"image"})
    is_spatial = False

    def __init__(self, folder: Path, patch_size: int, num_extra: int, image_id: int) -> None:
        self.image_place: tuple[int, tuple[int, ...], tuple[int, ...]] = image_id, (), ()
        self.inner = ImageProcessor(folder)
        self.settings = self.inner.settings
        self.patch_size, self.num_extra = patch_size, num_extra

    def image(self, pixels: Pixels) -> Processed:
        values: Tensor = self.inner(pixels)["pixel_values"]
        rows, columns = values.shape[-2] // self.patch_size, values.shape[-1] // self.patch_size
        return Processed({"pixels": values}, rows * columns + self.num_extra)

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        raise NotImplementedError("LLaVA 1.5 takes pictures only")


class LlavaForConditionalGeneration(VisionLM):
    """See the module."""

    DEFAULT_LAYER: ClassVar[int] = -2
    DEFAULT_STRATEGY: ClassVar[str] = "default"
    RENAMED = {  # noqa: RUF012
        "language_model.lm_head.": ("language_model.lm_head.", "lm_head."),
        "language_model.model.": ("language_model.model.", "model.language_model."),
        "vision_tower.": ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.",
                          "model.vision_tower."),
        "multi_modal_projector.": ("multi_modal_projector.", "model.multi_modal_projector."),
    }  # fmt: skip

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        path = str(config.path / "config.json")
        fields = self.outer("vision_config")
        layers = self.outer("vision_feature_layer", self.DEFAULT_LAYER)
        self.feature_layers: list[int] = layers if isinstance(layers, list) else [layers]
        self.drops_class = self.outer("vision_feature_select_strategy", self.DEFAULT_STRATEGY) == "default"
        self.vision_tower = VisionTransformer(fields, path)
        self.multi_modal_projector = Projector(
            fields["hidden_size"] * len(self.feature_layers),
            config.hidden_size,
            self.outer("projector_hidden_act", "gelu"),
            bool(self.outer("multimodal_projector_bias", True)),
            path,
        )

    def processor(self) -> LlavaProcessor:
        fields = self.outer("vision_config")
        num_extra = int(self.vision_tower.is_clip) - int(self.drops_class)
        return LlavaProcessor(self.config.path, fields["patch_size"], num_extra, self.image_id())

    def projected(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, patches, hidden]: the encoder's features in the decoder's width."""
        found = self.vision_tower.features(pixels.to(self.act_dtype), self.feature_layers, self.drops_class)
        out: Tensor = self.multi_modal_projector(found)
        return out

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        return self.projected(pixels["pixels"])[0]


EntryClass = LlavaForConditionalGeneration
