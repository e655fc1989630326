"""Loops of a plan: what waits for a value of one round gets that of this round, whatever later rounds do."""

import pytest
from support.scripted import ScriptedBackend

import dslc


@dslc.function
def chains(s, words):
    """A text that waits for the value of a gen of its own round, on the same stream and on branches."""
    for word in words:
        s += f"{word}:" + dslc.gen("answer", max_tokens=8)
        s += f"<{s['answer'].upper()}>"
        branches = s.fork(2)
        for number, branch in enumerate(branches):
            branch += f"({number})" + dslc.gen("part", max_tokens=8)
            branch += f"[{branch['part']}{s['answer']}{word}]"
        branches.join("concate_and_append")


@dslc.function
def carried(s, words):
    """Values that go from round to round while they are still unknown."""
    last = "none"
    seen = []
    for word in words:
        s += f"{last}/{word}:"
        s += dslc.gen("answer", max_tokens=8)
        last = s["answer"].strip() + word
        seen.append(last)
    s += ",".join(seen)


@dslc.function
def nested(s, rows):
    for row in rows:
        with s.var_scope("line"):
            for word in row:
                s += f" {word}=" + dslc.gen("answer", max_tokens=4)
                if "a" in s["answer"]:
                    s += "+"
        s += "|" + s["line"] + "|"


@dslc.function
def chosen(s, rows):
    for row in rows:
        s += "pick:" + dslc.gen("first", max_tokens=4)
        s += dslc.select("pick", [row, s["first"] + "!"])
        s["kept"] = [s["pick"], row]
        s += f"{s['kept'][0]}{s['kept'][1]}"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (chains, {"words": ["one", "two", "three"]}), (carried, {"words": ["one", "two", "three"]}),
        (nested, {"rows": [["x", "yy"], [], ["zzz"]]}), (chosen, {"rows": ["r", "ss"]}), (chains, {"words": []}),
    ],
)  # fmt: skip
def test_loops_from_the_plan_are_the_loops_of_the_body(program, arguments):
    def answer(prompt):
        return f" {'ab'[len(prompt) % 2]}{len(prompt)}"

    assert program.compile(strict=True).is_whole
    found = []
    for compiled in (False, True):
        backend = ScriptedBackend(answer)
        state = program.run(**arguments, backend=backend, compiled=compiled, seed=1)
        origins = {(request.origin.op if compiled else None) for request in backend.requests}
        found.append((state.text(), sorted(backend.prompts)))
        if compiled:
            plan = program.plan(backend.tokenizer)
            assert origins <= {facts.out.id for facts in (*plan.gens, *plan.selects)}
    assert found[0] == found[1]
