"""Granite 3 (IBM, 2024): Llama with four multipliers (muP, arXiv 2203.03466).

x = embed(ids) * embedding_multiplier
x = x + residual_multiplier * attention(norm(x));  x = x + residual_multiplier * mlp(norm(x))
scores = q k^T * attention_multiplier;  logits = head(norm(x)) / logits_scaling
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel, Rope

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class GraniteAttention(LlamaAttention):
    def scaling(self, config: ModelConfig) -> float:
        return config.read.number("attention_multiplier", 1.0)


class GraniteDecoderLayer(LlamaDecoderLayer):
    attention = GraniteAttention

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.residual_multiplier = config.read.number("residual_multiplier", 1.0)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, fb, kv_pool, attn) * self.residual_multiplier
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.residual_multiplier
        return out


class GraniteModel(LlamaModel):
    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        self.embedding_multiplier = config.read.number("embedding_multiplier", 1.0)

    def embedded(self, input_ids: Tensor) -> Tensor:
        return super().embedded(input_ids) * self.embedding_multiplier


class GraniteForCausalLM(LlamaForCausalLM):
    layer = GraniteDecoderLayer
    inner = GraniteModel

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.logits_scaling = config.read.number("logits_scaling", 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) / self.logits_scaling


EntryClass = GraniteForCausalLM
