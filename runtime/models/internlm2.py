"""InternLM2 (arXiv 2403.17297): Llama under other names, with q, k, v of each KV head as neighbours in one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.linear import Linear
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class InternLM2Attention(LlamaAttention):
    """One matrix gives [kv_heads, (its queries, k, v), D]."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv_proj = Linear(config.hidden_size, heads * self.head_dim, self.biases(config)[0])

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        has_bias = config.read.flag("bias")
        return has_bias, has_bias

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self.qkv_proj(x).view(-1, self.num_kv_heads, self.num_heads // self.num_kv_heads + 2, self.head_dim)
        return torch.cat((qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2]), dim=1), qkv[:, :, -1].contiguous()


class InternLM2DecoderLayer(LlamaDecoderLayer):
    attention = InternLM2Attention


class InternLM2ForCausalLM(LlamaForCausalLM):
    layer = InternLM2DecoderLayer
    CHECKPOINT_NAMES = (
        ("embed_tokens", "tok_embeddings"),
        ("self_attn.qkv_proj", "attention.wqkv"),
        ("self_attn.o_proj", "attention.wo"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("lm_head", "output"),
    )


EntryClass = InternLM2ForCausalLM
