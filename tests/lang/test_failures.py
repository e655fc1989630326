"""Nothing is swallowed and nothing hangs: what fails raises where the program reads it, or at the end, at its line."""

import contextlib
import contextvars
import gc
import inspect
import threading
import traceback

import greenlet
import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import DeadlineExceeded, EngineClosed, EngineError, QueueFull


def line():
    return inspect.currentframe().f_back.f_lineno


@pytest.fixture(params=[False, True], ids=["interpreted", "compiled"])
def compiled(request):
    return request.param


def failing_on(word, error=None):
    return ScriptedBackend(lambda prompt: (error or QueueFull("the queue is full")) if word in prompt else "ok")


def test_a_failed_gen_raises_at_the_end_with_its_line_and_the_prompts_tail(compiled):
    @dslc.function
    def program(s):
        s += "please BOOM now"
        s += dslc.gen("a")
        s += " and " + dslc.gen("b")

    at = line() - 3
    backend = failing_on("BOOM")
    with pytest.raises(QueueFull) as caught:
        program.run(backend=backend, compiled=compiled)
    assert f"test_failures.py:{at}: the queue is full" in str(caught.value)
    assert "in the program 'program', after the prompt ending in 'please BOOM now'" in str(caught.value)
    assert len(backend.requests) == 1


def test_it_raises_where_the_body_reads_it():
    seen = []

    @dslc.function
    def program(s):
        s += "BOOM" + dslc.gen("a")
        seen.append("before")
        try:
            s["a"]
        except EngineError as error:
            seen.append(error)
        return "went on"

    state = program.run(backend=failing_on("BOOM"))
    assert state.ret_value == "went on" and seen[0] == "before" and isinstance(seen[1], QueueFull)
    assert state.error() is None and state.text() == "BOOM"


def test_appending_after_a_failure_raises_it_again():
    @dslc.function
    def program(s):
        s += "BOOM" + dslc.gen("a")
        with contextlib.suppress(EngineError):
            s["a"]
        s += dslc.gen("b")

    with pytest.raises(QueueFull):
        program.run(backend=failing_on("BOOM"))


@pytest.mark.parametrize("how", ["text", "sync", "messages", "meta", "variable"])
def test_no_way_of_reading_hangs_after_a_failure(how):
    @dslc.function
    def program(s):
        s += "BOOM" + dslc.gen("a") + "later" + dslc.gen("b")
        for _ in range(2):
            try:
                {
                    "text": s.text, "sync": s.sync, "messages": s.messages, "meta": lambda: s.get_meta_info("b"),
                    "variable": lambda: s["b"],
                }[how]()  # fmt: skip
            except QueueFull:
                continue
            raise AssertionError("it was read")
        return "done"

    assert program.run(backend=failing_on("BOOM")).ret_value == "done"


def test_an_exception_of_the_users_comes_through_as_it_is():
    class Mine(Exception):
        pass

    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a")
        if s["a"] == "ok":
            raise Mine("here")

    at = line() - 2
    backend = ScriptedBackend("ok")
    with pytest.raises(Mine, match="here") as caught:
        program.run(backend=backend)
    lines = [(frame.name, frame.lineno) for frame in traceback.extract_tb(caught.tb)]
    assert ("program", at) in lines


def test_an_exception_ends_what_is_in_flight():
    @dslc.function
    def program(s):
        forks = s.fork(3)
        forks += "long" + dslc.gen("a")
        s += "short" + dslc.gen("b")
        s["b"]
        raise ValueError("mine")

    backend = ScriptedBackend(lambda prompt: "x " * 200 if prompt == "long" else "ok", tokens_per_step=1)
    with pytest.raises(ValueError, match="mine"):
        program.run(backend=backend, max_new_tokens=300)
    assert len(backend.aborted) == 3 and backend.num_in_flight == 0


def test_one_failing_program_of_64_keeps_the_others(compiled):
    @dslc.function
    def program(s, i):
        s += f"number {i}: "
        s += dslc.gen("a")
        s += " then "
        s += dslc.gen("b")

    at = line() - 4
    rows = [{"i": "BOOM" if i == 17 else i} for i in range(64)]
    states = program.run_batch(rows, backend=failing_on("BOOM"), compiled=compiled)
    assert [i for i, state in enumerate(states) if state.error() is not None] == [17]
    assert f":{at}: the queue is full" in str(states[17].error())
    for i, state in enumerate(states):
        if i != 17:
            assert state.text() == f"number {i}: ok then ok"
    with pytest.raises(QueueFull):
        states[17]["a"]
    with pytest.raises(QueueFull):
        program.run_batch(rows, backend=failing_on("BOOM"), compiled=compiled, on_error="raise")


def test_a_body_that_raises_in_a_batch_keeps_the_others():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        return 1 // (int(s["a"]) - i)

    backend = ScriptedBackend(lambda prompt: str(int(prompt) if prompt == "7" else 0))
    states = program.run_batch([{"i": i} for i in range(1, 20)], backend=backend)
    kinds = [type(state.error()).__name__ for state in states if state.error() is not None]
    assert kinds == ["ZeroDivisionError"]


def test_a_failed_branch_cancels_those_beside_it(compiled):
    @dslc.function
    def program(s):
        s += "start "
        forks = s.fork(3)
        forks += ["BOOM", "slow", "slow"]
        forks += dslc.gen("x")
        forks += dslc.gen("y")
        forks.join()
        s += "".join(s["x"])

    at = line() - 5
    backend = ScriptedBackend(lambda prompt: QueueFull("full") if "BOOM" in prompt else "word " * 50, tokens_per_step=1)
    with pytest.raises(QueueFull, match=rf":{at}: full"):
        program.run(backend=backend, compiled=compiled)
    assert len(backend.aborted) == 2 and len(backend.requests) == 3


def test_bad_values_fail_alike_with_and_without_a_plan(compiled):
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a")
        number = int(s["a"])
        s += f"{number + 1}"

    with pytest.raises(ValueError, match="invalid literal for int"):
        program.run(backend=ScriptedBackend("ten"), compiled=compiled)
    assert program.run(backend=ScriptedBackend("9"), compiled=compiled).text() == "x910"


def test_what_is_not_text_fails_alike_with_and_without_a_plan(compiled):
    @dslc.function
    def program(s, q):
        s += q

    at = line() - 2
    with pytest.raises(dslc.ProgramError, match=rf":{at}: an int cannot be appended"):
        program.run(5, backend=ScriptedBackend(), compiled=compiled)


def test_a_closed_backend_says_so():
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a")

    backend = ScriptedBackend("ok")
    backend.close()
    with pytest.raises(EngineClosed):
        program.run(backend=backend)
    for state in program.run_batch([{}, {}], backend=backend):
        assert isinstance(state.error(), EngineClosed)


def test_timeout_and_token_budget_bound_a_run():
    @dslc.function
    def program(s):
        for _ in range(100):
            s += "x" + dslc.gen("a")
            s["a"]

    backend = ScriptedBackend("a b c d")
    with pytest.raises(dslc.ProgramError, match=r"test_failures.py:\d+: the token budget of 20 is used up"):
        program.run(backend=backend, token_budget=20, compiled=False)
    assert len(backend.requests) == 20 // len([*backend.tokenizer.encode("a b c d"), 0]) + 1
    assert backend.requests[0].timeout_s is None
    with pytest.raises(DeadlineExceeded, match=r"test_failures.py:\d+: "):
        program.run(backend=ScriptedBackend("ok"), timeout=1e-9)
    backend = ScriptedBackend("ok")
    program.run(backend=backend, timeout=1000)
    assert 0 < backend.requests[-1].timeout_s <= backend.requests[0].timeout_s <= 1000


@pytest.mark.parametrize("compiled", [True, False])
def test_a_token_budget_is_never_exceeded_and_cuts_no_text_short_silently(compiled):
    @dslc.function
    def program(s, n):
        s += "x" + dslc.gen("a", max_tokens=40)
        forks = s.fork(n)
        forks += dslc.gen("b")
        forks.join()

    def run(n, budget):
        backend = ScriptedBackend("a b c")
        state = program.run(n=n, backend=backend, token_budget=budget, compiled=compiled)
        return sum(request.sampling.max_new_tokens for request in backend.requests[:1]), state

    length = len(ScriptedBackend().tokenizer.encode("a b c")) + 1  # with the end of the text
    assert run(1, 2 * length)[1]["b"] == ["a b c"]
    for n, budget in ((1, length - 1), (1, 2 * length - 1), (2, 3 * length - 1)):
        with pytest.raises(dslc.ProgramError, match=rf"test_failures.py:\d+: the token budget of {budget} is used up"):
            run(n, budget)
    assert run(2, 3 * length)[0] == min(40, 3 * length)


def test_leaving_a_batch_early_ends_it():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s["a"]
        s += dslc.gen("b")

    backend = ScriptedBackend(lambda prompt: "ok" if prompt[0] == "0" else "word " * 30, tokens_per_step=1)
    states = program.run_batch(
        [{"i": i} for i in range(8)], backend=backend, generator_style="unordered", compiled=False
    )
    assert next(states).text() == "0okok"
    states.close()
    assert backend.num_in_flight == 0


def test_generator_style_gives_states_as_they_end():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a", max_tokens=500)

    def answer(prompt):
        return "w " * (100 - 10 * int(prompt))

    rows = [{"i": i} for i in range(8)]
    ended = program.run_batch(rows, backend=ScriptedBackend(answer), generator_style="unordered")
    assert [state.index for state in ended] == list(range(7, -1, -1))
    in_order = program.run_batch(rows, backend=ScriptedBackend(answer), generator_style=True)
    assert [state.index for state in in_order] == list(range(8))


def test_context_variables_follow_their_program():
    user = contextvars.ContextVar("user", default="nobody")
    seen = {}

    @dslc.function
    def program(s, i):
        user.set(f"user {i}")
        s += f"{i}" + dslc.gen("a")
        s["a"]
        seen[i] = user.get()

    user.set("caller")
    program.run_batch([{"i": i} for i in range(10)], backend=ScriptedBackend("ok"), compiled=False)
    assert seen == {i: f"user {i}" for i in range(10)} and user.get() == "caller"


def test_a_program_run_inside_a_program_is_a_program_of_its_own():
    @dslc.function
    def inner(s, q):
        s += "inner " + q + dslc.gen("a")

    @dslc.function
    def outer(s, i):
        s += f"outer {i} " + dslc.gen("x")
        own = inner.run(q=s["x"], backend=backend)
        s += own.text()
        states = inner.run_batch([{"q": "1"}, {"q": "2"}], backend=backend)
        return [state["a"] for state in states]

    backend = ScriptedBackend("ok")
    states = outer.run_batch([{"i": i} for i in range(5)], backend=backend)
    assert [state.text() for state in states] == [f"outer {i} okinner okok" for i in range(5)]
    assert all(state.ret_value == ["ok", "ok"] for state in states)
    assert outer.run(i=1, backend=backend).text() == "outer 1 okinner okok"


def test_programs_run_by_programs_run_beside_the_others():
    @dslc.function
    def inner(s, q):
        s += q + dslc.gen("a")
        s += s["a"] + dslc.gen("b")

    @dslc.function
    def outer(s, i):
        s += f"{i}"
        return (
            inner.run(q=f"one {i}", backend=backend)["b"]
            + inner.run_batch([{"q": f"two {i}"}, {"q": "BOOM"}], backend=backend, compiled=False)[0]["b"]
        )

    backend = failing_on("BOOM")
    states = outer.run_batch([{"i": i} for i in range(20)], backend=backend, num_threads=1, compiled=False)
    assert [state.ret_value for state in states] == ["okok"] * 20
    assert backend.max_in_flight > 20  # the inner ones of all outer ones together


def test_a_thousand_runs_leave_nothing_behind():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        forks = s.fork(2)
        forks += s["a"]
        forks += dslc.gen("b")
        if i % 3 == 0:
            raise ValueError("mine")
        forks.join()

    backend = ScriptedBackend("ok")
    threads = threading.active_count()

    def greenlets():
        gc.collect()
        return sum(issubclass(type(o), greenlet.greenlet) and not o.dead for o in gc.get_objects())

    before = greenlets()
    for start in range(0, 1000, 100):
        program.run_batch([{"i": i} for i in range(start, start + 90)], backend=backend)
        for i in range(start + 90, start + 100):
            try:
                program.run(i=i, backend=backend)
            except ValueError:
                continue
    assert greenlets() <= before and threading.active_count() <= threads
    assert backend.num_in_flight == 0


def test_programs_of_several_threads_do_not_meet():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a")
        s += s["a"] + dslc.gen("b")

    backend = ScriptedBackend(lambda prompt: f"<{prompt[:3]}>")
    found = {}

    def work(k):
        states = program.run_batch([{"i": f"{k}-{i}"} for i in range(20)], backend=backend, compiled=k % 2 == 0)
        found[k] = [state.text() for state in states]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert found == {
        k: [f"{k}-{i}<{k}-{str(i)[0]}><{k}-{str(i)[0]}><{k}-{str(i)[0]}>" for i in range(20)] for k in range(6)
    }


def test_an_interrupt_ends_everything():
    @dslc.function
    def program(s, i):
        s += f"{i}" + dslc.gen("a", max_tokens=400)
        if i == 0:
            s["a"]
            raise KeyboardInterrupt
        s["a"]

    backend = ScriptedBackend(lambda prompt: "ok" if prompt == "0" else "w " * 100, tokens_per_step=1)
    with pytest.raises(KeyboardInterrupt):
        program.run_batch([{"i": i} for i in range(4)], backend=backend)
    assert backend.num_in_flight == 0
    with pytest.raises(KeyboardInterrupt):
        program.run(i=0, backend=backend)
    assert backend.num_in_flight == 0


def test_a_body_that_never_reads_is_bounded():
    """It runs ahead of its generations, but not for ever: a budget or a deadline ends it."""

    @dslc.function
    def endless(s):
        while True:
            s += "More:" + dslc.gen("x", max_tokens=4)

    for compiled in (False, True):
        with pytest.raises(dslc.DslcError, match=r"test_failures.py:\d+: .*token"):
            endless.run(backend=ScriptedBackend("and so on"), token_budget=40, compiled=compiled)
        with pytest.raises(DeadlineExceeded):
            endless.run(backend=ScriptedBackend("and so on"), timeout=0.2, compiled=compiled)
