"""Schemas of older drafts mean what they meant: verdicts are those of jsonschema's validator for that draft."""

from __future__ import annotations

import json

import jsonschema
import pytest
from support.constraint_support import small_vocabulary

from dslc.compiler.constraints import compile_constraint, source_of_schema
from dslc.core.constraint import Constraint

SEVEN = {"$schema": "http://json-schema.org/draft-07/schema#"}
FOUR = {"$schema": "http://json-schema.org/draft-04/schema#"}
SCHEMAS: dict[str, dict[str, object]] = {
    "definitions": {**SEVEN, "definitions": {"n": {"type": "integer"}}, "items": {"$ref": "#/definitions/n"}},
    "siblings of a reference": {
        **SEVEN, "definitions": {"n": {"type": "integer"}},
        "properties": {"a": {"$ref": "#/definitions/n", "minimum": 5}},
    },
    "tuple": {**SEVEN, "type": "array", "items": [{"type": "integer"}, {"type": "string"}],
              "additionalItems": {"type": "null"}},
    "closed tuple": {**SEVEN, "items": [{"type": "integer"}], "additionalItems": False},
    "dependencies": {**SEVEN, "dependencies": {"a": ["b"], "c": {"properties": {"a": {"type": "null"}}}}},
    "if": {**SEVEN, "if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": ["string", "object"]}},
    "contains": {**SEVEN, "type": "array", "contains": {"const": 1}},
    "exclusive": {**SEVEN, "type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 12},
    "prefixItems means nothing yet": {**SEVEN, "type": "array", "prefixItems": [{"type": "integer"}], "maxItems": 2},
    "names": {**SEVEN, "propertyNames": {"enum": ["a", "b"]}},
    "exclusive, a flag": {**FOUR, "type": "number", "minimum": 1, "exclusiveMinimum": True, "maximum": 5},
    "recursive by id": {
        **SEVEN, "$id": "http://example.com/tree.json", "type": "object", "required": ["v"],
        "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    },
}  # fmt: skip
VALUES: list[object] = [
    None, True, 0, 1, 2, 3, 5, 7, 12, 1.5, 5.5, "", "a", {}, {"a": 1}, {"a": 7}, {"a": None}, {"a": "x"}, {"b": 1},
    {"a": 1, "b": 2}, {"c": 1}, {"a": None, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 0}, {"d": 1}, {"v": 1},
    {"v": 1, "kids": [{"v": 2}]}, {"v": 1, "kids": [{"w": 2}]}, [], [1], ["x"], [1, "x"], [1, "x", None], [1, "x", 2],
    [2, 1], [1, 2, 3], [[1]], [None],
]  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_verdicts_are_those_of_the_draft(name):
    schema = SCHEMAS[name]
    compiled = compile_constraint(Constraint("json_schema", source_of_schema(schema)), small_vocabulary())
    validator = jsonschema.validators.validator_for(schema)(schema)
    verdicts = {}
    for value in VALUES:
        state = compiled.index.step_bytes(compiled.index.automaton.start, json.dumps(value).encode())
        taken = state >= 0 and compiled.index.automaton.accepting(state)
        verdicts[json.dumps(value)] = (taken, validator.is_valid(value))
    assert {text: pair for text, pair in verdicts.items() if pair[0] != pair[1]} == {}
    assert len({valid for _, valid in verdicts.values()}) == 2
