"""A Program's text and JSON forms give it back; every op has a rule in every reader."""
# ruff: noqa: E501 (tables with one case a line)

import json
import random

import pytest
from hypothesis import given, settings
from support.programs import ALL_OPS, programs

from dslc.compiler import fields, parser, printer, serial
from dslc.compiler.fields import FIELDS, POSITIONAL, Kind
from dslc.compiler.ir import IR_VERSION, OP_CLASSES, Program, Ref, Return, Text, walk
from dslc.compiler.parser import parse_ops, parse_program
from dslc.compiler.printer import print_op, print_program, string_text
from dslc.compiler.serial import from_json, to_json
from dslc.core.errors import IRSyntaxError

TRIAGE = """\
program triage(ticket, style="short", *, limit=3) num_api_spec_tokens=64 guards=(LIMIT="ab12") {
  %0 = arg "ticket"
  %1 = arg "style"
  %2 = arg "limit"
  role "system" { text "You sort support tickets." }
  role "user" {
    text "Ticket: "
    text %0
  }
  role "assistant" { %3 = select "label" ["bug", "billing", "other"] }
  %4 = eq %3 "bug"
  switch %4 {
    case true {
      %5 = gen "report" sampling=(max_new_tokens=16, stop=["\\n"]) constraint=regex("[0-9]+")
    }
    case false { }
  }
  fork 1 2
  [1] text "# one; {"
  [2] role "user" { text "two" }
  [2] role "assistant" { [1] text "into the other" }
  join gather_variable 1 2
  return [%3, 1.5, -2, none]
}
"""


def test_the_text_form_is_stable():
    program = parse_program(TRIAGE)
    assert print_program(program) == TRIAGE
    assert [param.keyword_only for param in program.params] == [False, False, True]
    assert [op.stream for op in walk(program.body)][-7:] == [1, 2, 2, 2, 1, 0, 0]


def test_ops_can_stand_on_one_line():
    assert print_op(parse_ops('text "Q: "; %0 = gen "a"; text "\\n"')[1]) == '%0 = gen "a"'


@settings(max_examples=150, deadline=None)
@given(programs())
def test_printed_then_parsed_is_the_same(program):
    text = print_program(program)
    assert str(program) == text.rstrip("\n")
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text  # equality alone takes True for 1
    assert parse_program(print_program(program, with_lines=True)) == program


@settings(max_examples=150, deadline=None)
@given(programs())
def test_saved_then_loaded_is_the_same(program):
    loaded = from_json(to_json(program))
    assert loaded == program
    assert print_program(loaded, with_lines=True) == print_program(program, with_lines=True)


def test_lines_survive_json_and_print_as_comments():
    program = parse_program(TRIAGE, "triage.ir")
    loaded = from_json(to_json(program))
    assert [op.where for op in walk(loaded.body)] == [op.where for op in walk(program.body)]
    assert '%0 = arg "ticket"  # triage.ir:2' in print_program(loaded, with_lines=True)


def test_parsed_ops_know_their_line():
    (op,) = parse_ops('\n\n  text "x"', "sample.ir")
    assert str(op.where) == "sample.ir:3"


def test_strings_with_surrogates_and_controls_print_on_one_line():
    program = Program(
        "p", body=(Text(text="\ud83d\ude00\x00\x85\u2028\r\n"), Return(value=("\U000e0001", float("-inf"))))
    )
    text = print_program(program)
    assert len(text.splitlines()) == 4
    assert parse_program(text) == program


@pytest.mark.parametrize("reader", [printer._FIELD, parser._FIELD, serial._ENCODE, serial._DECODE])
def test_every_kind_of_field_has_a_rule(reader):
    wordless = {Kind.WORD} if reader is parser._FIELD else set()  # a word needs its list: `_Parser.field`
    regions = {Kind.REGION, Kind.CASES} if reader in (printer._FIELD, parser._FIELD) else set()  # written in braces
    assert set(reader) == set(Kind) - regions - wordless


def test_every_op_has_a_place_in_the_text_form_and_in_the_strategy():
    assert set(POSITIONAL) == set(OP_CLASSES) == ALL_OPS | {"arg"}
    for name, positional in POSITIONAL.items():
        assert set(positional) <= {info.name for info in FIELDS[OP_CLASSES[name]]}


def test_an_op_with_an_unknown_kind_of_field_is_refused_by_name():
    from dataclasses import dataclass

    from dslc.compiler.ir import Op

    @dataclass(frozen=True, kw_only=True)
    class Strange(Op):
        beads: "dict[str, int]"

    with pytest.raises(TypeError, match=r"Strange\.beads"):
        fields._read_fields(Strange)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("program x() {", 1, "column 14: expected `}`, found the end of the text"),
        ("program x() {\n  foo 1\n}", 2, "column 3: unknown op 'foo'"),
        ("program x(a {\n}", 1, "column 13: expected `,` or `)`, found `{`"),
        ("program x() size=3 { }", 1, "column 13: a program has no 'size'; it has num_api_spec_tokens and guards"),
        ('program x() {\n  text "a" "b"\n}', 2, "column 12: expected the end of the line, found `\"b\"`"),
        ('program x() {\n  text "\\q"\n}', 2, "column 8: unknown escape \\q in a string"),
        ("program x() {\n  text\n}", 2, "column 3: `text` lacks its text"),
        ('program x() {\n  eq 1 2\n}', 2, "column 3: `eq` gives a value: write `%id = eq ...`"),
        ('program x() {\n  %0 = fork 1\n}', 2, "column 8: `fork` gives no value: write it without `%id =`"),
        ('program x() {\n  gen "a"\n}', 2, "column 3: `gen` gives a value: write `%id = gen ...`"),
        ("program x() {\n  %0 = gen heat=3\n}", 2, "column 12: `gen` has no 'heat'; it has out, var, sampling, constraint, logprobs"),
        ('program x() {\n  %0 = gen "a" var="b"\n}', 2, "column 16: 'var' is given twice"),
        ("program x() {\n  join sideways 1\n}", 2, "column 8: mode is one of gather_variable, concate_and_append, not 'sideways'"),
        ('program x() {\n  %0 = gen constraint=like("a")\n}', 2, "column 23: unknown constraint 'like'; there are regex, json_schema, ebnf, seq"),
        ("program x() {\n  text 'a'\n}", 2, "column 8: unexpected \"'\""),
        ("program x() {\n  switch 1 {\n    text \"a\"\n  }\n}", 3, "column 5: expected `case` or `}`, found `text`"),
    ],
)  # fmt: skip
def test_a_syntax_error_says_where(text, line, message):
    with pytest.raises(IRSyntaxError) as caught:
        parse_program(text, "bad.ir")
    assert caught.value.message == message
    assert (caught.value.where.file, caught.value.where.line) == ("bad.ir", line)


@pytest.mark.parametrize("text", ["return " + "[" * 30_000, 'role "a" {' * 30_000])
def test_deep_nesting_is_an_error_not_a_crash(text):
    with pytest.raises(IRSyntaxError, match="nested more than 200 deep"):
        parse_ops(text)


def _altered(change):
    data = json.loads(to_json(parse_program(TRIAGE)))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=IR_VERSION + 1), f"written in version {IR_VERSION + 1} of 'dslc.program'"),
        (lambda d: d.update(format="other"), "not a 'dslc.program'"),
        (lambda d: d.pop("title"), "the top level: lacks 'title'"),
        (lambda d: d["body"][3].update(op="sing"), r"body\[3\]\.op: unknown op 'sing'"),
        (lambda d: d["body"][3].update(volume=11), r"body\[3\]: op 'role' has no field 'volume'"),
        (lambda d: d["body"][3].pop("role"), r"body\[3\]: op 'role' lacks 'role'"),
        (lambda d: d["body"][0].update(out="0"), r"body\[0\]\.out: must be an integer, not str"),
        (lambda d: d["body"][-1].update(value={"ref": "x"}), r"body\[13\]\.value\.ref: must be an integer"),
        (lambda d: d["body"][-1].update(value={"call": "x"}), r"body\[13\]\.value: must be a literal"),
        (lambda d: d["body"][-2].update(mode="sideways"), r"body\[12\]\.mode: must be one of"),
    ],
)
def test_json_of_another_shape_is_refused_with_its_path(change, message):
    with pytest.raises(IRSyntaxError, match=message):
        from_json(_altered(change))


@pytest.mark.parametrize("text", ["", "[1, 2]", "nonsense", "[" * 100_000, "3"])
def test_other_json_is_refused(text):
    with pytest.raises(IRSyntaxError):
        from_json(text)


def test_refs_are_values_not_numbers():
    assert parse_program(TRIAGE).body[-1].value[0] == Ref(3)


def test_strings_are_quoted_as_character_by_character():
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choices('a"\\\n\t é\u200b\U0001f600', k=rng.randrange(6)))
        quoted = string_text(text)
        assert quoted == '"' + "".join(map(string_text_of_char, text)) + '"' and quoted.isprintable()


def string_text_of_char(char: str) -> str:
    return string_text(char)[1:-1]
