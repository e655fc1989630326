"""Forks into a number of branches that only the run knows: compiled whole, and the same as the body."""

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.ir import Branch, Fork, walk
from dslc.compiler.plan import Plan
from dslc.core.errors import TraceError


def answer(prompt):
    return f" {'abc'[len(prompt) % 3]}{len(prompt) % 7}"


@dslc.function
def over_branches(s, words):
    s += "All:"
    branches = s.fork(len(words))
    for branch in branches:
        branch += "one" + dslc.gen("x", max_tokens=4)
    for i, branch in enumerate(branches, 1):
        branch += f"({i}{branch['x']})"
        if "a" in branch["x"]:
            branch += dslc.gen("y", max_tokens=4)
        else:
            branch["y"] = "none"
    branches.join()
    s += "+".join(s["x"]) + "/" + "+".join(s["y"])


@dslc.function
def zipped(s, words):
    branches = s.fork(len(words))
    for word, (i, branch) in zip(words, enumerate(branches), strict=True):
        with branch.user():
            branch += f"{i}{word}?"
        branch += dslc.assistant(dslc.gen("x", max_tokens=4))
    branches.join("concate_and_append")
    s += f"{len(branches)} in all" + dslc.gen("end", max_tokens=4)


@dslc.function
def by_number(s, words):
    n = len(words)
    branches = s.fork(n)
    for i in range(n):
        branches[i] += f"{words[i]}:" + dslc.gen("x", max_tokens=4)
    branches[0] += "first"
    branches[-1] += "last" + dslc.gen("z", max_tokens=4)
    s["chosen"] = branches[0]["x"]
    branches += "!"
    branches += lambda i: f"<{i}>"
    branches.join("concate_and_append")
    s += s["chosen"]


@dslc.function
def nested(s, words):
    for word in words:
        outer = s.fork(len(word))
        for letter, branch in zip(word, outer):  # noqa: B905
            branch += letter
            inner = branch.fork(2)
            inner += dslc.gen("x", max_tokens=4)
            inner.join()
            branch += "".join(branch["x"])
        outer.join("concate_and_append")
    s += "."


@dslc.function
def generated(s, words):
    s += "Points:" + dslc.gen("points", max_tokens=8)
    branches = s.fork(1 + len(s["points"]) % 3)
    branches += dslc.gen("detail", max_tokens=4)
    branches.join()
    s += str(len(s["detail"]))


@dslc.function
def names_again(s, words):
    """The loop's names are used by loops before and behind it."""
    for i, word in enumerate(words):
        s += f"{i}{word},"
    branches = s.fork(len(words))
    for i, word in enumerate(branches):
        word += f"{i}" + dslc.gen("x", max_tokens=4)
    branches.join()
    for i, word in zip(words, s["x"], strict=True):
        s += f"{i}={word};"
    s += i


PROGRAMS = (names_again, over_branches, zipped, by_number, nested, generated)


def shown(program, words, **options):
    backend = ScriptedBackend(answer)
    state = program.run(words=words, backend=backend, seed=3, **options)
    seeds = sorted((prompt, request.sampling.seed) for prompt, request in zip(backend.prompts, backend.requests))  # noqa: B905
    return state.text(), state.variables(), state.messages(), seeds


@pytest.mark.parametrize("words", [["one"], ["x", "yy", "zzz"]], ids=len)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_plan_does_what_the_body_does(program, words):
    whole = program.compile(strict=True)
    assert any(isinstance(op, Fork) and op.count is not None for op in walk(whole.body))
    interpreted = shown(program, words, compiled=False)
    assert shown(program, words, compiled=True) == interpreted
    tokenizer = ScriptedBackend(answer).tokenizer
    plan = program.plan(tokenizer)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("program", [over_branches, zipped, by_number], ids=lambda program: program.__name__)
def test_no_branch_is_an_error_at_the_forks_line(program):
    errors = []
    for compiled in (False, True):
        with pytest.raises(dslc.DslcError) as caught:
            program.run(words=[], backend=ScriptedBackend(answer), compiled=compiled)
        errors.append((type(caught.value), caught.value.message, caught.value.where.line))
    assert errors[0] == errors[1]
    assert "fork() needs a positive number of branches, not 0" in errors[0][1]


def test_branches_run_beside_each_other():
    backend = ScriptedBackend(answer)
    generated.run(words=["a"], backend=backend, compiled=True)
    assert [request.origin.stream for request in backend.requests[1:]] == [
        f"0.{i}" for i in range(len(backend.requests) - 1)
    ]
    program = over_branches.compile()
    assert sum(isinstance(op, Branch) for op in walk(program.body)) == 2


def test_two_branches_at_once_are_a_break():
    @dslc.function
    def crossed(s, words):
        branches = s.fork(len(words))
        first, last = branches[0], branches[-1]
        first += "a"
        last += "b"
        branches.join("concate_and_append")

    with pytest.raises(TraceError, match="two branches at once"):
        crossed.compile(strict=True)
    assert crossed.run(words=["x", "y"], backend=ScriptedBackend(answer)).text() == "ab"


def test_the_budget_of_such_a_fork_holds_its_run():
    from dslc.compiler.budget import budget
    from dslc.compiler.prompts import prompts

    backend = ScriptedBackend(answer)
    over_branches.run(words=["x", "yy", "zzz"], backend=backend, compiled=True)
    plan = over_branches.plan(backend.tokenizer)
    found = budget(plan.program, backend.tokenizer)
    sent = sum(len(request.segments) > 0 for request in backend.requests)
    assert found.requests.least <= sent <= found.requests.most
    assert all(not prompt.is_whole for prompt in prompts(plan.program, backend.tokenizer, {"words": ["x"]}))


def test_outputs_keep_what_branches_give():
    whole = shown(over_branches, ["x", "yy"])
    backend = ScriptedBackend(answer)
    state = over_branches.run(words=["x", "yy"], backend=backend, seed=3, outputs=["y"], compiled=True)
    assert state["y"] == whole[1]["y"]
