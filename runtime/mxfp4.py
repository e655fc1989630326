"""MXFP4 checkpoints (OCP Microscaling Formats 1.0), as gpt-oss is published: dequantised as they are read.

A matrix `name` [E, in, out] is stored as `name`_blocks [E, out, in / 32, 16] uint8, two numbers of 4 bits (E2M1) in a
byte, the lower ones first, and `name`_scales [E, out, in / 32] uint8: powers of two with a bias of 127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import ModelLoadError
from .checkpoint import StoredTensor, read_into

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BLOCKS, SCALES = "_blocks", "_scales"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BIAS = 127


@dataclass(frozen=True, slots=True)
class Mxfp4Tensor:
    """The matrices of all experts, in two stored tensors."""

    name: str
    blocks: StoredTensor
    scales: StoredTensor

    @property
    def file(self) -> Path:
        return self.blocks.file

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups, size = self.blocks.shape
        return experts, groups * size * 2, rows

    def copy_into(self, target: Tensor) -> None:
        """Write the values to `target` [E, in, out], one expert after the other."""
        blocks = torch.empty(self.blocks.shape, dtype=torch.uint8)
        scales = torch.empty(self.scales.shape, dtype=torch.uint8)
        for stored, read in ((self.blocks, blocks), (self.scales, scales)):
            with stored.file.open("rb", buffering=0) as stream:
                read_into(stream, stored, read)
        for expert in range(len(target)):
            target[expert].copy_(dequantised(blocks[expert], scales[expert]).t())


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """[rows, groups, 16] and [rows, groups] uint8 -> [rows, groups * 32] float32."""
    table = torch.tensor(VALUES)
    pairs = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1)
    exponents = scales.to(torch.int32).sub(BIAS)
    return torch.ldexp(pairs.flatten(2), exponents.unsqueeze(-1)).flatten(1)


def merged(tensors: Iterable[StoredTensor]) -> list[StoredTensor | Mxfp4Tensor]:
    """The tensors with each pair of blocks and scales in one. Raises ModelLoadError for one without the other."""
    found = {tensor.name: tensor for tensor in tensors}
    result: list[StoredTensor | Mxfp4Tensor] = []
    for name, tensor in found.items():
        stem = name.removesuffix(BLOCKS).removesuffix(SCALES)
        if stem == name or tensor.dtype != torch.uint8:
            result.append(tensor)
            continue
        blocks, scales = found.get(stem + BLOCKS), found.get(stem + SCALES)
        if blocks is None or scales is None or blocks.shape[:-1] != scales.shape or blocks.shape[-1] != 16:
            raise ModelLoadError(
                f"tensors {stem + BLOCKS!r} and {stem + SCALES!r} do not fit together; download the files again",
                path=str(tensor.file),
            )
        if tensor is blocks:
            result.append(Mxfp4Tensor(stem, blocks, scales))
    return result
