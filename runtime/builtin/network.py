"""The network that is trained: Llama's arithmetic with merged matrices, exported under transformers' names.

Attention and MLP hold one matrix each for (q, k, v) and (gate, up); that and plain functions are what makes a step
fast on two CPU cores. The engine does not use this module: it loads the exported weights into its own Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. `num_heads` heads of `head_dim`; every head has its own keys and values."""

    vocab_size: int
    hidden: int = 192
    num_layers: int = 6
    num_heads: int = 3
    head_dim: int = 64
    ffn: int = 512
    rope_theta: float = 100_000.0

    def hf_config(self, end_ids: list[int], pad_id: int, max_len: int) -> dict[str, object]:
        """config.json for transformers' LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": max_len,
            "rms_norm_eps": EPS,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": None,
            "eos_token_id": end_ids,
            "pad_token_id": pad_id,
            "dtype": "bfloat16",
        }


def rope_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """cos, sin: [length, head_dim], the halves repeated as transformers does."""
    freq = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), freq)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [B, H, T, D]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight).bfloat16()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over [B, H, T, D]. Written out and compiled, it beats SDPA in short rows."""
    if q.shape[-2] > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    ahead = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    mixed: Tensor = scores.masked_fill(ahead, -torch.inf).softmax(-1).bfloat16() @ v
    return mixed


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.num_heads * shape.head_dim
        self.norm1 = nn.Parameter(torch.ones(shape.hidden))
        self.norm2 = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Parameter(torch.empty(3, inner, shape.hidden))
        self.out = nn.Parameter(torch.empty(1, shape.hidden, inner))
        self.gate_up = nn.Parameter(torch.empty(2, shape.ffn, shape.hidden))
        self.down = nn.Parameter(torch.empty(1, shape.hidden, shape.ffn))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _hidden = x.shape
        h = rms_norm(x, self.norm1)
        q, k, v = (
            F.linear(h, self.qkv.flatten(0, 1).bfloat16()).view(batch, length, 3, -1, self.shape.head_dim).unbind(2)
        )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q = rotate(q.float(), cos, sin).bfloat16()
        k = rotate(k.float(), cos, sin).bfloat16()
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, self.out[0].bfloat16()).float()
        h = rms_norm(x, self.norm2)
        gate, up = F.linear(h, self.gate_up.flatten(0, 1).bfloat16()).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down[0].bfloat16()).float()


class Network(nn.Module):
    """ids [B, T] -> final hidden states [B, T, hidden] in bfloat16; the embedding is also the head.

    `twins` are pairs of ids of the same word with and without its space. They begin as nearly the same vector, one
    direction apart, so what is learnt about finding and copying one of them holds for the other.

    The embedding begins at unit scale, the blocks add nothing at first, and what they add is trained slower
    (`WRITE_LR`): Muon's steps do not depend on the gradient's size, and a first block that adds 100 times as much as
    the embedding leaves later blocks nothing to tell tokens apart by. The small last gain keeps the first logits small.
    """

    def __init__(self, shape: Shape, seed: int, twins: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.Parameter(torch.full((shape.hidden,), 0.02))
        rng = torch.Generator().manual_seed(seed)
        for name, param in self.named_parameters():
            if param.ndim > 1:
                std = {"embed": 1.0, "out": 0.0, "down": 0.0}.get(name.rsplit(".")[-1])
                nn.init.normal_(param, std=param.shape[-1] ** -0.5 if std is None else std, generator=rng)
        space = torch.randn(shape.hidden, generator=rng)
        with torch.no_grad():
            for spaced, bare in twins:
                self.embed[spaced] = (self.embed[bare] + 0.5 * space) / 1.25**0.5

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = F.embedding(ids, self.embed)
        for block in self.blocks:
            x = block(x, cos, sin)
        return rms_norm(x, self.norm)

    def loss(self, ids: Tensor, targets: Tensor, weights: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Weighted mean cross-entropy; all of ids, targets, weights are [B, T]."""
        hidden = self(ids, cos, sin)
        logits = F.linear(hidden, self.embed.bfloat16()).float()
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()

    def hf_state(self) -> dict[str, Tensor]:
        """Weights under transformers' names, bfloat16; the tied head is not stored."""
        state: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": self.norm,
        }
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            parts: dict[str, Tensor] = {
                "input_layernorm": block.norm1,
                "post_attention_layernorm": block.norm2,
                "self_attn.q_proj": block.qkv[0],
                "self_attn.k_proj": block.qkv[1],
                "self_attn.v_proj": block.qkv[2],
                "self_attn.o_proj": block.out[0],
                "mlp.gate_proj": block.gate_up[0],
                "mlp.up_proj": block.gate_up[1],
                "mlp.down_proj": block.down[0],
            }
            state.update({f"model.layers.{i}.{name}.weight": value for name, value in parts.items()})
        return {name: value.detach().bfloat16().contiguous() for name, value in state.items()}


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz steps (Jordan et al. 2024), for stacks of matrices [n, rows, cols].

    torch.optim.Muon takes one matrix at a time; stacking equal shapes across layers makes a step several times cheaper.
    """

    def __init__(self, params: list[dict[str, Any]], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for param in group["params"]:
                by_shape.setdefault((param.shape[1], param.shape[2]), []).append(param)
            for (rows, cols), params in by_shape.items():
                updates = []
                for param in params:
                    assert param.grad is not None
                    buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    buffer.lerp_(param.grad, 1 - momentum)
                    updates.append(param.grad.lerp(buffer, momentum))
                stacked = orthogonalise(torch.cat(updates))
                scale = lr * max(1.0, rows / cols) ** 0.5
                for param, update in zip(params, torch.split(stacked, [p.shape[0] for p in params]), strict=True):
                    param.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-scale)


@torch.compile(dynamic=False)
def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices to a stack [n, rows, cols], roughly (singular values 0.7 to 1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result.float()
