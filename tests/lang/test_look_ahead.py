"""Programs that are not whole: their bodies run with the trace as look-ahead, which serves them and changes nothing."""

import decimal

import pytest
from support.random_sources import make_source
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.ahead import LookAhead
from dslc.lang.followed import FollowedExecutor
from dslc.lang.hub import Hub
from dslc.lang.options import run_options
from dslc.lang.state import ProgramState

USUAL = decimal.getcontext().prec
CHOICES = ["bug", "billing", "other"]


@dslc.function
def broken(s, ticket):
    """It cannot be traced past the exec."""
    s += "You sort tickets.\n"
    s += "Kind:" + dslc.select("kind", CHOICES)
    s += f"\nTicket: {ticket}"
    if s["kind"] == "bug":
        s += "\nWhy:" + dslc.gen("why", max_tokens=4)
    found = {}
    exec("value = 'done'", {}, found)
    s += f"\n{found['value']}:" + dslc.gen("end", max_tokens=4)
    return found["value"]


@dslc.function
def capricious(s, ticket):
    """What it appends depends on what no guard holds: the state of one of Python's own modules."""
    s += "You sort tickets.\n" + ticket
    if decimal.getcontext().prec != USUAL:
        s += "!"
    s += "\nKind:" + dslc.select("kind", CHOICES)
    exec("", {})
    s += dslc.gen("end", max_tokens=4)


def answer(prompt):
    return f" {'ab'[len(prompt) % 2]}{len(prompt) % 7}"


def shown(program, **options):
    backend = ScriptedBackend(answer)
    state = program.run(ticket="it crashes", backend=backend, seed=3, **options)
    requests = [
        (prompt, request.sampling, request.score)
        for prompt, request in zip(backend.prompts, backend.requests, strict=True)
    ]
    return state.text(), state.ret_value, state.variables(), requests


def test_the_result_is_that_of_the_interpreter_and_the_trace_is_followed():
    assert not broken.compile().is_whole
    before = broken.num_looked_ahead, broken.num_lost_ahead
    assert shown(broken) == shown(broken, compiled=False)
    assert (broken.num_looked_ahead, broken.num_lost_ahead) == (before[0] + 1, before[1])


def test_an_op_that_was_not_foretold_is_counted_and_changes_nothing(monkeypatch):
    capricious.compile()
    assert shown(capricious) == shown(capricious, compiled=False)
    assert (capricious.num_looked_ahead, capricious.num_lost_ahead) == (1, 0)
    monkeypatch.setattr(decimal.getcontext(), "prec", USUAL + 1)
    found = shown(capricious)
    assert found == shown(capricious, compiled=False)
    assert "it crashes!" in found[0]
    assert (capricious.num_looked_ahead, capricious.num_lost_ahead) == (2, 1)


def test_choices_are_those_that_the_trace_has_prepared(monkeypatch):
    used = []
    real = LookAhead.select

    def select(self, number):
        facts = real(self, number)
        used.append(facts.sequences if facts is not None else None)
        return facts

    monkeypatch.setattr(LookAhead, "select", select)
    shown(broken)
    plan = broken.plan(ScriptedBackend(answer).tokenizer)
    assert used == [plan.selects[0].sequences] and used[0]


def test_a_batch_pins_what_its_prompts_begin_with(monkeypatch):
    backend = ScriptedBackend(answer)
    pinned = []
    monkeypatch.setattr(type(backend), "pin", lambda self, ids, cache_salt="": pinned.append(tuple(ids)), raising=False)
    monkeypatch.setattr(type(backend), "unpin", lambda self, handle: None, raising=False)
    rows = [{"ticket": ticket} for ticket in ("one", "two", "three")]
    states = broken.run_batch(rows, backend=backend, seed=1)
    assert backend.tokenizer.decode(pinned[0]).startswith("You sort tickets.")
    alone = [broken.run(**row, backend=ScriptedBackend(answer), compiled=False, seed=1) for row in rows]
    assert [state.text() for state in states] == [state.text() for state in alone]


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_no_random_program_leaves_its_trace(first, tmp_path):
    """The trace foretells every op of the body, through branches, loops, forks, scopes and early ends."""
    import importlib.util

    followed = 0
    for seed in range(first, first + 40):
        path = tmp_path / f"program_{seed}.py"
        path.write_text(make_source(seed))
        spec = importlib.util.spec_from_file_location(f"followed_{seed}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function, backend, lost = module.program, ScriptedBackend(answer), []
        arguments = {"q": "Why a", "items": ["a", "bb"][: seed % 3]}
        traced = function.compile()
        hub = Hub(backend)
        executor = FollowedExecutor(hub, "program", run_options({"seed": 1}, None))
        executor.ahead = LookAhead(traced, function.plan(backend.tokenizer), lambda: lost.append(1))  # noqa: B023
        body = lambda: function.body(ProgramState(executor), **arguments)  # noqa: B023, E731
        try:
            hub.run_here(executor, body)
        except dslc.DslcError:
            continue
        assert not lost, path.read_text()
        followed += 1
    assert followed >= 20
