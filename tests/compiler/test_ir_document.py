"""docs/ir.md says what is: every op, function, law and pass is in it, and its programs parse and are legal."""

import re
from pathlib import Path

import pytest

import dslc
from dslc.compiler.expressions import FUNCTIONS
from dslc.compiler.ir import OP_CLASSES
from dslc.compiler.parser import parse_program
from dslc.compiler.pipeline import PASSES
from dslc.compiler.printer import print_program
from dslc.compiler.verifier import LAWS, verify

TEXT = (Path(dslc.__file__).parent / "docs" / "ir.md").read_text(encoding="utf-8")
SAMPLES = [block for block in re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL) if re.match(r"program \w+\(", block)]


def section(title):
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_op_has_its_line():
    heads = re.findall(r"^\| `([^`]+)`", section("Ops"), re.MULTILINE)
    words = {re.sub(r"^%r = ", "", head).split()[0] for head in heads}
    assert words == set(OP_CLASSES) - {"expr"} | {"FUNCTION"}


def test_every_function_is_named():
    assert set(re.findall(r"`([a-z_]+)", section("Functions of an expr"))) - {"expr", "compiler"} == set(FUNCTIONS)


def test_every_law_and_pass_is_quoted():
    laws = dict(re.findall(r"^- `([a-z-]+)`: (.+)$", section("Laws"), re.MULTILINE))
    assert {law.name: law.promise for law in LAWS} == {name: laws[name] for name in laws if name != "params"}
    passes = dict(re.findall(r"^- \*\*([a-z-]+)\*\*: (.+)$", section("Plans"), re.MULTILINE))
    assert passes == {item.name: item.promise for item in PASSES}


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_programs_parse_as_they_are_printed(sample):
    program = verify(parse_program(sample))
    assert print_program(program) == sample


def test_there_are_samples():
    assert len(SAMPLES) >= 2
