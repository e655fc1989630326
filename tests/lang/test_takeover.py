"""Code of the user's that keeps its thread: others go on beside it, whatever was thought of the program before.

A Barrier is passed only by as many threads as it counts, so no clock says whether bodies are side by side.
"""

import asyncio
import contextvars
import threading
import traceback

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.lang import hub, takeover

NUM = 8
HELD = {}


def tool(x):
    return HELD["call"](x)


def wait_for_all(x):
    HELD["threads"].add(threading.current_thread().name)
    HELD["barrier"].wait(timeout=20)
    return f"({x})"


@pytest.fixture(autouse=True)
def held():
    HELD.update(barrier=threading.Barrier(NUM), threads=set(), call=wait_for_all)


@dslc.function
def begins(s, i):
    """Blocks before its first generation."""
    s += f"{i}"
    s += tool(i)
    s += dslc.gen("a")


@dslc.function
def goes_on(s, i):
    """Blocks after its first generation: by then all programs of the batch have begun."""
    s += f"{i}" + dslc.gen("a")
    s += tool(s["a"])
    s += dslc.gen("b")
    return s["b"]


ROWS = [{"i": i} for i in range(NUM)]


def check(states):
    assert [state.error() for state in states] == [None] * NUM
    assert all(state.text().startswith(f"{i}") and state.text().endswith("ok") for i, state in enumerate(states))
    assert not HELD["barrier"].broken


@pytest.mark.parametrize("compiled", [False, None])
@pytest.mark.parametrize("judged", [None, "slow", "quick"])
def test_programs_that_block_at_once_are_taken_over(compiled, judged):
    program = dslc.function(begins.body)
    if judged is not None:
        program.note_holds([1.0 if judged == "slow" else 0.0] * NUM)
    check(program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=compiled, num_threads=NUM))


@pytest.mark.parametrize("compiled", [False, None])
def test_programs_that_block_later(compiled):
    program = dslc.function(goes_on.body)
    assert program.may_block
    check(program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=compiled, num_threads=NUM))
    program.note_holds([1.0] * NUM)
    HELD["barrier"].reset()
    check(program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=compiled))


def test_a_plan_judged_quick_whose_calls_block():
    """The first call is made in the hub's own thread; once it has been kept, the others are made elsewhere."""
    program = dslc.function(goes_on.body)
    program.note_holds([0.0] * NUM)
    HELD["barrier"] = threading.Barrier(NUM - 1)
    first = threading.Event()

    def once_then_all(x):
        if not first.is_set():
            first.set()
            threading.Event().wait(takeover.HOLD_S * 4)
            return "(first)"
        return wait_for_all(x)

    HELD["call"] = once_then_all
    states = program.run_batch(ROWS, backend=ScriptedBackend("ok"), num_threads=NUM)
    assert [state.error() for state in states] == [None] * NUM
    assert all("dslc-call" in name for name in HELD["threads"])


@pytest.mark.parametrize(
    ("held", "may_block"),
    [
        ([0.0] * 64, False),
        ([0.02] * 16 + [0.0] * 48, False),  # a busy machine
        ([0.02] * 17 + [0.0] * 47, True),
        ([1.0] + [0.0] * 63, True),  # one of them has slept
        ([0.02], False),
        ([], False),
    ],
)
def test_what_a_batch_teaches_of_its_bodies(held, may_block):
    program = dslc.function(goes_on.body)
    assert program.may_block  # it calls what nobody can look into
    program.note_holds(held)
    assert program.may_block is may_block


def test_what_only_computes_has_no_second_thread(monkeypatch):
    """On a busy machine its thread may lose the core for long; that is no reason to start others."""

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += s["a"].strip().upper()

    assert program.never_blocks and not dslc.function(goes_on.body).never_blocks
    monkeypatch.setattr(hub, "HOLD_S", -1.0)
    monkeypatch.setattr(takeover, "HOLD_S", -1.0)
    started = []
    monkeypatch.setattr(takeover.threads, "start", lambda target, name: started.append(name))
    states = program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=False)
    assert [state.text() for state in states] == [f"{i}okOK" for i in range(NUM)]
    assert not started and not program.may_block


@pytest.mark.parametrize("compiled", [False, None])
@pytest.mark.parametrize("judged", ["slow", "quick"])
def test_a_single_sleeper_is_remembered(compiled, judged):
    """A tool that is slow for a few rows must not hold up the next batch."""

    def sleeps_once(x):
        if x == "5":
            threading.Event().wait(takeover.LONG_HOLD_S * 1.2)
        return f"({x})"

    HELD["call"] = sleeps_once

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += tool(str(i))

    program.note_holds([1.0 if judged == "slow" else 0.0])
    states = program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=compiled, num_threads=NUM)
    assert [state.error() for state in states] == [None] * NUM and states[5].text() == "5ok(5)"
    assert program.may_block


def test_at_most_num_threads_at_once():
    now, most, lock = 0, 0, threading.Lock()

    def counts(x):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return "x"

    HELD["call"] = counts

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += HELD["call"](s["a"])

    for compiled in (False, None):
        most = 0
        states = program.run_batch(
            [{"i": i} for i in range(12)], backend=ScriptedBackend("ok"), num_threads=3, compiled=compiled
        )
        assert [state.error() for state in states] == [None] * 12
        assert 1 < most <= 3


def test_no_thread_is_left_and_none_is_made_for_quick_calls(monkeypatch):
    for module in (hub, takeover):
        monkeypatch.setattr(module, "HOLD_S", 1000.0)  # on a busy machine anything may take long
    seen = set()
    HELD["call"] = lambda x: seen.add(threading.get_ident()) or "x"

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += HELD["call"](s["a"])

    program.note_holds([0.0])
    program.run_batch([{"i": i} for i in range(50)], backend=ScriptedBackend("ok"))
    assert seen == {threading.get_ident()}
    for thread in threading.enumerate():
        if thread.name in ("dslc-call", "dslc-watch"):
            thread.join(timeout=20)
            assert not thread.is_alive()


USER = contextvars.ContextVar("user", default="nobody")


@pytest.mark.parametrize("compiled", [False, None])
@pytest.mark.parametrize("judged", ["slow", "quick"])
def test_context_variables_follow_the_program(compiled, judged):
    def sets(i):
        before = USER.get()
        USER.set(f"{before}-{i}")
        wait_for_all(i)
        return before

    HELD["call"] = sets
    HELD["read"] = lambda: USER.get()

    @dslc.function
    def program(s, i):
        s += f"{i}"
        s += HELD["call"](i)
        s += dslc.gen("a")
        return HELD["read"]()

    program.note_holds([1.0 if judged == "slow" else 0.0] * NUM)
    token = USER.set("ann")
    try:
        states = program.run_batch(ROWS, backend=ScriptedBackend("ok"), compiled=compiled)
        assert [state.ret_value for state in states] == [f"ann-{i}" for i in range(NUM)]
        assert USER.get() == "ann"
    finally:
        USER.reset(token)


@pytest.mark.parametrize("compiled", [False, None])
def test_context_variables_follow_streams_and_event_loops(compiled):
    HELD["read"] = lambda: USER.get()

    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a")
        s += dslc.gen("b")
        return HELD["read"]() + s["b"]

    token = USER.set("ann")
    try:
        backend = ScriptedBackend("ok")
        assert program.run(backend=backend, stream=True, compiled=compiled).ret_value == "annok"
        assert asyncio.run(program.arun(backend=backend, compiled=compiled)).ret_value == "annok"
    finally:
        USER.reset(token)


def test_programs_of_an_event_loop_block_side_by_side():
    async def main():
        backend = ScriptedBackend("ok")
        return await asyncio.gather(*(goes_on.arun(i=i, backend=backend) for i in range(NUM)))

    check(asyncio.run(main()))


@pytest.mark.parametrize("judged", ["slow", "quick"])
@pytest.mark.parametrize("compiled", [False, None])
@pytest.mark.parametrize("program", [begins, goes_on], ids=["at once", "later"])
def test_an_exception_in_a_call_made_elsewhere(program, compiled, judged):
    """It comes out in its own program, with its line, and the others go on."""

    def fails(x):
        threading.Event().wait(takeover.HOLD_S * 2)
        if x in (3, "no"):
            raise KeyError("the tool")
        return "(ok)"

    HELD["call"] = fails
    program = dslc.function(program.body)
    program.note_holds([1.0 if judged == "slow" else 0.0] * NUM)
    backend = ScriptedBackend(lambda prompt: "no" if prompt == "3" else "ok")
    states = program.run_batch(ROWS, backend=backend, compiled=compiled)
    assert [i for i, state in enumerate(states) if state.error() is not None] == [3]
    error = states[3].error()
    assert isinstance(error, KeyError)
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-2:] == ["tool", "fails"]


@pytest.mark.parametrize("judged", ["slow", "quick"])
@pytest.mark.parametrize("compiled", [False, None])
def test_leaving_a_batch_that_is_held_ends_it(compiled, judged):
    release = threading.Event()
    HELD["call"] = lambda i: "" if i == 0 else str(release.wait(20))

    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += HELD["call"](i)
        s += dslc.gen("b")

    program.note_holds([1.0 if judged == "slow" else 0.0] * NUM)
    backend = ScriptedBackend("ok")
    threading.Timer(0.3, release.set).start()
    states = program.run_batch(ROWS, backend=backend, compiled=compiled, generator_style="unordered", num_threads=NUM)
    assert next(states).error() is None
    states.close()
    assert backend.num_in_flight == 0


def test_a_generation_of_another_program_goes_on_while_a_call_is_made_elsewhere():
    """The call waits for what another program of the same batch produces."""
    produced = threading.Event()
    HELD["call"] = lambda i: (produced.wait(20), "")[1] if i == 0 else (produced.set(), "")[1]

    @dslc.function
    def program(s, i):
        s += f"{i}"
        s += HELD["call"](i)
        s += dslc.gen("a")
        if i != 0:
            s += dslc.gen("b")

    program.note_holds([1.0, 1.0])
    states = program.run_batch([{"i": 0}, {"i": 1}], backend=ScriptedBackend("a long answer", tokens_per_step=1))
    assert [state.error() for state in states] == [None, None] and produced.is_set()
