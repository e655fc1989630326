"""GPT-NeoX and Pythia (arXiv 2204.06745): layer norms, biases, partial rotary positions, parallel residual.

x = x + attention(norm1(x)) + mlp(norm2(x));  mlp(x) = down(gelu(up(x)))
Without `use_parallel_residual`: x = x + attention(norm1(x)); x = x + mlp(norm2(x)). Each head's q, k, v are neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.mlp import PlainMLP
from ..layers.norm import LayerNorm
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, Rope

if TYPE_CHECKING:
    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class GPTNeoXAttention(LlamaAttention):
    """One matrix gives [heads, (q, k, v), D]."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, self.biases(config)[0])

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self.qkv_proj(x).view(-1, self.num_heads, 3, self.head_dim)
        return torch.cat((qkv[:, :, 0], qkv[:, :, 1]), dim=1), qkv[:, :, 2].contiguous()


class GPTNeoXLayer(LlamaDecoderLayer):
    attention = GPTNeoXAttention
    norm = LayerNorm

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.is_parallel = config.read.flag("use_parallel_residual", True)

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return PlainMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=True)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        if not self.is_parallel:
            return super().forward(x, rope, fb, kv_pool, attn)
        attended = self.self_attn(self.input_layernorm(x), rope, fb, kv_pool, attn)
        out: Tensor = x + attended + self.mlp(self.post_attention_layernorm(x))
        return out


class GPTNeoXForCausalLM(LlamaForCausalLM):
    layer = GPTNeoXLayer
    BASE_PREFIX = "gpt_neox."
    IGNORED_TENSORS = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
    CHECKPOINT_NAMES = (
        ("model.embed_tokens", "gpt_neox.embed_in"),
        ("model.norm", "gpt_neox.final_layer_norm"),
        ("model.", "gpt_neox."),
        ("self_attn.qkv_proj", "attention.query_key_value"),
        ("self_attn.o_proj", "attention.dense"),
        ("mlp.up_proj", "mlp.dense_h_to_4h"),
        ("mlp.down_proj", "mlp.dense_4h_to_h"),
        ("lm_head", "embed_out"),
    )


EntryClass = GPTNeoXForCausalLM
