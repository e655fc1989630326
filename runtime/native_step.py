"""The whole forward of a Llama-like model on a CPU in one call of C++, where there is a compiler; else torch runs it.

It serves every batch of the model (prompts, decodes, trees of choices, shared prefixes) and gives a row the same bits
in any company, so it stands in fast and in deterministic mode alike.
"""

from __future__ import annotations

import logging
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.native_build import build, is_switched_off, library_folder
from ..kernels.native.library import (
    FLAGS,
    INCLUDED,
    SOURCES,
    Batch,
    LayerWeights,
    Library,
    LinearWeights,
    ModelWeights,
    NativeLlama,
)
from .batch import ForwardBatch, ForwardMode
from .layers.activation import GatedActivation
from .layers.attention import AttentionType
from .layers.embedding import Embedding
from .layers.linear import Linear, MergedLinear
from .layers.norm import RMSNorm
from .models.base import CausalLM
from .models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel
from .models.qwen3 import Qwen3Attention

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .memory.kv_pool import KVPool
    from .memory.request_table import ReqToTokenPool

log = logging.getLogger(__name__)

BUILD_S = 300  # how long a compiler may take


@cache
def library() -> Library | str:
    """The library, built if need be; or in a sentence why there is none."""
    if is_switched_off():
        return "switched off by DSLC_NATIVE=0"
    folder = library_folder()
    if folder is None:
        return "DSLC_CACHE_DIR keeps nothing, and building takes seconds"
    try:
        path = build("llama", SOURCES, FLAGS, folder, language="c++", included=INCLUDED, timeout_s=BUILD_S)
        return Library(path)
    except subprocess.CalledProcessError as error:
        reason = f"the compiler failed: {error.stderr.decode(errors='replace')[-500:]}"
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{type(error).__name__}: {error}"
    log.warning("models run in torch, slower: %s", reason)
    return reason


class NativeStep:
    """A model and its pool, as the C++ forward has them."""

    def __init__(self, native: NativeLlama, model: Any, req_to_token: ReqToTokenPool) -> None:
        self._native = native
        self._rotary = model.model.rotary
        self._table = req_to_token.device
        self._hooks = hooks_of(model)

    def serves(self, fb: ForwardBatch) -> bool:
        """Whether this forward can be done here: it has rows, and nobody looks into the modules."""
        return fb.mode is not ForwardMode.IDLE and fb.num_rows > 0 and not any(self._hooks)

    def forward(self, fb: ForwardBatch) -> Tensor:
        """Logits of the wanted rows [R, vocab] float32. Writes the rows' KV."""
        cos, sin = self._rotary.at(fb.positions, max(fb.seq_lens_cpu))
        batch = Batch(
            ids=fb.input_ids, slots=fb.out_slots, table_rows=fb.req_rows, prefix_lens=fb.prefix_lens,
            extend_lens=fb.extend_lens, wanted_rows=fb.logits_rows, table=self._table, cos=cos, sin=sin,
            groups=[(group.rows, group.shared_len) for group in fb.groups], trees=fb.tree_parents,
        )  # fmt: skip
        return self._native.forward(batch)


def hooks_of(model: nn.Module) -> list[dict[int, Any]]:
    """Where each module of a model has its hooks: whoever looks into the modules must see them run."""
    return [hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]


def native_step(model: CausalLM, kv_pool: KVPool, req_to_token: ReqToTokenPool) -> NativeStep | str:
    """The C++ forward of this model, or in a sentence why torch runs it."""
    reason = unlike_llama(model)
    if reason is not None:
        return reason
    loaded = library()
    if isinstance(loaded, str):
        return loaded
    try:
        return NativeStep(NativeLlama(loaded, _weights(model, kv_pool)), model, req_to_token)
    except (ValueError, MemoryError) as error:
        return str(error)


def unlike_llama(model: Any) -> str | None:
    """What about this model the forwards of Llama's shape do not know (C++, `torch_step`); None if they know it all."""

    def runs(module: nn.Module, cls: type[nn.Module], *names: str) -> bool:
        return isinstance(module, cls) and all(getattr(type(module), n) is getattr(cls, n) for n in ("forward", *names))

    if not (runs(model, LlamaForCausalLM, "logits") and runs(model.model, LlamaModel, "embedded", "angles")):
        return f"{type(model).__name__} is not known to it"
    linears = [model.lm_head]
    norms = [model.model.norm]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        is_attention = runs(attention, LlamaAttention, "projected")
        if not runs(layer, LlamaDecoderLayer) or not is_attention or type(mlp) is not LlamaMLP:
            return f"a {type(layer).__name__} of {type(attention).__name__} and {type(mlp).__name__} is not known to it"
        if type(attention).rotated not in (LlamaAttention.rotated, Qwen3Attention.rotated):
            return f"{type(attention).__name__} turns queries and keys in a way of its own"
        if attention.attn.attn_type is not AttentionType.DECODER or attention.attn.sinks is not None:
            return "rows see what comes after them, or sinks"
        if not runs(mlp.act, GatedActivation, "rows") or mlp.act.act != "silu":
            return "its activation is not silu"
        linears += [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    if any(type(linear) not in (Linear, MergedLinear) for linear in linears):
        return "it has other linear layers"
    if any(type(norm) is not RMSNorm for norm in norms) or type(model.model.embed_tokens) is not Embedding:
        return "it has another norm or embedding"
    scalings = {layer.self_attn.attn.scaling for layer in model.model.layers}
    caps = {layer.self_attn.attn.logit_cap for layer in model.model.layers}
    if len(scalings) != 1 or len(caps) != 1 or len({norm.eps for norm in norms}) != 1:
        return "its layers differ in scaling, cap or epsilon"
    return None


def _weights(model: Any, kv_pool: KVPool) -> ModelWeights:
    config, inner = model.config, model.model

    def linear(layer: Linear) -> LinearWeights:
        return LinearWeights(layer.weight, None if layer.bias is None else layer.bias.float())

    layers = []
    for number, layer in enumerate(inner.layers):
        attention, mlp = layer.self_attn, layer.mlp
        keys, values = kv_pool.layer(number)
        has_norms = type(attention).rotated is Qwen3Attention.rotated
        layers.append(
            LayerWeights(
                input_norm=layer.input_layernorm.weight,
                qkv=linear(attention.qkv_proj),
                q_norm=attention.q_norm.weight if has_norms else None,
                k_norm=attention.k_norm.weight if has_norms else None,
                o=linear(attention.o_proj),
                post_norm=layer.post_attention_layernorm.weight,
                gate_up=linear(mlp.gate_up_proj),
                down=linear(mlp.down_proj),
                keys=keys,
                values=values,
                window=attention.attn.sliding_window,
            )
        )
    first = inner.layers[0].self_attn.attn
    return ModelWeights(
        heads=first.num_heads, kv_heads=first.num_kv_heads, head_dim=first.head_dim,
        rotary_dim=config.rope.rotary_dim, eps=inner.norm.eps, scaling=first.scaling, cap=first.logit_cap,
        final_cap=config.final_logit_cap, embedding=inner.embed_tokens.weight, layers=layers,
        final_norm=inner.norm.weight, head=linear(model.lm_head),
    )  # fmt: skip
