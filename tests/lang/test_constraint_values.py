"""`dslc.regex`, `json`, `ebnf` and `choice`: values that print, compare, travel in the IR, and constrain a gen."""

import json
import re

import pydantic
import pytest
import torch
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.constraints import compile_constraint
from dslc.compiler.parser import parse_program
from dslc.compiler.printer import print_program
from dslc.compiler.serial import from_json, to_json
from dslc.core.constraint import Constraint


class Person(pydantic.BaseModel):
    name: str
    age: int


ZIP = dslc.regex("[0-9]{5}")
VALUES = [
    ZIP,
    dslc.choice("yes", "no", "it's (un)clear|or"),
    dslc.json({"type": "integer"}),
    dslc.json('{"type": ["string", "null"]}', whitespace="compact"),
    dslc.json(Person, key_order="any"),
    dslc.json(list[int], whitespace="free", format="annotate"),
    dslc.ebnf('start: "a" start "b" | "c"'),
    dslc.ebnf('root ::= "a\\n\\"" root | [^\\x00-\\x1f]'),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_print_compare_and_come_back(value):
    assert eval(repr(value)) == value and hash(eval(repr(value))) == hash(value)
    assert [other == value for other in VALUES].count(True) == 1

    @dslc.function
    def program(s):
        s += "x: "
        s += dslc.gen("v", value, max_tokens=9)

    made = program.compile()
    (op,) = [op for op in made.body if op.name == "gen"]
    assert op.constraint.resolve(op.constraint.source) == value
    text = print_program(made)
    assert parse_program(text) == made and print_program(parse_program(text)) == text
    assert from_json(to_json(made)) == made


@pytest.mark.parametrize("compiled", [False, None], ids=["interpreted", "compiled"])
def test_a_gen_takes_them_by_name_and_in_second_place(compiled):
    @dslc.function
    def program(s, pattern, given):
        s += "a: " + dslc.gen("a", ZIP)
        s += "b: " + dslc.gen("b", constraint=dslc.choice(["x", "y"]), max_tokens=3)
        s += "c: " + dslc.gen("c", dslc.regex(pattern))
        s += "d: " + dslc.gen("d", constraint=given)

    backend = ScriptedBackend("x")
    given = dslc.json({"const": 1}, whitespace="compact")
    program.run("[a-c]+", given, backend=backend, compiled=compiled)
    assert [r.constraint for r in backend.requests] == [ZIP, dslc.choice("x", "y"), dslc.regex("[a-c]+"), given]
    assert [r.sampling.max_new_tokens for r in backend.requests] == [128, 3, 128, 128]


def test_equal_ways_to_write_a_constraint_send_equal_requests():
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a", regex="a+") + dslc.gen("b", dslc.regex("a+"))
        s += dslc.gen("c", json_schema=Person) + dslc.gen("d", dslc.json(Person))
        s += dslc.gen("e", grammar='root ::= "a"') + dslc.gen("f", dslc.ebnf('root ::= "a"'))

    backend = ScriptedBackend("a")
    program.run(backend=backend)
    sent = [r.constraint for r in backend.requests]
    assert sent[0::2] == sent[1::2]


def test_choice_is_exactly_its_texts():
    from support.constraint_support import small_vocabulary

    texts = ["a", "a.b", "a|b", "ab", "é\n", "(x)*"]
    automaton = compile_constraint(dslc.choice(texts), small_vocabulary()).index.automaton
    for text in [*texts, "axb", "", "b", "x", "(x)", "a.", "aa"]:
        state = automaton.start
        for byte in text.encode():
            state = automaton.step(state, byte) if state >= 0 else state
        assert (state >= 0 and automaton.accepting(state)) == (text in texts)
    assert dslc.choice("a", "b", "a") == dslc.choice(["a", "b"])


WRONG = {
    "regex: .*unterminated": lambda: dslc.regex("[a"),
    "regex: must be a str": lambda: dslc.regex(3),
    "ebnf: line 1": lambda: dslc.ebnf('start: "a'),
    "json_schema: at '/type'": lambda: dslc.json({"type": "strin"}),
    "json_schema: .*complex": lambda: dslc.json(complex),
    "json_schema: whitespace must be one of": lambda: dslc.json({}, whitespace="none"),
    "json_schema: key_order must be one of": lambda: dslc.json({}, key_order="alphabetical"),
    "choices: .*at least one": lambda: dslc.choice(),
    r"choices\[1\]: must be a non-empty string": lambda: dslc.choice("a", ""),
    "constraint: must be made by dslc.regex": lambda: dslc.gen("x", constraint="[a-z]"),
    "constraint: is given twice": lambda: dslc.gen("x", ZIP, constraint=ZIP),
    "max_tokens: is given twice": lambda: dslc.gen("x", 3, max_tokens=3),
    "constraint: cannot be combined with regex": lambda: dslc.gen("x", ZIP, regex="a"),
    "json_schema: unknown option 'spacing'": lambda: dslc.gen(
        "x", Constraint("json_schema", "{}", (("spacing", "wide"),))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_ones_are_refused_where_they_are_written(message):
    with pytest.raises(dslc.RequestError) as caught:
        WRONG[message]()
    assert re.search(message, str(caught.value)) and "test_constraint_values.py" in str(caught.value.where)


def test_they_hold_on_a_real_model():
    @dslc.function
    def program(s):
        s += "Zip code: " + dslc.gen("zip", ZIP, max_tokens=20)
        s += "\nSum: " + dslc.gen("sum", dslc.ebnf('root ::= t ("+" t){0,2}\nt ::= [0-9]{1,2} | "(" root ")"'))
        s += "\nData: " + dslc.gen(
            "data", dslc.json({"enum": [{"b": 1, "a": 2}]}, whitespace="compact", key_order="any")
        )

    torch.set_num_threads(1)
    with dslc.Engine(max_running_requests=4, max_total_tokens=4096) as engine:
        for seed in range(3):
            state = program.run(backend=engine, temperature=1.0, seed=seed, max_new_tokens=100)
            assert re.fullmatch("[0-9]{5}", state["zip"])
            assert json.loads(state["data"]) == {"b": 1, "a": 2} and " " not in state["data"]
            assert set(state["sum"]) <= set("0123456789+()")
            if state.get_meta_info("sum")["finish_reason"]["type"] == "stop":
                assert isinstance(eval(re.sub(r"\b0+(?=\d)", "", state["sum"])), int)
