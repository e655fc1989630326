"""OLMo 2 (arXiv 2501.00656): Llama whose norms stand behind attention and MLP, with normalised queries and keys.

x = x + norm(attention(x));  x = x + norm(mlp(x))
q = rope(norm(q)), k = rope(norm(k)), each normalised over all its heads together
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.norm import RMSNorm
from ..layers.rotary import rotate
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, Rope

if TYPE_CHECKING:
    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class Olmo2Attention(LlamaAttention):
    """Norm weights [heads * D] and [kv_heads * D]."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.q_norm = RMSNorm(self.num_heads * self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.num_kv_heads * self.head_dim, config.norm_eps)

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        q, k = self.q_norm(q.flatten(1)).view_as(q), self.k_norm(k.flatten(1)).view_as(k)
        return rotate(torch.cat((q, k), dim=1), rope[0], rope[1])


class Olmo2DecoderLayer(LlamaDecoderLayer):
    """Nothing is normalised on the way in."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = Olmo2Attention(config, layer_id)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = LlamaMLP(config)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, rope, fb, kv_pool, attn))
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(x))
        return out


class Olmo2ForCausalLM(LlamaForCausalLM):
    layer = Olmo2DecoderLayer


EntryClass = Olmo2ForCausalLM
