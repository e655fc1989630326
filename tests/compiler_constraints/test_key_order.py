"""`key_order="any"`: every order of the keys is accepted, and nothing else changes."""

from __future__ import annotations

import itertools
import json
import random

import jsonschema
import pytest
from support.constraint_support import random_walk, small_vocabulary

from dslc.compiler.constraints import check_constraint, compile_constraint, source_of_schema
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

SCHEMAS = {
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["a", "c"],
        "additionalProperties": False,
    },
    "open": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": {"type": "null"},
    },
    "sized": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "minProperties": 2,
        "maxProperties": 2,
    },
    "conditional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"required": ["c"]},
        "additionalProperties": False,
    },
    "patterns": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {"^b": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
VALUES = [1, 2, True, None]


def any_order(schema: object) -> Constraint:
    return Constraint("json_schema", source_of_schema(schema), (("key_order", "any"),))


@pytest.mark.parametrize("name", SCHEMAS)
def test_verdicts_equal_jsonschema_in_every_order(name):
    automaton = compile_constraint(any_order(SCHEMAS[name]), small_vocabulary()).index.automaton
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])

    def accepts(text: bytes) -> bool:
        state = automaton.start
        for byte in text:
            state = automaton.step(state, byte)
            if state < 0:
                return False
        return automaton.accepting(state)

    verdicts = {True: 0, False: 0}
    for size in range(4):
        for keys in itertools.permutations("abc", size):
            for values in itertools.product(VALUES, repeat=size):
                value = dict(zip(keys, values, strict=True))
                expected = validator.is_valid(value)
                assert accepts(json.dumps(value).encode()) == expected, value
                verdicts[expected] += 1
    assert min(verdicts.values()) > 3
    assert not accepts(b'{"a": 1, "a": 1}')


@pytest.mark.parametrize("name", SCHEMAS)
def test_completed_walks_validate_and_use_many_orders(name):
    vocabulary = small_vocabulary(3)
    compiled = compile_constraint(any_order(SCHEMAS[name]), vocabulary)
    orders = set()
    for seed in range(60):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 150, closing_after=40)
        if complete:
            jsonschema.validate(json.loads(data), SCHEMAS[name])
            orders.add(tuple(json.loads(data)))
    assert len(orders) > 1


def test_large_objects_are_refused_with_their_pointer():
    names = {f"p{i}": {"type": "integer"} for i in range(17)}
    with pytest.raises(ConstraintError, match="key_order='any' with more than 16") as caught:
        check_constraint(any_order({"type": "object", "properties": {"x": {"type": "object", "properties": names}}}))
    assert caught.value.pointer == "/properties/x"
    small = any_order({"type": "object", "properties": dict(list(names.items())[:16]), "required": [*names][:16]})
    check_constraint(small)
