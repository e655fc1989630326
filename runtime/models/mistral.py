"""Mistral (arXiv 2310.06825): Llama whose layers see a sliding window (`ModelConfig.layer_windows`), and no biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

if TYPE_CHECKING:
    from ..model_config import ModelConfig


class MistralAttention(LlamaAttention):
    """Never a bias, whatever the config says."""

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        return False, False


class MistralDecoderLayer(LlamaDecoderLayer):
    attention = MistralAttention


class MistralForCausalLM(LlamaForCausalLM):
    layer = MistralDecoderLayer


EntryClass = MistralForCausalLM
