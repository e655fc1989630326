"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL whose encoder looks through windows, and whose films know the time.

patches -> blocks (RMS norm, SwiGLU), most of which see one square window, some a whole frame -> merged 2 x 2
A video's frames stand as far apart as the seconds between them say.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.errors import ModelLoadError
from ..layers.norm import RMSNorm
from .qwen2_vl import Block, Merger, PatchEmbed, Qwen2VLForConditionalGeneration, QwenVLProcessor, patch_angles
from .vision.vit import activation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.gate_proj, self.up_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


def windows(frames: int, rows: int, columns: int, side: int) -> list[Tensor]:
    """The cells (int64, counted frame by frame, row by row) of each window of at most `side` x `side` of one frame.

    Frame by frame, in each the largest windows first: windows of one size are computed together.
    """
    found = []
    for frame in torch.arange(frames * rows * columns).view(frames, rows, columns).unbind(0):
        pieces = [window.flatten() for band in torch.split(frame, side) for window in torch.split(band, side, dim=1)]
        found += sorted(pieces, key=len, reverse=True)
    return found


class QwenWindowVision(nn.Module):
    """Qwen2.5-VL's encoder; `fields` is config.json's `vision_config`. A cell is what is merged to one feature."""

    def __init__(self, fields: Mapping[str, Any], hidden_size: int, path: str) -> None:
        super().__init__()
        width, num_heads, patch = fields["hidden_size"], fields["num_heads"], fields["patch_size"]
        self.merge = fields.get("spatial_merge_size", 2)
        self.side = fields.get("window_size", 112) // self.merge // patch
        if self.side < 1:
            raise ModelLoadError(
                f"field 'vision_config.window_size' must be at least {self.merge * patch}, the side of what is merged "
                "to one feature",
                path=path,
            )
        out_size = fields.get("out_hidden_size", hidden_size)
        if out_size != hidden_size:
            raise ModelLoadError(
                f"field 'vision_config.out_hidden_size' is {out_size}, the decoder's hidden_size {hidden_size}: they "
                "must agree",
                path=path,
            )
        self.whole = frozenset(fields.get("fullatt_block_indexes", (7, 15, 23, 31)))
        self.head_dim = width // num_heads
        act = activation(fields.get("hidden_act", "silu"), path)
        norm = partial(RMSNorm, eps=1e-6)
        channels = fields.get("in_channels", fields.get("in_chans", 3))
        self.patch_embed = PatchEmbed(channels, fields.get("temporal_patch_size", 2), patch, width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, norm, GatedMLP(width, fields["intermediate_size"], act))
            for _ in range(fields["depth"])
        )
        self.merger = Merger(width, self.merge, hidden_size, norm)

    def forward(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[frames * rows * columns, C * 2 * p * p] -> [that / merge^2, hidden]."""
        frames, rows, columns = grid
        per_cell = self.merge**2
        pieces = windows(frames, rows // self.merge, columns // self.merge, self.side)
        order = torch.cat(pieces).to(patches.device)  # frame by frame too, so that whole frames stay together

        def ordered(x: Tensor) -> Tensor:
            return x.view(-1, per_cell, *x.shape[1:])[order].flatten(0, 1)

        cos, sin = patch_angles(grid, self.merge, self.head_dim, patches.device)
        angles = ordered(cos), ordered(sin)
        in_windows, in_frames = [per_cell * len(piece) for piece in pieces], [rows * columns] * frames
        x = ordered(self.patch_embed(patches))
        for number, block in enumerate(self.blocks):
            x = block(x, angles, in_frames if number in self.whole else in_windows)
        merged: Tensor = self.merger(x)
        return torch.empty_like(merged).index_copy_(0, order, merged)


class Qwen2_5_VLForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """See the module. The class has its architecture's name."""

    def make_encoder(self) -> nn.Module:
        path = str(self.config.path / "config.json")
        return QwenWindowVision(self.outer("vision_config"), self.config.hidden_size, path)

    def processor(self) -> QwenVLProcessor:
        made = super().processor()
        made.positions_per_second = float(self.outer("vision_config").get("tokens_per_second", 4))
        return made


EntryClass = Qwen2_5_VLForConditionalGeneration
