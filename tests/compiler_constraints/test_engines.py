"""Engines behind one interface: the same constraint means the same language, whichever serves it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import jsonschema
import pytest
from support.constraint_support import mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import compile_constraint, source_of_schema
from dslc.compiler.constraints.compile import ConstraintCache, compile_automaton
from dslc.compiler.constraints.engines import constraint_engine, engine_names, register_engine, unregister_engine
from dslc.core.constraint import Constraint
from dslc.core.errors import ConfigError, ConstraintError

OTHERS = ["llguidance", "xgrammar", "outlines"]
PACKAGES = {"outlines": "outlines_core"}

# Each with values; keys in schema order, numbers in their shortest spelling.
AGREED: dict[str, tuple[object, list[object]]] = {
    "closed": (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        [{"name": "Ada", "age": 36}, {"name": "", "age": -1, "ok": True}, {"name": "x"}, {"age": 1},
         {"name": 1, "age": 1},
         {"name": "x", "age": 1, "z": 1}, {"name": "x", "age": "1"}, [], None],
    ),
    "enum": ({"enum": ["red", "green", 3, None]}, ["red", "green", 3, None, "blue", 4, True, []]),
    "bounds": ({"type": "integer", "minimum": 3, "maximum": 120}, [3, 120, 2, 121, 10, 99, "3", None]),
    "length": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü", "a", "abcd", "", 12]),
    "pattern": ({"type": "string", "pattern": "^[a-c]+[0-9]$"}, ["a1", "abc9", "1", "d1", "a12"]),
    "array": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        [[1], [1, 2, 3], [], [1, 2, 3, 4], ["a"], {}],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
        [[True, None], [True], [None, True], [True, None, 1]],
    ),
    "any-of": (
        {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"const": "x"}}]},
        [True, False, ["x"], ["x", "x"], [], ["y"], "x", None],
    ),
    "recursive": (
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/n"}},
                    "required": ["v"],
                    "additionalProperties": False,
                }
            },
        },
        [{"v": None}, {"v": None, "next": {"v": None}}, {"v": None, "next": {}}, {"next": {"v": None}}],
    ),
}  # fmt: skip


def schema_constraint(schema: object, **options: str) -> Constraint:
    return Constraint("json_schema", source_of_schema(schema), tuple(sorted(options.items())))


def accepts(compiled, vocabulary, text: bytes) -> bool:
    """Whether a text goes through byte by byte and may end."""
    matcher = compiled.start()
    for byte in text:
        try:
            matcher.advance(vocabulary.token_bytes.index(bytes([byte])))
        except ConstraintError:
            return False
    return matcher.is_accepting


@pytest.fixture(params=["automaton", *OTHERS])
def backend(request):
    if request.param != "automaton":
        pytest.importorskip(PACKAGES.get(request.param, request.param))
    return request.param


@pytest.mark.parametrize("style", ["spaced", "compact"])
@pytest.mark.parametrize("name", AGREED)
def test_every_engine_gives_the_language_of_jsonschema(backend, name, style):
    schema, values = AGREED[name]
    vocabulary = small_vocabulary()
    compiled = compile_constraint(schema_constraint(schema, whitespace=style), vocabulary, backend=backend)
    assert compiled.stats.engine == backend
    validator = jsonschema.Draft202012Validator(schema)
    separators = {"spaced": (", ", ": "), "compact": (",", ":")}[style]
    for value in values:
        text = json.dumps(value, ensure_ascii=False, separators=separators).encode()
        taken, valid = accepts(compiled, vocabulary, text), validator.is_valid(value)
        assert taken == valid or (taken and (backend, name) == ("outlines", "bounds")), text  # it knows no bounds
    exact = backend != "xgrammar" and (backend, name) != ("outlines", "bounds")
    for seed in range(5 if exact else 0):  # XGrammar lets control characters stand in strings as they are
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 120, closing_after=25)
        assert not complete or validator.is_valid(json.loads(data)), data


@pytest.mark.parametrize("pattern", ["[a-c]{2,4}(x|yz)?", "(0|[1-9][0-9]*)(\\.[0-9]+)?", "(foo|bar)+é"])
def test_every_engine_gives_the_language_of_re(backend, pattern):
    vocabulary = small_vocabulary()
    compiled = compile_constraint(Constraint("regex", pattern), vocabulary, backend=backend)
    for text in ("ab", "abcax", "abx", "abyz", "a", "0", "0.25", "01", "10.", "12.5", "fooé", "foobaré", "foo", ""):
        assert accepts(compiled, vocabulary, text.encode()) == bool(re.fullmatch(pattern, text)), text


def test_every_engine_gives_the_language_of_a_grammar(backend):
    source = 'root ::= sum\nsum ::= term ("+" term)*\nterm ::= [0-9]+ | "(" sum ")"'
    vocabulary = small_vocabulary()
    if backend == "outlines":
        with pytest.raises(ConstraintError, match="does not serve"):
            compile_constraint(Constraint("ebnf", source), vocabulary, backend=backend)
        return
    compiled = compile_constraint(Constraint("ebnf", source), vocabulary, backend=backend)
    good = ["1", "12+3", "(1)", "((1+2))+3", "1+(2+3)+4"]
    bad = ["", "+", "1+", "(1", "1)", "a", "()", "1++2"]
    assert [accepts(compiled, vocabulary, t.encode()) for t in good] == [True] * len(good)
    assert [accepts(compiled, vocabulary, t.encode()) for t in bad] == [False] * len(bad)


def test_every_engine_keeps_the_matcher_s_promises(backend):
    schema, _ = AGREED["closed"]
    vocabulary = small_vocabulary(3)
    compiled = compile_constraint(schema_constraint(schema), vocabulary, backend=backend)
    for seed in range(6):
        rng = random.Random(seed)
        matcher = compiled.start()
        history = []
        for count in range(60):
            history.append((matcher.state_key, allowed := mask_of(matcher, vocabulary.size)))
            for token in allowed:  # EOS exactly where the text may end, nothing without bytes
                assert (token in vocabulary.eos_ids) == (vocabulary.token_bytes[token] is None)
            assert any(t in vocabulary.eos_ids for t in allowed) == matcher.is_accepting
            refused = rng.choice([t for t in range(vocabulary.size) if t not in allowed])
            with pytest.raises(ConstraintError):
                matcher.advance(refused)
            closers = [t for t in allowed if vocabulary.token_bytes[t] in (None, b"}", b'"')]
            matcher.advance(rng.choice(closers if closers and count > 20 else allowed))
            if matcher.is_terminated:
                break
        assert matcher.is_terminated and matcher.must_stop and mask_of(matcher, vocabulary.size) == []
        twin = matcher.copy()
        back = rng.randrange(1, len(history))
        matcher.rollback(back)
        assert (matcher.state_key, mask_of(matcher, vocabulary.size)) == history[-back]
        assert twin.is_terminated and not matcher.is_terminated
        matcher.rollback(len(history) - back)
        assert mask_of(matcher, vocabulary.size) == history[0][1]
        with pytest.raises(ConstraintError, match="roll back"):
            matcher.rollback(1)


def test_forced_tokens_of_llguidance_are_allowed_one_after_another():
    pytest.importorskip("llguidance")
    schema, _ = AGREED["closed"]
    vocabulary = small_vocabulary(6)

    def encode(text: str) -> list[int]:
        return [vocabulary.token_bytes.index(bytes([b])) for b in text.encode()]

    compiled = ConstraintCache().get(schema_constraint(schema), vocabulary, encode=encode, backend="llguidance")
    matcher = compiled.start()
    forced = matcher.forced()
    assert forced and b'{"name": "'.startswith(b"".join(vocabulary.token_bytes[t] for t in forced))
    for token in forced:
        matcher.advance(token)


@pytest.mark.parametrize("name", OTHERS)
def test_what_an_engine_refuses_is_refused_with_its_name(name):
    pytest.importorskip(PACKAGES.get(name, name))
    vocabulary = small_vocabulary()
    refused = [
        Constraint("regex", "("),
        Constraint("ebnf", 'root ::= "a'),
        Constraint("json_schema", '{"type": "strin"}'),
        Constraint("json_schema", "{}", (("format", "annotate"),)),
    ]
    for constraint in refused:
        with pytest.raises(ConstraintError, match=name) as caught:
            compile_constraint(constraint, vocabulary, backend=name)
        assert caught.value.field == constraint.kind


def test_a_toy_engine_is_registered_used_and_taken_back():
    vocabulary = small_vocabulary()
    asked = []

    def compile_toy(constraint, vocabulary, encode):
        asked.append(constraint)
        return compile_automaton(Constraint("regex", constraint.source.replace("toy", "ball")), vocabulary, encode)

    register_engine("toy", compile_toy, kinds={"regex"})
    try:
        assert "toy" in engine_names()
        with pytest.raises(ValueError, match="already"):
            register_engine("toy", compile_toy)
        compiled = compile_constraint(Constraint("regex", "a toy"), vocabulary, backend="toy")
        assert accepts(compiled, vocabulary, b"a ball") and len(asked) == 1
        assert compile_constraint(Constraint("regex", "a toy"), vocabulary, backend="toy") is compiled
        assert accepts(compile_constraint(Constraint("regex", "a toy"), vocabulary), vocabulary, b"a toy")
        with pytest.raises(ConstraintError, match="does not serve"):
            compile_constraint(Constraint("ebnf", 'root ::= "a"'), vocabulary, backend="toy")
    finally:
        unregister_engine("toy")
    with pytest.raises(ConfigError, match=r"unknown backend 'toy'; choices: auto, automaton, llguidance"):
        constraint_engine("toy")
    for name in ("auto", "none", "automaton", "xgrammar", "outlines"):
        with pytest.raises(ValueError, match="already"):
            register_engine(name, compile_toy)


def test_engines_of_other_packages_are_imported_when_asked_for():
    code = (
        "import sys; from dslc.compiler.constraints import compile_constraint, engines;"
        "engines.constraint_engine('auto');"
        "engines.engine_names(); later = {'llguidance', 'xgrammar', 'outlines_core', 'torch', 'lark'};"
        "assert not later & set(sys.modules), 'imported';"
        "sys.modules['llguidance'] = None\n"
        "try: engines.constraint_engine('llguidance')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"ConfigError grammar_backend: 'llguidance' is not installed .*pip install", done.stdout)


@pytest.mark.parametrize(
    "pattern", [r"(0|[1-9][0-9]*)(\.[0-9]+)?", "#([0-9a-f]{6}|[0-9a-f]{3})", "a|ab?c*|[^x]y", "(ab)*é?"]
)
def test_an_index_of_outlines_core_offers_what_leads_on_from_where_a_text_may_end(pattern):
    """Its masks are those of our automaton at every state reached. (Alone it drops such tokens: after `0` no `.`.)"""
    pytest.importorskip("outlines_core")
    vocabulary = small_vocabulary()
    constraint = Constraint("regex", pattern)
    ours = compile_constraint(constraint, vocabulary)
    theirs = compile_constraint(constraint, vocabulary, backend="outlines")
    compared = 0
    for seed in range(12):
        rng, a, b = random.Random(seed), ours.start(), theirs.start()
        for _ in range(12):
            allowed = mask_of(a, vocabulary.size)
            with_zero = [t for t in allowed if b"\0" in (vocabulary.token_bytes[t] or b"")]  # stands for the end there
            assert [t for t in allowed if t not in with_zero] == mask_of(b, vocabulary.size)
            assert a.is_accepting == b.is_accepting
            token = rng.choice([t for t in allowed if t not in with_zero])
            a.advance(token)
            b.advance(token)
            compared += 1
            if a.is_terminated:
                break
    assert compared >= 24


def test_an_index_that_would_be_too_large_is_refused():
    pytest.importorskip("outlines_core")
    constraint = Constraint("regex", ".{1,500000}")
    with pytest.raises(ConstraintError, match="outlines: an index of 500000 positions"):
        compile_constraint(constraint, small_vocabulary(), backend="outlines")
