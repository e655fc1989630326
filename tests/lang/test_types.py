"""Types in, values out: what a type constrains, what its text becomes, in bodies, plans, branches and batches."""

import enum
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted import ScriptedBackend

import dslc
from dslc.lang.types import build, schema_of, type_spec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Person:
    name: str
    age: int
    colour: Colour = Colour.RED
    friends: "list[Person]" = field(default_factory=list)


class Place(TypedDict, total=False):
    name: str
    at: tuple[float, float]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Model(pydantic.BaseModel):
    title: str
    score: float | None = None


CASES = [
    (int, "42", 42),
    (float, "-1.5", -1.5),
    (bool, "true", True),
    (str, "anything", "anything"),
    (Literal["a", "b.c"], "b.c", "b.c"),
    (Literal[1, "x", None], '"x"', "x"),
    (Colour, "blue", Colour.BLUE),
    (Rank, "2", Rank.HIGH),
    (list[int], "[1, 2]", [1, 2]),
    (tuple[int, str], '[1, "a"]', (1, "a")),
    (tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
    (set[str], '["a", "b"]', {"a", "b"}),
    (dict[str, float], '{"x": 1}', {"x": 1.0}),
    (int | None, "null", None),
    (int | str, '"a"', "a"),
    (Annotated[list[int], "note"], "[1]", [1]),
    (Person, '{"name": "Ada", "age": 36, "friends": [{"name": "B", "age": 1}]}',
     Person("Ada", 36, Colour.RED, [Person("B", 1)])),
    (Place, '{"at": [1, 2.5]}', {"at": (1.0, 2.5)}),
    (Pair, '{"left": 1}', Pair(1, "r")),
    (Model, '{"title": "t", "score": 0.5}', Model(title="t", score=0.5)),
    (list[Model], '[{"title": "t"}]', [Model(title="t")]),
]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["interpreted", "compiled"])
def compiled(request):
    return request.param


@pytest.mark.parametrize(("kind", "text", "value"), CASES)
def test_values_of_every_type(kind, text, value, compiled):
    @dslc.function
    def program(s):
        s += "x: " + dslc.gen("v", type=kind)

    backend = ScriptedBackend(text)
    state = program.run(backend=backend, compiled=compiled)
    assert state["v"] == value and type(state["v"]) is type(value)
    assert state.raw("v") == text and state.text() == "x: " + text
    constraint = backend.requests[0].constraint
    assert (constraint is None) == (kind is str)
    if constraint is not None and constraint.kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(constraint.source))


def test_second_place_recognises_a_type():
    @dslc.function
    def program(s):
        s += "x: " + dslc.gen("v", int, stop=".") + " y: " + dslc.gen("w", 5)
        s += dslc.gen("u", int, max_tokens=7)

    backend = ScriptedBackend("12")
    state = program.run(backend=backend)
    assert state["v"] == 12 and state["w"] == "12"
    assert backend.requests[0].sampling.max_new_tokens == 128 and backend.requests[1].sampling.max_new_tokens == 5
    assert state["u"] == 12 and backend.requests[2].sampling.max_new_tokens == 7


def test_a_gen_reads_its_own_value(compiled):
    @dslc.function
    def program(s):
        age = dslc.gen("age", type=int)
        s += "age: "
        s += age
        return s[age] + 1

    state = program.run(backend=ScriptedBackend("41"), compiled=compiled)
    assert state.ret_value == 42
    assert state[dslc.gen("age", type=int)] == 41
    with pytest.raises(dslc.ProgramError, match="only a gen or select with a name"):
        state[dslc.gen()]


def test_typed_numbers_compute_in_plans():
    @dslc.function
    def program(s):
        s += "n: " + dslc.gen("n", type=int) + " f: " + dslc.gen("f", type=float)
        s += f" next {s['n'] + 1} "
        if s["f"] > 1.25:
            s += "big"
        s["copy"] = s["n"]

    assert program.compile().is_whole
    for compiled in (False, True):
        answers = iter(["+7", "1.5"])
        state = program.run(backend=ScriptedBackend(lambda prompt, a=answers: next(a)), compiled=compiled)
        assert state.text() == "n: +7 f: 1.5 next 8 big" and state["copy"] == 7


def test_other_typed_values_are_read_in_the_plan():
    @dslc.function
    def program(s):
        s += "p: " + dslc.gen("p", type=Person)
        s += f" {s['p'].name} is {s['p'].age}"

    assert program.compile().is_whole
    for compiled in (False, True):
        state = program.run(backend=ScriptedBackend('{"name": "Ada", "age": 36}'), compiled=compiled)
        assert state.text().endswith("Ada is 36")


def test_branches_and_several_outputs_give_lists_of_values(compiled):
    @dslc.function
    def program(s):
        s += "x"
        forks = s.fork(2)
        forks += dslc.gen("n", type=int)
        forks.join()
        s += dslc.gen("many", n=2, type=Colour)

    state = program.run(backend=ScriptedBackend(lambda prompt: "5"), compiled=compiled)
    assert state["n"] == [5, 5] and state.raw("n") == ["5", "5"]
    with pytest.raises(dslc.ProgramError, match="the text of 'many' is no Colour: '5' is none of 'red', 'blue'"):
        state["many"]


def test_reading_after_a_join_stays_with_the_body():
    @dslc.function
    def program(s):
        forks = s.fork(2)
        forks += dslc.gen("n", type=int)
        forks.join()
        return sum(s["n"])

    assert program.run(backend=ScriptedBackend("5")).ret_value == 10


def test_a_variable_of_two_types_is_left_to_the_body():
    @dslc.function
    def program(s, flag):
        if flag == "a":
            s += dslc.gen("v", type=int)
        else:
            s += dslc.gen("v")

    states = program.run_batch([{"flag": "a"}, {"flag": "b"}], backend=ScriptedBackend("5"))
    assert [state["v"] for state in states] == [5, "5"]


def test_a_cut_value_says_so_at_the_line_that_reads_it():
    @dslc.function
    def program(s):
        s += dslc.gen("p", type=Person)
        return s["p"]

    with pytest.raises(dslc.ProgramError, match=r"test_types.py:\d+: the text of 'p' is no Person: .*'\{\"name\"'"):
        program.run(backend=ScriptedBackend('{"name"'))


def test_bad_types_are_refused_when_they_are_written():
    for kind, match in [
        (object(), "is not a type"), (dict[float, str], "keys of"), (bytes, "is not a type"),
        (list[complex], "complex"),
    ]:  # fmt: skip
        with pytest.raises(dslc.RequestError, match=rf"test_types.py:\d+: type: .*{match}"):
            dslc.gen("x", type=kind)
    with pytest.raises(dslc.RequestError, match="type: cannot be combined with regex"):
        dslc.gen("x", type=int, regex="a")
    with pytest.raises(dslc.RequestError, match="type: is given twice"):
        dslc.gen("x", int, type=int)


@pytest.mark.parametrize(
    ("kind", "text", "match"),
    [
        (Person, '{"name": "A"}', "'age' is missing"),
        (Person, '{"name": "A", "age": 1, "x": 2}', "'x' is no field"),
        (Person, '{"name": "A", "age": true}', r"\$\.age: True is not an integer"),
        (list[int], '[1, "a"]', r"\$\[1\]: 'a' is not an integer"),
        (tuple[int, str], "[1]", "an array of 2"),
        (bool, "True", "none of 'true', 'false'"),
        (int | None, '"a"', "not an integer; .*not null"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(kind, text, match):
    with pytest.raises(ValueError, match=match):
        type_spec(kind).parse(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
kinds = st.recursive(
    st.sampled_from([int, float, bool, str, type(None), Literal["a", 1], Any]),
    lambda inner: (
        st.builds(lambda t: list[t], inner)
        | st.builds(lambda t: dict[str, t], inner)
        | st.builds(lambda t, u: t | u if isinstance(t, type) and isinstance(u, type) else list[t], inner, inner)
        | st.builds(lambda t, u: tuple[t, u], inner, inner)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(kinds, json_values)
def test_what_the_schema_accepts_is_what_can_be_built(kind, data):
    accepts = jsonschema.Draft202012Validator(schema_of(kind)).is_valid(data)
    try:
        build(kind, data)
        is_built = True
    except ValueError:
        is_built = False
    assert accepts == is_built


def test_sglangs_dtype_stays_text():
    @dslc.function
    def program(s):
        s += dslc.gen("n", dtype=int)

    assert program.run(backend=ScriptedBackend("12"))["n"] == "12"


@pytest.mark.slow
def test_types_are_known_to_a_checker(tmp_path):
    source = tmp_path / "typed.py"
    source.write_text(
        "from typing import Any, assert_type\n"
        "from dataclasses import dataclass\n"
        "import dslc\n"
        "@dataclass\nclass Person:\n    name: str\n"
        "@dslc.function\n"
        "def program(s: dslc.ProgramState) -> None:\n"
        "    p = dslc.gen('p', type=Person)\n"
        "    n = dslc.gen('n', int, stop='.')\n"
        "    t = dslc.gen('t', 16)\n"
        "    s += p\n    s += n\n    s += t\n"
        "    assert_type(s[p], Person)\n    assert_type(s[n], int)\n    assert_type(s[t], str)\n"
        "    assert_type(s['p'], Any)\n"
        "state = program.run()\n"
        "assert_type(state[dslc.gen('p', type=Person)], Person)\n"
        "assert_type(state[dslc.gen('n', type=int)], Person)  # wrong\n"
    )
    root = Path(dslc.__file__).parent
    link = tmp_path / "path" / "dslc"
    link.parent.mkdir()
    link.symlink_to(root)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", str(source)],
        env={"MYPYPATH": str(link.parent), "PATH": "", "HOME": str(tmp_path)}, capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    ours = [text for text in done.stdout.splitlines() if "typed.py" in text]
    assert len(ours) == 1 and "typed.py:21: error" in ours[0], done.stdout + done.stderr
