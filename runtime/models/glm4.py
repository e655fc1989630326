"""GLM-4-0414 (arXiv 2406.12793): norms on both sides of attention and MLP; half of each head turns, by neighbours.

x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)));  mlp(x) = down(silu(gate(x)) * up(x))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layers.norm import RMSNorm
from ..layers.rotary import rotate_pairs
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, Rope
from .phi3 import Phi3MLP

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class Glm4Attention(LlamaAttention):
    """q, k, v may have biases, the output has none."""

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        return config.attention_bias, False

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        return rotate_pairs(qk, rope[0], rope[1])


class Glm4DecoderLayer(LlamaDecoderLayer):
    attention = Glm4Attention

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return Phi3MLP(config)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(x), rope, fb, kv_pool, attn))
        out: Tensor = x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return out


class Glm4ForCausalLM(LlamaForCausalLM):
    layer = Glm4DecoderLayer


EntryClass = Glm4ForCausalLM
