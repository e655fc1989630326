"""Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class Qwen2Attention(LlamaAttention):
    """q, k, v have biases, the output has none."""

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        return True, False


class Qwen2DecoderLayer(LlamaDecoderLayer):
    attention = Qwen2Attention


class Qwen2ForCausalLM(LlamaForCausalLM):
    layer = Qwen2DecoderLayer


EntryClass = Qwen2ForCausalLM
