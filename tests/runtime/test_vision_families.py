"""Each model that sees: 16 prompts batched, cached and chunked against transformers; and what is its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_vision import picture, tiny_vision, vision_inputs
from support.vision_checks import (
    TOLERANCE,
    VISION_FAMILIES,
    WITH_VIDEO,
    compare_vision,
    frames,
    vision_architecture,
    vision_label,
)
from support.vision_runs import OPTIONS, expected, ids_of, run

import dslc
from dslc.runtime.media.image_processor import video_settings
from dslc.runtime.model_config import ModelConfig
from dslc.runtime.models.qwen2_5_vl import windows
from dslc.runtime.models.vision.spatial import rope_sections

torch.set_num_threads(1)


def changed(path: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a model's folder with other fields in config.json; None removes one."""
    shutil.copytree(path, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        if isinstance(value, dict):
            config[name] = {k: v for k, v in {**config[name], **value}.items() if v is not None}
        else:
            config[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_sixteen_prompts_batched_cached_and_chunked_equal_transformers(family):
    found = compare_vision(family)
    assert found.spread > 1  # flat logits would be close to anything
    assert max(found.at_once, found.cached, found.in_parts) < TOLERANCE
    assert found.same == found.clear >= 0.95 * found.total


def test_the_document_has_a_row_for_every_model_that_sees():
    """docs/models.md is what benchmarks/models.py printed."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    by_name = {row[0]: row for row in rows}
    for family in VISION_FAMILIES:
        architecture, takes, at_once, cached, in_chunks, greedy = by_name[vision_label(family)][1:]
        assert architecture == vision_architecture(family) and ("videos" in takes) == (family in WITH_VIDEO)
        same, clear, total = (int(number) for number in re.findall(r"\d+", greedy))
        assert max(map(float, (at_once, cached, in_chunks))) < TOLERANCE and same == clear >= 0.95 * total


@pytest.mark.parametrize(
    ("frames", "rows", "columns", "side"), [(1, 1, 1, 4), (1, 5, 7, 2), (3, 4, 4, 2), (2, 3, 9, 4)]
)
def test_windows_are_the_cells_of_one_frame_within_a_square(frames, rows, columns, side):
    found = windows(frames, rows, columns, side)
    assert sorted(torch.cat(found).tolist()) == list(range(frames * rows * columns))
    brute = {}
    for cell in range(frames * rows * columns):
        frame, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        brute.setdefault((frame, row // side, column // side), []).append(cell)

    def largest_first(key):
        return key[0], -len(brute[key]), *key[1:]

    assert [window.tolist() for window in found] == [brute[key] for key in sorted(brute, key=largest_first)]
    for cells in brute.values():
        assert len({cell // (rows * columns) for cell in cells}) == 1


def test_a_window_sees_nothing_outside_it(tmp_path):
    """Features of a model without whole-frame blocks depend on their own window only, those of one with on all."""
    for whole in ([], [1]):
        fields = {"fullatt_block_indexes": whole}
        path = changed(tiny_vision("qwen2_5_vl"), tmp_path / f"whole-{len(whole)}", vision_config=fields)
        with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
            model = engine.runner.model
            grid = torch.tensor([1, 8, 8])  # 4 x 4 cells in 4 windows
            patches = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
            other = patches.clone()
            other[0] += 1  # of cell 0, in the window of cells 0, 1, 4, 5
            with torch.inference_mode():
                one, two = (model.encode_media({"patches": p, "grid": grid}) for p in (patches, other))
            differ = [cell for cell in range(16) if not torch.equal(one[cell], two[cell])]
            assert differ == ([0, 1, 4, 5] if not whole else list(range(16)))


def test_tiles_beyond_the_most_are_scaled_down():
    """`anyres_max_2`: 28 x 28 pixels are 7 x 7 features."""
    path = tiny_vision("llava_onevision")
    counts = {}
    prompts = [[picture(number, size), "x"] for number, size in enumerate([(56, 28), (28, 84), (56, 56), (20, 90)])]
    with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
        for parts, event in zip(prompts, run(engine, prompts), strict=True):
            counts[parts[0].size] = event.num_prompt_tokens - 1
            assert event.num_prompt_tokens == vision_inputs(path, parts)["input_ids"].shape[1]
    assert counts[56, 28] == 49 + 7 * 15  # two tiles: as they are
    assert counts[28, 84] == 49 + 17 * (5 + 1)  # three: 21 x 7 by sqrt(3 / 2)
    assert counts[56, 56] == 49 + 9 * (9 + 1)  # four: 14 x 14 by sqrt(2)


def test_a_picture_of_llava_onevision_is_the_same_beside_others_as_alone():
    path = tiny_vision("llava_onevision")
    with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
        run(engine, [[picture(0), "x"]])
        event = run(engine, [[picture(0), picture(1), "x"]])[0]
        alone = vision_inputs(path, [picture(0)])["input_ids"].shape[1]
        assert event.num_cached_tokens == alone
        assert engine.counters().encoded_media == 2
        assert ids_of([event]) == [expected(path, [picture(0), picture(1), "x"])]


def test_the_settings_of_videos_are_read_where_a_folder_has_them(tmp_path):
    assert video_settings(tmp_path) == {}
    (tmp_path / "processor_config.json").write_text('{"video_processor": {"size": {"height": 4}, "fps": 2}}')
    assert video_settings(tmp_path) == {"size": {"height": 4}}
    own = tmp_path / "video_preprocessor_config.json"
    own.write_text('{"min_pixels": 4, "max_pixels": 9, "image_mean": [0, 0, 0]}')
    assert video_settings(tmp_path) == {"size": {"shortest_edge": 4, "longest_edge": 9}, "image_mean": [0, 0, 0]}
    for text, message in (("{", "cannot be read"), ("[]", "must hold a JSON object")):
        own.write_text(text)
        with pytest.raises(dslc.ModelLoadError, match=rf"video_preprocessor_config.json.*{message}"):
            video_settings(tmp_path)


def test_videos_follow_their_own_settings(tmp_path):
    """A folder whose videos are smaller than its pictures gives fewer places, as those of pictures of that size."""
    path = changed(tiny_vision("qwen2_5_vl"), tmp_path / "model")
    film = frames(70, 2, (64, 48))
    nums = []
    for text in ("{}", '{"size": {"shortest_edge": 64, "longest_edge": 256}}'):
        (path / "video_preprocessor_config.json").write_text(text)
        with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
            nums.append(run(engine, [[film, "x"]])[0].num_prompt_tokens)
    assert nums[1] <= 2 + 256 // 64 + 1 < nums[0]


def test_published_qwen2_5_vl_configurations_are_flat(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 3584,'
        ' "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,'
        ' "max_position_embeddings": 128000, "max_window_layers": 28, "sliding_window": 32768, "rope_theta": 1000000.0,'
        ' "use_sliding_window": false, "tie_word_embeddings": false, "vocab_size": 152064, "torch_dtype": "bfloat16",'
        ' "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_config": {"depth": 32}}'
    )
    config = ModelConfig.load(tmp_path)
    assert config.rope.kind == "default" and config.rope.theta == 1e6 and not config.tie_word_embeddings
    assert config.layer_windows == (None,) * 28
    assert rope_sections(config) == [16, 24, 24]


def test_fields_that_llava_onevision_configurations_leave_out_are_those_of_qwen2(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision",'
        ' "text_config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "vocab_size": 152000,'
        ' "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1000000.0,'
        ' "tie_word_embeddings": true}, "vision_config": {"model_type": "siglip_vision_model"}}'
    )
    config = ModelConfig.load(tmp_path)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.context_length) == (896, 24, 14, 32768)
    assert config.tie_word_embeddings and config.rope.theta == 1e6


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_5_vl"])
def test_checkpoints_with_the_names_of_either_age_load(family, tmp_path):
    """The hub's files have the names of transformers 4, some have those of transformers 5's modules."""
    path = tiny_vision(family)
    tensors = load_file(path / "model.safetensors")
    ages = {
        "hub": {"vision_tower.": "vision_tower.vision_model."},
        "modules": {
            "vision_tower.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector.",
            "image_newline": "model.image_newline", "language_model.model.": "model.language_model.",
            "language_model.lm_head.": "lm_head.", "visual.": "model.visual.", "model.": "model.language_model.",
        },
    }  # fmt: skip
    wanted = expected(path, ["Look: ", picture(0), "x"])
    for age, names in ages.items():
        folder = changed(path, tmp_path / age)
        renamed = {}
        for name, tensor in tensors.items():
            old = next((begin for begin in names if name.startswith(begin)), "")
            renamed[names.get(old, "") + name[len(old) :]] = tensor
        assert age == "hub" or all(name.startswith(("model.", "lm_head.")) for name in renamed)
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        with dslc.Engine(model_path=str(folder), **OPTIONS) as engine:
            assert ids_of(run(engine, [["Look: ", picture(0), "x"]])) == [wanted]


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_missing_and_wrong_sizes_of_the_encoder_are_named_with_their_file(family, tmp_path):
    needed = {
        "mllama": ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size"),
        "qwen2_vl": ("embed_dim", "num_heads", "depth", "patch_size"),
        "qwen2_5_vl": ("hidden_size", "num_heads", "depth", "patch_size", "intermediate_size"),
    }.get(family, ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "image_size"))
    for number, name in enumerate(needed):
        for value, message in ((None, "is missing"), (-1, "must be a positive integer, not -1"), ("x", "not 'x'")):
            path = changed(tiny_vision(family), tmp_path / f"{number} {value}", vision_config={name: value})
            with pytest.raises(dslc.ModelLoadError, match=rf"config.json.*vision_config.{name}' .*{message}"):
                dslc.Engine(model_path=str(path), **OPTIONS)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (
            "qwen2_5_vl",
            {"vision_config": {"out_hidden_size": 32}},
            "out_hidden_size' is 32, the decoder's hidden_size 64",
        ),
        ("qwen2_5_vl", {"vision_config": {"window_size": 4}}, "window_size' must be at least 8"),
        ("qwen2_5_vl", {"vision_config": {"out_hidden_size": 64.5}}, "out_hidden_size' must be a positive integer"),
        ("qwen2_vl", {"vision_config": {"embed_dim": 33}}, "embed_dim' is 33, which 2 heads"),
        ("llava", {"vision_config": {"hidden_size": 33}}, "hidden_size' is 33, which 2 heads"),
        ("llava_next", {"vision_config": {"model_type": "resnet"}}, "vision_config.model_type 'resnet' is not known"),
        ("llava_next", {"image_grid_pinpoints": None}, "'image_grid_pinpoints' is missing"),
        ("llava_onevision", {"vision_aspect_ratio": "square"}, "vision_aspect_ratio' must be anyres_max_N"),
    ],
)
def test_a_field_that_cannot_be_is_named(family, fields, message, tmp_path):
    path = changed(tiny_vision(family), tmp_path / "model", **fields)
    with pytest.raises(dslc.ModelLoadError, match=message):
        dslc.Engine(model_path=str(path), **OPTIONS)
