"""`check`: seeded faults are found under their rule and line; programs that are right get no word."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from support.programs import programs
from support.scripted import ScriptedTokenizer

import dslc
from dslc import cli
from dslc.compiler.check import LEVELS, RULES, Finding, Model, check
from dslc.compiler.ir import Param, Program
from dslc.compiler.parser import parse_ops
from dslc.core.backend import Capabilities

ROOT = Path(dslc.__file__).parent
TOKENIZER = ScriptedTokenizer()
BACKEND = Capabilities("toy", frozenset(("regex", "json_schema")), scoring=True, logprobs=True)
MODEL = Model(TOKENIZER, 40, BACKEND)

# rule, line, words of the message, ops
FAULTS = [
    ("break", 2, "the rest of 'p' runs in Python: a loop", 'text "x"\nopaque "a loop"'),
    ("maybe-unset", 4, "'x' is read here, but a path", 'switch %0 {\n case "a" { set "x" 1 }\n}\n%1 = get "x"'),
    (
        "maybe-unset",
        5,
        "'x' is read",
        'switch %0 {\n case "a" { %2 = gen "x" }\n case "b" { %3 = gen "y" }\n}\n%1 = get "x"',
    ),
    ("maybe-unset", 4, "'x' is read", 'fork 1\n[1] switch %0 {\n case "a" { set "x" 1 }\n}; [1] %1 = get "x"'),
    (
        "maybe-unset",
        3,
        "'x' is read",
        'switch %0 {\n case "a" { role "user" { %2 = select "x" ["b", "c"] } }\n}; %1 = get "x"',
    ),
    ("overwritten", 1, "'a' here is lost: it is set again at line 2", '%1 = gen "a"\n%2 = gen "a"'),
    ("overwritten", 1, "set again at line 3", '%1 = select "a" ["x", "y"]\ntext "b"\nset "a" 1'),
    ("overwritten", 1, "set again at line 2", 'role "assistant" { %1 = gen "a" }\nrole "assistant" { %2 = gen "a" }'),
    (
        "overwritten",
        2,
        "set again at line 3",
        'fork 1\n[1] %1 = gen "a"\n[1] %2 = gen "a"; %3 = gen "a"; join gather_variable 1',
    ),
    ("overwritten", 2, "set again at line 3", 'switch %0 {\n case "a" { %1 = gen "v"\n %2 = gen "v" }\n}'),
    ("overwritten", 1, "set again at line 2", '%1 = gen "a"\n%2 = scope "a" { text "x" }'),
    ("unused-parameter", 0, "the parameter 'q' is never used", None),
    (
        "lost-branch",
        2,
        "nothing can read what this branch generates",
        'fork 1 2\n[1] %1 = gen "a"; join gather_variable 2',
    ),
    ("lost-branch", 2, "nothing can read", 'copy 1\n[1] %1 = gen "a"'),
    (
        "lost-branch",
        3,
        "nothing can read",
        'fork 1\n[1] fork 2\n[2] %1 = select "a" ["b", "c"]; [1] set "z" 2; join gather_variable 1',
    ),
    ("lost-branch", 2, "nothing can read", 'fork 1\n[1] role "assistant" { %1 = gen "a" }'),
    ("unused-branch", 1, "nothing is done on branch 0, 2 of this fork of 3", 'fork 1 2 3\n[2] %1 = gen "a"\ntext %1'),
    ("unused-branch", 1, "nothing is done on branch 0 of this fork of 1", "fork 1"),
    ("choices", 1, "there is only one choice", '%1 = select "a" ["x"]'),
    ("choices", 1, "only one choice", '%1 = select "a" [%0]'),
    ("choices", 1, "'x' is there twice", '%1 = select "a" ["x", "y", "x"]'),
    ("choices", 1, "'no' begins the choice 'none'", '%1 = select "a" ["no", "none"]'),
    ("choices", 1, "'a b' begins the choice 'a bc'", '%1 = select "a" ["x", "a b", "a bc"]'),
    (
        "never-equal",
        2,
        "it can never be 'bgu': the choices are 'bug', 'other'",
        '%1 = select "a" ["bug", "other"]\n%2 = eq %1 "bgu"',
    ),
    ("never-equal", 2, "it can never be 'Bug'", '%1 = select "a" ["bug", "other"]\n%2 = ne "Bug" %1'),
    ("never-equal", 2, "it can never be 'x'", '%1 = select "a" ["bug", "other"]\n%2 = contains ["bug", "x"] %1'),
    ("never-equal", 2, "it can never be ''", '%1 = select "a" ["bug", "other"]\n%2 = eq %1 ""'),
    ("never-equal", 3, "it can never be 'x'", '%1 = select "a" ["bug", "other"]\n%2 = get "a"\n%3 = eq %2 "x"'),
    (
        "never-equal",
        2,
        "it can never be 'maybe': it has to match '(yes|no)'",
        '%1 = gen "a" constraint=regex("(yes|no)")\n%2 = eq %1 "maybe"',
    ),
    ("never-equal", 2, "it can never be 'yes.'", '%1 = gen "a" constraint=regex("(yes|no)")\n%2 = eq %1 "yes."'),
    ("never-equal", 2, "it can never be '1.5'", '%1 = gen "a" constraint=regex("[0-9]+")\n%2 = eq %1 "1.5"'),
    ("never-equal", 2, "it can never be ' 5'", '%1 = gen "a" constraint=regex("[0-9]+")\n%2 = eq %1 " 5"'),
    (
        "stop-in-match",
        1,
        "the stop string '.' can occur inside a match",
        '%1 = gen sampling=(stop=["."]) constraint=regex("[a-z.]+")',
    ),
    (
        "stop-in-match",
        1,
        "the stop string '-' can occur inside",
        '%1 = gen sampling=(stop="-") constraint=regex("[0-9]{4}-[0-9]{2}")',
    ),
    (
        "stop-in-match",
        1,
        "the stop string '\\n' can occur",
        '%1 = gen sampling=(stop=["x", "\\n"]) constraint=regex("(?s:[^x]*)")',
    ),
    ("stop-in-match", 1, "the stop string 'é' can occur", '%1 = gen sampling=(stop="é") constraint=regex("\\\\w+")'),
    (
        "token-limits",
        1,
        "2 tokens are too few: the shortest match has 40 characters",
        '%1 = gen sampling=(max_new_tokens=2) constraint=regex("[a-z]{40}")',
    ),
    (
        "token-limits",
        1,
        "0 tokens are too few: the shortest match has 1 char",
        '%1 = gen sampling=(max_new_tokens=0) constraint=regex("[a-z]")',
    ),
    (
        "token-limits",
        1,
        "at least 9 tokens are asked for, but a match has at most 5",
        '%1 = gen sampling=(min_new_tokens=9) constraint=regex("[a-z]{5}")',
    ),
    ("same-samples", 1, "all 3 samples will be the same", "%1 = gen sampling=(n=3, temperature=0)"),
    ("same-samples", 1, "all 2 samples will be the same", "%1 = gen sampling=(n=2, top_k=1)"),
    (
        "token-id",
        1,
        "stop_token_ids[0]: must be a token id below the vocabulary size",
        "%1 = gen sampling=(stop_token_ids=[999999])",
    ),
    ("special-in-text", 1, "the text holds '<|im_end|>' as plain text", 'text "bye<|im_end|>"'),
    ("special-in-text", 2, "the text holds '<|end|>'", 'role "user" {\n text "<|end|>" }'),
    ("empty-turn", 1, "the user turn is empty", 'role "user" { }; role "assistant" { %1 = gen }'),
    ("context", 1, "exceed the context of 40", "%1 = gen sampling=(max_new_tokens=41)"),
    ("context", 2, "exceed the context of 40", 'text "0123456789"\n%1 = gen sampling=(max_new_tokens=39)'),
    (
        "context",
        2,
        "its prompt has at least 60 tokens, and the model's context only 40",
        'text "' + "x" * 60 + '"\n%1 = gen',
    ),
    (
        "context",
        4,
        "and the model's context only 40",
        'text "' + "x" * 60 + '"\nfork 1\ntext "y"\n[1] %1 = gen "a"; join gather_variable 1',
    ),
    ("context", 2, "and the model's context only 40", 'text "' + "x" * 60 + '"\n%1 = select "a" ["b", "c"]'),
    # Broken laws are reported too; each of them has its example with the verifier.
    ("defined-before-use", 1, "%9 is used before", "text %9"),
    ("variable-set", 1, "'x' is read before any op sets it", '%1 = get "x"'),
    ("stream-open", 1, "stream 3 is not open here", '[3] text "x"'),
    ("roles-flat", 1, "opens inside the role", 'role "a" { role "b" { text "x" } }'),
    ("constraint", 1, "", '%1 = gen constraint=regex("(a")'),
    ("constraint", 1, "", '%1 = gen constraint=json_schema("{\\"type\\": 3}")'),
    ("sampling", 1, "unknown sampling option 'temprature'", "%1 = gen sampling=(temprature=1)"),
    ("choices", 1, "it has no choices", '%1 = select "a" []'),
    ("join-of-fork", 1, "stream 9 is not open", "join gather_variable 9"),
    ("path-end", 2, "it follows `return`", 'return 1\ntext "x"'),
    ("empty-match", 1, "allows the empty text only", '%1 = gen "a" constraint=regex("")'),
    ("empty-match", 1, "allows the empty text only", '%1 = gen "a" constraint=regex("a{0}|()")'),
    (
        "stop-forced",
        1,
        "which the stop string '{' cuts",
        '%1 = gen sampling=(stop=["{"]) constraint=json_schema("{\\"type\\": \\"object\\", \\"properties\\": '
        '{\\"a\\": {}}, \\"required\\": [\\"a\\"]}")',
    ),
    ("backend", 1, "the backend 'toy' takes no images", 'media image "cat.png"'),
    ("backend", 1, "the backend 'toy' takes no videos", 'media video "cat.mp4"'),
    ("backend", 1, "cannot enforce a constraint of kind ebnf", '%1 = gen "a" constraint=ebnf("root ::= [a-z]+")'),
]
PYTHON = {"open-role", "unread-gen", "chat-template", "picture-tokens"}  # seen elsewhere: in sources, with a model


def program_of(ops):
    """The ops, with line numbers as they stand, behind one parameter."""
    if ops is None:
        return Program("p", (Param("q"),), parse_ops('%0 = arg "q"'))
    arg = parse_ops('%0 = arg "q"')
    return Program(
        "p",
        (Param("q"),),
        (*arg, *parse_ops(ops), *parse_ops('set "used" %0') * ("return" not in ops and "opaque" not in ops)),
    )


@pytest.mark.parametrize(("rule", "line", "message", "ops"), FAULTS)
def test_a_seeded_fault_is_found(rule, line, message, ops):
    found = [finding for finding in check(program_of(ops), MODEL) if finding.rule == rule]
    assert found, f"nothing found by {rule}"
    assert message in found[0].message
    assert not line or found[0].where.line == line


def test_there_are_sixty_faults_and_every_rule_has_one():
    assert len(FAULTS) >= 60
    assert {rule.name for rule in RULES} - PYTHON <= {rule for rule, *_ in FAULTS}
    assert all(rule.level in LEVELS and rule.promise.endswith(".") for rule in RULES)


RIGHT = [
    '%1 = gen "a"\n%2 = gen "b"',
    '%1 = gen "a"\ntext %1\n%2 = gen "a"',  # read before it is set again
    '%1 = gen "a"\nfork 1\n[1] %2 = get "a"\n[1] text %2\n%3 = gen "a"\njoin gather_variable 1',
    'fork 1 2\n[1] %1 = gen "a"\n[2] %2 = gen "a"\ntext %1\ntext %2',  # read without a join
    'fork 1\n[1] %1 = gen "a"\n[1] %2 = gen "b"\ntext %2',  # what another generation builds upon
    'fork 1\n[1] %1 = gen "a"\n[1] fork 2\n[2] %2 = gen "b"\ntext %2',
    'fork 1\n[1] %1 = gen "a"\n[1] %2 = text\ntext %2',
    'fork 1\n[1] %1 = gen "a"\nopaque "Python may read it"',
    'switch %0 {\n case "a" { set "x" 1 }\n case "b" { return 2 }\n}',
    '%3 = bool %0\nswitch %3 {\n case true { set "x" 1 }\n case false { %1 = gen "x" }\n}\n%2 = get "x"',
    '%3 = bool %0\nswitch %3 {\n case true { set "x" 1 }\n case false { return 1 }\n}\n%2 = get "x"',
    '%1 = select "a" ["bug", "other"]\n%2 = eq %1 "bug"\n%3 = contains ["bug", "other"] %1',
    '%1 = select "a" ["x", "y"]\n%2 = select "a" ["v", "w"]\n%3 = get "a"\n%4 = eq %3 "x"',
    '%1 = select "a" [%0, "y"]\n%2 = eq %1 "z"',
    '%1 = gen "a" constraint=regex("(yes|no)")\n%2 = eq %1 "ye"',  # it may be cut by the token limit
    '%1 = gen "a" constraint=regex("[0-9]+")\n%2 = strip %1\n%3 = eq %2 "x"',
    '%1 = gen sampling=(stop=["\\n"]) constraint=regex("[a-z]+")',
    '%1 = gen sampling=(stop=["\\n"]) constraint=regex("[a-z]+\\n")',  # at its end a stop cuts nothing
    "%1 = gen sampling=(n=2, temperature=0.5)",
    'text "a"\n%1 = gen sampling=(max_new_tokens=39)',
    'special "<|im_end|>"',
    'role "user" { text "x" }',
    'fork 1 2\njoin concate_and_append 1 2',
    'role "user" { }\nopaque "the turn goes on in Python"',
]  # fmt: skip


@pytest.mark.parametrize("ops", RIGHT)
def test_what_is_right_gets_no_word(ops):
    assert [str(f) for f in check(program_of(ops), MODEL) if f.rule not in ("break", "unused-parameter")] == []


@settings(max_examples=100, deadline=None)
@given(programs())
def test_any_legal_program_can_be_checked(program):
    for finding in check(program, Model(TOKENIZER, 100_000)):
        assert isinstance(finding, Finding) and finding.level in LEVELS


def test_a_model_without_a_chat_template():
    (found,) = check(
        Program("p", (), parse_ops('role "user" { text "x" }')), Model(ScriptedTokenizer(chat_template=None))
    )
    assert (found.level, found.rule) == ("error", "chat-template")


def test_the_examples_get_no_word(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    sees = ROOT / "examples" / "picture_comparison.py"  # for a model that sees, which the built-in one does not
    for path in sorted({*(ROOT / "examples").glob("*.py")} - {sees}):
        assert cli.main(["check", "--strict", str(path)]) == 0, capsys.readouterr().out
    found = capsys.readouterr().out.splitlines()
    assert [line for line in found if ": note: " not in line] == []  # where Python goes on is no fault
    assert cli.main(["check", str(sees)]) == 1
    found = capsys.readouterr().out.splitlines()
    assert found and all("the backend 'dslc' takes no images" in line for line in found if ": error: " in line)


# rule, line of `body` (from 1), words of the message, body of a program of a Python file
SCHEMA = "s += dslc.gen('a', max_tokens=9, json_schema='{}')".format
PYTHON_FAULTS = [
    ("program", 1, "'b' is read before any op sets it", "s += s['b']"),
    ("program", 2, "'b' is read before any op sets it", "s += dslc.gen('a')\ns += s['b']"),
    ("maybe-unset", 3, "'a' is read here", "if q == 'x':\n    s += dslc.gen('a')\ns += s['a']"),
    ("overwritten", 1, "what is put into 'a' here is lost", "s += dslc.gen('a')\ns += dslc.gen('a')"),
    ("overwritten", 1, "is lost", "s += dslc.select('a', ['x', 'y'])\ns.set_var('a', 1)"),
    ("lost-branch", 2, "nothing can read", "f = s.fork(1)[0]\nf += dslc.gen('a')"),
    ("lost-branch", 2, "nothing can read", "with s.copy() as c:\n    c += dslc.gen('a')"),
    ("unused-branch", 1, "nothing is done on branch 1", "f = s.fork(2)\nf[0] += dslc.gen('a')\ns += f[0]['a']"),
    ("program", 1, "matches no text", r"s += dslc.gen('a', regex=r'[^\s\S]')"),
    ("empty-match", 1, "the empty text only", "s += dslc.gen('a', regex='(a{0})*')"),
    ("program", 1, "no value meets the schema", SCHEMA('{"type": "integer", "minimum": 5, "maximum": 3}')),
    ("program", 1, "no value meets the schema", SCHEMA('{"type": "string", "minLength": 5, "maxLength": 3}')),
    ("program", 1, "no value meets the schema", SCHEMA('{"enum": []}')),
    ("program", 1, "no value meets the schema", SCHEMA('{"const": 1, "type": "string"}')),
    ("program", 1, "no value meets the schema", SCHEMA('{"allOf": [{"const": 1}, {"const": 2}]}')),
    ("program", 1, "no value meets the schema", SCHEMA('{"type": "array", "minItems": 2, "maxItems": 1}')),
    ("program", 1, "/$dynamicRef", SCHEMA('{"$dynamicRef": "#x"}')),
    ("program", 1, "/$ref", SCHEMA('{"$ref": "https://example.org/other.json"}')),
    ("program", 1, "backreference is not supported", r"s += dslc.gen('a', regex=r'(a)\1')"),
    ("stop-in-match", 1, "can occur inside a match", "s += dslc.gen('a', regex='[a-z]+', stop='b')"),
    ("stop-forced", 1, "the stop string '\"' cuts", "s += dslc.gen('a', stop='\"', json_schema='{\"const\": \"b\"}')"),
    ("choices", 1, "'no' begins the choice 'none'", "s += dslc.select('a', ['no', 'none', 'yes'])"),
    ("choices", 1, "there twice", "s += dslc.gen('a', choices=['x', 'y', 'x'])"),
    ("never-equal", 2, "can never be 'X'", "s += dslc.select('a', ['x', 'y'])\nif s['a'] == 'X':\n    s += 'z'"),
    ("open-role", 1, "the user turn is begun here and never ended", "s += dslc.user_begin()\ns += q"),
    ("open-role", 2, "the assistant turn", "s += dslc.user(q)\ns += dslc.assistant_begin()\ns += dslc.gen('a')"),
    ("program", 2, "roles do not nest", "with s.user():\n    s += dslc.assistant('x')"),
    ("backend", 1, "takes no images", "s += dslc.image('cat.png')"),
    ("context", 2, "exceed the context of", "s += q\ns += dslc.gen('a', max_tokens=999999)"),
    ("context", 2, "and the model's context only", "s += 'word ' * 9000\ns += dslc.gen('a')"),
    ("program", 1, "temperature: must be at least 0", "s += dslc.gen('a', temperature=-1)"),
    ("program", 1, "min_tokens: must be between", "s += dslc.gen('a', max_tokens=3, min_tokens=9)"),
    ("token-limits", 1, "are too few: the shortest match", "s += dslc.gen('a', max_tokens=2, regex='[a-z]{90}')"),
    ("token-id", 1, "below the vocabulary size", "s += dslc.gen('a', stop_token_ids=[99999999])"),
    ("same-samples", 1, "all 4 samples will be the same", "s += dslc.gen('a', n=4, temperature=0)"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "line", "message", "body"), PYTHON_FAULTS)
def test_a_fault_in_a_python_file_is_found_at_its_line(tmp_path, capsys, monkeypatch, rule, line, message, body):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "faulty.py"
    lines = [
        "import dslc",
        "@dslc.function",
        "def f(s, q):",
        *(f"    {text}" for text in ["s += q", *body.split("\n")]),
    ]
    path.write_text("\n".join(lines) + "\n")
    code = cli.main(["check", "--strict", str(path)])
    found = [text for text in capsys.readouterr().out.splitlines() if text.endswith(f"[{rule}]") and message in text]
    assert code == 1 and len(found) == 1 and found[0].startswith(f"{path}:{line + 4}: ")


def test_gens_that_no_output_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "outputs.py"
    path.write_text(
        "import dslc\n@dslc.function(outputs=['a'])\ndef f(s, q):\n    s += q\n    s += dslc.gen('a')\n"
        "    s += dslc.gen('b')\n"
    )
    assert cli.main(["check", "--strict", str(path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}:6: warning: nobody reads 'b': none of the outputs a needs it [unread-gen]\n"
    )
    path.write_text(path.read_text().replace("outputs=['a']", "outputs=['b']"))  # a stands in the prompt of b
    assert cli.main(["check", "--strict", str(path)]) == 0


def test_what_the_check_takes_the_engine_for_is_the_engine():
    import torch

    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32", max_total_tokens=64) as engine:
        able = engine.capabilities
    assumed = cli.engine_capabilities()
    for name in ("name", "constraints", "scoring", "logprobs", "media"):
        assert getattr(assumed, name) == getattr(able, name)


SOURCE = """\
import dslc

@dslc.function
def one(s, q, spare):
    s += q
    s += dslc.select("label", ["bug", "other"])
    if s["label"] == "bgu":
        s += dslc.gen("x", max_tokens=5)

@dslc.function
def two(s):
    s += s["nothing"]
"""


def test_the_verb_prints_findings_by_line_and_says_so_in_its_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "desk.py"
    path.write_text(SOURCE)
    assert cli.main(["check", f"{path}:one"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{path}:3: warning: the parameter 'spare' is never used [unused-parameter]",
        f"{path}:7: warning: it can never be 'bgu': the choices are 'bug', 'other' [never-equal]",
    ]
    assert err == "0 errors, 2 warnings\n"
    assert cli.main(["check", "--strict", f"{path}:one"]) == 1
    capsys.readouterr()
    assert cli.main(["check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert f"{path}:12: error: 'nothing' is read before any op sets it" in out and err == "1 errors, 2 warnings\n"
    assert cli.main(["check", f"{path}:one", "--context-length", "2"]) == 1


def test_the_document_lists_every_rule():
    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"| `{rule.name}` | {rule.level} | {rule.promise} |" in text
