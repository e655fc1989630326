"""Qwen3, dense (arXiv 2505.09388): Llama whose queries and keys are normalised head by head before they are turned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.norm import RMSNorm
from ..layers.rotary import rotate
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, Rope

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class Qwen3Attention(LlamaAttention):
    """q = rope(norm(q)), k = rope(norm(k)); one norm weight [head_dim] for all heads of a kind."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        return rotate(torch.cat((self.q_norm(q), self.k_norm(k)), dim=1), rope[0], rope[1])


class Qwen3DecoderLayer(LlamaDecoderLayer):
    attention = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    layer = Qwen3DecoderLayer


EntryClass = Qwen3ForCausalLM
