"""The rewritten copy: read from the file as it stands there, made once for each code object."""

import textwrap

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.ir import Tokens, walk
from dslc.compiler.printer import print_program
from dslc.compiler.tracing import rewrite as rewriting
from dslc.compiler.tracing.source import statements


def ids(function):
    """The parameters and the last line of what is read of a function."""
    (node,) = statements(function)
    return [arg.arg for arg in node.args.args], node.body[-1].end_lineno - node.lineno


def decorated(*names):
    return lambda function: function


# fmt: off
def plain(s):
    return 1


def with_comments(s):
    s += "x"
# a comment at the margin
    return s  # the end


@decorated(
    "several",
    "lines",
)
def with_header(
    s,
    other="""
a default that begins at the margin""",
):
    return (
other
    )


def with_text(s):
    s += """
def inside_a_string(s):
"""
    return [
1,
]
# fmt: on


@pytest.mark.parametrize(
    ("function", "names", "length"),
    [(plain, ["s"], 1), (with_comments, ["s"], 3), (with_header, ["s", "other"], 7), (with_text, ["s"], 6)],
)
def test_a_function_is_read_to_its_end(function, names, length):
    assert ids(function) == (names, length)


def test_functions_are_read_as_inspect_reads_them():
    import ast
    import inspect

    import dslc.compiler.check as some_module

    functions = [
        f for f in vars(some_module).values() if inspect.isfunction(f) and f.__module__ == some_module.__name__
    ]
    assert len(functions) > 10
    for function in functions:
        (node,) = statements(function)
        (other,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert ast.dump(node) == ast.dump(other)
        assert node.lineno == function.__code__.co_firstlineno + len(node.decorator_list)


def test_text_of_several_lines_in_a_nested_function_stays_as_it_is():
    @dslc.function
    def program(s, name):
        s += f"""Rules:
            - be kind to {name}
          - be brief
        """

    text = program.run(name="Mia", backend=ScriptedBackend([]), compiled=False).text()
    assert text.splitlines()[1] == "            - be kind to Mia"
    assert program.run(name="Mia", backend=ScriptedBackend([]), compiled=True).text() == text


def test_a_function_is_rewritten_once_for_all_its_traces(monkeypatch):
    made = []
    real = rewriting._rewritten
    monkeypatch.setattr(
        rewriting, "_rewritten", lambda function, *rest: made.append(function.__name__) or real(function, *rest)
    )

    def helper(s, word):
        s += f"<{word}>"

    def body(s, word, times=2):
        for _ in range(times):
            helper(s, word)

    first = dslc.function(body).compile()
    assert made == ["body", "helper"]
    three = dslc.function(body).bind(times=3).compile()
    assert made == ["body", "helper"]
    assert print_program(first) != print_program(three)


def test_equal_code_of_two_closures_keeps_what_each_holds():
    def make(word):
        def program(s):
            s += word + "!"
            s += ",".join([part.upper() for part in [word, "b"]])

        return dslc.function(program)

    texts = [[op.text for op in walk(make(word).compile().body) if not isinstance(op, Tokens)] for word in ("a", "z")]
    assert texts == [["a!", "A,B"], ["z!", "Z,B"]]


def test_a_lambda_reads_the_globals_as_they_are(monkeypatch):
    def program(s, words):
        s += ",".join(sorted(words, key=lambda word: SIGN * len(word)))

    backend, function = ScriptedBackend([]), dslc.function(program)
    assert function.run(words=["a", "bb"], backend=backend).text() == "bb,a"
    monkeypatch.setitem(globals(), "SIGN", 1)
    assert function.run(words=["a", "bb"], backend=backend).text() == "a,bb"


SIGN = -1
