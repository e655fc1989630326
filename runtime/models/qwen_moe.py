"""Qwen1.5-MoE, Qwen2-MoE (arXiv 2407.10671) and Qwen3-MoE (arXiv 2505.09388): Qwen2 and Qwen3 with mixtures.

mlp(x) = sum over the top k of softmax(gate(x)) of weight * expert(x)                   (both; Qwen3 renormalises)
       + sigmoid(shared_expert_gate(x)) * shared_expert(x)                              (Qwen2)
Some layers may be dense: those named in `mlp_only_layers`, and all but every `decoder_sparse_step`-th.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.moe import Experts, Gate, softmax_top_k
from ..layers.rowwise import evenly
from .llama import LlamaMLP
from .qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2ForCausalLM
from .qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class QwenMoE(nn.Module):
    """Gate and experts, and in Qwen2 an expert that all rows go to."""

    def __init__(self, config: ModelConfig, has_shared: bool) -> None:
        super().__init__()
        read, hidden = config.read, config.hidden_size
        num_experts = read.integer("num_experts")
        self.top_k = read.integer("num_experts_per_tok")
        self.renormalise = read.flag("norm_topk_prob")
        self.gate = Gate(hidden, num_experts)
        self.experts = Experts(num_experts, hidden, read.integer("moe_intermediate_size"), config.hidden_act)
        self.shared_expert: LlamaMLP | None = None
        if has_shared:
            self.shared_expert = LlamaMLP(config, read.integer("shared_expert_intermediate_size"))
            self.shared_expert_gate = Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.experts.mix(x, softmax_top_k(self.gate(x), self.top_k, self.renormalise))
        if self.shared_expert is None:
            return out
        shared: Tensor = evenly(torch.sigmoid, self.shared_expert_gate(x)) * self.shared_expert(x)
        return out + shared


def is_sparse(config: ModelConfig, layer_id: int) -> bool:
    """Whether the layer has a mixture."""
    step = config.read.integer("decoder_sparse_step", 1)
    return layer_id not in config.read.get("mlp_only_layers", []) and (layer_id + 1) % step == 0


class Qwen2MoeAttention(Qwen2Attention):
    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        return config.read.flag("qkv_bias", True), False


class Qwen2MoeDecoderLayer(Qwen2DecoderLayer):
    attention = Qwen2MoeAttention

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return QwenMoE(config, has_shared=True) if is_sparse(config, layer_id) else LlamaMLP(config)


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    layer = Qwen2MoeDecoderLayer


class Qwen3MoeDecoderLayer(Qwen3DecoderLayer):
    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return QwenMoE(config, has_shared=False) if is_sparse(config, layer_id) else LlamaMLP(config)


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    layer = Qwen3MoeDecoderLayer


EntryClass = [Qwen2MoeForCausalLM, Qwen3MoeForCausalLM]
