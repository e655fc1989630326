"""Tiny random checkpoints of models that see, with their image processors, and transformers' greedy output on them.

path = tiny_vision("llava")
ids, margin = vision_greedy(path, ["Look: ", picture, " What?"], 8)
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.tiny_models import SPECIAL_TOKENS, VOCAB_SIZE, _root, tiny_tokenizer

IMAGE_ID = SPECIAL_TOKENS.index("<|endoftext|>")  # what stands for a picture in transformers' ids; no text has it
VISION_START_ID, VISION_END_ID, VIDEO_ID = 1, 3, 2
SOFT_ID = VOCAB_SIZE  # Gemma 3's, whose IMAGE_ID stands before a picture
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


def _llava_next(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7,
        projection_dim=32,
    )  # fmt: skip
    sizes = [[28, 56], [56, 28], [56, 56], [84, 28]]
    config = t.LlavaNextConfig(
        vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE_ID, image_seq_length=16,
        image_grid_pinpoints=sizes, **overrides,
    )  # fmt: skip
    processor = t.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=sizes
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def _qwen2_vl(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    config = t.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, vision_start_token_id=VISION_START_ID,
        vision_end_token_id=VISION_END_ID, **overrides,
    )  # fmt: skip
    processor = t.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 1024}, patch_size=4, temporal_patch_size=2, merge_size=2
    )
    return t.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(**overrides: Any) -> tuple[Any, Any]:
    """Windows of 2 x 2 cells, of 8 x 8 pixels each; the second block sees whole frames."""
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    config = t.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, vision_start_token_id=VISION_START_ID,
        vision_end_token_id=VISION_END_ID, **overrides,
    )  # fmt: skip
    processor = t.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 1536}, patch_size=4, temporal_patch_size=2, merge_size=2
    )
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def _llava_onevision(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    vision = t.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    sizes = [[28, 56], [56, 28], [56, 56], [84, 28], [84, 56]]
    fields = {"vision_aspect_ratio": "anyres_max_2", "image_grid_pinpoints": sizes, **overrides}
    config = t.LlavaOnevisionConfig(
        vision_config=vision, text_config=t.Qwen2Config(**TEXT), image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID, **fields,
    )  # fmt: skip
    processor = t.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _gemma3(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    vision = t.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    layers = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    text = {**TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12, **layers}
    config = t.Gemma3Config(
        vision_config=vision, text_config=t.Gemma3TextConfig(**text), mm_tokens_per_image=16,
        boi_token_index=IMAGE_ID, eoi_token_index=VISION_START_ID, image_token_index=SOFT_ID, **overrides,
    )  # fmt: skip
    processor = t.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    return t.Gemma3ForConditionalGeneration(config), processor


def _mllama(**overrides: Any) -> tuple[Any, Any]:
    import transformers as t

    vision = t.MllamaVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_global_layers=2, attention_heads=2,
        image_size=16, patch_size=4, vision_output_dim=96, intermediate_layers_indices=[0, 2], max_num_tiles=4,
    )  # fmt: skip
    text = {**TEXT, "num_hidden_layers": 4, "bos_token_id": IMAGE_ID, "cross_attention_layers": [1, 3]}
    config = t.MllamaConfig(
        vision_config=vision, text_config=t.MllamaTextConfig(**text), image_token_index=SOFT_ID, **overrides
    )
    processor = t.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    return t.MllamaForConditionalGeneration(config), processor


_MAKERS = {
    "gemma3": _gemma3, "mllama": _mllama, "llava": _llava, "qwen2_vl": _qwen2_vl, "llava_next": _llava_next,
    "qwen2_5_vl": _qwen2_5_vl, "llava_onevision": _llava_onevision,
}  # fmt: skip


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
    if kind == "gemma3":
        return _gemma3_inputs(processor, parts)
    if kind == "mllama":
        return _mllama_inputs(processor, parts)
    ids: list[int] = []
    pixels: dict[str, list[Any]] = {}
    for part in parts:
        if isinstance(part, str):
            ids += tiny_tokenizer()(part, add_special_tokens=False)["input_ids"]
            continue
        if isinstance(part, (np.ndarray, Film)):
            frames = np.asarray(part)
            if kind == "llava_onevision":
                values = [processor(_as_picture(frame), return_tensors="pt")["pixel_values"][0, 0] for frame in frames]
                pixels.setdefault("pixel_values_videos", []).append(torch.stack(values)[None])
                ids += [VIDEO_ID] * (len(frames) * 16 + 1)  # 7 x 7 patches become 4 x 4
                continue
            patches, grid = _video_patches(processor, frames)
            if kind == "qwen2_5_vl":
                seconds = 2 / part.fps if isinstance(part, Film) else 1.0
                pixels.setdefault("second_per_grid_ts", []).append(torch.tensor([seconds]))
            pixels.setdefault("pixel_values_videos", []).append(patches)
            pixels.setdefault("video_grid_thw", []).append(grid)
            num = int(grid.prod()) // processor.merge_size**2
            ids += [VISION_START_ID, *[VIDEO_ID] * num, VISION_END_ID]
            continue
        made = processor(part, return_tensors="pt")
        for name, value in made.items():
            pixels.setdefault(name, []).append(value)
        if kind == "qwen2_vl" or kind == "qwen2_5_vl":
            num = int(made["image_grid_thw"][0].prod()) // processor.merge_size**2
            ids += [VISION_START_ID, *[IMAGE_ID] * num, VISION_END_ID]
        elif kind in ("llava_next", "llava_onevision"):
            with torch.inference_mode():
                found = model.model.get_image_features(**made).pooler_output
            ids += [IMAGE_ID] * sum(len(features) for features in found)
        else:
            ids += [IMAGE_ID] * 16
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    inputs.update({name: _stacked(values) for name, values in pixels.items()})
    if pixels and kind.startswith("qwen2"):
        inputs["mm_token_type_ids"] = _kinds(inputs["input_ids"])
    return inputs


def _gemma3_inputs(processor: Any, parts: list[Any]) -> dict[str, Any]:
    """As its processor in transformers: two line breaks on both sides of a picture are of the text there."""
    import torch

    def tokens(text: str) -> list[int]:
        found: list[int] = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return found

    ids: list[int] = []
    text, pixels = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        pixels.append(processor(part, return_tensors="pt")["pixel_values"])
        ids += [*tokens(text + "\n\n"), IMAGE_ID, *[SOFT_ID] * 16, VISION_START_ID]
        text = "\n\n"
    inputs = {"input_ids": torch.tensor([ids + tokens(text)])}
    if pixels:
        inputs.update(pixel_values=torch.cat(pixels), token_type_ids=(inputs["input_ids"] == SOFT_ID).long())
    return inputs


class Film(NamedTuple):
    """Frames uint8 [F, H, W, 3], `fps` of them a second."""

    frames: Any
    fps: float

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.frames


def _as_picture(frame: Any) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


def _mllama_inputs(processor: Any, parts: list[Any]) -> dict[str, Any]:
    """One id for each picture, and who looks at which."""
    import torch
    from transformers.models.mllama import processing_mllama as theirs

    ids: list[int] = []
    made, shown = None, [part for part in parts if not isinstance(part, str)]
    for part in parts:
        own = tiny_tokenizer()(part, add_special_tokens=False)["input_ids"] if isinstance(part, str) else [SOFT_ID]
        ids += own
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if shown:
        made = dict(processor([shown], return_tensors="pt"))
        tiles = made.pop("num_tiles")
        mask = theirs.convert_sparse_cross_attention_mask_to_dense(
            [theirs.get_cross_attention_token_mask(ids, SOFT_ID)], tiles, processor.max_image_tiles, len(ids)
        )
        inputs.update(made, cross_attention_mask=torch.tensor(mask))
    return inputs


def _stacked(values: list[Any]) -> Any:
    """Pictures of one prompt; those with fewer tiles are filled up, as transformers' processors do."""
    import torch

    if values[0].dim() == 5:
        most = max(value.shape[1] for value in values)
        values = [torch.nn.functional.pad(value, (0,) * 7 + (most - value.shape[1],)) for value in values]
    return torch.cat(values)


def _video_patches(processor: Any, frames: Any) -> tuple[Any, Any]:
    """Patches of a video as the paper has them: two frames, side x side pixels, in blocks of merge x merge patches."""
    import torch
    from PIL import Image

    side, merge = processor.patch_size, processor.merge_size
    shown = []
    for frame in frames:
        made = processor(Image.fromarray(frame), return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        # Back from patches to the resized, normalised frame [C, H, W].
        x = made["pixel_values"].view(rows // merge, columns // merge, merge, merge, 3, 2, side, side)[:, :, :, :, :, 0]
        shown.append(x.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side))
    film = torch.stack(shown)  # [F, C, H, W]
    if len(film) % 2:
        film = torch.cat([film, film[-1:]])
    out = []
    for t in range(0, len(film), 2):
        for br in range(rows // merge):
            for bc in range(columns // merge):
                for r in range(br * merge, (br + 1) * merge):
                    for c in range(bc * merge, (bc + 1) * merge):
                        cut = film[t : t + 2, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
                        out.append(cut.transpose(0, 1).flatten())
    return torch.stack(out), torch.tensor([[len(film) // 2, rows, columns]])


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
            _renew_kinds(inputs)
    return ids, margin


def vision_logits(path: Path, parts: list[Any], ids: list[int]) -> Any:
    """transformers' logits [len(ids), vocab] where `ids` are chosen after a prompt."""
    import torch

    model, _ = vision_reference(path)
    inputs = vision_inputs(path, parts)
    num_prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    _renew_kinds(inputs)
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0, num_prompt - 1 : -1]
    return logits.clone()


def vision_logprobs(path: Path, parts: list[Any], ids: list[int]) -> list[float]:
    """transformers' log-probs of `ids` after a prompt."""
    logprobs = vision_logits(path, parts, ids).log_softmax(-1)
    return [float(row[token_id]) for row, token_id in zip(logprobs, ids, strict=True)]


def _kinds(ids: Any) -> Any:
    """0 for text, 1 for pictures, 2 for videos, as transformers wants to be told."""
    return (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()


def _renew_kinds(inputs: dict[str, Any]) -> None:
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = _kinds(inputs["input_ids"])
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = (inputs["input_ids"] == SOFT_ID).long()
    if "cross_attention_mask" in inputs:  # new rows look at what the last one looks at
        import torch

        mask, num = inputs["cross_attention_mask"], inputs["input_ids"].shape[1]
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, num - mask.shape[1], -1, -1)], dim=1)
