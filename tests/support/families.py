"""Tiny checkpoints of every family, made by transformers: how each is configured, and how its weights are drawn.

    from support.families import FAMILIES, family_checkpoint

    path = family_checkpoint("gemma2")     # a folder; the same one for the life of the process

Two or three layers, hidden 64, 211 ids, and a head size that is not hidden / heads where a family allows that. Weights
have std 0.25: at 0.02 logits are almost flat, and wrong positions, masks or scales go unseen.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

VOCAB = 211
WINDOW = 24


@dataclass(frozen=True)
class Family:
    """A row of the table: transformers' classes, config fields beyond the common ones, and the weights' spread.

    `common` False: the config class has names of its own. `window` is the sliding window of some layer, which prompts
    must exceed; `context_length` what the engine is asked for; `shortest_prompt` how long prompts must be for
    transformers to take longrope's long factors. `stored_as` "internlm2": the same weights packed as that family's
    checkpoints are, for transformers has no such class.
    """

    config: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    common: bool = True
    std: float = 0.25
    window: int | None = None
    context_length: int | None = None
    seed: int = 0
    shortest_prompt: int = 1
    stored_as: str = ""
    embed_std: float | None = None  # of the embedding, where it is scaled up: a head tied to it would repeat its input


COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
WIDE = {"head_dim": 32}
SHORT = [1.0 + 0.1 * i for i in range(8)]
LONG = [2.0 + 0.5 * i for i in range(8)]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": LONG,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 2,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3}
MOE = {"moe_intermediate_size": 48}
DEEPSEEK = {
    **MOE, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "topk_method": "group_limited_greedy", "n_shared_experts": 2, "first_k_dense_replace": 1, "kv_lora_rank": 32,
    "q_lora_rank": 24, "qk_rope_head_dim": 16, "qk_nope_head_dim": 24, "v_head_dim": 20,
}  # fmt: skip
DEEPSEEK_YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32, "mscale": 0.707,
    "mscale_all_dim": 0.707,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32, "truncate": False,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
MINISTRAL3 = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
}  # fmt: skip
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

GENERIC: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", {}),
    "arcee": ("Arcee", {}),
    "bitnet": ("BitNet", {}),
    "cohere": ("Cohere", {"logit_scale": 0.5}),
    "cohere2": ("Cohere2", {"sliding_window": WINDOW, "sliding_window_pattern": 2, "logit_scale": 0.5}),
    "cwm": ("Cwm", {"sliding_window": WINDOW, "bos_token_id": 1}),
    "dots1": ("Dots1", {**MOE, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1}),
    "ernie4_5": ("Ernie4_5", WIDE),
    "exaone4": ("Exaone4", {"sliding_window": WINDOW}),
    "glm": ("Glm", WIDE),
    "glm4_moe": ("Glm4Moe", {**MOE, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, **WIDE}),
    "granitemoe": ("GraniteMoe", EXPERTS),
    "gpt_bigcode": ("GPTBigCode", {"n_positions": 256, "max_position_embeddings": ..., "num_key_value_heads": ...}),
    "helium": ("Helium", {"head_dim": 16}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", WIDE),
    "jais2": ("Jais2", {}),
    "nanochat": ("NanoChat", {}),
    "nemotron": ("Nemotron", {}),
    "olmo": ("Olmo", {}),
    "olmo3": ("Olmo3", {"sliding_window": WINDOW}),
    "olmoe": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": ...}),
    "persimmon": ("Persimmon", {"num_key_value_heads": ...}),
    "phi": ("Phi", {}),
    "phimoe": ("Phimoe", EXPERTS),
    "seed_oss": ("SeedOss", WIDE),
    "smollm3": ("SmolLM3", {}),
    "vaultgemma": ("VaultGemma", {"sliding_window": WINDOW, **WIDE}),
}

FAMILIES: dict[str, Family] = {
    "llama2": Family("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama3": Family("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama3.2": Family(
        "LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, **WIDE}
    ),
    "mistral": Family("MistralConfig", "MistralForCausalLM", {"sliding_window": WINDOW, **WIDE}, window=WINDOW),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", WIDE),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", WIDE, embed_std=0.1),
    "gemma2": Family(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 24, **WIDE},
        window=WINDOW,
        embed_std=0.1,
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "rope_parameters": GEMMA3_ROPE,
            **WIDE,
        },
        window=WINDOW,
        embed_std=0.1,
    ),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", {"sliding_window": WINDOW}, window=WINDOW),
    "phi3-longrope": Family("Phi3Config", "Phi3ForCausalLM", {"rope_parameters": LONGROPE}, context_length=32),
    "phi3-longrope-long": Family("Phi3Config", "Phi3ForCausalLM", {"rope_parameters": LONGROPE}, shortest_prompt=33),
    "phi4-mini": Family("Phi3Config", "Phi3ForCausalLM", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "gpt2-scaled": Family(
        "GPT2Config", "GPT2LMHeadModel", {**GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 80}, common=False
    ),
    "gpt-neox": Family("GPTNeoXConfig", "GPTNeoXForCausalLM", {"num_key_value_heads": ...}),
    "gpt-neox-serial": Family(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {"num_key_value_heads": ..., "use_parallel_residual": False, "rotary_pct": 0.5, "attention_bias": False},
    ),
    "olmo2": Family("Olmo2Config", "Olmo2ForCausalLM"),
    "granite": Family(
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
            "logits_scaling": 1.5,
            "tie_word_embeddings": True,
        },
    ),
    "starcoder2": Family("Starcoder2Config", "Starcoder2ForCausalLM", {"sliding_window": WINDOW}, window=WINDOW),
    "starcoder2-plain": Family(
        "Starcoder2Config", "Starcoder2ForCausalLM", {"use_bias": False, "tie_word_embeddings": False}
    ),
    "glm4": Family("Glm4Config", "Glm4ForCausalLM", WIDE),
    "ministral": Family(
        "MinistralConfig",
        "MinistralForCausalLM",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], **WIDE},
        window=WINDOW,
    ),
    "ministral3": Family("Ministral3Config", "Ministral3ForCausalLM", {"rope_parameters": MINISTRAL3, **WIDE}),
    "mixtral": Family("MixtralConfig", "MixtralForCausalLM", {**EXPERTS, "sliding_window": WINDOW}, window=WINDOW),
    "qwen2-moe": Family(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {"num_experts": 8, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 40, **MOE},
    ),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            **MOE,
            **WIDE,
        },
    ),
    "deepseek-v2": Family("DeepseekV2Config", "DeepseekV2ForCausalLM", DEEPSEEK),
    "deepseek-v2-lite": Family(
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {**DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy", "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek-v3": Family(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "routed_scaling_factor": 2.5, "rope_parameters": DEEPSEEK_YARN},
    ),
    "gpt-oss": Family(
        "GptOssConfig",
        "GptOssForCausalLM",
        {**EXPERTS, "num_local_experts": 5, "sliding_window": WINDOW, "rope_parameters": YARN, **WIDE},
        window=WINDOW,
    ),
    "internlm2": Family("LlamaConfig", "LlamaForCausalLM", stored_as="internlm2"),
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", GPT2, common=False),
    **{name: Family(f"{cls}Config", f"{cls}ForCausalLM", fields) for name, (cls, fields) in GENERIC.items()},
}


@lru_cache(maxsize=1)
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="dslc-families-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def family_config(name: str) -> Any:
    """transformers' config object."""
    import transformers

    family = FAMILIES[name]
    fields = {**(COMMON if family.common else {}), **family.fields}
    return getattr(transformers, family.config)(**{key: value for key, value in fields.items() if value is not ...})


def draw_weights(model: Any, std: float, seed: int, embed_std: float | None = None) -> None:
    """Random values for all parameters: norms around 1 (or 0, where a norm adds 1), the rest with this spread."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in sorted(model.named_parameters()):
            noise = torch.randn(param.shape, generator=rng)
            is_norm = "norm" in name.lower() or ".ln_" in name
            if is_norm and name.endswith("weight"):
                param.copy_((0.0 if "gemma" in model.config.model_type else 1.0) + 0.1 * noise)
            elif embed_std is not None and "embed_tokens" in name:
                param.copy_(embed_std * noise)
            elif name.endswith("sinks"):
                param.copy_(noise)
            elif name.endswith("bias") or param.dim() == 1:
                param.copy_(0.5 * std * noise)
            else:
                param.copy_(std * noise)

        for name, buffer in sorted(model.named_buffers()):
            if "correction_bias" in name:
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=rng))


@cache
def family_checkpoint(name: str) -> Path:
    """The folder of the family's tiny checkpoint, float32 safetensors, with the configs beside it."""
    import transformers

    family = FAMILIES[name]
    model = getattr(transformers, family.model)(family_config(name)).eval()
    draw_weights(model, family.std, family.seed, family.embed_std)
    path = _root() / name
    model.save_pretrained(path)
    if family.stored_as == "internlm2":
        _as_internlm2(path)
    return path


def _as_internlm2(path: Path) -> None:
    """Pack a Llama checkpoint as InternLM2's: q, k, v of each KV head in one matrix, and other names."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((path / "config.json").read_text())
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    theirs = load_file(path / "model.safetensors")
    renamed = {
        "embed_tokens": "tok_embeddings", "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "lm_head": "output",
    }  # fmt: skip
    packed = {}
    for name, value in theirs.items():
        if ".q_proj" in name:
            k, v = (theirs[name.replace("q_proj", other)].view(kv_heads, 1, dim, -1) for other in ("k_proj", "v_proj"))
            q = value.view(kv_heads, heads // kv_heads, dim, -1)
            new = name.replace("self_attn.q_proj", "attention.wqkv")
            packed[new] = torch.cat((q, k, v), dim=1).reshape(-1, value.shape[1])
        elif ".k_proj" not in name and ".v_proj" not in name:
            for ours, other in renamed.items():
                name = name.replace(ours, other)
            packed[name] = value
    save_file(packed, path.with_name("packed.safetensors"))
    folder = path.with_name(path.name + "-packed")
    folder.mkdir()
    path.with_name("packed.safetensors").rename(folder / "model.safetensors")
    config.update(architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False)
    (folder / "config.json").write_text(json.dumps(config))


def family_folder(name: str) -> Path:
    """Where the checkpoint stands that the runtime is to load."""
    path = family_checkpoint(name)
    return path.with_name(path.name + "-packed") if FAMILIES[name].stored_as else path


def architecture_of(name: str) -> str:
    """The class name in the config.json that the runtime loads."""
    return "InternLM2ForCausalLM" if FAMILIES[name].stored_as else FAMILIES[name].model


@lru_cache(maxsize=4)
def family_reference(name: str) -> Any:
    """transformers' model of the family's checkpoint, float32, its plain attention."""
    import torch
    import transformers

    cls = getattr(transformers, FAMILIES[name].model)
    return cls.from_pretrained(family_checkpoint(name), dtype=torch.float32, attn_implementation="eager").eval()
