"""Llama checkpoints of random weights for benchmarks that need a shape and no sense.

Normal weights of standard deviation 0.05; the same shape and seed give the same file. Without a tokenizer, but for
shapes called "...-text": these have the built-in model's, and as many ids.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dslc.runtime.loader import BUILTIN_MODEL

SHAPES: dict[str, dict[str, int]] = {
    "5m": {"hidden": 256, "layers": 6, "heads": 8, "kv_heads": 4, "ffn": 688, "vocab": 4096},
    "100m": {"hidden": 768, "layers": 12, "heads": 12, "kv_heads": 4, "ffn": 2048, "vocab": 32000},
}
SHAPES |= {f"{name}-text": {**shape, "vocab": 2560} for name, shape in SHAPES.items()}
CONTEXT = 8192


def random_checkpoint(shape: dict[str, int], folder: Path, *, seed: int = 0) -> Path:
    """Write config.json and model.safetensors (bfloat16, tied embeddings) of this shape; returns the folder."""
    hidden, heads, kv_heads, ffn = (shape[name] for name in ("hidden", "heads", "kv_heads", "ffn"))
    head = hidden // heads
    rng = torch.Generator().manual_seed(seed)

    def weight(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=rng) * 0.05).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(shape["vocab"], hidden)}
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    for number in range(shape["layers"]):
        at = f"model.layers.{number}"
        for name, rows, columns in (
            ("self_attn.q_proj", heads * head, hidden),
            ("self_attn.k_proj", kv_heads * head, hidden),
            ("self_attn.v_proj", kv_heads * head, hidden),
            ("self_attn.o_proj", hidden, heads * head),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ):
            tensors[f"{at}.{name}.weight"] = weight(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = ones.clone()
    tensors["model.norm.weight"] = ones.clone()
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": shape["layers"], "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": ffn, "vocab_size": shape["vocab"], "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def model_of(name: str) -> str:
    """A model folder: `name` itself, or for the name of a shape a random checkpoint of it, made on first use."""
    if name not in SHAPES:
        return name
    folder = Path(tempfile.gettempdir()) / f"dslc-random-{name}"
    if not (folder / "model.safetensors").exists():
        random_checkpoint(SHAPES[name], folder)
        if name.endswith("-text"):
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(BUILTIN_MODEL / file, folder / file)
    return str(folder)
