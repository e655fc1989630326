"""The short way through a model in torch equals its modules, and gives way to them where they are asked for."""

from __future__ import annotations

import pytest
import torch
from support.batches import Slots, make_batch
from support.llama_batches import MODELS, TAU, assert_close, error, exact_batches, many_batches, runner_for
from support.tiny_models import reference_model, tiny_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from dslc.core.config import EngineConfig
from dslc.runtime import native_step
from dslc.runtime.attention import torch_native
from dslc.runtime.model_runner import ModelRunner
from dslc.runtime.torch_step import torch_step

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def without_cpp(monkeypatch):
    monkeypatch.setenv("DSLC_NATIVE", "0")
    native_step.library.cache_clear()
    yield
    native_step.library.cache_clear()


def short_runner(name: str, dtype: str = "float32") -> ModelRunner:
    """A runner that fails if a layer runs as a module."""
    runner = runner_for(name, dtype)
    assert runner.native is None

    def forward(*args):
        raise AssertionError("a module ran")

    for layer in runner.model.model.layers:
        layer.forward = forward
    return runner


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_the_modules(name, monkeypatch) -> None:
    expected = many_batches(runner_for(name, attention_backend="torch_native"))
    assert_close(many_batches(short_runner(name)), expected, TAU["float32"])
    monkeypatch.setattr(torch_native, "GATHERED_BYTES", 1)  # sequence by sequence
    assert_close(many_batches(short_runner(name)), expected, TAU["float32"])


@pytest.mark.parametrize("name", ["llama", "odd", "few inputs", "head norms"])
def test_in_bfloat16_it_is_as_near_the_truth_as_the_modules(name) -> None:
    truth = exact_batches(name)
    of_modules = error(many_batches(runner_for(name, "bfloat16", attention_backend="torch_native")), truth)
    assert error(many_batches(short_runner(name, "bfloat16")), truth) < min(TAU["bfloat16"], 1.5 * of_modules)


def test_rows_of_zeros_stay_finite() -> None:
    """The norm's floor: where all weights before it are 0 there is nothing but epsilon."""
    runners = short_runner("llama"), runner_for("llama", attention_backend="torch_native")
    logits = []
    for runner in runners:
        with torch.inference_mode():
            runner.model.model.embed_tokens.weight.zero_()
        slots = Slots(runner.req_to_token, runner.num_tokens)
        logits.append(runner.forward(make_batch(slots, [(slots.sequence(), [3, 4, 5])])))
    assert torch.isfinite(logits[0]).all()
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("options", [{"attention_backend": "torch_native"}, {"deterministic": True}])
def test_where_the_modules_are_asked_for(options) -> None:
    runner = runner_for("llama", **options)
    ran = []
    runner.model.model.layers[0].forward = lambda x, *args: ran.append(1) or x
    slots = Slots(runner.req_to_token, runner.num_tokens)
    runner.forward(make_batch(slots, [(slots.sequence(), [3, 4, 5])]))
    assert ran == [1]


def test_who_looks_into_the_modules_sees_them_run() -> None:
    runner = runner_for("llama")
    slots = Slots(runner.req_to_token, runner.num_tokens)
    seq, seen = slots.sequence(), []
    hook = runner.model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    runner.forward(make_batch(slots, [(seq, [3, 4])]))
    hook.remove()
    runner.forward(make_batch(slots, [(seq, [5])]))
    assert seen == [1]


def test_other_families_have_no_short_way() -> None:
    options = {"max_total_tokens": 64, "max_running_requests": 2, "dtype": "float32", "device": "cpu"}
    runner = ModelRunner(EngineConfig.of(model_path=str(tiny_checkpoint("gemma2")), **options))
    assert torch_step(runner.model, runner.kv_pool, runner.attention) is None


class Operations(TorchDispatchMode):
    """Counts what computes or copies; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += all(r.alias_info is None or r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))


def operations_of_a_layer(decode) -> int:
    """What the second and third layer add to a decode of one token, each."""
    counts = []
    for layers in (1, 3):
        with torch.inference_mode(), Operations() as operations:
            decode(tiny_checkpoint("llama", num_hidden_layers=layers), operations)
        counts.append(operations.count)
    return (counts[1] - counts[0]) // 2


def test_operations_of_a_layer() -> None:
    """Merged projections, norms, rotary and gates: fewer than the modules take, and far fewer than transformers."""

    def ours(path, operations, **options) -> None:
        given = {"max_total_tokens": 64, "max_running_requests": 2, "dtype": "float32", "device": "cpu", **options}
        runner = ModelRunner(EngineConfig.of(model_path=str(path), **given))
        slots = Slots(runner.req_to_token, runner.num_tokens, scatter=False)
        seq = slots.sequence()
        runner.forward(make_batch(slots, [(seq, [3, 4, 5])]))
        fb = make_batch(slots, [(seq, [6])])
        operations.count = 0
        runner.forward(fb)

    def theirs(path, operations) -> None:
        model = reference_model(path)
        cache = model(torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
        operations.count = 0
        model(torch.tensor([[6]]), past_key_values=cache)

    short = operations_of_a_layer(ours)
    modules = operations_of_a_layer(lambda *args: ours(*args, attention_backend="torch_native"))
    assert short <= 24 and short < 0.8 * modules < 0.8 * operations_of_a_layer(theirs)
