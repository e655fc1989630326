"""What a type checker knows of programs: values by their generations, states, branches; nothing is Any."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.scripted import ScriptedBackend

import dslc

ROOT = Path(dslc.__file__).resolve().parent
EXAMPLE = ROOT / "examples" / "typed_extraction.py"

CHECKS = """
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_type

import dslc

@dataclass
class Person:
    name: str
    friends: list[str]

PERSON = dslc.gen("person", Person)
PEOPLE = dslc.gen("people", type=list[Person])
AGE = dslc.gen("age", int, max_tokens=4)
TEXT = dslc.gen("text", 16, stop=".")
CHOICE = dslc.select("choice", ["a", "b"])
ZIP = dslc.gen("zip", dslc.regex("[0-9]{5}"))

@dslc.function
def program(s: dslc.ProgramState, question: str, times: int = 2) -> str:
    s += question + " "
    s += PERSON
    s += dslc.user("And? " + TEXT)
    with s.assistant():
        s += AGE
    assert_type(s.user("x"), dslc.ProgramState)
    forks = s.fork(times)
    assert_type(forks, dslc.ProgramStateGroup)
    for fork in forks:
        assert_type(fork, dslc.ProgramState)
        fork += CHOICE
    assert_type(forks[0][CHOICE], str)
    forks.join()
    assert_type(s[PERSON], Person)
    assert_type(s[PERSON].friends[0].upper(), str)
    return s[PERSON].name

@dslc.function(num_api_spec_tokens=8)
async def awaited(s: dslc.ProgramState) -> None:
    s += TEXT

assert_type(program, dslc.Function)
assert_type(awaited, dslc.Function)
state = program.run(question="Who?", temperature=0)
assert_type(state, dslc.ProgramState)
assert_type(state[PERSON], Person)
assert_type(state[PEOPLE], list[Person])
assert_type(state[AGE], int)
assert_type(state[TEXT], str)
assert_type(state[ZIP], str)
assert_type(state[CHOICE], str)
assert_type(state.text(), str)
assert_type(program.run_batch([{"question": "a"}]), list[dslc.ProgramState])
assert_type(program.run_batch([("a", 2)], generator_style="unordered"), Iterator[dslc.ProgramState])
"""
WRONG = {
    "state[AGE].upper()": '"int" has no attribute "upper"',
    "state[PERSON].nme": '"Person" has no attribute "nme"',
    'program.run_batch("a", generator_style=3)': "No overload",
    'print(state["age"])': 'type "Any"',
    "dslc.function(3)": "No overload",
    'dslc.gen("x", temperature="hot")': "No overload",
}


def mypy(folder, *sources):
    link = folder / "path" / "dslc"
    link.parent.mkdir()
    link.symlink_to(ROOT)
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--disallow-any-expr", "--follow-imports=silent",
            "--python-version", "3.11", "--cache-dir", str(folder / "cache"), *map(str, sources),
        ],
        env={"MYPYPATH": str(link.parent), "PATH": "", "HOME": str(folder)}, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [text for text in done.stdout.splitlines() if ": error: " in text]


@pytest.mark.slow
def test_a_checker_knows_every_type(tmp_path):
    """The tutorial and the checks above have no error and no Any; each wrong line has its own error."""
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(CHECKS)
    bad.write_text("from good import *\nimport dslc\n" + "\n".join(WRONG) + "\n")
    errors = mypy(tmp_path, EXAMPLE, good, bad)
    assert [text for text in errors if "bad.py" not in text] == []
    found = {int(re.search(r"bad\.py:(\d+)", text)[1]): text for text in reversed(errors)}
    for number, said in enumerate(WRONG.values(), start=3):
        assert said in found.get(number, ""), errors


def test_the_program_runs_as_it_is_typed():
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        import typed_extraction as example
    finally:
        sys.path.remove(str(EXAMPLE.parent))

    def answer(prompt):
        return '{"name": "Mia", "age": 12, "mood": "happy"}' if "JSON" in prompt[-120:] else "A day"

    for compiled in (False, True):
        state = example.extract.run(text="Mia.", backend=ScriptedBackend(answer), compiled=compiled, temperature=0)
        assert state[example.CHARACTER] == example.Character("Mia", 12, example.Mood.HAPPY) == state["character"]
        assert state[example.GROUP] == state["group"] in ("child", "grown-up")
        assert state[example.TITLE] == "A day"
        assert example.line(state).startswith("Mia, happy, a ")
    with pytest.raises(dslc.ProgramError, match="only a gen or select with a name"):
        state[dslc.select(None, ["a"])]


def test_the_tutorial_on_the_built_in_model():
    import typed_extraction as example

    torch.set_num_threads(1)
    with dslc.Engine() as engine:
        first, second = example.extract.run_batch(
            [{"text": text} for text in example.TEXTS], backend=engine, temperature=0
        )
    assert first[example.CHARACTER].name == "Mia" and second[example.CHARACTER].age == 41
    assert isinstance(first[example.CHARACTER].mood, example.Mood)
