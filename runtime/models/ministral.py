"""Ministral (Mistral AI, 2024 and 2025): Mistral with windows in some layers, or with queries that grow with position.

Ministral 3: q = rope(q) * (1 + beta log(1 + floor(position / trained context)))  (as in Llama 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .llama import LlamaDecoderLayer, LlamaModel, Rope
from .mistral import MistralAttention, MistralDecoderLayer, MistralForCausalLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model_config import ModelConfig


class MinistralForCausalLM(MistralForCausalLM):
    """`layer_types` says which layers have the window."""


class Ministral3Attention(MistralAttention):
    """rope is (cos, sin, scale [T, 1, 1] of queries)."""

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        turned = super().rotated(qk, rope)
        return torch.cat((turned[:, : self.num_heads] * rope[2], turned[:, self.num_heads :]), dim=1)


class Ministral3DecoderLayer(MistralDecoderLayer):
    attention = Ministral3Attention


class Ministral3Model(LlamaModel):
    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        table = config.read.get("rope_parameters", {})
        self.beta = config.read.number("llama_4_scaling_beta", 0.0, of=table, at="rope_parameters.", low=-1.0)
        self.trained = config.rope.original_context

    def angles(self, positions: Tensor, end: int) -> Sequence[Rope]:
        cos, sin = self.rotary.at(positions, end)
        scale = 1 + self.beta * torch.log1p(torch.floor(positions / self.trained)).to(self.act_dtype)
        return [(cos, sin, scale[:, None, None])] * len(self.layers)


class Ministral3ForCausalLM(MistralForCausalLM):
    layer = Ministral3DecoderLayer
    inner = Ministral3Model


EntryClass = [MinistralForCausalLM, Ministral3ForCausalLM]
