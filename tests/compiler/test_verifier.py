"""Each law of the IR: an IR text that breaks it is refused under the law's name, at the op's line."""
# ruff: noqa: E501 (tables with one case a line)

import pytest
from hypothesis import given, settings
from support.programs import programs

from dslc.compiler.ir import OP_CLASSES, Arg, Expr, Param, Program, Ref
from dslc.compiler.parser import parse_ops, parse_program
from dslc.compiler.verifier import _AFTER, _LAWS_OF, LAWS, diagnose, verify
from dslc.core.errors import VerifyError

# law, line of the offence, message, body
BROKEN = [
    ("path-end", 2, "text: it follows `opaque`", 'opaque "loop"\ntext "x"'),
    ("path-end", 2, "text: it follows `return`", 'role "user" { return 1 }\ntext "x"'),
    (
        "path-end",
        5,
        "text: it follows `return`",
        'switch true {\n case true { return 1 }\n case false { return 2 }\n}\ntext "x"',
    ),
    ("stream-open", 1, "stream 3 is not open here: no fork or copy makes it before", '[3] text "x"'),
    ("stream-open", 3, "stream 1 is not open here: it was joined before", "fork 1\njoin gather_variable 1\n[1] text \"x\""),
    (
        "stream-open",
        4,
        "stream 1 is not open here: it is used outside the case that made it",
        'switch "a" {\n case "a" { fork 1 }\n}\n[1] text "x"',
    ),
    (
        "stream-open",
        5,
        "stream 1 is not open here: it was joined before",
        'fork 1\nswitch "a" {\n case "a" { join gather_variable 1 }\n}\n[1] text "x"',
    ),
    ("defined-before-use", 1, "text: %4 is used before any op defines it", "text %4"),
    (
        "defined-before-use",
        4,
        "text: %1 is used outside the case that defines it (`gen` at <ir>:2)",
        'switch "a" {\n case "a" { %1 = gen }\n}\ntext %1',
    ),
    ("defined-once", 2, "gen: %1 is defined already (`gen` at <ir>:1)", "%1 = gen\n%1 = gen"),
    ("unicode", 1, "lone surrogate U+D800", 'set "x" ["\\ud800"]'),
    ("variable-name", 1, "the name of the variable is empty", '%1 = gen ""'),
    ("text-operand", 1, "text must be a string or a value, not 5", "text 5"),
    ("token-ids", 1, "-3 is no token id", 'tokens 1 -3 "x"'),
    ("media-kind", 1, "the source must be a path", "media image 3"),
    ("args-at-head", 2, "the arg op of 'a' stands after other ops", 'text "x"\n%1 = arg "a"'),
    ("args-at-head", 1, "the program has no parameter 'b'", '%1 = arg "b"'),
    ("args-at-head", 2, "a second arg op for 'a'", '%1 = arg "a"\n%2 = arg "a"'),
    ("sampling", 1, "unknown sampling option 'heat'", "%1 = gen sampling=(heat=1)"),
    ("sampling", 1, "must be sorted and given once: top_p, n", "%1 = gen sampling=(top_p=0.5, n=2)"),
    ("sampling", 1, "temperature: must be at least 0, not -1", "%1 = gen sampling=(temperature=-1)"),
    ("sampling", 1, "stop[0]: must be a non-empty string", '%1 = gen sampling=(stop=[""])'),
    ("logprobs", 1, "at most 20 top log-probs", "%1 = gen logprobs=(top=21)"),
    ("constraint", 1, "the source of a regex must be text, not 3", "%1 = gen constraint=regex(3)"),
    ("constraint", 1, "", '%1 = gen constraint=regex("[a")'),
    ("constraint", 1, "", '%1 = gen constraint=json_schema("{\\"type\\": \\"stsring\\"}")'),
    ("choices", 1, "it has no choices", "%1 = select \"a\" []"),
    ("choices", 1, "a choice is empty", '%1 = select "a" ["x", ""]'),
    ("choices", 1, "choices must be a list or a value, not 'abc'", '%1 = select "a" "abc"'),
    ("choices", 1, "a choice must be a string or a value, not 3", '%1 = select "a" [3]'),
    ("roles-flat", 1, "the role 'user' opens inside the role 'system'", 'role "system" { role "user" { text "x" } }'),
    (
        "roles-flat",
        3,
        "the role 'user' opens inside the role 'system'",
        'role "system" {\n fork 1\n [1] role "user" { text "x" }\n}',
    ),
    ("roles-flat", 1, "the role has no name", 'role "" { }'),
    ("role-fragments", 1, "it has only one of prefix and suffix", 'role "user" prefix="x" { }'),
    ("streams-made-once", 2, "stream 1 exists already", "fork 1\nfork 1"),
    ("streams-made-once", 1, "stream 2 exists already", "fork 2 2"),
    ("streams-made-once", 1, "a new stream cannot have the number 0", "copy 0"),
    ("streams-made-once", 1, "it makes no stream", "fork"),
    ("join-of-fork", 1, "it joins no stream", "join gather_variable"),
    ("join-of-fork", 1, "stream 9 is not open here", "join gather_variable 9"),
    ("join-of-fork", 2, "stream 1 was not made by a fork", "copy 1\njoin gather_variable 1"),
    ("join-of-fork", 3, "stream 2 is a branch of stream 1, not of stream 0", "fork 1\n[1] fork 2\njoin gather_variable 2"),
    ("join-of-fork", 3, "its streams come from different forks", "fork 1\nfork 2\njoin gather_variable 1 2"),
    ("join-of-fork", 2, "stream 1 is joined twice", "fork 1\njoin gather_variable 1 1"),
    ("branches", 1, "it has a count and 2 streams", "fork 1 2 count=2"),
    ("branches", 2, "stream 1 stands for all branches of a fork", 'fork 1 count=2\n[1] text "x"'),
    ("branches", 2, "stream 1 was not made by a fork with a count", "fork 1\n[1] branch 2 0"),
    ("streams-made-once", 2, "stream 1 exists already", "fork 1 count=2\n[1] branch 1 0"),
    ("join-of-fork", 3, "stream 2 was not made by a fork", "fork 1 count=2\n[1] branch 2 0\njoin gather_variable 2"),
    (
        "stream-open", 4, "another branch of its fork was named since",
        'fork 1 count=2\n[1] branch 2 0\n[1] branch 3 1\n[2] text "x"',
    ),
    ("expr-function", 1, "takes 2 arguments, not 1", '%1 = eq "a"'),
    ("expr-function", 1, "takes 1 to 2 arguments, not 3", '%1 = strip "a" "b" "c"'),
    ("expr-function", 1, "needs a name, not 3", "%1 = has 3"),
    ("loop", 1, "it has 0 params, and a round begins with 1 values", 'loop ["a"] { next }'),
    ("loop", 1, "it has 0 outs, and carries 1 values", "loop params=%1 inits=0 { next %1 }"),
    ("loop", 1, "it goes over a list or a value, not 3", "loop 3 params=%1 { next }"),
    ("loop", 1, "a path through its body ends without", 'loop { text "a" }'),
    ("loop-end", 1, "it stands in no loop", "next"),
    ("loop-end", 1, "it gives 1 values, and the loop carries 0", "loop { break 1 }"),
    ("host-function", 1, "it names no function", '%1 = host ""'),
    ("host-function", 1, "'.upper' needs the value that it is called on", '%1 = host ".upper"'),
    ("host-function", 1, "what it catches are names of exception classes", '%1 = host "m:f" catches=[3]'),
    ("variable-set", 2, "'x' is read before any op sets it; variables so far: 'a', 'b'", 'set "a" 1; set "b" 1\n%1 = get "x"'),
    ("variable-set", 3, "'x' is read before any op sets it", 'fork 1\n[1] set "x" 1\n%1 = get "x"'),
    ("cases", 1, "it has no cases", 'switch "a" { }'),
    ("truth", 2, "its operand need not be either", '%1 = gen\nswitch %1 {\n case true { }\n case false { }\n}'),
    ("truth", 1, "its operand need not be either", 'switch "a" {\n case true { }\n case false { }\n}'),
    ("cases", 1, "two cases for 'a'", 'switch "a" {\n case "a" { }\n case "a" { }\n}'),
]  # fmt: skip


def program_of(body: str) -> Program:
    return Program("p", (Param("a"),) if '= arg "a"' in body else (), parse_ops(body))


@pytest.mark.parametrize(("law", "line", "message", "body"), BROKEN)
def test_a_broken_law_is_named_with_its_line(law, line, message, body):
    with pytest.raises(VerifyError) as caught:
        verify(program_of(body))
    assert caught.value.rule == law
    assert message in caught.value.message
    assert caught.value.where.line == line


def test_every_law_is_broken_by_some_example():
    assert {law.name for law in LAWS} == {law for law, *_ in BROKEN}


def test_every_op_has_laws_and_an_effect():
    assert set(_AFTER) == set(OP_CLASSES.values()) == set(_LAWS_OF)
    assert len({law.name for law in LAWS}) == len(LAWS)
    for law in LAWS:
        assert law.promise.endswith(".")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ((Param("a"), Param("a")), "two parameters are called 'a'"),
        ((Param("not a name"),), "'not a name' is not a name for a parameter"),
        ((Param("a", default=3),), "has a default value but no default"),
        ((Param("a", True, 1), Param("b")), "the parameter 'b' without a default follows one with a default"),
        ((Param("a", keyword_only=True), Param("b")), "the positional parameter 'b' follows a keyword-only one"),
        ((Param("a"),), "no arg op for the parameter 'a'"),
    ],
)
def test_parameters_have_laws_too(params, message):
    body = tuple(Arg(out=Ref(i), param=param.name) for i, param in enumerate(params)) if len(params) > 1 else ()
    with pytest.raises(VerifyError, match=message):
        verify(Program("p", params, body))


def test_an_unknown_function_is_refused():
    with pytest.raises(VerifyError, match="no function 'eval'"):
        verify(Program("p", body=(Expr(out=Ref(0), fn="eval", args=("1",)),)))


LEGAL = [
    'role "assistant" { %1 = select "label" ["a", "b"] }\n%2 = eq %1 "a"',  # a role's values outlive it
    'fork 1 2\n[1] %1 = gen "x"\njoin gather_variable 1 2\n%2 = get "x"',
    'switch "a" {\n case "a" { set "x" 1 }\n}\n%1 = get "x"',  # set on one path: only a run can tell
    'switch "a" {\n case "a" { return 1 }\n}\ntext "x"',
    'switch true {\n case true { opaque "loop" }\n case false { text "b" }\n}\ntext "x"',
    'fork 1 2\njoin gather_variable 1\n[2] text "x"\njoin concate_and_append 2',
    'role "user" {\n fork 1\n [1] text "x"\n}\nrole "user" { text "y" }\njoin concate_and_append 1',
    'set "s" [true, 1, 1.0]\nswitch 1 {\n case true { }\n case 1 { }\n case 1.0 { }\n}',
    '%1 = scope "t" { text "x" }\ntext %1\n%2 = get "t"',
    '%1 = gen sampling=(stop=["a", "b"], temperature=0)',
]


@pytest.mark.parametrize("body", LEGAL)
def test_legal_programs_pass(body):
    assert diagnose(program_of(body)) == []


def test_diagnose_lists_every_broken_law_in_order():
    errors = diagnose(program_of('text %7\n%1 = select "a" []\n[4] text 5'))
    assert [(error.rule, error.where.line) for error in errors] == [
        ("defined-before-use", 1),
        ("choices", 2),
        ("stream-open", 3),
        ("text-operand", 3),
    ]


@settings(max_examples=200, deadline=None)
@given(programs(constraints=False))
def test_random_programs_are_legal(program):
    assert diagnose(program) == []


def test_choices_may_be_values_and_a_whole_program_passes():
    program = parse_program(
        'program p(a) {\n  %0 = arg "a"\n  %1 = select "x" %0\n  %2 = select "y" [%0, "no"]\n  return %1\n}'
    )
    assert verify(program) is program
