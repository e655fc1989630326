"""The frame of a language model that sees: an encoder of pictures before a decoder that is a family of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ....core.errors import ModelLoadError
from ...checkpoint import checkpoint_tensors
from ..base import CausalLM
from ..llama import LlamaForCausalLM
from ..mistral import MistralForCausalLM
from ..qwen2 import Qwen2ForCausalLM
from ..qwen3 import Qwen3ForCausalLM
from .fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...attention.base import AttentionBackend
    from ...batch import ForwardBatch
    from ...layers.linear import Linear
    from ...media.library import MediaProcessor
    from ...memory.kv_pool import KVPool
    from ...model_config import ModelConfig

DECODERS: dict[str, type[LlamaForCausalLM]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}


class VisionLM(CausalLM):
    """`language_model` reads text and, in the places of pictures, what `encode_media` gives.

    `RENAMED` maps the beginning of our parameter names to those that checkpoints have: the first that the files hold
    counts (transformers has changed them over time).
    """

    is_spatial: ClassVar[bool] = False  # positions follow the grids of pictures (M-RoPE)
    looks_across: ClassVar[bool] = False  # what `encode_media` gives is looked at by cross attention
    RENAMED: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    BASE_PREFIX = ""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.language_model = self.decoder(config)(config, act_dtype)

    def decoder(self, config: ModelConfig) -> type[LlamaForCausalLM]:
        """The class of the language model. Raises ModelLoadError for one that is not known here."""
        found = DECODERS.get(config.model_type)
        if found is None:
            raise ModelLoadError(
                f"field 'text_config.model_type' is {config.model_type!r}; decoders of {type(self).__name__} can be "
                f"{', '.join(DECODERS)}",
                path=str(config.path / "config.json"),
            )
        return found

    @property
    def lm_head(self) -> Linear:  # type: ignore[override]
        """The decoder's."""
        return self.language_model.lm_head

    @abstractmethod
    def processor(self) -> MediaProcessor:
        """What makes the encoder's inputs of pixels, from the files of the model's folder. Raises ModelLoadError."""

    @abstractmethod
    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        """A picture's `Processed.pixels`, on the model's device -> [num_features, hidden]."""

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        media = fb.media
        x = self.language_model.model.embedded(input_ids.clamp(max=self.config.vocab_size - 1))
        if media is not None and media.rows is not None:
            assert media.features is not None
            x = x.index_copy(0, media.rows, media.features.to(x.dtype))
        if media is not None and media.positions is not None:
            positions = media.positions
        out: Tensor = self.language_model.model(x, positions, fb, kv_pool, attn)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.logits(hidden)

    def checkpoint_targets(self) -> Mapping[str, Tensor]:
        names = [tensor.name for tensor in checkpoint_tensors(self.config.path)]
        renamed: dict[str, str] = {}
        for ours, theirs in self.RENAMED.items():
            renamed[ours] = next((t for t in theirs if any(name.startswith(t) for name in names)), theirs[0])
        targets: dict[str, Tensor] = {}
        for name, target in super().checkpoint_targets().items():
            ours = next((begin for begin in renamed if name.startswith(begin)), "")
            targets[renamed.get(ours, "") + name[len(ours) :]] = target
        return targets

    def image_id(self) -> int:
        """The token that stands for a picture in transformers' prompts."""
        return int(self.outer("image_token_id", self.config.fields.get("image_token_index")))

    def outer(self, name: str, default: Any = None) -> Any:
        """A field of the whole config.json; an object as `Fields`.

        Raises ModelLoadError where it is missing and has no default.
        """
        value = self.config.fields.get(name, default)
        if value is None:
            raise ModelLoadError(f"field {name!r} is missing", path=str(self.config.path / "config.json"))
        return Fields(name, value, self.config.path / "config.json") if isinstance(value, dict) else value
