"""Tiny random-weight checkpoints, written by transformers, with a byte-level BPE tokenizer trained on the spot.

    from support.tiny_models import tiny_checkpoint, reference_model

    path = tiny_checkpoint("llama")            # a folder: config.json, model.safetensors, tokenizer.json, ...
    path = tiny_checkpoint("llama", tie_word_embeddings=True, num_key_value_heads=4)
    model = reference_model(path)              # transformers' own, float32, eval mode

Shapes: hidden 64, 2 layers, 4 query heads on 2 KV heads, 512 ids. Weights have std 0.25: at transformers' default 0.02
the logits are almost flat, greedy decoding repeats one token, and wrong positions or masks go unseen. Equal arguments
give the same folder for the life of the process; it is removed at exit.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "head_dim": 32,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 24,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 48,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 24,
            "v_head_dim": 20,
        },
    ),
}

_TRAINING_TEXT = """
The quick brown fox jumps over the lazy dog. A small model reads a short text and writes the next token of it.
{"name": "Ada", "age": 36, "city": "London", "tags": ["bug", "billing", "other"], "active": true, "score": 0.75}
def triage(s, ticket): return {"label": s["label"], "report": None}
Question: What is the capital of France? Answer: Paris. Question: How many hours are there in a day? Answer: 24.
Thought: I need to look this up. Action: search[capital of Spain] Observation: Madrid. Final answer: yes or no.
The user asks for help, the assistant answers, and the system sets the rules. Please summarise this ticket as JSON.
10 + 25 = 35; 7 * 8 = 56; 2024-05-17T09:30:00Z; https://example.org/index.html; name@example.org; 3.14159; -1e-5
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.
Ein kleines Häuschen am See, où l'été est très beau, el niño comió una manzana; 日本語 and emoji 🙂 take many bytes.
""".strip()


@lru_cache(maxsize=1)
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="dslc-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Any:
    """A transformers fast tokenizer: byte-level BPE, 512 ids (the four specials are 0..3), ChatML template, no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT.splitlines() * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(family: str = "llama", **overrides: Any) -> Any:
    """transformers' config object of a tiny model of `family`, with `overrides` on top."""
    import transformers

    config_class, _, extra = _FAMILIES[family]
    options: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
        **extra,
        **overrides,
    }
    return getattr(transformers, config_class)(**options)


def tiny_checkpoint(
    family: str = "llama", *, seed: int = 0, std: float = 0.25, max_shard_size: str = "5GB", **overrides: Any
) -> Path:
    """The folder of a tiny checkpoint (float32 safetensors unless `dtype="bfloat16"`); `overrides` go to the config."""
    dtype = overrides.pop("dtype", "float32")
    key = json.dumps([family, seed, std, max_shard_size, dtype, overrides], sort_keys=True)
    return _checkpoint(key)


@cache
def _checkpoint(key: str) -> Path:
    import torch
    import transformers

    family, seed, std, max_shard_size, dtype, overrides = json.loads(key)
    config = tiny_config(family, **overrides)
    model = getattr(transformers, _FAMILIES[family][1])(config).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in sorted(model.named_parameters()):
            noise = torch.randn(param.shape, generator=rng)
            if name.endswith("norm.weight"):
                param.copy_(1 + 0.1 * noise)  # not all ones, or a forgotten norm weight goes unseen
            else:
                param.copy_(std * noise)
    path = _root() / f"{family}-{len(list(_root().iterdir()))}"
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(path)
    return path


@lru_cache(maxsize=8)
def reference_model(path: Path) -> Any:
    """transformers' model of a checkpoint in float32 with its plain attention, for comparison."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def reference_greedy(path: Path, prompt: list[int], num_tokens: int) -> tuple[list[int], float]:
    """Greedy ids of transformers (end-of-text ignored) and the smallest top-1 to top-2 logit margin on the way."""
    ids, margins = reference_margins(path, prompt, num_tokens)
    return ids, min(margins)


def reference_margins(path: Path, prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy ids of transformers (end-of-text ignored) and, for each, the top-1 to top-2 logit margin."""
    import torch

    model = reference_model(path)
    ids, margins, cache = list(prompt), [], None
    with torch.inference_mode():
        new = torch.tensor([ids])
        for _ in range(num_tokens):
            out = model(new, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            top = out.logits[0, -1].topk(2)
            margins.append(float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
            new = torch.tensor([ids[-1:]])
    return ids[len(prompt) :], margins


def agreed_until(margins: list[float], tolerance: float = 1e-3) -> int:
    """How many leading greedy tokens must agree: those before the first whose margin is within the tolerance."""
    return next((i for i, margin in enumerate(margins) if margin <= tolerance), len(margins))
