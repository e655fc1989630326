"""Event loops, async programs, and bodies that block: one engine, no thread per program, no blocked loop."""

import asyncio
import gc
import os
import threading
import time
import warnings

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import Aborted, ErrorInfo, QueueFull
from dslc.core.events import Failed
from dslc.lang import hub, takeover
from dslc.lang.carrier import CarrierHub, carriers_of


@dslc.function
def plain(s, q):
    s += f"Q {q}:" + dslc.gen("a")
    s += " again: " + dslc.gen("b")
    return s["a"]


@dslc.function
async def written_async(s, q):
    s += f"Q {q}:" + dslc.gen("a")
    value = await s.get("a")
    s += " again: " + dslc.gen("b")
    await s.wait()
    s.text()
    return value


@pytest.fixture(params=[plain, written_async], ids=["plain", "async"])
def program(request):
    return request.param


def answer(prompt):
    return f"<{len(prompt)}>"


def test_async_programs_run_as_plain_ones_do():
    states = {}
    for function in (plain, written_async):
        backend = ScriptedBackend(answer)
        states[function] = (function.run(q=1, backend=backend, seed=3), backend)
    (a, ran), (b, awaited) = states.values()
    assert a.text() == b.text() and a.ret_value == b.ret_value and a["b"] == b["b"]
    assert ran.prompts == awaited.prompts
    assert [r.sampling for r in ran.requests] == [r.sampling for r in awaited.requests]


def test_arun(program):
    async def main():
        states = await asyncio.gather(*(program.arun(q=i, backend=backend) for i in range(50)))
        return [state.text() for state in states]

    backend = ScriptedBackend(answer)
    assert asyncio.run(main()) == [program.run(q=i, backend=ScriptedBackend(answer)).text() for i in range(50)]
    assert backend.max_in_flight > 10


def test_a_batch_of_async_programs(program):
    rows = [{"q": "BOOM" if i == 3 else i} for i in range(20)]

    def failing(prompt):
        return QueueFull("full") if "BOOM" in prompt else answer(prompt)

    states = program.run_batch(rows, backend=ScriptedBackend(failing))
    assert [i for i, state in enumerate(states) if state.error() is not None] == [3]
    awaited = asyncio.run(program.arun_batch(rows, backend=ScriptedBackend(failing)))
    assert [s.text() for s in states if not s.error()] == [s.text() for s in awaited if not s.error()]
    with pytest.raises(QueueFull):
        asyncio.run(program.arun_batch(rows, backend=ScriptedBackend(failing), on_error="raise"))
    with pytest.raises(QueueFull):
        program.run_batch(rows, backend=ScriptedBackend(failing), on_error="raise")


def test_errors_come_out_of_arun_with_their_line(program):
    async def main():
        await program.arun(q="BOOM", backend=ScriptedBackend(lambda prompt: QueueFull("full")))

    with pytest.raises(QueueFull, match=r"test_async_and_threads.py:\d+: full"):
        asyncio.run(main())
    with pytest.raises(dslc.ArgumentError, match=r"test_async_and_threads.py:\d+: .* has no argument 'x'"):
        asyncio.run(program.arun(x=1, backend=ScriptedBackend()))


def test_the_loop_is_never_blocked(program):
    async def main():
        ticks = 0
        running = asyncio.ensure_future(program.arun(q=1, backend=backend))
        while not running.done():
            ticks += 1
            await asyncio.sleep(0.001)
        await running
        return ticks

    backend = ScriptedBackend(answer)
    step = backend.step
    backend.step = lambda: (time.sleep(0.05), step())
    assert asyncio.run(main()) > 10


def test_cancelling_ends_the_program(program):
    backend = ScriptedBackend("word " * 400, tokens_per_step=1)
    step = backend.step
    backend.step = lambda: (time.sleep(0.001), step())

    async def main():
        running = asyncio.ensure_future(program.arun(q=1, backend=backend, max_new_tokens=2000))
        while not backend.num_in_flight:
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for _ in range(1000):
            if not backend.num_in_flight:
                break
            await asyncio.sleep(0.002)

    asyncio.run(main())
    assert backend.num_in_flight == 0 and len(backend.aborted) == 1 and len(backend.requests) == 1


def test_reading_without_await_in_an_async_program_is_refused():
    @dslc.function
    async def wrong(s):
        s += "x" + dslc.gen("a")
        return s["a"]

    with pytest.raises(dslc.ProgramError, match=r"test_async_and_threads.py:\d+: .*await s.get"):
        wrong.run(backend=ScriptedBackend())


def test_an_async_program_awaits_another_and_forks():
    @dslc.function
    async def inner(s, q):
        s += q + dslc.gen("i")
        return await s.get("i")

    @dslc.function
    async def outer(s):
        value = await inner(s, "in ")
        forks = s.fork(3)
        forks += value + dslc.gen("x")
        forks.join()
        with s.user():
            s += ",".join(await s.get("x"))

    backend = ScriptedBackend(answer)
    assert outer.run(backend=backend).text().count("<9>") == 3 and backend.max_in_flight == 3


def test_run_of_an_async_program_inside_a_loop_says_what_to_write():
    async def main():
        written_async.run(q=1, backend=ScriptedBackend())

    with pytest.raises(dslc.ProgramError, match=r"await written_async\.arun"):
        asyncio.run(main())


def test_async_reads_of_a_streaming_state():
    async def main():
        state = plain.run(q=1, backend=ScriptedBackend(answer), stream=True)
        value = await state.get("a")
        await state.wait()
        return value, state.text(), state.ret_value

    value, text, returned = asyncio.run(main())
    assert value == returned == "<4>" and text.endswith(">")


def test_async_use_of_a_plain_program_is_refused():
    @dslc.function
    def wrong(s):
        s += "x" + dslc.gen("a")
        coroutine = s.get("a")
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    with pytest.raises(dslc.ProgramError, match="not async: read the value"):
        wrong.run(backend=ScriptedBackend())


def sleeping_batch(num, seconds):
    def tool(x):
        time.sleep(seconds)
        return f"({x})"

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += TOOLS["tool"](s["a"])
        s += dslc.gen("b")

    TOOLS["tool"] = tool
    return program, [{"i": i} for i in range(num)]


TOOLS = {}


def test_bodies_that_sleep_do_so_side_by_side():
    program, rows = sleeping_batch(64, 0.5)
    began = time.monotonic()
    states = program.run_batch(rows, backend=ScriptedBackend("ok"))
    spent = time.monotonic() - began
    assert [state.text() for state in states] == [f"{i}ok(ok)ok" for i in range(64)]
    assert spent < 16  # one after the other it would be 32 s
    assert program.may_block


def test_num_threads_one_keeps_everything_in_the_caller():
    program, rows = sleeping_batch(3, 0.0)
    seen = set()
    tool = TOOLS["tool"]
    TOOLS["tool"] = lambda x: (seen.add(threading.get_ident()), tool(x))[1]
    program.run_batch(rows, backend=ScriptedBackend("ok"), num_threads=1)
    assert seen == {threading.get_ident()}


def test_bodies_found_to_be_quick_need_no_threads_the_next_time(monkeypatch):
    for module in (hub, takeover):
        monkeypatch.setattr(module, "HOLD_S", 1000.0)  # on a busy machine any body may lose its core for a while
    program, rows = sleeping_batch(8, 0.0)
    assert program.may_block
    program.note_holds([0.0] * 8)
    seen = set()
    tool = TOOLS["tool"]
    TOOLS["tool"] = lambda x: (seen.add(threading.get_ident()), tool(x))[1]
    program.run_batch(rows, backend=ScriptedBackend("ok"))
    assert seen == {threading.get_ident()}


def test_leaving_a_spread_batch_ends_it():
    program, rows = sleeping_batch(8, 0.01)
    backend = ScriptedBackend("ok")
    states = program.run_batch(rows, backend=backend, generator_style="unordered")
    next(states)
    states.close()
    assert backend.num_in_flight == 0


@pytest.mark.parametrize("num", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_in_flight_with_few_threads(num):
    @dslc.function
    def forked(s, i):
        s += f"{i}"
        forks = s.fork(2)
        forks += dslc.gen("x")
        forks.join()
        return s["x"]

    @dslc.function
    async def forked_async(s, i):
        s += f"{i}"
        forks = s.fork(2)
        forks += dslc.gen("x")
        forks.join()
        return await s.get("x")

    backend = ScriptedBackend("ok")
    most = 0
    step = backend.step

    def counting():
        nonlocal most
        most = max(most, threading.active_count())
        step()

    backend.step = counting
    before = threading.active_count()

    async def main():
        return await asyncio.gather(
            *(forked.arun(i=i, backend=backend, compiled=False) for i in range(num // 2)),
            *(forked_async.arun(i=i, backend=backend) for i in range(num // 2)),
        )

    states = asyncio.run(main())
    assert len(states) == num and all(state.ret_value == ["ok", "ok"] for state in states)
    states = forked.run_batch([{"i": i} for i in range(num)], backend=backend, compiled=False)
    assert len(states) == num and all(state.ret_value == ["ok", "ok"] for state in states)
    assert most - before <= (os.cpu_count() or 1) + 2
    assert backend.max_in_flight >= num * 3 // 2


@pytest.mark.parametrize("where", ["body", "thread"])
def test_a_batch_that_was_abandoned_in_a_cycle_harms_no_other_when_it_is_collected(where):
    """Its suspended bodies end where the garbage is collected: amid another program, or in another thread."""
    ended = []

    @dslc.function
    def reads(s, i):
        try:
            s += f"{i}" + dslc.gen("x")
            return s["x"]
        finally:
            ended.append(i)

    @dslc.function
    def collects(s, i):
        s += f"{i}"
        if i == 5 and where == "body":
            gc.collect()
        s += dslc.gen("x")
        return s["x"]

    backend = ScriptedBackend(lambda prompt: "ok" if prompt == "0" else "a long answer", tokens_per_step=1)

    def abandon():
        states = reads.run_batch(
            [{"i": i} for i in range(9)], backend=backend, num_threads=1, compiled=False, generator_style=True
        )
        assert next(states)["x"] == "ok"
        cycle = [states]
        cycle.append(cycle)

    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as unraisable:
            warnings.simplefilter("always")
            abandon()
            assert backend.num_in_flight == 8
            if where == "thread":
                thread = threading.Thread(target=gc.collect)
                thread.start()
                thread.join()
            states = collects.run_batch(
                [{"i": i} for i in range(1, 30)], backend=backend, num_threads=1, compiled=False
            )
            gc.collect()
    finally:
        gc.enable()
    assert [state.ret_value for state in states] == ["a long answer"] * 29
    assert backend.num_in_flight == 0 and sorted(backend.aborted) and sorted(ended) == list(range(9))
    assert not unraisable


def test_aborting_is_an_error_of_ours():
    assert issubclass(Aborted, dslc.DslcError)


def test_an_event_for_a_request_that_was_given_up_lets_its_carrier_rest():
    """A result that comes after its program has ended is nobody's: the thread that it comes to must not turn on it."""
    backend = ScriptedBackend("ok")
    carrier = CarrierHub(backend, carriers_of(backend).driver)
    thread = threading.Thread(target=carrier.serve, daemon=True)
    thread.start()
    carrier._receive(Failed("a request of yesterday", ErrorInfo.of(Aborted("late"))))
    thread.join(20)
    assert not thread.is_alive()
    assert not carrier.add(None)  # it has closed, as one does that has had nothing to do for a while
