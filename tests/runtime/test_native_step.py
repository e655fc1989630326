"""The C++ forward equals the torch one on odd shapes and mixed batches, and gives way where it cannot run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.batches import Slots, make_batch
from support.llama_batches import MODELS, TAU, assert_close, error, exact_batches, many_batches, prompt, runner_for
from support.tiny_models import VOCAB_SIZE

from dslc.core import native_build
from dslc.kernels.native.library import FLAGS, INCLUDED, SOURCES, Library, NativeLlama
from dslc.runtime import native_step
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)


def native_runner(name: str, dtype: str = "float32", **options: Any) -> ModelRunner:
    runner = runner_for(name, dtype, **options)
    if runner.native is None:
        pytest.skip(f"the C++ forward cannot be had here: {native_step.library()}")
    return runner


def test_where_there_is_a_compiler_there_is_the_library() -> None:
    """Else a mistake in the C++ would skip the tests of this file instead of failing them."""
    if native_build.compiler("c++") is None or native_build.is_switched_off() or native_build.library_folder() is None:
        pytest.skip("no compiler here, or nothing may be built")
    assert isinstance(native_step.library(), Library), native_step.library()


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_torch(name: str) -> None:
    found = many_batches(native_runner(name))
    assert_close(found, many_batches(runner_for(name, attention_backend="torch_native")), TAU["float32"])


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_it_is_as_near_the_truth_as_torch(name: str) -> None:
    """The truth is float32 arithmetic with the same rounded weights."""
    truth = exact_batches(name)
    of_torch = error(many_batches(runner_for(name, "bfloat16", attention_backend="torch_native")), truth)
    assert error(many_batches(native_runner(name, "bfloat16")), truth) < min(TAU["bfloat16"], of_torch)


@pytest.mark.parametrize("dtype", TAU)
@pytest.mark.parametrize("name", ["odd", "windows in some layers"])
def test_threads_change_no_bit(name: str, dtype: str) -> None:
    runner = native_runner(name, dtype)
    alone = many_batches(runner)
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(*pair) for pair in zip(many_batches(native_runner(name, dtype)), alone, strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    "machine", ["-mno-avx", pytest.param("-march=x86-64-v3", marks=pytest.mark.slow)], ids=["plain", "AVX2"]
)
def test_other_processors_compute_the_same(machine: str, tmp_path) -> None:
    """The same sources without the instructions of this one."""
    runners = {dtype: native_runner("odd", dtype) for dtype in TAU}
    if not native_step.library().features.startswith("AVX"):
        pytest.skip("this processor's library is the plain one already")
    flags = [machine if flag == "-march=native" else "-O1" if flag.startswith("-O") else flag for flag in FLAGS]
    path = native_build.build("other", SOURCES, flags, tmp_path, language="c++", included=INCLUDED)
    other = Library(path)
    assert "512" not in other.features
    for dtype, runner in runners.items():
        expected = many_batches(runner)
        again = native_runner("odd", dtype)
        again.native._native = NativeLlama(other, native_step._weights(again.model, again.kv_pool))
        assert_close(many_batches(again), expected, TAU[dtype])


@pytest.fixture
def anew(monkeypatch):
    """The library is looked for again, now and after the test, and not where other tests find it."""
    monkeypatch.delenv("DSLC_NATIVE_DIR", raising=False)
    native_step.library.cache_clear()
    yield
    native_step.library.cache_clear()


def test_without_a_compiler_torch_runs(anew, monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("CXX", "DSLC_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING):
        runner = runner_for("llama")
    assert runner.native is None
    assert "no C++ compiler found" in str(native_step.library()) and "no C++ compiler found" in caplog.text
    assert_close(
        many_batches(runner), many_batches(runner_for("llama", attention_backend="torch_native")), TAU["float32"]
    )


def test_a_compiler_that_fails_is_quoted(anew, monkeypatch, tmp_path) -> None:
    fake = tmp_path / "broken"
    fake.write_text("#!/bin/sh\necho 'I cannot do this' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DSLC_NATIVE", raising=False)
    assert "I cannot do this" in str(native_step.library())


@pytest.mark.parametrize("variable, reason", [("DSLC_NATIVE", "DSLC_NATIVE=0"), ("DSLC_CACHE_DIR", "keeps nothing")])
def test_it_can_be_switched_off(variable: str, reason: str, anew, monkeypatch) -> None:
    monkeypatch.delenv("DSLC_NATIVE", raising=False)
    monkeypatch.setenv(variable, "0")
    assert reason in str(native_step.library())
    assert runner_for("llama").native is None


def test_an_attention_backend_by_name_means_torch() -> None:
    assert runner_for("llama", attention_backend="torch_native").native is None
    assert runner_for("llama", decode_attention_backend="torch_native").native is None


def test_models_it_does_not_know_stay_in_torch() -> None:
    runner = native_runner("llama")
    model = runner.model
    kept = model.model.layers[1].mlp.act.act
    for change, reason in (
        (lambda: setattr(model.model.layers[1].mlp.act, "act", "gelu"), "activation"),
        (lambda: setattr(model.model.layers[1].mlp.act, "act", kept), None),
        (lambda: setattr(model.model.layers[0].self_attn.attn, "scaling", 0.5), "scaling"),
    ):
        change()
        made = native_step.native_step(model, runner.kv_pool, runner.req_to_token)
        assert (reason in made) if reason else not isinstance(made, str)


def test_who_looks_into_the_modules_sees_them_run() -> None:
    runner = native_runner("llama")
    slots = Slots(runner.req_to_token, runner.num_tokens)
    seen = []
    first = runner.forward(make_batch(slots, [(slots.sequence(), prompt(9))]))
    handle = runner.model.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    second = runner.forward(make_batch(slots, [(slots.sequence(), prompt(9))]))
    handle.remove()
    runner.forward(make_batch(slots, [(slots.sequence(), prompt(9))]))
    assert seen == [1]
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    runner = native_runner("llama")
    slots = Slots(runner.req_to_token, runner.num_tokens)
    for wrong in (-1, VOCAB_SIZE):
        with pytest.raises(IndexError, match="vocabulary"):
            runner.forward(make_batch(slots, [(slots.sequence(), [5, wrong])]))
