"""Gemma 3, text (arXiv 2503.19786): Gemma 2 without soft caps, with normalised queries and keys and two ropes.

q = rope(norm(q)), k = rope(norm(k)); layers with a sliding window turn by a base of their own, the others by a larger
one, stretched for long contexts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.norm import GemmaRMSNorm
from ..layers.rotary import RotaryTable, rotate
from .gemma import GemmaModel
from .gemma2 import Gemma2Attention, Gemma2DecoderLayer, Gemma2ForCausalLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model_config import ModelConfig
    from .llama import LlamaDecoderLayer, Rope


class Gemma3Attention(Gemma2Attention):
    """One norm weight [head_dim] for all heads of a kind."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.q_norm = GemmaRMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = GemmaRMSNorm(config.head_dim, config.norm_eps)

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        return rotate(torch.cat((self.q_norm(q), self.k_norm(k)), dim=1), rope[0], rope[1])


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    attention = Gemma3Attention


class Gemma3Model(GemmaModel):
    """Layers with a window have angles of their own."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        self.windows = config.layer_windows
        self.rotary_local = RotaryTable(config.local_rope or config.rope, config.context_length)

    def angles(self, positions: Tensor, end: int) -> Sequence[Rope]:
        full, local = self.rotary.at(positions, end), self.rotary_local.at(positions, end)
        return [full if window is None else local for window in self.windows]


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    layer = Gemma3DecoderLayer
    inner = Gemma3Model


EntryClass = Gemma3ForCausalLM
