"""The engine at its edges: wrong types, late submissions, cancelled callers, long queues. Nothing hangs or piles up."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.errors import DeadlineExceeded, EngineClosed, QueueFull, RequestError
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.scheduling.policies import FCFS, LPM, Aging, WaitingView


def make_engine(standin: dict[str, Any] | None = None, **options: Any) -> Engine:
    config = EngineConfig.of(**{"max_running_requests": 8, "random_seed": 1, **options})
    model = StandIn(num_rows=config.max_running_requests, **(standin or {}))
    return Engine.of_parts(config, model, check_when_idle=True)


def request(name: str, ids: tuple[int, ...] = (1, 2, 3), max_new_tokens: int = 8, **options: Any) -> GenRequest:
    params = SamplingParams(max_new_tokens=max_new_tokens, seed=1)
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params, **options)


def last_of(events: Sequence[Event]) -> Event | None:
    return next((event for event in events if isinstance(event, (Finished, Failed))), None)


# -- what callers give ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt[1]"),
        ({"input_ids": 5}, "input_ids"),
        ({"input_ids": "abc"}, "input_ids"),
        ({"input_ids": [1.5]}, "input_ids"),
        ({"input_ids": [[1], 2]}, "input_ids"),
        ({"input_ids": [[1], "ab"]}, "input_ids"),
        ({"input_ids": [1], "sampling_params": "hot"}, "sampling_params"),
        ({"input_ids": [1], "sampling_params": {"n": "3"}}, "n"),
        ({"input_ids": [1], "sampling_params": {"stop": 5}}, "stop"),
        ({"input_ids": [1], "sampling_params": {"stop_regex": {"a": 1}}}, "stop_regex"),
        ({"input_ids": [1], "sampling_params": {"stop_token_ids": "ab"}}, "stop_token_ids"),
        ({"input_ids": [1], "sampling_params": {"stop_token_ids": 1.5}}, "stop_token_ids"),
        ({"input_ids": [1], "sampling_params": {"logit_bias": [1, 2]}}, "logit_bias"),
        ({"input_ids": [1], "sampling_params": {"logit_bias": {1.7: 3}}}, "logit_bias[1.7]"),
        ({"input_ids": [1], "sampling_params": {"logit_bias": {"5": "much"}}}, "logit_bias['5']"),
        ({"input_ids": [1], "sampling_params": {"custom_params": [1]}}, "custom_params"),
        ({"input_ids": [1], "sampling_params": {"custom_params": {"a": object()}}}, "custom_params"),
        ({"input_ids": [1], "token_ids_logprob": 5}, "token_ids_logprob"),
        ({"input_ids": [[1], [2]], "token_ids_logprob": [[1], 2], "return_logprob": True}, "token_ids_logprob[1]"),
        ({"input_ids": [1], "rid": 5}, "id"),
        ({"input_ids": [1], "cache_salt": 5}, "cache_salt"),
        ({"input_ids": [1], "routing_key": None}, "routing_key"),
        ({"input_ids": [1], "timeout_s": True}, "timeout_s"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_types_are_refused_by_their_field(options: dict[str, Any], field: str, stream: bool) -> None:
    with make_engine() as engine:
        with pytest.raises(RequestError) as caught:
            list(engine.generate(**options, stream=stream))
        assert caught.value.field == field
        assert len(engine.generate(input_ids=[1], sampling_params={"max_new_tokens": 2})["output_ids"]) == 2  # type: ignore


def test_ids_may_be_arrays_and_tensors() -> None:
    with make_engine() as engine:
        params = {"max_new_tokens": 4, "seed": 1}
        wanted: Any = engine.generate(input_ids=[[1, 2], [3, 4]], sampling_params=params)
        for ids in (np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]), [np.array([1, 2]), (3, 4)]):
            got: Any = engine.generate(input_ids=ids, sampling_params=params)  # type: ignore[arg-type]
            assert [result["output_ids"] for result in got] == [result["output_ids"] for result in wanted]
        one: Any = engine.generate(input_ids=np.array([1, 2]), sampling_params=params)  # type: ignore[arg-type]
        assert one["output_ids"] == wanted[0]["output_ids"]


@pytest.mark.parametrize("stream", [False, True])
def test_millions_of_choices_are_refused_before_anything_is_made_for_them(stream: bool) -> None:
    with make_engine() as engine:
        tracemalloc.start()
        try:
            with pytest.raises(RequestError, match="n: must be between 1 and 1024"):
                list(engine.generate(input_ids=[1], sampling_params={"n": 5_000_000}, stream=stream))
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", ["stop", "stop_regex"])
def test_long_stops_are_refused_before_anything_is_made_of_them(name: str) -> None:
    for stops in ("x" * 10**6, ["x" * 100] * 200):
        with pytest.raises(RequestError, match=f"{name}: at most 16384 characters"):
            SamplingParams(**{name: stops}).verify()  # type: ignore[arg-type]
    SamplingParams(**{name: ["x" * 100] * 160}).verify()  # type: ignore[arg-type]


# -- coming and going -------------------------------------------------------------------------------------------------


def test_a_request_that_is_being_checked_while_the_engine_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, events = make_engine(), []
    intake = type(engine.intake)
    admit = intake.admit

    def closes(self: Any, *given: Any) -> Any:
        admitted = admit(self, *given)
        engine.close()
        return admitted

    monkeypatch.setattr(intake, "admit", closes)
    engine.submit([request("late")], events.append)
    assert [event.error.kind for event in events if isinstance(event, Failed)] == ["EngineClosed"]


def test_a_stream_that_begins_while_the_engine_closes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    start = engine.start

    def then_close() -> None:
        start()
        engine.close()

    monkeypatch.setattr(engine, "start", then_close)
    with pytest.raises(EngineClosed):
        list(engine.generate(input_ids=[1], stream=True))


def test_cancelled_while_it_is_being_submitted() -> None:
    """The task goes before the engine knows of its request; the request must not run on."""
    engine, events = make_engine(), []
    entered, go_on, submitted = threading.Event(), threading.Event(), threading.Event()
    submit = engine.submit

    def slow(requests: Sequence[GenRequest], sink: Any) -> None:
        entered.set()
        assert go_on.wait(20)

        def both(event: Event) -> None:
            events.append(event)
            sink(event)

        submit(requests, both)
        submitted.set()

    async def main() -> None:
        options: Any = {"input_ids": [1], "sampling_params": {"max_new_tokens": 250, "ignore_eos": True}}
        task = asyncio.ensure_future(engine.async_generate(**options))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        go_on.set()
        while not (submitted.is_set() and last_of(events)):
            await asyncio.sleep(0.001)

    stepped, forward = threading.Event(), engine.runner.forward

    def waits(fb: Any) -> Any:
        stepped.wait(0.02)  # slowly enough that it cannot end by itself before
        return forward(fb)

    engine.runner.forward = waits  # type: ignore[method-assign]
    engine.submit = slow  # type: ignore[method-assign]
    with engine:
        asyncio.run(asyncio.wait_for(main(), 20))
        last = last_of(events)
        assert isinstance(last, Failed) and last.error.kind == "Aborted"


def test_leaving_an_asynchronous_stream_aborts_at_once() -> None:
    engine = make_engine()
    aborted: list[str] = []
    abort = engine.abort

    def noted(ids: Sequence[str]) -> None:
        aborted.extend(ids)
        abort(ids)

    engine.abort = noted  # type: ignore[method-assign]

    async def main() -> None:
        stream: Any = await engine.async_generate(
            input_ids=[1], sampling_params={"max_new_tokens": 250}, stream=True, rid="left"
        )
        async for _ in stream:
            break
        await stream.aclose()
        assert aborted == ["left"]

    with engine:
        asyncio.run(main())
        assert engine.wait(lambda: not engine.scheduler.has_work, timeout=10)


def test_who_does_not_drive_sleeps_though_a_deadline_has_passed() -> None:
    """While another thread is in a long forward, nobody can do anything about a deadline, and nobody tries."""
    inside, leave = threading.Event(), threading.Event()

    def long_forward(fb: Any) -> bool:
        inside.set()
        leave.wait(20)
        return False

    engine = make_engine({"fail": long_forward})
    seen: list[Event] = []
    asked = 0

    def ready() -> bool:
        nonlocal asked
        asked += 1
        return False

    with engine:
        engine.start()
        engine.submit([request("late", timeout_s=0.01)], seen.append)
        assert inside.wait(10)
        assert not engine.wait(ready, timeout=0.2)
        leave.set()
        assert engine.wait(lambda: last_of(seen) is not None, timeout=10)
        last = last_of(seen)
        assert isinstance(last, Failed) and isinstance(last.error.exception(), DeadlineExceeded)
    assert asked < 20


def test_deadlines_of_finished_requests_do_not_pile_up() -> None:
    with make_engine() as engine:
        events: list[Event] = []
        for number in range(300):
            engine.submit([request(f"{number}", max_new_tokens=0, timeout_s=3600.0)], events.append)
            while engine.step():
                pass
        assert sum(isinstance(event, Finished) for event in events) == 300
        assert engine._mailbox.num_deadlines <= 64


def test_the_engine_s_own_thread_outlives_whatever_a_sink_raises() -> None:
    class Odd(BaseException):
        """Not an Exception, like a greenlet's end or a cancelled task."""

    def bad(event: Event) -> None:
        raise Odd

    engine = make_engine()
    done = threading.Event()

    def sink(event: Event) -> None:
        if isinstance(event, Finished):
            done.set()

    with engine:
        engine.start()
        engine.submit([request("bad")], bad)
        engine.submit([request("good")], sink)
        assert done.wait(10), "the thread has died"


def test_ctrl_c_between_two_events_loses_none_of_the_rest() -> None:
    engine = make_engine()
    events: list[Event] = []

    def interrupted(event: Event) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with engine:
        engine.submit([request("first", max_new_tokens=1)], interrupted)
        engine.submit([request("second", max_new_tokens=1)], events.append)
        with pytest.raises(KeyboardInterrupt):
            while engine.step():
                pass
        assert engine.wait(lambda: last_of(events) is not None, timeout=10)
        assert isinstance(last_of(events), Finished)


# -- long queues ------------------------------------------------------------------------------------------------------


class Counted(Sequence[WaitingView]):
    """A queue that counts how many of those who wait are looked at."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.looks = 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.num:
            raise IndexError
        self.looks += 1
        return WaitingView(index, 9)


@pytest.mark.parametrize("policy", [FCFS(), LPM()])
def test_a_hundred_thousand_that_wait_are_not_looked_at(policy: Any) -> None:
    """Where the order is that of arrival, a round of admission costs what it admits, and the bound on waiting too."""
    aging, waiting = Aging(policy, bound_tokens=500), Counted(100_000)
    for round_ in range(20):
        order, num_aged = aging.arrange(waiting)
        assert order[0] == 0 and len(order) == 100_000
        assert num_aged == (0 if round_ < 5 else 100_000)
        aging.admitted(100_000 + round_, 100)
    assert waiting.looks < 20 * 20


def test_a_queue_s_limit_follows_who_leaves_it() -> None:
    """Aborted, admitted and retracted requests all count as they should."""
    with make_engine(max_running_requests=1, max_queued_requests=2) as engine:
        last: dict[str, Event] = {}

        def sink(event: Event) -> None:
            if isinstance(event, (Finished, Failed)):
                last[event.request_id] = event

        engine.submit([request(f"r{i}", (i,)) for i in range(4)], sink)
        engine.step()
        assert sorted(last) == ["r2", "r3"]
        engine.submit([request("r4", (4,))], sink)
        engine.step()
        engine.abort(["r1"])
        engine.submit([request("r5", (5,)), request("r6", (6,))], sink)
        engine.step()
        error = last["r6"]
        assert isinstance(error, Failed) and isinstance(error.error.exception(), QueueFull)
        engine.check_integrity()
        assert engine.wait(lambda: {"r0", "r4", "r5"} <= set(last), timeout=10)
        for name in ("r0", "r4", "r5"):
            event = last[name]
            assert isinstance(event, Finished)
            wanted = draw_alone(engine.runner, (int(name[1]),), request(name).sampling, 1)[0]  # type: ignore[arg-type]
            assert list(event.outputs[0].token_ids) == wanted


def test_a_long_queue_is_left_in_any_order() -> None:
    """Thousands of aborts of waiting requests, from the last to the first."""
    with make_engine(max_running_requests=1) as engine:
        events: list[Event] = []
        engine.submit([request(f"{i}", (i % 64,)) for i in range(3000)], events.append)
        engine.step()
        assert engine.get_server_info()["num_waiting_reqs"] == 2999
        engine.abort([f"{i}" for i in reversed(range(1, 3000))])
        engine.check_integrity()
        assert engine.get_server_info()["num_waiting_reqs"] == 0
        assert sum(isinstance(event, Failed) for event in events) == 2999
        assert engine.wait(lambda: isinstance(last_of(events[-1:]), Finished), timeout=10)
