"""Gemma 2 (arXiv 2408.00118): Gemma with norms on both sides of attention and MLP, soft caps, and windows.

x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))
scores = cap * tanh(q k^T / sqrt(query_pre_attn_scalar) / cap); every other layer sees a sliding window
logits = cap * tanh(head(x) / cap)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layers.norm import GemmaRMSNorm
from .gemma import GemmaDecoderLayer, GemmaForCausalLM
from .llama import LlamaAttention, Rope

if TYPE_CHECKING:
    from torch import Tensor

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class Gemma2Attention(LlamaAttention):
    """Scores are scaled by a number of their own, not by the size of a head."""

    def scaling(self, config: ModelConfig) -> float:
        return float(config.read.number("query_pre_attn_scalar") ** -0.5)


class Gemma2DecoderLayer(GemmaDecoderLayer):
    """What attention and MLP add to the residual is normalised too."""

    attention = Gemma2Attention

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, fb, kv_pool, attn))
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class Gemma2ForCausalLM(GemmaForCausalLM):
    layer = Gemma2DecoderLayer


EntryClass = Gemma2ForCausalLM
