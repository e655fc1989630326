"""StarCoder2 (arXiv 2402.19173): Llama's frame with layer norms, biases, and an MLP without a gate.

x = x + attention(norm(x));  x = x + mlp(norm(x));  mlp(x) = c_proj(gelu(c_fc(x)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layers.mlp import PlainMLP
from ..layers.norm import LayerNorm
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

if TYPE_CHECKING:
    from torch import nn

    from ..model_config import ModelConfig


class Starcoder2Attention(LlamaAttention):
    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        has_bias = config.read.flag("use_bias", True)
        return has_bias, has_bias


class Starcoder2DecoderLayer(LlamaDecoderLayer):
    attention = Starcoder2Attention
    norm = LayerNorm

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        has_bias = config.read.flag("use_bias", True)
        return PlainMLP(config.hidden_size, config.intermediate_size, config.hidden_act, has_bias)


class Starcoder2ForCausalLM(LlamaForCausalLM):
    layer = Starcoder2DecoderLayer
    CHECKPOINT_NAMES = (("mlp.up_proj", "mlp.c_fc"), ("mlp.down_proj", "mlp.c_proj"))


EntryClass = Starcoder2ForCausalLM
