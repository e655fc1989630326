"""Llama 3.2 Vision (arXiv 2407.21783): a Llama in which some layers look across at the last picture before a row.

x = x + tanh(a) * out(softmax(norm(q) norm(k)^T / sqrt(head_dim)) v),  x = x + tanh(b) * mlp(norm(x)):
in layers that look across, where q are the row's and k, v the picture's

A picture takes one place of the prompt. A row sees the pictures that stand side by side, of which the last is the last
one before it, or its own. One before all pictures passes those layers by, as in the model's own code; transformers lets
it look at all pictures, those that come later too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..layers.embedding import Embedding
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..media.image_processor import ImageProcessor
from ..media.picture import Processed
from .llama import LlamaForCausalLM, LlamaMLP, LlamaModel
from .vision.base import VisionLM
from .vision.tiled_vit import TiledVisionTransformer

if TYPE_CHECKING:
    from pathlib import Path

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..media.picture import Pixels
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig
    from .llama import LlamaDecoderLayer, Rope

NUM_SPARE_IDS = 8  # the embedding has so many rows more than there are ids to be drawn
DEFAULT_LAYERS = (3, 8, 13, 18, 23, 28, 33, 38)


class CrossAttention(nn.Module):
    """Rows of text look at rows of pictures; neither has positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, self.num_heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.num_kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.num_kv_heads * self.head_dim)
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim, config.norm_eps), RMSNorm(self.head_dim, config.norm_eps)

    def keys_and_values(self, states: Tensor) -> Tensor:
        """[S, hidden] -> [S, 2, kv_heads, D]."""
        keys = self.k_norm(self.k_proj(states).view(-1, self.num_kv_heads, self.head_dim))
        return torch.stack([keys, self.v_proj(states).view(-1, self.num_kv_heads, self.head_dim)], dim=1)

    def forward(self, x: Tensor, kv: Tensor, one_by_one: bool) -> Tensor:
        """[T, hidden], [S, 2, kv_heads, D] -> [T, hidden]; `one_by_one`: each row's bits are its own."""
        q = self.q_norm(self.q_proj(x).view(-1, self.num_heads, self.head_dim))
        rows = [self._attend(row[None], kv) for row in q] if one_by_one else [self._attend(q, kv)]
        out: Tensor = self.o_proj(torch.cat(rows))
        return out

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        group = self.num_heads // self.num_kv_heads
        rows = q.view(len(q), self.num_kv_heads, group, -1).permute(1, 2, 0, 3).flatten(1, 2)  # [kv_heads, G * T, D]
        keys, values = kv.to(q.dtype).permute(1, 2, 0, 3)
        scores = torch.bmm(rows, keys.transpose(1, 2)).mul_(self.head_dim**-0.5)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        out = torch.bmm(weights, values).view(self.num_kv_heads, group, len(q), -1)
        return out.permute(2, 0, 1, 3).flatten(1)


class CrossLayer(nn.Module):
    """In the place of a decoder layer; `number` counts those that look across."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.cross_attn = CrossAttention(config)
        self.cross_attn_attn_gate = nn.Parameter(torch.empty(1))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = LlamaMLP(config)
        self.cross_attn_mlp_gate = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        if fb.media is None or not fb.media.across:
            return x
        out = x.clone()
        for part in fb.media.across:
            own = x[part.first : part.last]
            seen = self.cross_attn(self.input_layernorm(own), part.states[:, self.number], attn.is_deterministic)
            own = own + self.cross_attn_attn_gate.tanh() * seen
            own = own + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(own))
            out[part.first : part.last] = own
        return out


class MllamaTextModel(LlamaModel):
    """Some of its layers look across; those have no keys of their own in the cache."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        self.embed_tokens = Embedding(config.vocab_size + NUM_SPARE_IDS, config.hidden_size)
        places = config.read.get("cross_attention_layers", None)
        for number, place in enumerate(sorted(DEFAULT_LAYERS if places is None else places)):
            self.layers[place] = CrossLayer(config, number)


class MllamaTextForCausalLM(LlamaForCausalLM):
    inner = MllamaTextModel


class MllamaProcessor:
    """A picture in tiles, as many as fit its shape."""

    kinds = frozenset({"image"})
    is_spatial = False

    def __init__(self, folder: Path, num_rows: int, image_id: int) -> None:
        self.image_place: tuple[int, tuple[int, ...], tuple[int, ...]] = image_id, (), ()
        self.inner = ImageProcessor(folder)
        self.settings = self.inner.settings
        self.num_rows = num_rows

    def image(self, pixels: Pixels) -> Processed:
        made = self.inner(pixels)
        tiles = {
            "pixels": made["pixel_values"][0, 0], "shape": made["aspect_ratio_ids"][0],
            "used": made["aspect_ratio_mask"][0, 0],
        }  # fmt: skip
        return Processed(tiles, 1, num_states=int(tiles["used"].sum()) * self.num_rows)

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        raise NotImplementedError("Llama 3.2 Vision takes pictures only")


class MllamaForConditionalGeneration(VisionLM):
    """See the module."""

    looks_across: ClassVar[bool] = True
    RENAMED = {  # noqa: RUF012
        "language_model.lm_head.": ("language_model.lm_head.", "lm_head."),
        "language_model.model.": ("language_model.model.", "model.language_model."),
        "vision_model.": ("vision_model.", "model.vision_model."),
        "multi_modal_projector.": ("multi_modal_projector.", "model.multi_modal_projector."),
    }

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.vision_model = TiledVisionTransformer(self.outer("vision_config"), str(config.path / "config.json"))
        self.multi_modal_projector = nn.Linear(self.vision_model.out_features, config.hidden_size)

    def decoder(self, config: ModelConfig) -> type[LlamaForCausalLM]:
        return MllamaTextForCausalLM

    def processor(self) -> MllamaProcessor:
        return MllamaProcessor(self.config.path, self.vision_model.num_rows, self.image_id())

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        """[states, layers that look across, 2, kv_heads, D]: a picture's keys and values for each."""
        found = self.vision_model(pixels["pixels"].to(self.act_dtype), pixels["shape"], pixels["used"])
        states = self.multi_modal_projector(found[: int(pixels["used"].sum())].flatten(0, 1))
        layers = [layer for layer in self.language_model.model.layers if isinstance(layer, CrossLayer)]
        return torch.stack([layer.cross_attn.keys_and_values(states) for layer in layers], dim=1)

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        ids = input_ids.masked_fill(input_ids >= self.config.vocab_size, self.image_id())
        x = self.language_model.model.embedded(ids)
        out: Tensor = self.language_model.model(x, positions, fb, kv_pool, attn)
        return out


EntryClass = MllamaForConditionalGeneration
