"""Llama 2, 3 and 3.x (arXiv 2302.13971, 2307.09288, 2407.21783), and the frame of the families that follow it.

x = embed(ids)
for each layer:  x = x + attention(norm(x));  x = x + mlp(norm(x))
logits = head(norm(x))
mlp(x) = down(silu(gate(x)) * up(x))
attention(x) = out(softmax(rope(q) rope(k)^T / sqrt(head_dim)) v),  q, k, v = linear maps of x
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..layers.activation import gated
from ..layers.attention import RadixAttention
from ..layers.embedding import Embedding
from ..layers.linear import Linear, MergedLinear
from ..layers.norm import RMSNorm
from ..layers.rotary import RotaryTable, rotate
from ..layers.rowwise import RowWise
from .base import CausalLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig

Rope = tuple[Tensor, ...]  # cos, sin of this forward's rows, and what else a family needs of their positions


class LlamaMLP(nn.Module):
    """down(act(gate(x)) * up(x)), act being silu unless config.json says otherwise."""

    def __init__(self, config: ModelConfig, inner: int | None = None) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, inner or config.intermediate_size, config.mlp_bias
        self.gate_up_proj: Linear = MergedLinear(hidden, {"gate_proj": inner, "up_proj": inner}, bias)
        self.act = gated(2 * inner, config.hidden_act)
        self.down_proj = Linear(inner, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_up_proj(x)))
        return out


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions. Families that follow Llama change a hook or two."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        qkv_bias, out_bias = self.biases(config)
        self.qkv_proj: Linear = MergedLinear(
            config.hidden_size, {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}, qkv_bias
        )
        self.o_proj = Linear(q_size, config.hidden_size, out_bias)
        self.attn = RadixAttention(
            self.num_heads,
            self.head_dim,
            self.scaling(config),
            self.num_kv_heads,
            layer_id,
            logit_cap=config.attn_logit_cap,
            sliding_window=config.layer_windows[layer_id],
        )

    def biases(self, config: ModelConfig) -> tuple[bool, bool]:
        """Whether q, k, v and whether the output have a bias."""
        return config.attention_bias, config.attention_bias

    def scaling(self, config: ModelConfig) -> float:
        """What scores are multiplied by."""
        return float(config.head_dim**-0.5)

    def rotated(self, qk: Tensor, rope: Rope) -> Tensor:
        """Queries and keys [T, heads + kv_heads, D] with their positions."""
        return rotate(qk, rope[0], rope[1])

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> queries and keys side by side [T, heads + kv_heads, D], values [T, kv_heads, D]."""
        qkv = self.qkv_proj(x).view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        return qkv[:, : self.num_heads + self.num_kv_heads], qkv[:, self.num_heads + self.num_kv_heads :]

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        qk, v = self.projected(x)
        qk = self.rotated(qk, rope)
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        out: Tensor = self.o_proj(self.attn(q, k, v, fb, kv_pool, attn))
        return out


class LlamaDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Families name other parts as class attributes."""

    attention: ClassVar[type[nn.Module]] = LlamaAttention
    norm: ClassVar[type[RowWise]] = RMSNorm

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        self.input_layernorm = self.norm(config.hidden_size, config.norm_eps)
        self.self_attn = self.attention(config, layer_id)
        self.post_attention_layernorm = self.norm(config.hidden_size, config.norm_eps)
        self.mlp = self.make_mlp(config, layer_id)

    def make_mlp(self, config: ModelConfig, layer_id: int) -> nn.Module:
        """[T, hidden] -> [T, hidden]; another one in some layers of mixtures."""
        return LlamaMLP(config)

    def forward(self, x: Tensor, rope: Rope, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rope, fb, kv_pool, attn)
        normed, x = self.post_attention_layernorm.after(attended, x)
        out: Tensor = x + self.mlp(normed)
        return out


class LlamaModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype, layer: type[LlamaDecoderLayer]) -> None:
        super().__init__()
        self.act_dtype = act_dtype
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer(config, i) for i in range(config.num_layers))
        self.norm = layer.norm(config.hidden_size, config.norm_eps)
        self.rotary = RotaryTable(config.rope, config.context_length)

    def embedded(self, input_ids: Tensor) -> Tensor:
        """[T] -> [T, hidden]: what the first layer takes."""
        out: Tensor = self.embed_tokens(input_ids, self.act_dtype)
        return out

    def angles(self, positions: Tensor, end: int) -> Sequence[Rope]:
        """cos and sin of the rows for each layer; `end` is above all positions."""
        return [self.rotary.at(positions, end)] * len(self.layers)

    def forward(
        self, x: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        """Embedded rows [T, hidden] -> normalised final hidden states [T, hidden]."""
        angles = self.angles(positions, max(fb.seq_lens_cpu, default=0))
        for layer, rope in zip(self.layers, angles, strict=True):
            x = layer(x, rope, fb, kv_pool, attn)
        out: Tensor = self.norm(x)
        return out


class LlamaForCausalLM(CausalLM):
    """The whole model; subclasses name another layer or another model."""

    layer: ClassVar[type[LlamaDecoderLayer]] = LlamaDecoderLayer
    inner: ClassVar[type[LlamaModel]] = LlamaModel

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        self.model = self.inner(config, act_dtype, self.layer)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        out: Tensor = self.model(self.model.embedded(input_ids), positions, fb, kv_pool, attn)
        return out


EntryClass = LlamaForCausalLM
