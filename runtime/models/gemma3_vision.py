"""Gemma 3 with pictures (arXiv 2503.19786): SigLIP's patches, averaged to fewer, stand as tokens that see each other.

picture = norm(average(siglip(pixels))) * W,  `mm_tokens_per_image` rows
In the decoder the rows of one picture see all of it, in every layer; a sliding window cuts what lies before as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ModelLoadError
from ..layers.norm import GemmaRMSNorm
from ..media.image_processor import ImageProcessor
from ..media.picture import Processed
from .gemma3 import Gemma3ForCausalLM
from .llava import LlavaForConditionalGeneration
from .vision.base import VisionLM
from .vision.vit import VisionTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..media.picture import Pixels
    from ..model_config import ModelConfig
    from .llama import LlamaForCausalLM

BREAK = "\n\n"  # what transformers' processor writes around each picture


class Gemma3Processor:
    """A picture of one size, between two marks and two line breaks. Pan-and-scan is off, as in transformers."""

    kinds = frozenset({"image"})
    is_spatial = False

    def __init__(self, folder: Path, num_tokens: int, start_id: int, end_id: int) -> None:
        self.image_place: tuple[int, tuple[int, ...], tuple[int, ...]] = start_id, (), ()
        self.inner = ImageProcessor(folder)
        if getattr(self.inner.inner, "do_pan_and_scan", None):
            raise ModelLoadError(
                "do_pan_and_scan is true in its processor's settings, which is not known here; set it to false",
                path=str(folder),
            )
        self.settings = self.inner.settings
        self.num_tokens, self.start_id, self.end_id = num_tokens, start_id, end_id

    def image(self, pixels: Pixels) -> Processed:
        values: Tensor = self.inner(pixels, do_pan_and_scan=False)["pixel_values"]
        return Processed(
            {"pixels": values}, self.num_tokens, (self.start_id,), (self.end_id,), text_before=BREAK, text_after=BREAK,
            is_whole=True,
        )  # fmt: skip

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        raise NotImplementedError("Gemma 3 takes pictures only")


class Gemma3Projector(nn.Module):
    """[1, patches, vision width] -> [tokens, hidden]: squares of patches are averaged, normalised, projected."""

    def __init__(self, fields: Mapping[str, Any], num_tokens: int, hidden: int, path: str) -> None:
        super().__init__()
        per_side, side = fields["image_size"] // fields["patch_size"], round(num_tokens**0.5)
        if side * side != num_tokens or side > per_side or per_side % side:
            raise ModelLoadError(
                f"field 'mm_tokens_per_image' must be a square whose side divides the {per_side} patches of a "
                f"picture's side, not {num_tokens}",
                path=path,
            )
        width = fields["hidden_size"]
        self.mm_input_projection_weight = nn.Parameter(torch.empty(width, hidden))
        self.mm_soft_emb_norm = GemmaRMSNorm(width, fields.get("layer_norm_eps", 1e-6))
        self.per_side, self.stride = per_side, per_side // side

    def forward(self, x: Tensor) -> Tensor:
        grid = x[0].transpose(0, 1).reshape(1, -1, self.per_side, self.per_side)
        averaged = F.avg_pool2d(grid, self.stride)[0].flatten(1).transpose(0, 1)
        out: Tensor = self.mm_soft_emb_norm(averaged.contiguous()) @ self.mm_input_projection_weight
        return out


class Gemma3ForConditionalGeneration(VisionLM):
    """See the module."""

    RENAMED = LlavaForConditionalGeneration.RENAMED
    IGNORED_TENSORS = (*VisionLM.IGNORED_TENSORS, "vision_model.embeddings.position_ids")

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        path = str(config.path / "config.json")
        fields = self.outer("vision_config")
        self.num_tokens = int(self.outer("mm_tokens_per_image", 256))
        self.vision_tower = VisionTransformer(fields, path)
        self.multi_modal_projector = Gemma3Projector(fields, self.num_tokens, config.hidden_size, path)
        if config.read.flag("use_bidirectional_attention"):
            raise ModelLoadError(
                "field 'text_config.use_bidirectional_attention' is true: texts that see what comes after them are "
                "embedding models', without pictures",
                path=path,
            )

    def decoder(self, config: ModelConfig) -> type[LlamaForCausalLM]:
        if config.model_type != "gemma3_text":
            raise ModelLoadError(
                f"field 'text_config.model_type' must be 'gemma3_text', not {config.model_type!r}",
                path=str(config.path / "config.json"),
            )
        return Gemma3ForCausalLM

    def is_ignored(self, name: str) -> bool:
        is_pooling = "vision" in name and ".head." in name  # to one vector for a picture
        return super().is_ignored(name) or is_pooling

    def processor(self) -> Gemma3Processor:
        start, end = (int(self.outer(f"{mark}_token_index", default)) for mark, default in MARKS.items())
        return Gemma3Processor(self.config.path, self.num_tokens, start, end)

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        found = self.vision_tower.features(pixels["pixels"].to(self.act_dtype), [-1], drop_class=False)
        out: Tensor = self.multi_modal_projector(self.vision_tower.post_layernorm(found))
        return out


MARKS = {"boi": 255_999, "eoi": 256_000}  # <start_of_image>, <end_of_image>
EntryClass = Gemma3ForConditionalGeneration
