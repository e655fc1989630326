"""The encoder of Llama 3.2 Vision (arXiv 2407.21783): a picture's tiles go through one transformer together.

x = patches * W + tile, a class row before each tile's, + (1 - tanh g) position + tanh g * (position in this tile)
x, kept of some layers = transformer(x);  x = global(norm(x) + tile), whose layers are gated
picture = [x, what was kept], for each row of each tile

All pictures have `max_num_tiles` tiles, those that are not used being empty; rows see the rows of empty ones too, as in
transformers: only empty rows do not see each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vit import MLP, activation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROWS_MULTIPLE = 8  # a tile's rows are padded to a multiple of it


def _table(num: int, size: int) -> nn.Embedding:
    return nn.Embedding(num, size, _weight=torch.empty(num, size))  # no values are drawn for the meta device


class _TilePosition(nn.Module):
    """One vector for each tile of each shape that a picture may have."""

    def __init__(self, num_shapes: int, num_tiles: int, hidden: int) -> None:
        super().__init__()
        self.embedding = _table(num_shapes + 1, num_tiles * hidden)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        own = self.embedding.weight.index_select(0, shape).view(x.shape[0], 1, x.shape[2])
        return x + own * self.gate.tanh()


class _RowPosition(nn.Module):
    """One vector for each row of a tile, and one for each row of each tile of each shape."""

    def __init__(self, num_shapes: int, num_tiles: int, num_rows: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_rows, hidden))
        self.tile_embedding = _table(num_shapes + 1, num_tiles * num_rows * hidden)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        gate = self.gate.tanh()
        return x + (1 - gate) * self.embedding + gate * self.tile_embedding.weight.index_select(0, shape).view(x.shape)


class _Attention(nn.Module):
    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(hidden, hidden, False) for _ in range(4))

    def forward(self, x: Tensor, bars: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], self.num_heads, -1).transpose(0, 1)[None]

        out = F.scaled_dot_product_attention(heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x)), bars)
        projected: Tensor = self.o_proj(out[0].transpose(0, 1).flatten(1))
        return projected


class _Layer(nn.Module):
    def __init__(self, fields: Mapping[str, Any], act: Callable[[Tensor], Tensor], is_gated: bool) -> None:
        super().__init__()
        hidden, eps = fields["hidden_size"], fields.get("norm_eps", 1e-5)
        self.self_attn = _Attention(hidden, fields["attention_heads"])
        self.mlp = MLP(hidden, fields["intermediate_size"], act)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.is_gated = is_gated
        if is_gated:
            self.gate_attn, self.gate_ffn = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, bars: Tensor) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), bars)
        x = x + (self.gate_attn.tanh() * attended if self.is_gated else attended)
        more = self.mlp(self.post_attention_layernorm(x))
        out: Tensor = x + (self.gate_ffn.tanh() * more if self.is_gated else more)
        return out


class _Encoder(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, bars: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What comes out, and what each layer gives."""
        found = []
        for layer in self.layers:
            x = layer(x, bars)
            found.append(x)
        return x, found


class TiledVisionTransformer(nn.Module):
    """`fields` is config.json's `vision_config`."""

    def __init__(self, fields: Mapping[str, Any], path: str) -> None:
        super().__init__()
        hidden, patch = fields["hidden_size"], fields["patch_size"]
        self.num_tiles = int(fields.get("max_num_tiles", 4))
        self.num_rows = (fields["image_size"] // patch) ** 2 + 1
        shapes = len(fields.get("supported_aspect_ratios") or range(8))
        act = activation(fields.get("hidden_act", "gelu"), path)
        kept = fields.get("intermediate_layers_indices")
        self.kept: list[int] = [3, 7, 15, 23, 30] if kept is None else kept
        self.patch_embedding = nn.Conv2d(fields.get("num_channels", 3), hidden, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(hidden))
        self.gated_positional_embedding = _RowPosition(shapes, self.num_tiles, self.num_rows, hidden)
        self.pre_tile_positional_embedding = _TilePosition(shapes, self.num_tiles, hidden)
        self.post_tile_positional_embedding = _TilePosition(shapes, self.num_tiles, hidden)
        self.layernorm_pre, self.layernorm_post = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.transformer = _Encoder([_Layer(fields, act, False) for _ in range(fields["num_hidden_layers"])])
        self.global_transformer = _Encoder([_Layer(fields, act, True) for _ in range(fields["num_global_layers"])])

    @property
    def out_features(self) -> int:
        return int(self.class_embedding.shape[0]) * (1 + len(self.kept))

    def forward(self, pixels: Tensor, shape: Tensor, used: Tensor) -> Tensor:
        """[tiles, 3, H, W], number of the picture's shape [1], used tiles [tiles] -> [tiles, rows, out_features]."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = self.pre_tile_positional_embedding(x, shape)
        x = torch.cat([self.class_embedding.expand(self.num_tiles, 1, -1), x], dim=1)
        x = self.layernorm_pre(self.gated_positional_embedding(x, shape))
        num_padding = -self.num_rows % ROWS_MULTIPLE
        x = F.pad(x, (0, 0, 0, num_padding))
        padded = self.num_rows + num_padding
        is_empty = (used == 0)[:, None].repeat(1, padded)
        is_empty[:, self.num_rows :] = True
        is_empty = is_empty.flatten()
        bars = (is_empty[:, None] & is_empty) * torch.finfo(x.dtype).min
        x, found = self.transformer(x.flatten(0, 1), bars.to(x.dtype))
        x = self.layernorm_post(x).view(self.num_tiles, padded, -1)
        x = self.post_tile_positional_embedding(x, shape).flatten(0, 1)
        x, _ = self.global_transformer(x, bars.to(x.dtype))
        kept = torch.stack([found[number] for number in self.kept], dim=-1).flatten(1)
        return torch.cat([x, kept], dim=-1).view(self.num_tiles, padded, -1)[:, : self.num_rows]
