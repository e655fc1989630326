"""Mixtral (arXiv 2401.04088): Mistral whose MLPs are mixtures; a row goes to its two likeliest experts.

mlp(x) = sum over the top k of softmax(gate(x)), made to sum to 1, of weight * w2(silu(w1(x)) * w3(x))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..layers.moe import Experts, Gate, softmax_top_k
from .mistral import MistralDecoderLayer, MistralForCausalLM

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class MixtralMoE(nn.Module):
    """Gate and experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_experts = config.read.integer("num_local_experts", 8)
        self.top_k = config.read.integer("num_experts_per_tok", 2)
        self.gate = Gate(config.hidden_size, num_experts)
        self.experts = Experts(
            num_experts, config.hidden_size, config.intermediate_size, config.hidden_act, ("w1", "w3", "w2")
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.experts.mix(x, softmax_top_k(self.gate(x), self.top_k, renormalise=True))


class MixtralDecoderLayer(MistralDecoderLayer):
    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return MixtralMoE(config)


class MixtralForCausalLM(MistralForCausalLM):
    layer = MixtralDecoderLayer
    CHECKPOINT_NAMES = ((".mlp.", ".block_sparse_moe."),)


EntryClass = MixtralForCausalLM
