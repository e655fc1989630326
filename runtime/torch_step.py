"""The forward of a Llama-like model on a CPU in torch, in as few operations as it takes: what runs without a compiler.

A small model's decode step is not arithmetic but calls: each operation of torch costs some microseconds of the host,
and a module around it one more. So this goes through the layers in one loop: norms take four operations, queries and
keys are turned in three with tables of the whole head size, made once per forward, and sums and gates are formed where
they stand. The modules remain the specification, and run where somebody asks for them (hooks, deterministic mode).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.llama import LlamaAttention
from .native_step import unlike_llama

if TYPE_CHECKING:
    from .attention.base import AttentionBackend
    from .batch import ForwardBatch
    from .layers.norm import RMSNorm
    from .memory.kv_pool import KVPool


class _Norm:
    """RMSNorm in four operations: x (w sqrt(N)) / hypot(|x|, sqrt(N eps)), which is x w / sqrt(mean(x^2) + eps)."""

    __slots__ = ("floor", "weight")

    def __init__(self, norm: RMSNorm) -> None:
        size = norm.in_features
        self.weight: Tensor = norm.weight.detach() * size**0.5
        self.floor = torch.tensor((size * norm.eps) ** 0.5, dtype=self.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * self.weight).div_(length.hypot_(self.floor))


class TorchStep:
    """A model whose layers are those of `LlamaForCausalLM`, with its pool and attention."""

    def __init__(self, model: Any, kv_pool: KVPool, attention: AttentionBackend) -> None:
        self._model = model
        self._kv_pool = kv_pool
        self._attention = attention
        self._layers = [
            (
                layer.self_attn, layer.self_attn.attn, layer.mlp, type(layer.self_attn).rotated,
                _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm),
            )
            for layer in model.model.layers
        ]  # fmt: skip
        self._last_norm = _Norm(model.model.norm)
        first = self._layers[0][1]
        self._heads, self._kv_heads, self._head_dim = first.num_heads, first.num_kv_heads, first.head_dim
        self._turns_whole_heads = model.config.rope.rotary_dim == first.head_dim

    def forward(self, fb: ForwardBatch) -> Tensor:
        """Normalised final hidden states [T, hidden]; attention has been made ready. Writes the rows' KV."""
        inner = self._model.model
        heads, kv_heads, size = self._heads, self._kv_heads, self._head_dim
        attend, pool = self._attention.forward, self._kv_pool
        x = inner.embedded(fb.input_ids)
        rope = inner.rotary.at(fb.positions, max(fb.seq_lens_cpu))
        cos, sin = torch.cat(rope[:1] * 2, dim=-1), torch.cat((-rope[1], rope[1]), dim=-1)
        for attention, spec, mlp, rotated, before, after in self._layers:
            qkv = attention.qkv_proj.rows(before(x)).view(-1, heads + 2 * kv_heads, size)
            qk = qkv[:, : heads + kv_heads]
            if rotated is LlamaAttention.rotated and self._turns_whole_heads:
                qk = torch.roll(qk, size // 2, dims=-1).mul_(sin).addcmul_(qk, cos)
            else:
                qk = attention.rotated(qk, rope)
            q, k, v = qk[:, :heads], qk[:, heads:], qkv[:, heads + kv_heads :]
            pool.store(spec.layer_id, fb.out_slots, k, v)
            x += attention.o_proj.rows(attend(q, k, v, spec, fb, pool).flatten(1))
            both = mlp.gate_up_proj.rows(after(x))
            inner_size = both.shape[-1] // 2
            x += mlp.down_proj.rows(F.silu(both[:, :inner_size]).mul_(both[:, inner_size:]))
        return self._last_norm(x)


def torch_step(model: Any, kv_pool: KVPool, attention: AttentionBackend) -> TorchStep | None:
    """The short way through this model; None if its layers are not Llama's."""
    return None if unlike_llama(model) is not None else TorchStep(model, kv_pool, attention)
