"""What the schedule decides changes what is computed and never what comes out: order-free parts, outputs, gens in
common, and how many programs are in flight."""

from dataclasses import replace

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.passes.base import CompileOptions
from dslc.core.errors import ArgumentError, ProgramError
from dslc.core.events import Finished, FinishReason, Output
from dslc.lang.carrier import CarrierHub, carriers_of
from dslc.lang.hub import Hub
from dslc.lang.pressure import Pressure

DOCUMENTS = ["The red boat is in Oslo.", "The blue car is in Rome.", "The green lamp is in Prague.", "Nobody knows."]


@dslc.function
def answer(s, documents, question):
    s += "Read these:\n" + dslc.unordered(documents) + "\n"
    s += f"Q: {question}\nA:" + dslc.gen("answer", max_tokens=8)
    return s["answer"]


ROWS = [
    {"documents": [DOCUMENTS[i] for i in picked], "question": f"number {n}?"}
    for n, picked in enumerate([(0, 1), (2, 1), (1, 0), (3, 1, 2), (0, 3)])
]


def backend(reply="the answer is 10"):
    return ScriptedBackend(lambda prompt: f"{reply} {len(prompt)}")


def test_a_single_run_keeps_the_order_given():
    state = answer.run(**ROWS[3], backend=backend())
    assert state.text().startswith("Read these:\n" + "\n".join(ROWS[3]["documents"]) + "\n")
    assert state.orders() == {}


def test_a_batch_arranges_them_and_the_interpreter_replays_it():
    there, again = backend(), backend()
    states = answer.run_batch(ROWS, backend=there, seed=1)
    assert any(state.orders() for state in states)
    replayed = answer.run_batch(ROWS, backend=again, seed=1, compiled=False, orders=[s.orders() for s in states])
    assert [s.text() for s in states] == [s.text() for s in replayed]
    assert sorted(there.prompts) == sorted(again.prompts)
    for row, state in zip(ROWS, states, strict=True):
        lines = state.text().split("\n")[1 : 1 + len(row["documents"])]
        assert sorted(lines) == sorted(row["documents"])
    one = answer.run(**ROWS[0], backend=backend(), seed=1, orders=states[0].orders())
    assert one.text().split("A:")[0] == states[0].text().split("A:")[0]


def test_it_has_an_off_switch():
    options = CompileOptions(disabled=("order-free",))
    states = answer.run_batch(ROWS, backend=backend(), compile_options=options)
    assert all(state.orders() == {} for state in states)


@pytest.mark.parametrize(
    ("parts", "message"), [("text", "takes a list"), ([1], "must be strings"), (7, "takes a list")]
)
def test_what_is_no_list_of_strings_is_refused(parts, message):
    @dslc.function
    def program(s):
        s += dslc.unordered(parts)

    with pytest.raises(ProgramError, match=message):
        program.run(backend=backend(), compiled=False)


def test_an_order_that_does_not_fit_is_refused():
    with pytest.raises(ProgramError, match="no order of 2 parts"):
        answer.run(**ROWS[0], backend=backend(), orders={"0/0": (0, 2)})


# outputs


@dslc.function
def several(s, question):
    s += f"Q: {question}\n"
    s += "Draft:" + dslc.gen("draft", max_tokens=4) + "\n"
    a, b = s.fork(2)
    a += "Short:" + dslc.gen("short", max_tokens=4)
    b += "Long:" + dslc.gen("long", max_tokens=6)
    s["short"], s["long"] = a["short"], b["long"]
    s += "Last:" + dslc.gen("last", max_tokens=4)


def prompts_of(program, reply="yes", **options):
    there = ScriptedBackend(lambda prompt: reply)
    state = program.run(question="why?", backend=there, seed=1, **options)
    return [prompt.rsplit("\n", 1)[-1] for prompt in there.prompts], state


def test_everything_runs_without_outputs():
    asked, state = prompts_of(several)
    assert sorted(asked) == ["Draft:", "Last:", "Long:", "Short:"]
    assert "Draft:" in state.text()


@pytest.mark.parametrize(
    ("outputs", "asked"),
    [(["short"], ["Draft:", "Short:"]), (["draft"], ["Draft:"]), (["last"], ["Draft:", "Last:"]), ([], [])],
)
def test_gens_that_no_output_can_observe_are_not_run(outputs, asked):
    found, state = prompts_of(several, outputs=outputs)
    assert sorted(found) == sorted(asked)
    _, whole = prompts_of(several, compiled=False)
    assert {name: state[name] for name in outputs} == {name: whole[name] for name in outputs}
    assert set(state.variables()) == set(outputs)


def test_outputs_of_the_function_and_what_else_is_refused():
    narrow = dslc.function(several.body, outputs=["short"])
    found, state = prompts_of(narrow)
    assert sorted(found) == ["Draft:", "Short:"]
    with pytest.raises(ProgramError, match="'long' is none of the outputs"):
        state["long"]
    with pytest.raises(ProgramError, match="no text"):
        state.text()
    interpreted, state = prompts_of(narrow, compiled=False)
    assert len(interpreted) == 4  # the law is about what can be seen
    with pytest.raises(ProgramError, match="'long' is none of the outputs"):
        state["long"]
    with pytest.raises(ArgumentError, match="list of variables"):
        several.run(question="why?", backend=backend(), outputs="short")


def test_what_an_output_depends_on_stays():
    @dslc.function
    def program(s, question):
        s += f"{question}\n"
        helper = s.copy()
        with helper as t:
            t += "Kind:" + dslc.select("kind", ["a", "b"])
            kind = t["kind"]
        unused = s.fork(1)[0]
        unused += "Unused:" + dslc.gen("unused", max_tokens=2)
        if kind == "a":
            s += "As a:" + dslc.gen("result", max_tokens=3)
        else:
            s += "As b:" + dslc.gen("result", max_tokens=3)
        s += "Then:" + dslc.gen("then", max_tokens=2)
        return s["result"]

    found, state = prompts_of(program, outputs=[])
    whole, reference = prompts_of(program, compiled=False)
    assert state.ret_value == reference.ret_value == "yes"
    assert set(whole) - set(found) == {"Unused:"} | {p for p in whole if p.endswith("Then:")}


# gens in common


@dslc.function
def twice(s, question, temperature=0.0):
    s += f"Q: {question}\n"
    for branch in s.fork(3):
        branch += "A:" + dslc.gen("answer", max_tokens=4, temperature=temperature)


def test_equal_greedy_gens_are_made_once_and_say_so():
    there = backend()
    states = twice.run_batch([{"question": q} for q in "aab"], backend=there, seed=1)
    assert len(there.requests) == 2  # nine gens, of two prompts
    assert [s.text() for s in states] == [s.text() for s in twice.run_batch(
        [{"question": q} for q in "aab"], backend=backend(), seed=1, compiled=False)]  # fmt: skip


def test_the_meta_info_says_whose_result_it_is():
    @dslc.function
    def program(s, question):
        s += question + dslc.gen("answer", max_tokens=4, temperature=0) + dslc.select("choice", ["a", "b"])

    there = backend()
    first, second = program.run_batch([{"question": "q"}] * 2, backend=there)
    made = {request.id for request in there.requests}
    for name in ("answer", "choice"):
        infos = [state.get_meta_info(name) for state in (first, second)]
        shared = [info.get("shared_with") for info in infos]
        assert sorted(shared, key=str) == sorted([None, infos[shared.index(None)]["id"]], key=str)
        assert {info["id"] for info in infos} - made and infos[shared.index(None)]["id"] in made
    assert first["answer"] == second["answer"] and first["choice"] == second["choice"]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"compile_options": CompileOptions(disabled=("common-gens",))}, {"timeout": 60}]
)
def test_never_where_sampling_may_differ_or_it_is_off(options):
    there = backend()
    arguments = {"temperature": options.pop("temperature", 0.0)}
    twice.run_batch([{"question": "a", **arguments}] * 2, backend=there, seed=1, **options)
    assert len(there.requests) == 6


def test_an_error_reaches_all_who_asked():
    there = ScriptedBackend(lambda prompt: dslc.EngineError("out of order"))
    states = twice.run_batch([{"question": "a"}] * 2, backend=there)
    assert len(there.requests) == 1
    assert all("out of order" in str(state.error()) for state in states)


def test_who_leaves_does_not_take_the_others_result_away():
    there = ScriptedBackend(lambda prompt: "bad" if "again" in prompt else "fine")

    @dslc.function
    def program(s, fails):
        a, b = s.fork(2)
        a += "same" + dslc.gen("x", max_tokens=4, temperature=0)
        if fails:
            b += dslc.gen("y", regex="[", max_tokens=2)
        return a["x"]

    failing, fine = program.run_batch([{"fails": True}, {"fails": False}], backend=there, compiled=False)
    assert failing.error() is not None and fine.ret_value == "fine"


# programs in flight


def finished(new, output):
    result = Output(0, "", (1,) * output, (), "", FinishReason("length"))
    return Finished("r", (result,), new, 0, 1, 0.0, 0.0, 0.0)


def test_pressure_learns_what_programs_hold():
    pressure = Pressure(4, 400.0)
    found = []
    for _ in range(5):
        found.append(pressure.allows_more())
        pressure.begun()
    assert found == [True] * 4 + [False]
    for program in "ab":
        pressure.computed(program, finished(10, 10))
        pressure.computed(program, finished(20, 10))
        pressure.ended(program)
    assert pressure.limit == 8  # 400 tokens at 50 each
    pressure.computed("c", finished(5000, 0))
    pressure.ended("c")
    assert pressure.limit == 1


def test_a_hub_that_takes_over_shares_what_the_pool_holds():
    engine = backend()
    kept, taking = Hub(engine), CarrierHub(engine, carriers_of(engine).driver)
    kept.pressure = Pressure(3, 400.0)
    taking.begin_from(iter(()), kept)
    assert taking.pressure is kept.pressure


# different programs at once


@dslc.function
def summary(s, documents):
    s += "Read these:\n" + "\n".join(documents) + "\nA summary:" + dslc.gen("summary", max_tokens=8)


def test_different_programs_run_at_once():
    calls = [(answer, ROWS[0]), (summary, {"documents": ROWS[0]["documents"]}), (answer, ROWS[1])]
    states = dslc.run_together(calls, backend=backend(), seed=1)
    assert ["answer" in s for s in states] == [True, False, True] and "summary" in states[1]
    alone = [program.run(**row, backend=backend(), seed=1) for program, row in calls]
    assert states[1].text() == alone[1].text()
    there = backend()
    interpreted = dslc.run_together(calls, backend=there, seed=1, compiled=False, orders=[s.orders() for s in states])
    assert [s.text() for s in interpreted] == [s.text() for s in states]
    assert dslc.run_together([], backend=there) == []


def test_equal_gens_of_different_programs_are_made_once():
    other = dslc.function(twice.body)
    there = backend()
    states = dslc.run_together([(twice, {"question": "a"}), (other, {"question": "a"})], backend=there)
    assert len(there.requests) == 1 and states[0].text() == states[1].text()


def test_what_cannot_run_together_is_refused():
    async def asynchronous(s):
        s += "x"

    with pytest.raises(ArgumentError, match=r"calls\[0\] must be \(program, arguments\)"):
        dslc.run_together([answer], backend=backend())
    with pytest.raises(ArgumentError, match="is async"):
        dslc.run_together([(dslc.function(asynchronous), {})], backend=backend())
    with pytest.raises(ArgumentError):
        dslc.run_together([(answer, {"wrong": 1})], backend=backend())


def test_a_prompt_that_can_never_fit_is_refused_before_anything_is_sent():
    there = backend()
    limit = there.capabilities.max_context_len or 10_000

    @dslc.function
    def program(s, question):
        s += question + dslc.gen("first", max_tokens=2)
        s += "word " * (2 * limit)
        s += dslc.gen("second", max_tokens=2)

    there.capabilities = replace(there.capabilities, max_context_len=limit)
    with pytest.raises(dslc.ContextOverflow, match="no run of it can succeed") as caught:
        program.run(question="why?", backend=there)
    assert not there.requests and caught.value.where.function == "program"
    with pytest.raises(dslc.ContextOverflow, match="'second'"):
        program.run_batch([{"question": "why?"}] * 2, backend=there)
