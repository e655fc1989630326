"""How families write their config.json: other names of the same fields, and what a field that is missing means there.

Defaults are those of transformers' configuration classes: checkpoints on the hub leave fields out that equal them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model_config import FieldReader

    LayerKinds = Callable[[FieldReader, int], list[str]]

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Dialect:
    """`names` gives a field's name in the family's config.json by its usual one; `defaults` the values of fields that
    are missing (a callable is asked, with the reader); `layer_kinds` which layers have the sliding window where
    `layer_types` is missing (None: none has). `positions_are_stretched`: max_position_embeddings counts in what rope
    scaling adds. `local_theta`: layers with a window have a rope of their own, with this base.
    `activations` and `rope_kinds` translate names.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_kinds: LayerKinds | None = None
    activations: Mapping[str, str] = field(default_factory=dict)
    positions_are_stretched: bool = False
    local_theta: float = 0.0
    rope_kinds: Mapping[str, str] = field(default_factory=dict)


def _all(reader: FieldReader, num_layers: int) -> list[str]:
    return [SLIDING] * num_layers


def _every_other(reader: FieldReader, num_layers: int) -> list[str]:
    return [SLIDING if i % 2 == 0 else FULL for i in range(num_layers)]


def _by_pattern(default: int) -> LayerKinds:
    """The last of every `sliding_window_pattern` layers sees everything."""

    def kinds(reader: FieldReader, num_layers: int) -> list[str]:
        pattern = reader.integer("sliding_window_pattern", default)
        return [SLIDING if (i + 1) % pattern else FULL for i in range(num_layers)]

    return kinds


def _qwen(reader: FieldReader, num_layers: int) -> list[str]:
    """The first layers see everything."""
    if not reader.flag("use_sliding_window"):
        return [FULL] * num_layers
    first = reader.get("max_window_layers", num_layers)
    return [SLIDING if i >= first else FULL for i in range(num_layers)]


def _qwen_moe(reader: FieldReader, num_layers: int) -> list[str]:
    """Every other of the first layers has a window."""
    if not reader.flag("use_sliding_window"):
        return [FULL] * num_layers
    below = reader.get("max_window_layers", 28)
    return [SLIDING if i % 2 == 0 and i < below else FULL for i in range(num_layers)]


def _qwen3_moe(reader: FieldReader, num_layers: int) -> list[str]:
    return [SLIDING if reader.flag("use_sliding_window") else FULL] * num_layers


_LAYER_NORM = {"rms_norm_eps": "layer_norm_eps"}
_GEMMA = {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256}
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096, "rope_theta": 150000.0,
}  # fmt: skip

_BERT = {"rms_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0}
_DEEPSEEK = {"head_dim": lambda reader: reader.integer("qk_rope_head_dim")}

_QWEN_VL = Dialect(layer_kinds=_qwen, defaults={"rope_theta": 1e6}, rope_kinds={"mrope": "default"})

DIALECTS: dict[str, Dialect] = {
    "mistral": Dialect(layer_kinds=_all),
    "ministral": Dialect(layer_kinds=_all, defaults={"sliding_window": 4096}),
    "ministral3": Dialect(defaults={"rms_norm_eps": 1e-5, "head_dim": 128}),
    "mixtral": Dialect(layer_kinds=_all, defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5}),
    "qwen2": Dialect(layer_kinds=_qwen),
    "qwen3": Dialect(layer_kinds=_qwen),
    "qwen2_vl": _QWEN_VL,
    "qwen2_vl_text": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen2_5_vl_text": _QWEN_VL,
    "qwen2_moe": Dialect(layer_kinds=_qwen_moe),
    "qwen3_moe": Dialect(names={"num_experts": "num_local_experts"}, layer_kinds=_qwen3_moe),
    "phi3": Dialect(
        layer_kinds=_all, defaults={"rms_norm_eps": 1e-5}, rope_kinds={"su": "longrope", "yarn": "longrope"}
    ),
    "gemma": Dialect(defaults=_GEMMA, activations={"gelu": "gelu_pytorch_tanh"}),
    "gemma2": Dialect(
        names={"hidden_act": "hidden_activation"},
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "query_pre_attn_scalar": 256,
        },
        layer_kinds=_every_other,
    ),
    "gemma3_text": Dialect(
        names={"hidden_act": "hidden_activation"},
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
        },
        layer_kinds=_by_pattern(6),
        local_theta=10_000.0,
        positions_are_stretched=True,
    ),
    "mllama_text_model": Dialect(defaults={"rms_norm_eps": 1e-5, "rope_theta": 500_000.0}),
    "gpt2": Dialect(
        names={
            "num_hidden_layers": "n_layer",
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        defaults={
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "intermediate_size": lambda reader: 4 * reader.integer("hidden_size"),
        },
    ),
    "gpt_neox": Dialect(
        names={**_LAYER_NORM, "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
        defaults={
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "partial_rotary_factor": 0.25,
            "attention_bias": True,
        },
    ),
    "olmo2": Dialect(defaults={"rms_norm_eps": 1e-5}),
    "starcoder2": Dialect(
        names={"rms_norm_eps": "norm_epsilon"},
        defaults={"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh"},
        layer_kinds=_all,
    ),
    "glm4": Dialect(
        defaults={"attention_bias": True, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07, "head_dim": 128}
    ),
    "internlm2": Dialect(defaults={"attention_bias": False}),
    "gpt_oss": Dialect(
        defaults={
            "sliding_window": 128,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _GPT_OSS_ROPE,
            "rope_theta": 150000.0,
        },
        layer_kinds=_every_other,
    ),
    "bert": Dialect(names=_LAYER_NORM, defaults=_BERT),
    "roberta": Dialect(names=_LAYER_NORM, defaults=_BERT),
    "xlm-roberta": Dialect(names=_LAYER_NORM, defaults=_BERT),
    "deepseek_v2": Dialect(defaults=_DEEPSEEK),
    "deepseek_v3": Dialect(defaults={**_DEEPSEEK, "norm_topk_prob": True}),
    "kimi_k2": Dialect(defaults={**_DEEPSEEK, "norm_topk_prob": True}),
}

# Of decoders inside a larger model, whose `text_config` names only what differs from transformers' defaults.
NESTED_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
    },
    "mllama_text_model": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    },
    "gemma3_text": {
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
}  # fmt: skip

PLAIN = Dialect()


def dialect_of(model_type: str) -> Dialect:
    """The family's dialect; the plain one where there is nothing to say."""
    return DIALECTS.get(model_type, PLAIN)
