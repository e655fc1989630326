"""Priorities and routing keys through the engine: who goes first, who gives way, and which options make sense."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError
from dslc.core.events import Event, Finished, Preempted, Prefilled
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine


def make_engine(**options: Any) -> Engine:
    config = EngineConfig.of(**{"random_seed": 1, **options})
    model = StandIn(num_rows=config.max_running_requests, page_size=config.page_size)
    return Engine.of_parts(config, model, check_when_idle=True)


def request(name: str, priority: int = 0, *, new: int = 5, key: str = "", prompt: tuple[int, ...] = ()) -> GenRequest:
    ids = prompt or (hash(name) % 60, 1, 2)
    params = SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True)
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params, priority=priority, routing_key=key)


def begun(engine: Engine, first: list[GenRequest], then: list[GenRequest]) -> tuple[list[str], int]:
    """(the order in which the prompts were computed, preemptions), `then` coming while `first` runs."""
    events: list[Event] = []
    with engine:
        engine.submit(first, events.append)
        with engine._drive:
            engine.step()
        engine.submit(then, events.append)
        num = len(first) + len(then)
        assert engine.wait(lambda: sum(isinstance(e, Finished) for e in events) == num, timeout=20)
    order = [event.request_id for event in events if isinstance(event, Prefilled)]
    return order, sum(isinstance(event, Preempted) for event in events)


PRIORITIES = [request("mid", 2), request("low", 1), request("high", 3)]


@pytest.mark.parametrize("low_first, expected", [(False, ["high", "mid", "low"]), (True, ["low", "mid", "high"])])
def test_priorities_before_any_policy(low_first: bool, expected: list[str]) -> None:
    for policy in ("fcfs", "lpm", "priority"):
        engine = make_engine(
            max_running_requests=1, schedule_policy=policy, enable_priority_scheduling=True,
            schedule_low_priority_values_first=low_first,
        )  # fmt: skip
        order, preempted = begun(engine, [request("first", 2)], PRIORITIES)
        first = {False: ["first", "high", "mid", "low"], True: ["first", "low", "mid", "high"]}[low_first]
        assert order == first and preempted == 1  # the most urgent takes the row of the one that runs
        assert [name for name in order if name != "first"] == expected


@pytest.mark.parametrize("threshold, preempted", [(1, 1), (3, 1), (4, 0)])
def test_only_so_much_more_urgent_preempts(threshold: int, preempted: int) -> None:
    engine = make_engine(
        max_running_requests=1, enable_priority_scheduling=True, priority_scheduling_preemption_threshold=threshold
    )
    assert begun(engine, [request("patient", 1)], [request("urgent", 4)])[1] == preempted


@pytest.mark.parametrize("seed", range(6))
def test_priorities_and_a_small_bound_on_waiting_never_admit_anything_twice(seed: int) -> None:
    """Who is admitted for having waited long keeps its place, whoever comes in the same round; the memory adds up."""
    rng = random.Random(seed)
    engine = make_engine(
        max_running_requests=rng.choice([1, 2, 3]), enable_priority_scheduling=True, schedule_policy="random",
        page_size=rng.choice([1, 4]), chunked_prefill_size=rng.choice([3, 64]),
    )  # fmt: skip
    engine.scheduler.aging.bound_tokens = rng.choice([20, 60])
    todo = [
        request(f"r{i}", rng.randrange(3), new=rng.randrange(1, 12), prompt=tuple(rng.choices(range(60), k=9)))
        for i in range(30)
    ]
    sources, aged = {source.id: source for source in todo}, set()
    events: list[Event] = []
    with engine:
        while sum(isinstance(event, Finished) for event in events) < len(sources):
            if todo and rng.random() < 0.3:
                engine.submit([todo.pop() for _ in range(rng.randrange(1, 4)) if todo], events.append)
            seen = len(events)
            with engine._drive:
                engine.step()
            engine.check_integrity()
            assert not aged & {e.request_id for e in events[seen:] if isinstance(e, Preempted)}
            aged |= {seq.request.id for seq in engine.scheduler.running if seq.has_waited}
        assert aged
        for event in events:
            if isinstance(event, Finished):
                source = sources[event.request_id]
                wanted = draw_alone(engine.runner, source.segments[0].ids, source.sampling, 0)[0]  # type: ignore[arg-type]
                assert list(event.outputs[0].token_ids) == wanted


def test_without_priority_scheduling_priorities_mean_nothing() -> None:
    order, preempted = begun(
        make_engine(max_running_requests=1, schedule_policy="fcfs"), [request("first")], PRIORITIES
    )
    assert order == ["first", "mid", "low", "high"] and preempted == 0


def test_one_senders_requests_run_together() -> None:
    """Two rows: as long as something of "b" runs, "b" goes before "a", though "a" came first."""
    engine = make_engine(max_running_requests=2, schedule_policy="routing-key")
    running = [request("b0", new=4, key="b"), request("b1", new=30, key="b")]
    waiting = [request("a0", key="a"), request("b2", key="b"), request("none"), request("b3", key="b")]
    order, _ = begun(engine, running, waiting)
    assert order == ["b0", "b1", "b2", "b3", "a0", "none"]


@pytest.mark.parametrize("steps_later, expected", [(1, ["short", "long"]), (50, ["long", "short"])])
def test_a_long_request_goes_before_a_short_one_once_it_has_waited(steps_later: int, expected: list[str]) -> None:
    """When the row is free, "long" (43 tokens) has waited 60 steps, "short" (8) 60 - steps_later."""
    events: list[Event] = []
    with make_engine(max_running_requests=1, schedule_policy="hrrn") as engine:
        engine.submit([request("first", new=60)], events.append)
        with engine._drive:
            engine.step()
        engine.submit([request("long", new=40)], events.append)
        with engine._drive:
            for _ in range(steps_later):
                engine.step()
        engine.submit([request("short", new=5)], events.append)
        assert engine.wait(lambda: sum(isinstance(e, Finished) for e in events) == 3, timeout=20)
    assert [event.request_id for event in events if isinstance(event, Prefilled)] == ["first", *expected]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"schedule_policy": "hrnn"}, "schedule_policy: unknown policy 'hrnn'; choices: fcfs, .*hrrn, routing-key"),
        ({"schedule_low_priority_values_first": True}, "schedule_low_priority_values_first: means nothing without"),
        ({"priority_scheduling_preemption_threshold": 5}, "preemption_threshold: means nothing without"),
        ({"priority_scheduling_preemption_threshold": 0}, "preemption_threshold: must be a positive integer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(max_running_requests=1, **options)
