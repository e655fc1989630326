"""Our automata, llguidance and XGrammar on the same schemas: where they do not agree, jsonschema is on our side."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from decimal import Decimal

import jsonschema
import pytest
from support.constraint_support import random_walk, small_vocabulary
from support.differential import BYTES, compare, takes, text_of

from dslc.compiler.constraints import compile_constraint, source_of_schema
from dslc.compiler.constraints.engines import OWN, constraint_engine
from dslc.core.constraint import Constraint
from dslc.core.errors import ConfigError, ConstraintError

SCHEMAS: dict[str, object] = {
    "types": {"type": ["string", "null", "integer"]},
    "number": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 12.25},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0},
    "enum": {"enum": ["a", 1, None, {"a": 1}, [1, "b"], True]},
    "const": {"const": {"a": [1, {"b": None}]}},
    "length": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^a.*z$|^\\d{2}"},
    "search": {"type": "string", "pattern": "b"},
    "date": {"type": "string", "format": "date"},
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "open": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
    "bare": {"properties": {"a": {"type": "integer"}}},
    "required": {"type": "object", "required": ["b"]},
    "patterns": {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
    "names": {"type": "object", "propertyNames": {"maxLength": 1}},
    "sizes": {"type": "object", "minProperties": 1, "maxProperties": 2},
    "dependent": {"dependentRequired": {"a": ["b"]}},
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "unique": {"type": "array", "uniqueItems": True, "items": {"enum": [1, "b", None]}},
    "any-of": {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 1}]},
    "one-of": {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "multipleOf": 3}]},
    "all-of": {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 6}]},
    "not": {"not": {"type": ["integer", "object"]}},
    "if": {
        "type": "object",
        "properties": {"a": {"type": ["integer", "string"]}},
        "if": {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "then": {"required": ["b"]},
        "else": {"required": ["c"]},
    },
    "recursive": {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["v"],
        "additionalProperties": False,
    },
}
VALUES: list[object] = [
    None, True, False, 0, 1, 2, 3, 5, 6, 7, 14, -1, -1.5, 0.5, 12.25, 12.5, 1000, "", "a", "b", "ab", "abcde", "az",
    "aéz", "12", "1b2", 'q"\\\n', "😀x", "2024-02-29", "2023-02-29", {}, {"a": 1}, {"a": 2}, {"a": "x"}, {"a": None},
    {"b": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": None}, {"b": "x", "c": None}, {"c": None},
    {"a": 1, "c": True}, {"zz": 0}, {"a": 1, "zz": True}, {"ab": 1}, {"ab": "s"}, {"a": 1, "b": 2, "c": 3}, {"v": 1},
    {"v": 1, "kids": []}, {"kids": []}, {"v": 1, "kids": [{"v": 2, "kids": [{"v": 3}]}, {"v": 4}]},
    {"v": 1, "kids": [{"w": 3}]}, {"a": [1, {"b": None}]}, {"a": [1, {"b": 1}]}, {"é": True}, [], [1], ["b"], [1, "b"],
    [1, "b", None], [1, 1], [1, 2, 3], [1, 2, 3, 4], ["b", "b"], [None, 1], [[1], [1]], ["x"], [1, "x", 2],
]  # fmt: skip


@pytest.fixture(scope="module")
def others():
    names = []
    for name in ("llguidance", "xgrammar"):
        try:
            constraint_engine(name)
            names.append(name)
        except ConfigError as error:
            print(f"{name} is left out: {error}")
    if not names:
        pytest.skip("neither llguidance nor xgrammar is installed")
    return names


def checker(schema: object) -> jsonschema.Draft202012Validator:
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    return jsonschema.Draft202012Validator(exact, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", SCHEMAS)
def test_in_every_disagreement_jsonschema_is_on_our_side(name, others):
    validator = checker(SCHEMAS[name])
    instances = [(v, validator.is_valid(json.loads(json.dumps(v), parse_float=Decimal))) for v in VALUES]
    found = list(compare(name, SCHEMAS[name], instances, others, Counter()))
    for one in found:
        print(one)
    assert not [str(one) for one in found if not one.ours_is_right]


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_one_engine_writes_the_others_judge_as_jsonschema_does(name, others):
    """Random texts of each engine, read as values: ours takes the value if and only if it is valid."""
    validator = checker(SCHEMAS[name])
    constraint = Constraint("json_schema", source_of_schema(SCHEMAS[name]))
    ours = constraint_engine(OWN).compile(constraint, BYTES, None)
    vocabulary = small_vocabulary(2)
    for engine in (OWN, *others):
        try:
            compiled = compile_constraint(constraint, vocabulary, backend=engine)
        except ConstraintError:
            continue
        for seed in range(8):
            data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 60, closing_after=12)
            try:
                value = json.loads(data, parse_float=_number)
            except ValueError:
                assert not complete or engine == "xgrammar", data  # it lets control characters stand in strings
                continue
            if complete and not _repeats_a_key(data) and not _HUGE.search(data):
                valid = validator.is_valid(value)
                assert takes(ours, text_of(value, ours.index.automaton)) == valid, (engine, data)
                assert valid or engine == "xgrammar", (engine, data)


_HUGE = re.compile(rb"[0-9][eE][+-]?0*[1-9][0-9]")  # exponents of two digits: not spelled out


def _number(text: str) -> Decimal | int:
    """jsonschema takes a Decimal for no integer."""
    value = Decimal(text)
    small = len(text) < 80 and abs(value.adjusted()) < 80
    return int(value) if small and value == value.to_integral_value() else value


def _repeats_a_key(data: bytes) -> bool:
    found = []

    def pairs(items):
        found.append(len({key for key, _ in items}) < len(items))
        return dict(items)

    json.loads(data, object_pairs_hook=pairs)
    return any(found)
