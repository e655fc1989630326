"""Rotary positions in three axes (M-RoPE, Qwen2-VL, arXiv 2409.12191): time, height and width share a head's pairs.

The pairs of a head are cut into sections; section i turns by the position of axis i mod 3. Text has the same position
in all three, so that it is turned as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ....core.errors import ModelLoadError
from ..llama import LlamaModel
from ..qwen2 import Qwen2ForCausalLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ...model_config import ModelConfig
    from ..llama import LlamaDecoderLayer, Rope


def rope_sections(config: ModelConfig) -> list[int]:
    """How many pairs each section has. Raises ModelLoadError unless they are all pairs of a head."""
    fields = config.read.raw
    table = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    sections = table.get("mrope_section")
    if (
        not isinstance(sections, list)
        or not all(type(s) is int and s > 0 for s in sections)
        or sum(sections) != config.rope.rotary_dim // 2
    ):
        raise ModelLoadError(
            f"field 'mrope_section' must list sizes that add up to {config.rope.rotary_dim // 2}, not {sections!r}",
            path=str(config.path / "config.json"),
        )
    return sections


class SpatialModel(LlamaModel):
    """Takes positions [3, T], or [T] for text alone."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__(config, act_dtype, layer)
        self.sections = rope_sections(config)

    def angles(self, positions: Tensor, end: int) -> Sequence[Rope]:
        if positions.dim() == 1:
            return super().angles(positions, end)
        parts = [table.view(3, -1, *table.shape[1:]) for table in self.rotary.at(positions.flatten(), end)]
        mixed = [
            torch.cat([piece[i % 3] for i, piece in enumerate(torch.split(table, self.sections, dim=-1))], dim=-1)
            for table in parts
        ]
        return [(mixed[0], mixed[1])] * len(self.layers)


class SpatialQwen2(Qwen2ForCausalLM):
    """Qwen2 with positions in three axes."""

    inner = SpatialModel
