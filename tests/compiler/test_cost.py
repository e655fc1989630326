"""The cost model: fitted on what it should find, and choosing the cheaper of two."""

import dataclasses
import json
import random

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler import cost_kept
from dslc.compiler.account import Job, Usage, evaluate
from dslc.compiler.cost import CostModel, calibrate, fit, tokens_with
from dslc.compiler.cost_kept import cost_of, keep
from dslc.core.config import EngineConfig
from dslc.core.errors import ErrorInfo, RequestError


def samples_of(model, num, noise=0.0):
    rng = random.Random(3)
    found = []
    for _ in range(num):
        usage = Usage(forwards=rng.randint(1, 60), rows=rng.randint(1, 3000), context_rows=rng.randint(100, 1_000_000))
        found.append((usage, model.seconds(usage) * (1 + noise * rng.uniform(-1, 1))))
    return found


@pytest.mark.parametrize("model", [CostModel(2e-3, 4e-5, 1e-8), CostModel(1e-2, 0.0, 3e-9), CostModel(0.0, 1e-4, 0.0)])
def test_a_fit_finds_the_model_that_made_the_samples(model):
    exact = fit(samples_of(model, 8))
    for name in ("per_forward_s", "per_row_s", "per_context_s"):
        assert getattr(exact, name) == pytest.approx(getattr(model, name), rel=1e-3, abs=1e-9)
    rough = fit(samples_of(model, 40, noise=0.05))
    for usage, seconds in samples_of(model, 10):
        assert rough.seconds(usage) == pytest.approx(seconds, rel=0.1)


def test_coefficients_are_never_negative():
    usages = [Usage(forwards=f, rows=r, context_rows=r * 10) for f, r in ((1, 100), (2, 50), (10, 10), (20, 5))]
    model = fit([(usage, 1e-3 * usage.forwards) for usage in usages])
    assert min(model.per_forward_s, model.per_row_s, model.per_context_s) >= 0
    with pytest.raises(ValueError, match="three samples"):
        fit([(usages[0], 1.0)])


def test_calibration_runs_requests_and_fits_their_account():
    ticks = iter(range(10_000))
    model = calibrate(ScriptedBackend(lambda prompt: "x" * 40), clock=lambda: float(next(ticks)))
    assert isinstance(model, CostModel) and model.seconds(evaluate([Job((1, 2, 3), ((4,),))])) > 0

    def failing(prompt):
        return RequestError("no")

    with pytest.raises(RequestError, match="no"):
        calibrate(ScriptedBackend(failing))
    assert ErrorInfo.of(RequestError("no")).exception().message == "no"


def test_the_cheapest_of_several():
    model = CostModel(per_row_s=1e-3)
    assert model.cheapest([("a", 100, 0.0), ("b", 50, 0.01), ("c", 50, 0.2)]) == "b"
    assert model.cheapest([("given", 7, 0.0), ("other", 7, 0.0)]) == "given"


def test_tokens_with_a_small_cache():
    prompts = [(1, 2, 3, 4), (9, 9, 9, 9), (1, 2, 3, 5), (9, 9, 9, 8)]
    assert tokens_with(prompts, (0, 1, 2, 3), 100) == 4 + 4 + 1 + 1
    assert tokens_with(prompts, (0, 1, 2, 3), 4) == 16
    assert tokens_with(prompts, (0, 2, 1, 3), 5) == 4 + 1 + 4 + 1
    assert tokens_with([(), (1,), (1,)], (0, 1, 2), 10) == 2


# What was calibrated is kept, and read by the schedules


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cost_kept, "_read", {})
    return tmp_path


MEASURED = CostModel(0.25, 0.5, 0.125)


def test_what_is_kept_is_found_by_the_next_process(folder, monkeypatch):
    backend = ScriptedBackend([])
    assert cost_of(backend) == CostModel()
    path = keep(MEASURED, backend)
    assert json.loads(path.read_text()) == dataclasses.asdict(MEASURED)
    monkeypatch.setattr(cost_kept, "_read", {})
    assert cost_of(ScriptedBackend([])) == MEASURED
    other = ScriptedBackend([])
    other.config = EngineConfig(dtype="bfloat16")
    assert cost_of(other) == CostModel()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"per_row_s": 1}', json.dumps({**dataclasses.asdict(MEASURED), "per_row_s": -1})]
)
def test_a_file_that_is_no_cost_model_is_taken_for_none(folder, monkeypatch, text):
    path = keep(MEASURED, ScriptedBackend([]))
    path.write_text(text)
    monkeypatch.setattr(cost_kept, "_read", {})
    assert cost_of(ScriptedBackend([])) == CostModel()


def test_nothing_is_kept_where_the_cache_is_off(monkeypatch):
    monkeypatch.setenv("DSLC_CACHE_DIR", "off")
    assert keep(MEASURED, ScriptedBackend([])) is None
    assert cost_of(ScriptedBackend([])) == CostModel()


def test_schedules_choose_with_what_was_calibrated(folder, monkeypatch):
    """Arranging order-free parts takes time: it pays where a token costs much, not where it costs next to nothing."""
    passages = [f"passage {i} is long enough to matter." for i in range(4)]

    @dslc.function
    def asked(s, parts):
        s += "Read: " + dslc.unordered(parts) + " Answer:" + dslc.gen("a", max_tokens=2)

    rows = [{"parts": passages[i:] + passages[:i]} for i in range(4)]
    chosen = {}
    for name, model in (("dear", CostModel(1.0, 1.0, 0.0)), ("cheap", CostModel(0.0, 0.0, 0.0))):
        backend = ScriptedBackend(lambda prompt: "x")
        keep(model, backend)
        states = asked.run_batch(rows, backend=backend, seed=1)
        chosen[name] = [state.orders() for state in states]
    assert any(chosen["dear"]) and not any(chosen["cheap"])


def test_the_command_measures_and_keeps(folder, capsys):
    from dslc import cli

    assert cli.main(["calibrate", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    (file,) = (folder / "costs").iterdir()
    assert "per forward" in out and f"kept in {file}" in out
    kept = json.loads(file.read_text())
    assert kept.keys() == dataclasses.asdict(MEASURED).keys() and kept["per_forward_s"] + kept["per_row_s"] > 0
