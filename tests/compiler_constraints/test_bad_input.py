"""Hostile and mistaken constraints: each is refused with its reason, or compiles within bounds. Nothing is fetched."""

from __future__ import annotations

import json
import re
import socket

import jsonschema
import pytest
from support.constraint_support import mask_of, small_vocabulary

from dslc.compiler.constraints import check_constraint, compile_constraint
from dslc.compiler.constraints.compile import ConstraintCache, build_automaton
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

pytestmark = pytest.mark.timeout(60)  # a hang is a failure; each of these takes far less than a second

REGEXES = {
    "(": "position 0",
    "a{3,1}": "min repeat greater than max",
    "[z-a]": "range",
    "(?=a)b": "lookahead",
    "(?!a)b": "lookahead",
    "(?<=a)b": "lookbehind",
    r"(a)\1": "back",
    r"(?P<x>a)(?P=x)": "back",
    "(.{1,5000}){1,5000}": "too large",
    "((((a{1,99}){1,99}){1,99}){1,99}){1,99}": "too large",
    "(" * 300 + "a" + ")" * 300: "nested",
    "(" * 30_000 + "a" + ")" * 30_000: "nested|position|recursion",
    r"[^\s\S]": "matches no text",
    "a^b": "matches no text|start|anchor",
    ".*" + "a" + ".{20}": "too large",
    ".{0,60000}": "texts of more than 50000 characters",
    "(ab){30000}.*": "texts of more than 50000 characters",
}


@pytest.mark.parametrize("pattern", REGEXES, ids=lambda p: p[:24])
def test_regexes_that_are_refused(pattern):
    with pytest.raises(ConstraintError, match=f"(?i){REGEXES[pattern]}") as caught:
        check_constraint(Constraint("regex", pattern))
    assert caught.value.field == "regex" and len(str(caught.value)) < 400


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)*c", "(a*)*(a*)*d", "(.*a){8}", "([a-z]+)*1", "(x+x+)+y"])
def test_regexes_that_make_backtracking_engines_explode_are_small_here(pattern):
    compiled = compile_constraint(Constraint("regex", pattern), small_vocabulary())
    assert compiled.stats.num_states < 200
    automaton = compiled.index.automaton
    for text in ("aab", "aaac", "aad", "aaaaaaaa", "abc1", "xxy", "", "b"):
        state = automaton.start
        for byte in text.encode():
            state = automaton.step(state, byte) if state >= 0 else state
        assert (state >= 0 and automaton.accepting(state)) == bool(re.fullmatch(pattern, text))


def refused(schema: object, pointer: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        check_constraint(Constraint("json_schema", json.dumps(schema)))
    assert (caught.value.field, caught.value.pointer) == ("json_schema", pointer)


def test_schemas_that_are_refused_name_the_keyword():
    refused({"type": "stsring"}, "/type", "unknown type 'stsring'")
    refused({"type": "object", "properties": {"a": {"type": "int"}}}, "/properties/a/type", "unknown type 'int'")
    refused({"items": {"minItems": -1}}, "/items/minItems", "non-negative")
    refused({"pattern": "(?=a)"}, "/pattern", "look")
    refused({"type": "string", "minLength": 3, "maxLength": 2}, "", "no value meets")
    refused({"allOf": [{"type": "string"}, {"type": "integer"}]}, "", "no value meets")
    refused({"properties": {"a": {"enum": []}}, "required": ["a"], "type": "object"}, "", "no value meets")
    refused({"$ref": "#"}, "", "refers to itself")
    refused({"minLength": 1.5}, "/minLength", "not 1.5$")
    refused({"type": "integer", "multipleOf": 999983}, "/multipleOf", "remainders")
    refused({"items": {"enum": [[i, i] for i in range(1001)]}}, "/items/enum", "1000 arrays and objects")
    with pytest.raises(ConstraintError, match=r"^json_schema: at '': NaN is not JSON$"):
        check_constraint(Constraint("json_schema", '{"minimum": NaN}'))


def test_remote_references_are_refused_and_never_fetched(monkeypatch):
    def fetch(*arguments, **options):
        raise AssertionError("the network was asked")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, fetch)
    monkeypatch.setattr(socket.socket, "connect", fetch)
    for target in ("http://example.com/s.json", "https://example.com/a#/b", "file:///etc/passwd", "other.json"):
        refused({"properties": {"x": {"$ref": target}}}, "/properties/x/$ref", re.escape(target))


def test_large_schemas_compile_in_bounds():
    for schema in (
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**6},
        {"type": "string", "maxLength": 10**9},
        {"type": "object", "minProperties": 1, "maxProperties": 10**6},
        {"enum": [f"v{i}" for i in range(20_000)]},
        {"properties": {f"p{i}": {"type": "integer"} for i in range(3000)}, "type": "object"},
        {"type": "integer", "multipleOf": 3600},
        {"oneOf": [{"type": "object", "properties": {"k": {"const": f"kind {i}"}, "v": {"type": "string"}},
                    "required": ["k"]} for i in range(300)]},
    ):  # fmt: skip
        compiled = ConstraintCache().get(Constraint("json_schema", json.dumps(schema)), small_vocabulary())
        assert mask_of(compiled.start(), small_vocabulary().size)
        assert compiled.stats.num_bytes < 64 * 2**20


def test_an_enum_of_a_hundred_thousand():
    source = json.dumps({"enum": [f"value number {i}" for i in range(100_000)]})
    compiled = ConstraintCache().get(Constraint("json_schema", source), small_vocabulary())
    automaton = compiled.index.automaton
    for text, right in (('"value number 99999"', True), ('"value number 100000"', False), ('"value number 7"', True)):
        state = automaton.start
        for byte in text.encode():
            state = automaton.step(state, byte) if state >= 0 else state
        assert (state >= 0 and automaton.accepting(state)) == right


def test_many_distinct_schemas_and_grammars_in_a_row_do_not_grow_without_bound():
    vocabulary = small_vocabulary()
    cache = ConstraintCache(max_bytes=4 * 2**20)
    for i in range(400):
        schema = {"type": "object", "properties": {f"name{i}": {"type": "string", "maxLength": 5 + i % 7}}}
        for constraint in (
            Constraint("json_schema", json.dumps(schema)),
            Constraint("ebnf", f'root ::= "value {i} " (root | [a-z]{{1,{1 + i % 9}}})'),
        ):
            matcher = cache.get(constraint, vocabulary).start()
            for _ in range(3):
                matcher.advance(mask_of(matcher, vocabulary.size)[0])
    counters = cache.counters
    assert counters.compiled == 800 and counters.evicted > 100
    assert counters.num_bytes < 6 * 2**20


def test_a_url_as_long_as_pydantic_has_them():
    """370,000 states: an automaton of URIs, for each number of characters that are left."""
    compiled = build_automaton(Constraint("json_schema", '{"type": "string", "format": "uri", "maxLength": 2083}'))
    for text, right in (("http://a.org/" + "b" * 2070, True), ("http://a.org/" + "b" * 2071, False), ("a b", False)):
        state = compiled.start
        for byte in json.dumps(text).encode():
            state = compiled.step(state, byte) if state >= 0 else state
        assert (state >= 0 and compiled.accepting(state)) == right


def test_options_are_told_apart_by_their_tags_as_jsonschema_does():
    """Exactly one of several, where constants tell most of them apart, and some of them not."""
    values = [["a"], ["a", "b"], [1], [True], [1.0], [None], ["b", 2], [False], [0]]
    options = [{"type": "object", "properties": {"k": {"enum": v}}, "required": ["k"]} for v in values]
    options += [{"$ref": "#/$defs/c"}, {"properties": {"k": {"const": "d"}}, "required": ["k"]}]
    schema = {"$defs": {"c": {"$ref": "#/$defs/d"}, "d": {"type": "object", "required": ["k"],
              "properties": {"k": {"const": "c"}}}}, "oneOf": options}  # fmt: skip
    automaton = build_automaton(Constraint("json_schema", json.dumps(schema)))
    checker, taken = jsonschema.Draft202012Validator(schema), 0
    for value in ("a", "b", "c", "d", 0, 1, 2, 3, True, False, None):
        state = automaton.start
        for byte in json.dumps({"k": value}).encode():
            state = automaton.step(state, byte) if state >= 0 else state
        accepted = state >= 0 and automaton.accepting(state)
        assert accepted == checker.is_valid({"k": value}), value
        taken += accepted
    assert 2 < taken < 9
