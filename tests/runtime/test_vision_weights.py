"""The weights of models that see: each value has one place, whatever the family; none are needed for a benchmark."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_vision import picture, tiny_vision

import dslc
from dslc.runtime.loader import empty_model, load_config
from dslc.runtime.models.registry import known_models
from dslc.runtime.models.vision.base import VisionLM

torch.set_num_threads(1)
FAMILIES = ["gemma3", "mllama", "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl"]


def test_every_model_that_sees_is_here():
    seeing = {name for name, cls in known_models().items() if issubclass(cls, VisionLM)}
    assert {load_config(tiny_vision(family)).architecture for family in FAMILIES} == seeing


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_has_one_place(family):
    folder = tiny_vision(family)
    model: Any = empty_model(load_config(folder))
    for param in model.parameters():
        param.zero_()
    targets = model.checkpoint_targets()
    for target in targets.values():
        target += 1
    assert all(bool((param == 1).all()) for param in model.parameters())
    stored = set(load_file(folder / "model.safetensors"))
    assert {name for name in stored - set(targets) if not model.is_ignored(name)} <= {"lm_head.weight"}
    assert set(targets) <= stored


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_dummy_weights_see(family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vision(family), folder, ignore=shutil.ignore_patterns("*.safetensors"))

    @dslc.function
    def ask(s, image):
        s += dslc.image(image) + " What?" + dslc.gen("a", max_tokens=3, ignore_eos=True)

    options: dict[str, Any] = {"max_total_tokens": 512, "max_running_requests": 2, "load_format": "dummy"}
    with dslc.Engine(model_path=str(folder), **options) as engine:
        state = ask.run(image=picture(0), backend=engine, temperature=0.0)
        assert state.get_meta_info("a")["completion_tokens"] == 3 and engine.counters().encoded_media == 1
