"""Tiny random checkpoints of models that see, with their image processors, and transformers' greedy output on them.

path = tiny_vision("llava")
ids, margin = vision_greedy(path, ["Look: ", picture, " What?"], 8)
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from support.tiny_models import SPECIAL_TOKENS, VOCAB_SIZE, _root, tiny_tokenizer

IMAGE_ID = SPECIAL_TOKENS.index("<|endoftext|>")  # what stands for a picture in transformers' ids; no text has it
VISION_START_ID, VISION_END_ID, VIDEO_ID = 1, 3, 2
TEXT = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": None,
    "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"), "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
}  # fmt: skip


def _llava(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7,
        projection_dim=32,
    )  # fmt: skip
    config = t.LlavaConfig(
        vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE_ID, image_seq_length=16,
        **overrides,
    )  # fmt: skip
    processor = t.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return t.LlavaForConditionalGeneration(config), processor


_MAKERS = {"llava": _llava}


@cache
def _made(key: str) -> Path:
    import torch

    family, seed, overrides = json.loads(key)
    model, processor = _MAKERS[family](**overrides)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in sorted(model.named_parameters()):
            noise = torch.randn(param.shape, generator=rng)
            is_norm = "norm" in name or "ln_q" in name
            param.copy_(1 + 0.1 * noise if is_norm and name.endswith("weight") else 0.2 * noise)
    path = _root() / f"vision-{family}-{len(list(_root().iterdir()))}"
    model.eval().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def tiny_vision(family: str, *, seed: int = 0, **overrides: Any) -> Path:
    """The folder of a tiny checkpoint of a model that sees."""
    return _made(json.dumps([family, seed, overrides], sort_keys=True))


@lru_cache(maxsize=8)
def vision_reference(path: Path) -> tuple[Any, Any]:
    """transformers' model (float32, its plain attention) and image processor."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return model, AutoImageProcessor.from_pretrained(path)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Any:
    """A random PIL image, coarse enough to survive resizing."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def vision_inputs(path: Path, parts: list[Any]) -> dict[str, Any]:
    """transformers' inputs of a prompt of texts (each tokenised by itself) and pictures."""
    import torch

    model, processor = vision_reference(path)
    kind = model.config.model_type
    ids: list[int] = []
    pixels: dict[str, list[Any]] = {}
    for part in parts:
        if isinstance(part, str):
            ids += tiny_tokenizer()(part, add_special_tokens=False)["input_ids"]
            continue
        made = processor(part, return_tensors="pt")
        for name, value in made.items():
            pixels.setdefault(name, []).append(value)
        if kind == "qwen2_vl" or kind == "qwen2_5_vl":
            num = int(made["image_grid_thw"][0].prod()) // processor.merge_size**2
            ids += [VISION_START_ID, *[IMAGE_ID] * num, VISION_END_ID]
        else:
            ids += [IMAGE_ID] * 16
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    inputs.update({name: torch.cat(values) for name, values in pixels.items()})
    if pixels and kind.startswith("qwen2"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_ID).long()
    return inputs


def vision_greedy(path: Path, parts: list[Any], num_tokens: int) -> tuple[list[int], float]:
    """Greedy ids of transformers (end-of-text ignored), and the smallest margin between the best two logits."""
    import torch

    model, _ = vision_reference(path)
    inputs = vision_inputs(path, parts)
    ids: list[int] = []
    margin = float("inf")
    with torch.inference_mode():
        for _ in range(num_tokens):
            best = model(**inputs, use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], best.indices[None, :1]], dim=1)
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_ID).long()
    return ids, margin
