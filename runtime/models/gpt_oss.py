"""gpt-oss (OpenAI, 2025, arXiv 2508.10925): attention sinks, windows in every other layer, mixtures everywhere.

weights over keys = softmax([scores, sink_h]) without its last entry: a head may look at nothing
mlp(x) = sum over the top k of softmax of their own scores of weight * expert(x)
expert(x) = down((up + 1) * gate * sigmoid(alpha * gate)) + b, gate = min(g, limit), up = clamp(u, -limit, limit), where
g and u are the even and the odd entries of gate_up(x) + b
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.moe import Experts, Gate, top_k_softmax
from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, Rope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class GptOssAttention(LlamaAttention):
    """One sink per query head."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__(config, layer_id)
        self.sinks = nn.Parameter(torch.empty(self.num_heads))

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        self.attn.sinks = self.sinks  # the parameter stays this module's: the checkpoint knows it by that name
        return super().forward(x, rope, fb, kv_pool, attn)


class GptOssExperts(Experts):
    """Experts with biases and a clamped gate; the checkpoint holds all of them together, as [E, in, out]."""

    def __init__(self, config: ModelConfig) -> None:
        num_experts = config.read.integer("num_local_experts")
        super().__init__(num_experts, config.hidden_size, config.intermediate_size, config.hidden_act)
        self.b13 = nn.Parameter(torch.empty(num_experts, 2 * config.intermediate_size))
        self.b2 = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        self.alpha = config.read.number("swiglu_alpha", 1.702)
        self.limit = config.read.number("swiglu_limit", 7.0)

    def one(self, x: Tensor, expert: int) -> Tensor:
        both = F.linear(x.to(self.w13.dtype), self.w13[expert], self.b13[expert])
        gate, up = both[..., ::2].clamp(max=self.limit), both[..., 1::2].clamp(-self.limit, self.limit)
        inner = (up + 1) * gate * torch.sigmoid(gate * self.alpha)
        return F.linear(inner, self.w2[expert], self.b2[expert]).to(x.dtype)

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}.gate_up_proj", self.w13.data.transpose(1, 2)
        yield f"{prefix}.gate_up_proj_bias", self.b13.data
        yield f"{prefix}.down_proj", self.w2.data.transpose(1, 2)
        yield f"{prefix}.down_proj_bias", self.b2.data


class GptOssMLP(nn.Module):
    """Router and experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.read.integer("num_experts_per_tok")
        self.router = Gate(config.hidden_size, config.read.integer("num_local_experts"), bias=True)
        self.experts = GptOssExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts.mix(x, top_k_softmax(self.router(x), self.top_k))


class GptOssDecoderLayer(LlamaDecoderLayer):
    attention = GptOssAttention

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        return GptOssMLP(config)


class GptOssForCausalLM(LlamaForCausalLM):
    layer = GptOssDecoderLayer


EntryClass = GptOssForCausalLM
