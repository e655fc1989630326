"""Qwen2-VL (arXiv 2409.12191): pictures keep their shape, and their places in the prompt have rows and columns.

patches of two frames each -> blocks with rotation by (row, column) -> each 2 x 2 of them merged into one feature
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import RequestError
from ..media.image_processor import ImageProcessor, video_settings
from ..media.picture import Processed
from .vision.base import VisionLM
from .vision.spatial import SpatialQwen2
from .vision.vit import activation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..media.picture import Pixels
    from ..model_config import ModelConfig


class QwenVLProcessor:
    """Pictures of any size, in patches; frames of a video in pairs, each resized as a picture is.

    `positions_per_second` is how far a second of video goes in the positions of time; None: each pair is one further.
    """

    kinds = frozenset({"image", "video"})
    is_spatial = True

    def __init__(self, folder: Path, start_id: int, end_id: int, image_id: int) -> None:
        self.inner = ImageProcessor(folder)
        self.video_options = video_settings(folder)
        self.settings = f"{self.inner.settings} {self.video_options}"
        self.positions_per_second: float | None = None
        self.start_id, self.end_id = start_id, end_id
        self.image_place = image_id, (start_id,), (end_id,)
        self.merge = int(self.inner.inner.merge_size)
        self.patch = int(self.inner.inner.patch_size)
        self.frames_per_patch = int(self.inner.inner.temporal_patch_size)

    def image(self, pixels: Pixels) -> Processed:
        made = self.inner(pixels)
        return self._processed(made["pixel_values"], made["image_grid_thw"][0].tolist())

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        """Patches [pairs * rows * columns, C * 2 * p * p]; an odd last frame stands twice."""
        made = [self.inner(frame, **self.video_options) for frame in frames]
        if len({tuple(m["image_grid_thw"][0].tolist()) for m in made}) != 1:
            raise RequestError("its frames have different sizes", field="video")
        _, rows, columns = made[0]["image_grid_thw"][0].tolist()
        per, side = self.frames_per_patch, self.patch
        # A picture's patches hold it `per` times; one of them is the frame.
        single = [m["pixel_values"].view(rows * columns, -1, per, side, side)[:, :, 0] for m in made]
        single += [single[-1]] * (-len(single) % per)
        groups = [torch.stack(single[i : i + per], dim=2).flatten(1) for i in range(0, len(single), per)]
        step = 1.0
        if self.positions_per_second is not None:
            step = self.positions_per_second * (1.0 if fps is None else per / fps)
        return self._processed(torch.cat(groups), [len(groups), rows, columns], step)

    def _processed(self, patches: Tensor, grid: list[int], frame_step: float = 1.0) -> Processed:
        frames, rows, columns = grid[0], grid[1] // self.merge, grid[2] // self.merge
        return Processed(
            {"patches": patches, "grid": torch.tensor(grid)},
            frames * rows * columns,
            (self.start_id,),
            (self.end_id,),
            (frames, rows, columns),
            frame_step,
        )


class PatchEmbed(nn.Module):
    """A patch's pixels (of two frames) to one row."""

    def __init__(self, channels: int, frames: int, side: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, (frames, side, side), (frames, side, side), bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D], cos and sin [N, 1, D / 2]: pairs (i, i + D / 2) turned, in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def patch_angles(grid: tuple[int, int, int], merge: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos, sin [frames * rows * columns, 1, D / 2] of patches in the processor's order: merged blocks one by one."""
    frames, rows, columns = grid
    at = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    blocks = at.view(rows // merge, merge, columns // merge, merge, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2)
    quarter = head_dim // 4
    freq = 1.0 / (10_000.0 ** (torch.arange(quarter, dtype=torch.float32) / quarter))
    angles = (blocks[:, :, None].float() * freq).flatten(1).repeat(frames, 1).to(device)
    return angles.cos()[:, None], angles.sin()[:, None]


class VisionAttention(nn.Module):
    """Each row sees the rows of its own piece: a frame, or a window of one. `lengths` are those of the pieces."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1).unbind(1)
        q, k = rotated(q, *angles), rotated(k, *angles)
        parts, start = [], 0
        for length, group in groupby(lengths):  # neighbours of one length are computed together
            end = start + length * len(list(group))
            q1, k1, v1 = (y[start:end].view(-1, length, *y.shape[1:]).transpose(1, 2) for y in (q, k, v))
            parts.append(F.scaled_dot_product_attention(q1, k1, v1).transpose(1, 2).flatten(0, 1).flatten(1))
            start = end
        out: Tensor = self.proj(torch.cat(parts))
        return out


class VisionMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, width: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, num_heads: int, norm: Callable[[int], nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn = VisionAttention(width, num_heads)
        self.mlp = mlp

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), angles, lengths)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Merger(nn.Module):
    """`merge` x `merge` neighbouring patches to one row of the decoder's width."""

    def __init__(self, width: int, merge: int, out_features: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.wide = width * merge**2
        self.ln_q = norm(width)
        self.mlp = nn.Sequential(nn.Linear(self.wide, self.wide), nn.GELU(), nn.Linear(self.wide, out_features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_q(x).view(-1, self.wide))
        return out


class QwenVision(nn.Module):
    """Qwen2-VL's encoder; `fields` is config.json's `vision_config`."""

    def __init__(self, fields: Mapping[str, Any], hidden_size: int, path: str) -> None:
        super().__init__()
        width, num_heads, depth = fields["embed_dim"], fields["num_heads"], fields["depth"]
        inner = int(width * fields.get("mlp_ratio", 4))
        self.patch = fields["patch_size"]
        self.merge = fields.get("spatial_merge_size", 2)
        self.head_dim = width // num_heads
        act = activation(fields.get("hidden_act", "quick_gelu"), path)
        norm = partial(nn.LayerNorm, eps=1e-6)
        channels = fields.get("in_channels", fields.get("in_chans", 3))
        self.patch_embed = PatchEmbed(channels, fields.get("temporal_patch_size", 2), self.patch, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, norm, VisionMLP(width, inner, act)) for _ in range(depth))
        self.merger = Merger(width, self.merge, hidden_size, norm)

    def forward(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[frames * rows * columns, C * 2 * p * p] -> [that / merge^2, hidden]."""
        x = self.patch_embed(patches)
        angles = patch_angles(grid, self.merge, self.head_dim, x.device)
        lengths = [grid[1] * grid[2]] * grid[0]
        for block in self.blocks:
            x = block(x, angles, lengths)
        out: Tensor = self.merger(x)
        return out


class Qwen2VLForConditionalGeneration(VisionLM):
    """See the module."""

    is_spatial = True
    RENAMED = {  # noqa: RUF012
        "language_model.lm_head.": ("lm_head.",),
        "language_model.model.": ("model.language_model.", "model."),
        "visual.": ("model.visual.", "visual."),
    }

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.visual = self.make_encoder()

    def make_encoder(self) -> nn.Module:
        """The encoder of pictures."""
        path = str(self.config.path / "config.json")
        return QwenVision(self.outer("vision_config"), self.config.hidden_size, path)

    def decoder(self, config: ModelConfig) -> type[SpatialQwen2]:
        return SpatialQwen2

    def processor(self) -> QwenVLProcessor:
        start_id, end_id = self.outer("vision_start_token_id"), self.outer("vision_end_token_id")
        return QwenVLProcessor(self.config.path, start_id, end_id, self.image_id())

    def encode_media(self, pixels: dict[str, Tensor]) -> Tensor:
        frames, rows, columns = pixels["grid"].tolist()
        out: Tensor = self.visual(pixels["patches"].to(self.act_dtype), (frames, rows, columns))
        return out


EntryClass = Qwen2VLForConditionalGeneration
