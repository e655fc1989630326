"""`dslc.seq`: one generation for texts and gens, the same text and variables compiled and interpreted."""

import json
import re

import pytest
import torch
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.parser import parse_program
from dslc.compiler.printer import print_program
from dslc.compiler.serial import from_json, to_json


@dslc.function
def person(s, kind):
    s += f"A {kind}: "
    s += dslc.seq(
        '{"name": "',
        dslc.gen("name"),
        '", "age": ',
        dslc.gen("age", int),
        ', "tags": ' + dslc.gen("tags", dslc.json({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2})),
        "}",
        name="whole",
        max_tokens=50,
    )
    s += "\nName: " + s["name"] + f"; age {s['age']}. "
    s += dslc.gen("after", max_tokens=3)
    return s["age"]


TEXT = '{"name": "Ada", "age": 36, "tags": ["a", "b"]}'


@pytest.fixture(params=[False, True], ids=["interpreted", "compiled"])
def compiled(request):
    return request.param


def test_one_request_and_each_part_in_its_variable(compiled):
    backend = ScriptedBackend(lambda prompt: TEXT if prompt.endswith(": ") else "ok")
    state = person.run("person", backend=backend, compiled=compiled)
    assert len(backend.requests) == 2
    first = backend.requests[0]
    assert first.constraint.kind == "seq" and first.sampling.max_new_tokens == 50
    assert [kind for kind, _, _ in json.loads(first.constraint.source)] == [
        "text", "until", "text", "regex", "text", "json_schema", "text",
    ]  # fmt: skip
    assert state.text() == f"A person: {TEXT}\nName: Ada; age 36. ok"
    assert (state["name"], state["age"], state["tags"], state["whole"]) == ("Ada", 36, '["a", "b"]', TEXT)
    assert state.ret_value == 36 and type(state["age"]) is int


def test_a_sequence_that_was_cut_holds_what_there_is(compiled):
    for text, name, age, tags in (
        ('{"name": "Ad', "Ad", None, ""),
        ('{"name": "Ada", "age": ', "Ada", None, ""),
        ('{"name": "Ada", "age": 3', "Ada", 3, ""),
        ("{", "", None, ""),
    ):
        state = person.run("cut", backend=ScriptedBackend(text), compiled=compiled)
        assert (state["name"], state["age"], state["tags"]) == (name, age, tags)


def test_a_backend_that_does_not_enforce_it_is_found_out(compiled):
    with pytest.raises((dslc.ProgramError, ValueError), match="not what the parts of the sequence ask for"):
        person.run("x", backend=ScriptedBackend("[1, 2]"), compiled=compiled)


def test_the_program_prints_parses_and_saves():
    program = person.compile()
    text = print_program(program)
    assert 'constraint=seq("' in text and " = part %" in text
    assert parse_program(text) == program and from_json(to_json(program)) == program


def test_parts_that_are_not_known_yet_stay_with_the_body():
    @dslc.function
    def program(s, pattern, end):
        s += "x: "
        s += dslc.seq("<", dslc.gen("a", dslc.regex(pattern)), ">")
        s += dslc.seq(dslc.gen("b"), end)

    answers = iter(["<12>", "yz!"])
    backend = ScriptedBackend(lambda prompt: next(answers))
    state = program.run("[0-9]+", "!", backend=backend)
    assert (state["a"], state["b"], state.text()) == ("12", "yz", "x: <12>yz!")


def test_in_forks_and_batches(compiled):
    @dslc.function
    def program(s, what):
        s += what
        branches = s.fork(2)
        for number, branch in enumerate(branches):
            branch += f" {number} "
            branch += dslc.seq("(", dslc.gen("v", dslc.regex("[a-z]+")), ")")
        branches.join()
        s += " got " + "+".join(s["v"])

    backend = ScriptedBackend(lambda prompt: f"({'ab'[int(prompt.strip()[-1])]})")
    states = program.run_batch([{"what": "one"}, {"what": "two"}], backend=backend, compiled=compiled)
    assert [state.text() for state in states] == ["one got a+b", "two got a+b"]


WRONG = {
    "parts: needs at least one": lambda: dslc.seq(),
    r"parts\[1\]: is made of texts and gens": lambda: dslc.seq("a", 3),
    r"parts\[0\]: a gen without a constraint ends where": lambda: dslc.seq(dslc.gen("a"), dslc.gen("b", int)),
    r"parts\[0\]: a gen in a sequence has no max_new_tokens": lambda: dslc.seq(dslc.gen("a", max_tokens=3), "."),
    "stop: is no option of a sequence": lambda: dslc.seq("a", stop="."),
    "n: is no option of a sequence": lambda: dslc.seq("a", n=2),
    r"parts\[2\]: the variable 'a' is there twice": lambda: dslc.seq(dslc.gen("a"), ".", dslc.gen("a", int)),
    r"parts\[0\]: a sequence gives the text": lambda: dslc.seq(dslc.gen("a", type=list[int]), "."),
    "temperature: must be": lambda: dslc.seq("a", temperature="hot"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_sequences_are_refused_where_they_are_written(message):
    with pytest.raises(dslc.RequestError) as caught:
        WRONG[message]()
    assert re.search(message, str(caught.value)) and "test_sequences.py" in str(caught.value.where)


def test_on_a_real_model_interpreted_equals_compiled():
    @dslc.function
    def program(s):
        s += "Report: "
        s += dslc.seq(
            '{"id": ', dslc.gen("id", dslc.regex("[0-9]{1,4}")),
            ', "kind": "', dslc.gen("kind", dslc.choice("bug", "idea")),
            '", "marks": ', dslc.gen("marks", dslc.json({"enum": [[True], [False, None]]})),
            "} by ", dslc.gen("who"), ".",
            max_tokens=60,
        )  # fmt: skip
        s += " Next: " + dslc.gen("next", max_tokens=4)

    torch.set_num_threads(1)
    with dslc.Engine(max_running_requests=4, max_total_tokens=4096) as engine:
        for seed in range(4):
            a, b = (program.run(backend=engine, temperature=1.0, seed=seed, compiled=c) for c in (False, True))
            assert a.text() == b.text()
            assert all(a[v] == b[v] for v in ("id", "kind", "marks", "who", "next"))
            assert re.fullmatch("[0-9]{1,4}", a["id"]) and a["kind"] in ("bug", "idea")
            assert json.loads(a["marks"]) in ([True], [False, None]) and "." not in a["who"]
            head = f'Report: {{"id": {a["id"]}, "kind": "{a["kind"]}", "marks": {a["marks"]}}} by {a["who"]}'
            assert a.text().startswith(head)
