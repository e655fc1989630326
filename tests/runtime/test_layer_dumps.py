"""A dump compared with transformers finds an injected error at the layer where it was put."""

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.errors import EngineError, RequestError
from dslc.runtime import debug
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)
IDS = [5, 17, 300, 301, 44, 45, 46, 7, 8, 9]


def runner_of(family="llama", **options):
    options = {"max_total_tokens": 32, "max_running_requests": 2, **options}
    return ModelRunner(EngineConfig.of(model_path=str(tiny_checkpoint(family, num_hidden_layers=3)), **options))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_sound_model_departs_nowhere(family):
    runner = runner_of(family)
    differences = debug.compare(debug.dump_forward(runner, IDS), debug.dump_transformers(runner, IDS))
    layers = [f"model.layers.{i}{part}" for i in range(3) for part in (".self_attn", ".mlp", "")]
    assert [d.module for d in differences] == ["model.embed_tokens", *layers, "model.norm", "lm_head"]
    assert debug.first_departure(differences, 1e-4) is None
    assert runner.req_to_token.num_free_rows == 2


@pytest.mark.parametrize(
    "module", ["model.layers.0.mlp", "model.layers.1.self_attn", "model.layers.2.mlp", "model.norm"]
)
def test_an_injected_error_is_found_where_it_is(module):
    runner = runner_of()
    handle = runner.model.get_submodule(module).register_forward_hook(lambda _m, _a, out: out * 1.01)
    differences = debug.compare(debug.dump_forward(runner, IDS), debug.dump_transformers(runner, IDS))
    handle.remove()
    assert debug.first_departure(differences, 1e-3).module == module


def test_a_wrong_weight_and_nan_are_found_too():
    runner = runner_of()
    with torch.inference_mode():
        runner.model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    differences = debug.compare(debug.dump_forward(runner, IDS), debug.dump_transformers(runner, IDS))
    assert debug.first_departure(differences, 1e9).module == "model.layers.1.self_attn"


def test_the_command_prints_the_first_departure_and_saves(tmp_path, capsys, monkeypatch):
    path = str(tiny_checkpoint("llama", num_hidden_layers=3))
    saved = tmp_path / "dump.safetensors"
    assert debug.main([path, "--ids", "5,6,7", "--save", str(saved)]) == 0
    assert load_file(saved)["model.layers.2"].shape == (3, 64)
    assert "first departure" not in capsys.readouterr().out
    assert debug.main([path, "--ids", "5,6,7", "--dtype", "bfloat16", "--tolerance", "1e-6"]) == 1
    assert "first departure: model.layers.0.self_attn" in capsys.readouterr().out


def test_hooks_are_gone_after_a_dump_and_a_long_prompt_is_refused():
    runner = runner_of()
    debug.dump_forward(runner, IDS)
    rows = [runner.req_to_token.alloc() for _ in range(2)]
    with pytest.raises(EngineError, match="the runner is in use"):
        debug.dump_forward(runner, IDS)
    for row in rows:
        runner.req_to_token.free(row)
    assert all(not module._forward_hooks for module in runner.model.modules())
    with pytest.raises(RequestError, match="1 to 32 ids, not 33"):
        debug.dump_forward(runner, list(range(33)))
    assert runner.req_to_token.num_free_rows == 2
