"""DeepSeek-V2 (arXiv 2405.04434) and V3, R1 (arXiv 2412.19437), Kimi K2: latent attention and fine-grained mixtures.

attention: see `layers/mla.py`; q = W_uq norm(W_dq x) (or one matrix), [c, k_rope] = W_dkv x, the cache keeps
           [norm(c), rope(k_rope)]
mlp(x) = shared(x) + scale * sum over the chosen experts of weight * expert(x); the first layers are dense
V2: affinity = softmax(gate(x)), a group is as good as its best expert
V3: affinity = sigmoid(gate(x)), chosen by affinity + correction bias, a group by its best two; weights sum to 1
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers.attention import RadixAttention
from ..layers.linear import Linear
from ..layers.mla import LatentUp
from ..layers.moe import Experts, Gate, Routes, grouped_top_k
from ..layers.norm import RMSNorm
from ..layers.rotary import rotate, rotate_pairs
from ..layers.rowwise import evenly
from .llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, Rope

if TYPE_CHECKING:
    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig

LATENT_EPS = 1e-6  # of the norms inside attention, whatever config.json says of the others


class DeepseekAttention(nn.Module):
    """Multi-head latent attention, absorbed."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        read, hidden, heads = config.read, config.hidden_size, config.num_heads
        self.num_heads = heads
        self.nope_dim, self.rope_dim = read.integer("qk_nope_head_dim"), read.integer("qk_rope_head_dim")
        self.rank, value_dim = read.integer("kv_lora_rank"), read.integer("v_head_dim")
        self.turns_pairs = read.flag("rope_interleave", True)
        q_size = heads * (self.nope_dim + self.rope_dim)
        self.is_compressed = read.get("q_lora_rank", None) is not None
        if self.is_compressed:
            q_rank = read.integer("q_lora_rank")
            self.q_a_proj = Linear(hidden, q_rank, config.attention_bias)
            self.q_a_layernorm = RMSNorm(q_rank, LATENT_EPS)
            self.q_b_proj = Linear(q_rank, q_size)
        else:
            self.q_proj = Linear(hidden, q_size)
        self.kv_a_proj_with_mqa = Linear(hidden, self.rank + self.rope_dim, config.attention_bias)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_EPS)
        self.kv_b_proj = LatentUp(heads, self.nope_dim, value_dim, self.rank)
        self.o_proj = Linear(heads * value_dim, hidden, config.attention_bias)
        self.attn = RadixAttention(heads, self.rank + self.rope_dim, self.scaling(config), 1, layer_id)

    def scaling(self, config: ModelConfig) -> float:
        """YaRN's correction of scores, which other models put into cos and sin, stands here."""
        scaling = float((self.nope_dim + self.rope_dim) ** -0.5)
        rope = config.rope
        if rope.kind != "default" and rope.mscale_all_dim and rope.factor > 1:
            scaling *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
        return scaling

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        turn = rotate_pairs if self.turns_pairs else rotate
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.is_compressed else self.q_proj(x)
        q_nope, q_rope = q.view(-1, self.num_heads, self.nope_dim + self.rope_dim).split(
            (self.nope_dim, self.rope_dim), dim=-1
        )
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope_dim), dim=-1)
        k = torch.cat((self.kv_a_layernorm(latent.contiguous()), turn(k_rope.unsqueeze(1), *rope).squeeze(1)), dim=-1)
        q_latent = self.kv_b_proj.into_latents(q_nope.flatten(1)).view(-1, self.num_heads, self.rank)
        q = torch.cat((q_latent, turn(q_rope, *rope)), dim=-1)
        out = self.attn(q, k, k, fb, kv_pool, attn).view(-1, self.num_heads, self.rank + self.rope_dim)
        result: Tensor = self.o_proj(self.kv_b_proj.out_of_latents(out[..., : self.rank].flatten(1)))
        return result


class DeepseekGate(Gate):
    """Affinities of all experts; V3's have a correction bias, which takes part in the choice only."""

    def __init__(self, hidden_size: int, num_experts: int, has_correction: bool) -> None:
        super().__init__(hidden_size, num_experts)
        self.e_score_correction_bias = nn.Parameter(torch.empty(num_experts)) if has_correction else None


class DeepseekMoE(nn.Module):
    """Gate, routed experts, shared experts."""

    is_v3 = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        read, hidden, inner = config.read, config.hidden_size, config.read.integer("moe_intermediate_size")
        num_experts = read.integer("n_routed_experts")
        self.top_k = read.integer("num_experts_per_tok")
        self.scale = read.number("routed_scaling_factor", 1.0)
        self.gate = DeepseekGate(hidden, num_experts, self.is_v3)
        self.experts = Experts(num_experts, hidden, inner, config.hidden_act)
        self.shared_experts = LlamaMLP(config, inner * read.integer("n_shared_experts"))
        is_grouped = self.is_v3 or read.get("topk_method", "greedy") == "group_limited_greedy"
        self.num_groups = read.integer("n_group") if is_grouped else 1
        self.kept_groups = read.integer("topk_group") if is_grouped else 1

    def routes(self, x: Tensor) -> Routes:
        weights, ids = grouped_top_k(self.gate(x).softmax(dim=-1), self.top_k, self.num_groups, self.kept_groups)
        return weights * self.scale, ids

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.experts.mix(x, self.routes(x)) + self.shared_experts(x)
        return out


class DeepseekV3MoE(DeepseekMoE):
    is_v3 = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.renormalise = config.read.flag("norm_topk_prob", True)

    def routes(self, x: Tensor) -> Routes:
        bias = self.gate.e_score_correction_bias
        assert bias is not None
        affinity = evenly(torch.sigmoid, self.gate(x))
        weights, ids = grouped_top_k(affinity, self.top_k, self.num_groups, self.kept_groups, bias=bias.float(), best=2)
        if self.renormalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.scale, ids


class DeepseekV2DecoderLayer(LlamaDecoderLayer):
    attention = DeepseekAttention
    mixture: type[DeepseekMoE] = DeepseekMoE

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        is_dense = layer_id < config.read.get("first_k_dense_replace", 0)
        return LlamaMLP(config) if is_dense else self.mixture(config)


class DeepseekV3DecoderLayer(DeepseekV2DecoderLayer):
    mixture = DeepseekV3MoE


class DeepseekV2ForCausalLM(LlamaForCausalLM):
    layer = DeepseekV2DecoderLayer


class DeepseekV3ForCausalLM(LlamaForCausalLM):
    """Layers beyond `num_hidden_layers` predict further tokens while training; they are left where they are."""

    layer = DeepseekV3DecoderLayer

    def is_ignored(self, name: str) -> bool:
        parts = name.split(".")
        extra = parts[:2] == ["model", "layers"] and parts[2].isdigit() and int(parts[2]) >= self.config.num_layers
        return extra or super().is_ignored(name)


EntryClass = [DeepseekV2ForCausalLM, DeepseekV3ForCausalLM]
