"""Vision transformers of the CLIP kind (arXiv 2103.00020) and the SigLIP kind (arXiv 2303.15343).

x = patches * W + position            CLIP: a class row before them, and a norm after
for each layer:  x = x + attention(norm1(x));  x = x + fc2(act(fc1(norm2(x))))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.errors import ModelLoadError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def activation(name: str, path: str) -> Callable[[Tensor], Tensor]:
    """The function of this name. Raises ModelLoadError listing the known ones."""
    if name not in ACTIVATIONS:
        raise ModelLoadError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {name!r}", path=path)
    return ACTIVATIONS[name]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Every row sees every row: [T, heads, D] each -> [T, heads * D]."""
    out = F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), scale=scale)
    return out.transpose(0, 1).flatten(1)


class _Embeddings(nn.Module):
    def __init__(self, fields: Mapping[str, Any], has_class: bool) -> None:
        super().__init__()
        hidden, patch = fields["hidden_size"], fields["patch_size"]
        num_patches = (fields["image_size"] // patch) ** 2
        if has_class:
            self.class_embedding = nn.Parameter(torch.empty(hidden))
        self.patch_embedding = nn.Conv2d(fields.get("num_channels", 3), hidden, patch, patch, bias=not has_class)
        num = num_patches + has_class
        # Without values: drawing them for the meta device would import much of torch (145 MB, a second or more).
        self.position_embedding = nn.Embedding(num, hidden, _weight=torch.empty(num, hidden))
        self.has_class = has_class

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, patches, hidden]
        if self.has_class:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return x + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.num_heads, -1).transpose(1, 2)

        out = F.scaled_dot_product_attention(heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x)))
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """Two linear layers: [..., hidden] -> [..., hidden]."""

    def __init__(self, hidden: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.fc1, self.fc2 = nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Layer(nn.Module):
    def __init__(self, fields: Mapping[str, Any], eps: float, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        hidden = fields["hidden_size"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.self_attn = _Attention(hidden, fields["num_attention_heads"])
        self.mlp = MLP(hidden, fields["intermediate_size"], act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Encoder(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionTransformer(nn.Module):
    """`fields` is config.json's `vision_config`; its `model_type` says which kind it is."""

    def __init__(self, fields: Mapping[str, Any], path: str) -> None:
        super().__init__()
        kind = fields.get("model_type")
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise ModelLoadError(f"vision_config.model_type {kind!r} is not known; CLIP's and SigLIP's are", path=path)
        is_clip = kind == "clip_vision_model"
        act = activation(fields.get("hidden_act", "quick_gelu" if is_clip else "gelu_pytorch_tanh"), path)
        eps = fields.get("layer_norm_eps", 1e-5 if is_clip else 1e-6)
        hidden = fields["hidden_size"]
        self.embeddings = _Embeddings(fields, is_clip)
        if is_clip:
            self.pre_layrnorm = nn.LayerNorm(hidden, eps)  # the checkpoints' spelling
        self.encoder = _Encoder([_Layer(fields, eps, act) for _ in range(fields["num_hidden_layers"])])
        self.post_layernorm = nn.LayerNorm(hidden, eps)
        self.is_clip = is_clip

    def features(self, pixels: Tensor, layers: list[int], drop_class: bool) -> Tensor:
        """[B, 3, H, W] -> [B, patches, hidden * len(layers)]: what these layers give, counted as 0 for the embedding,
        from the end where negative."""
        num_layers = len(self.encoder.layers)
        wanted = [layer if layer >= 0 else num_layers + 1 + layer for layer in layers]
        x = self.embeddings(pixels)
        if self.is_clip:
            x = self.pre_layrnorm(x)
        found = {0: x}
        for number in range(1, max(wanted) + 1):
            x = self.encoder.layers[number - 1](x)
            found[number] = x
        out = torch.cat([found[number] for number in wanted], dim=-1)
        return out[:, 1:] if drop_class else out
