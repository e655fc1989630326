"""GPT-2 (Radford et al., 2019): learned positions, layer norms, biases everywhere, and the head tied to the embedding.

x = token(ids) + position(i)
for each layer:  x = x + attention(ln_1(x));  x = x + mlp(ln_2(x))
logits = head(ln_f(x));  mlp(x) = proj(gelu(fc(x)));  attention without rotary positions

Its checkpoints hold matrices as [in, out], the other way round from everybody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..layers.activation import Activation
from ..layers.attention import RadixAttention
from ..layers.embedding import Embedding
from ..layers.linear import Linear
from ..layers.norm import LayerNorm
from .base import CausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


class Conv1D(Linear):
    """A Linear with a bias, whose weight lies transposed in the checkpoint."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=True)

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, values in super().checkpoint_parts(prefix):
            yield name, values.t() if values.dim() == 2 else values


class GPT2Attention(nn.Module):
    """c_attn gives q, k and v of all heads, one after the other."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        hidden, read = config.hidden_size, config.read
        scaling = float(config.head_dim**-0.5) if read.flag("scale_attn_weights", True) else 1.0
        if read.flag("scale_attn_by_inverse_layer_idx"):
            scaling /= layer_id + 1
        self.c_attn = Conv1D(hidden, 3 * hidden)
        self.c_proj = Conv1D(hidden, hidden)
        self.attn = RadixAttention(config.num_heads, config.head_dim, scaling, config.num_heads, layer_id)

    def forward(self, x: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        q, k, v = (part.contiguous() for part in self.c_attn(x).chunk(3, dim=-1))
        out: Tensor = self.c_proj(self.attn(q, k, v, fb, kv_pool, attn))
        return out


class GPT2MLP(nn.Module):
    """proj(gelu(fc(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, config.intermediate_size)
        self.act = Activation(config.intermediate_size, config.hidden_act)
        self.c_proj = Conv1D(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class GPT2Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: ModelConfig, layer_id: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = GPT2Attention(config, layer_id)
        self.ln_2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend) -> Tensor:
        x = x + self.attn(self.ln_1(x), fb, kv_pool, attn)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT2Model(nn.Module):
    """Token and position embeddings, blocks, final norm."""

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__()
        self.act_dtype = act_dtype
        self.wte = Embedding(config.vocab_size, config.hidden_size)
        self.wpe = Embedding(config.read.integer("max_position_embeddings"), config.hidden_size)
        self.h = nn.ModuleList(GPT2Block(config, i) for i in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        x = self.wte(input_ids, self.act_dtype) + self.wpe(positions, self.act_dtype)
        for block in self.h:
            x = block(x, fb, kv_pool, attn)
        out: Tensor = self.ln_f(x)
        return out


class GPT2LMHeadModel(CausalLM):
    """The whole model."""

    BASE_PREFIX = "transformer."
    IGNORED_TENSORS = (".attn.bias", ".attn.masked_bias")

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)
        if config.read.flag("add_cross_attention"):
            raise config.read.error("add_cross_attention", "is true: a decoder alone has nothing to attend across to")
        self.transformer = GPT2Model(config, act_dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        out: Tensor = self.transformer(input_ids, positions, fb, kv_pool, attn)
        return out


EntryClass = GPT2LMHeadModel
