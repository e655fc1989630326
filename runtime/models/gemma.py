"""Gemma (arXiv 2403.08295): Llama whose embedding is scaled and whose norms multiply by 1 + weight.

x = embed(ids) * sqrt(hidden);  norm(x) = x / rms(x) * (1 + w);  mlp(x) = down(gelu(gate(x)) * up(x))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..layers.norm import GemmaRMSNorm
from .llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

if TYPE_CHECKING:
    from torch import Tensor

    from ..model_config import ModelConfig


class GemmaDecoderLayer(LlamaDecoderLayer):
    norm = GemmaRMSNorm


class GemmaModel(LlamaModel):
    """Its embedding is multiplied by sqrt(hidden), rounded to the dtype of activations as in training."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        # a number of the host: a tensor made in each forward would be a copy to the device that a graph cannot hold
        self.scale = float(torch.tensor(config.hidden_size**0.5, dtype=act_dtype, device="cpu"))

    def embedded(self, input_ids: Tensor) -> Tensor:
        x = super().embedded(input_ids)
        return x * self.scale


class GemmaForCausalLM(LlamaForCausalLM):
    layer = GemmaDecoderLayer
    inner = GemmaModel


EntryClass = GemmaForCausalLM
