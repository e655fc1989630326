"""A constraint that takes long to compile: other requests go on, and its own can be cancelled or time out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_checkpoint

from dslc.compiler.constraints import worker
from dslc.core.constraint import Constraint
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime import intake
from dslc.runtime.engine import Engine

torch.set_num_threads(1)

SLOW = "[a-f]{2,600}[g-k]{2,600}(x|y){1,20000}"  # many positions: compiled elsewhere


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(
        model_path=str(tiny_checkpoint("llama")), device="cpu", max_running_requests=8, max_total_tokens=2048
    ) as made:
        yield made


def request(name: str, regex: str | None) -> GenRequest:
    constraint = Constraint("regex", regex) if regex else None
    sampling = SamplingParams(temperature=1.0, max_new_tokens=6, seed=1)
    return GenRequest(id=name, segments=(Segment(text="Answer: "),), sampling=sampling, constraint=constraint)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Compiling SLOW waits until this is set."""
    opened, compile_constraint = threading.Event(), intake.compile_constraint

    def waits(constraint: Constraint, *given: Any, **named: Any) -> Any:
        if constraint.source == SLOW:
            assert opened.wait(60)
            constraint = Constraint("regex", "[a-f]{2,9}")
        return compile_constraint(constraint, *given, **named)

    monkeypatch.setattr(intake, "compile_constraint", waits)
    return opened


def test_other_requests_finish_while_a_constraint_compiles(engine: Engine, gate: threading.Event) -> None:
    last: dict[str, Event] = {}

    def sink(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            last[event.request_id] = event

    engine.submit([request("slow", SLOW), request("free", None), request("quick", "[xyz]+")], sink)
    assert engine.wait(lambda: {"free", "quick"} <= set(last), timeout=60)
    assert "slow" not in last
    gate.set()
    assert engine.wait(lambda: "slow" in last, timeout=60)
    assert all(isinstance(event, Finished) for event in last.values())


def test_a_request_that_waits_for_its_constraint_can_be_cancelled(engine: Engine, gate: threading.Event) -> None:
    events: list[Event] = []
    engine.submit([request("slow", SLOW)], events.append)
    engine.abort(["slow"])
    assert [(type(e), e.error.kind) for e in events if isinstance(e, Failed)] == [(Failed, "Aborted")]
    gate.set()
    done: list[Event] = []
    engine.submit([request("after", None)], done.append)
    assert engine.wait(lambda: any(isinstance(e, Finished) for e in done), timeout=60)
    assert len(events) == 1, "nothing more is told of a request that was cancelled"


def test_an_id_that_waits_for_its_constraint_is_taken(engine: Engine, gate: threading.Event) -> None:
    first: list[Event] = []
    second: list[Event] = []
    engine.submit([request("slow", SLOW)], first.append)
    engine.submit([request("slow", SLOW)], second.append)
    assert [(type(e), e.error.kind) for e in second if isinstance(e, Failed)] == [(Failed, "RequestError")]
    gate.set()
    assert engine.wait(lambda: any(isinstance(e, Finished) for e in first), timeout=60)
    assert len(second) == 1


def test_a_deadline_does_not_wait_for_the_compiler(engine: Engine, gate: threading.Event) -> None:
    """It passes while the constraint is being compiled, whoever drives, and though nothing else happens."""
    for drives in (engine.wait, lambda ready, timeout: engine.start() or engine.wait(ready, timeout)):
        events: list[Event] = []
        engine.submit([replace(request("slow", SLOW), timeout_s=0.05)], events.append)
        assert drives(lambda events=events: bool(events), 10)  # type: ignore[misc]
        assert [e.error.kind for e in events if isinstance(e, Failed)] == ["DeadlineExceeded"]
        assert len(engine._grammars) == 0
    late = replace(request("slow", SLOW), timeout_s=-1.0)
    engine.submit([late], events.append)
    assert isinstance(events[-1], Failed) and "timeout_s" in events[-1].error.message
    gate.set()


def test_nothing_is_compiled_for_an_engine_that_has_closed(engine: Engine, gate: threading.Event) -> None:
    events: list[Event] = []
    engine.submit([request("first", SLOW)], events.append)
    takes_long = type(engine.intake).takes_long

    def closes(self: object, source: GenRequest) -> bool:
        engine.close()
        return takes_long(engine.intake, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine.intake), "takes_long", closes)
        engine.submit([request("second", SLOW)], events.append)
    gate.set()
    assert {(e.request_id, e.error.kind) for e in events if isinstance(e, Failed)} == {
        ("first", "EngineClosed"),
        ("second", "EngineClosed"),
    }


def test_closing_fails_what_waits(gate: threading.Event) -> None:
    engine = Engine(model_path=str(tiny_checkpoint("llama")), device="cpu", max_total_tokens=512)
    events: list[Event] = []
    engine.submit([request("slow", SLOW)], events.append)
    engine.close()
    assert [e.error.kind for e in events if isinstance(e, Failed)] == ["EngineClosed"]
    gate.set()


def test_a_constraint_beyond_its_time_fails_with_its_name(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMPILE_SECONDS", 0.05)
    options = "|".join(f"[ab]{{{i},{i + 700}}}c" for i in range(1, 60))
    events: list[Event] = []
    engine.submit([request("huge", f"({options})d")], events.append)
    assert engine.wait(lambda: any(isinstance(e, Failed) for e in events), timeout=60)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert failed.error.kind == "ConstraintError" and "0.05 s" in failed.error.message
