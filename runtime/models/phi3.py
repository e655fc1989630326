"""Phi-3, Phi-3.5 and Phi-4, dense (arXiv 2404.14219): Llama whose checkpoints hold q, k, v and gate, up as one.

Long-context versions stretch each pair of rotary dimensions by a factor of its own (LongRoPE, arXiv 2402.13753);
Phi-4-mini turns a part of each head only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layers.linear import Linear
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP

if TYPE_CHECKING:
    from torch import nn

    from ..model_config import ModelConfig


class Phi3MLP(LlamaMLP):
    """The checkpoint's gate_up_proj is gate above up already."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)


class Phi3Attention(LlamaAttention):
    """The checkpoint's qkv_proj is q above k above v already."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv_proj = Linear(config.hidden_size, heads * self.head_dim)

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        return False, False


class Phi3DecoderLayer(LlamaDecoderLayer):
    attention = Phi3Attention

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return Phi3MLP(config)


class Phi3ForCausalLM(LlamaForCausalLM):
    layer = Phi3DecoderLayer


EntryClass = Phi3ForCausalLM
