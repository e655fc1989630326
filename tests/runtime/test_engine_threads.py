"""One engine, many threads and event loops; nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from typing import Any

import pytest
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.errors import EngineClosed
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine


def make_engine(*, overlap: bool = False, **options: Any) -> Engine:
    config = EngineConfig.of(**{"max_running_requests": 8, "random_seed": 1, **options})
    model = StandIn(num_rows=config.max_running_requests, num_tokens=512)
    return Engine.of_parts(config, model, overlap=overlap, check_when_idle=True)


def request(name: str, ids: tuple[int, ...], max_new_tokens: int = 12) -> GenRequest:
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=1.0, seed=3)
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params)


@pytest.mark.parametrize("own_thread", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_threads_submit_abort_and_pin_at_once(own_thread: bool, overlap: bool) -> None:
    """Each waits for its own requests and drives or not, as it comes; the rest of the answers do not change."""
    engine = make_engine(overlap=overlap)
    model: Any = engine.runner
    faults: list[BaseException] = []
    if own_thread:
        engine.start()

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            for turn in range(12):
                last: dict[str, Event] = {}

                def sink(event: Event, last: dict[str, Event] = last) -> None:
                    if isinstance(event, (Finished, Failed)):
                        last[event.request_id] = event

                requests = [
                    request(f"{number}.{turn}.{i}", tuple(rng.randrange(4) for _ in range(rng.randrange(1, 30))))
                    for i in range(rng.randrange(1, 4))
                ]
                engine.submit(requests, sink)
                handle = engine.pin(requests[0].segments[0].ids)
                if rng.random() < 0.3:
                    engine.abort([requests[0].id])
                missing = len(requests)
                assert engine.wait(lambda last=last, n=missing: len(last) == n, timeout=60)  # type: ignore[misc]
                engine.unpin(handle)
                for one in requests:
                    event = last[one.id]
                    if isinstance(event, Finished):
                        wanted, _ = draw_alone(model, one.segments[0].ids, one.sampling, 3)
                        assert list(event.outputs[0].token_ids) == wanted
                    else:
                        assert isinstance(event, Failed) and event.error.kind == "Aborted"
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not faults and not any(thread.is_alive() for thread in threads)
    assert engine.wait(lambda: not engine.scheduler.has_work, timeout=20)
    engine.check_integrity()
    engine.close()


def test_closing_wakes_every_waiter() -> None:
    engine = make_engine()
    results: list[str] = []
    started = threading.Barrier(5)

    def sink(event: Event) -> None:
        pass

    def wait(number: int) -> None:
        engine.submit([request(f"{number}", (number,), max_new_tokens=250)], sink)
        started.wait()
        try:
            engine.wait(lambda: False, timeout=30)
            results.append("timeout")
        except EngineClosed:
            results.append("closed")

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    engine.close()
    for thread in threads:
        thread.join(20)
    assert results == ["closed"] * 4


def test_waiting_has_a_timeout() -> None:
    with make_engine() as engine:
        assert engine.wait(lambda: False, timeout=0.01) is False
        engine.start()
        assert engine.wait(lambda: False, timeout=0.01) is False


def test_close_lets_go_of_threads_and_memory() -> None:
    before = threading.active_count()
    for own_thread in (False, True):
        engine = make_engine()
        if own_thread:
            engine.start()
        result: Any = engine.generate(input_ids=[1, 2, 3], sampling_params={"max_new_tokens": 4})
        assert len(result["output_ids"]) == 4
        model = weakref.ref(engine.runner)
        engine.shutdown()
        gc.collect()
        assert model() is None
        with pytest.raises(EngineClosed):
            engine.generate(input_ids=[1], sampling_params={"max_new_tokens": 4})
    assert threading.active_count() == before


def test_five_hundred_coroutines_do_not_mix_their_answers() -> None:
    async def main(engine: Engine) -> None:
        async def ask(number: int) -> None:
            ids = [number % 64, number // 64, 5]
            result: Any = await engine.async_generate(
                input_ids=ids, sampling_params={"max_new_tokens": 5, "seed": number}
            )
            params = SamplingParams(max_new_tokens=5, seed=number)
            assert result["output_ids"] == draw_alone(engine.runner, ids, params, number)[0]  # type: ignore[arg-type]

        await asyncio.gather(*(ask(number) for number in range(500)))

    with make_engine(max_running_requests=64) as engine:
        asyncio.run(main(engine))
        assert engine.counters().requests == 500


def test_two_engines_and_two_event_loops_at_once() -> None:
    """Each loop asks both engines, which drive themselves; nobody gets what another asked for."""
    engines = [make_engine(page_size=1), make_engine(disable_radix_cache=True)]
    wrong: list[Any] = []

    async def ask(engine: Engine, number: int) -> None:
        ids, params = [number % 64, 3], {"max_new_tokens": 6, "seed": number}
        wanted = draw_alone(engine.runner, ids, SamplingParams(**params), number)[0]  # type: ignore[arg-type]
        if number % 2:
            result: Any = await engine.async_generate(input_ids=ids, sampling_params=params)
        else:
            stream: Any = await engine.async_generate(input_ids=ids, sampling_params=params, stream=True)
            result = [chunk async for chunk in stream][-1]
        if result["output_ids"] != wanted:
            wrong.append((number, result, wanted))

    async def main(first: int) -> None:
        await asyncio.gather(*(ask(engines[n % 3 == 0], first + n) for n in range(40)))

    threads = [threading.Thread(target=lambda first=first: asyncio.run(main(first))) for first in (0, 100)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert sum(engine.counters().requests for engine in engines) == 80
    for engine in engines:
        assert engine.wait(lambda engine=engine: not engine.scheduler.has_work, timeout=10)  # type: ignore[misc]
        engine.check_integrity()
        engine.close()


def test_many_results_in_one_stream_come_with_their_index() -> None:
    with make_engine() as engine:
        options: dict[str, Any] = {"input_ids": [[1], [2]], "sampling_params": {"max_new_tokens": 3, "n": 2, "seed": 1}}
        whole: Any = engine.generate(**options)
        last: dict[int, Any] = {}
        stream: Any = engine.generate(**options, stream=True)
        for chunk in stream:
            assert chunk["meta_info"]["prompt_tokens"] == 1
            last[chunk["index"]] = chunk
        assert [last[i]["output_ids"] for i in range(4)] == [result["output_ids"] for result in whole]
        assert all(chunk["meta_info"]["finish_reason"]["type"] == "length" for chunk in last.values())


def test_an_old_deadline_does_not_touch_a_new_request_of_the_same_id() -> None:
    with make_engine() as engine:
        events: list[Event] = []
        params = SamplingParams(max_new_tokens=1)
        first = GenRequest(id="same", segments=(Segment(ids=(1,)),), sampling=params, timeout_s=0.05)
        engine.submit([first], events.append)
        assert engine.wait(lambda: bool(events) and isinstance(events[-1], Finished), timeout=10)
        stop = threading.Event()
        stop.wait(0.06)
        engine.submit([request("same", (1, 2), 5)], events.append)
        assert engine.wait(lambda: len(events) == 6, timeout=10)
        assert isinstance(events[-1], Finished)
