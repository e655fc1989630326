"""JSON Schemas: verdicts are jsonschema's, completed walks validate, masks equal brute force, refusals say where."""

from __future__ import annotations

import datetime
import json
import random
from decimal import Decimal

import jsonschema
import pytest
from support.constraint_support import mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import check_constraint, compile_constraint, source_of_schema
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, object] = {
    "true": True,
    "type": {"type": ["string", "null"]},
    "integer": {"type": "integer"},
    "bounds": {"type": "integer", "minimum": -12, "exclusiveMaximum": 103},
    "decimal-bounds": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 12.25},
    "multiple": {"type": "integer", "multipleOf": 7},
    "cents": {"type": "number", "multipleOf": 0.25, "minimum": 0},
    "enum": {"enum": ["a", 1, None, {"a": 1}, [1, "b"], True]},
    "const": {"const": {"a": [1, {"b": None}]}},
    "length": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^a.*z$|^\\d{2}"},
    "pattern-search": {"type": "string", "pattern": "b"},
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "open": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
    "required-only": {"type": "object", "required": ["b"]},
    "patterns": {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 2}}},
    "names": {"type": "object", "propertyNames": {"maxLength": 1}},
    "sizes": {"type": "object", "minProperties": 1, "maxProperties": 2},
    "dependent": {
        "dependentRequired": {"a": ["b"]},
        "dependentSchemas": {"c": {"properties": {"a": {"type": "null"}}}},
    },
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 1},
    "contains": {"type": "array", "contains": {"type": "integer"}, "maxContains": 2, "maxItems": 3},
    "unique": {"type": "array", "uniqueItems": True, "items": {"enum": [1, "b", None]}},
    "unique-any": {"type": "array", "uniqueItems": True},
    "any-of": {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "multipleOf": 3}, {"type": "string"}]},
    "one-of": {"oneOf": [{"type": "integer", "minimum": 5}, {"multipleOf": 3}]},
    "one-of-objects": {
        "type": "object",
        "oneOf": [
            {"properties": {"a": {"const": 1}, "b": {"type": "string"}}, "required": ["a", "b"]},
            {"properties": {"a": {"const": 2}, "c": {"type": "null"}}, "required": ["a", "c"]},
            {"required": ["zz"]},
        ],
    },
    "all-of": {
        "allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 2}}}],
        "required": ["a"],
    },
    "not": {"not": {"type": ["integer", "object"]}},
    "not-object": {"type": "object", "not": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    "not-array": {"type": "array", "not": {"items": {"type": "integer"}}},
    "if": {
        "type": "object",
        "properties": {"a": {"type": ["integer", "string"]}},
        "if": {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "then": {"required": ["b"]},
        "else": {"required": ["c"]},
    },
    "recursive": TREE,
    "recursive-array": {"type": "array", "items": {"$ref": "#"}},
    "recursive-choice": {"anyOf": [{"type": "integer"}, {"type": "array", "maxItems": 2, "items": {"$ref": "#"}}]},
    "unevaluated": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "anyOf": [{"properties": {"b": {"type": "string"}}, "required": ["b"]}, {"properties": {"c": True}}],
        "unevaluatedProperties": False,
    },
    "unevaluated-items": {
        "prefixItems": [{"type": "integer"}],
        "contains": {"type": "string"},
        "unevaluatedItems": False,
    },
}

# Random text seldom happens to be what these need.
RARELY_ENDED = {"pattern", "pattern-search", "required-only", "one-of-objects", "if"}

SCALARS = [None, True, False, 0, 1, 2, 3, 5, 6, 7, 14, 15, -12, -13, 102, 103, 0.25, 0.5, 0.75, 12.25, 12.5, 1.1, 1e3,
           "", "a", "b", "ab", "abc", "abcd", "abcde", "az", "aéz", "12", "1b2", 'q"\\\n', "\x01", "😀x"]  # fmt: skip
OBJECTS = [
    {}, {"a": 1}, {"a": 2}, {"a": "x"}, {"a": None}, {"b": 1}, {"b": "x"}, {"b": True}, {"a": 1, "b": "x"},
    {"a": 2, "b": "x"}, {"a": 1, "b": "x", "c": None}, {"b": "x", "c": None}, {"a": 2, "c": None}, {"c": None},
    {"a": 1, "c": True}, {"a": None, "c": 1}, {"zz": 0}, {"a": 1, "zz": 0}, {"a": 1, "b": "x", "zz": 0}, {"ab": 1},
    {"ab": 3}, {"xb": "s"}, {"a": 1, "q": True}, {"a": 1, "q": 2}, {"v": 1}, {"v": 1, "kids": []}, {"kids": []},
    {"v": 1, "kids": [{"v": 2, "kids": [{"v": 3}]}, {"v": 4}]}, {"v": 1, "kids": [{"v": 2, "kids": [{"w": 3}]}]},
    {"a": [1, {"b": None}]}, {"a": [1, {"b": 1}]}, {"a\n\"é": 1}, {"é": True},
]  # fmt: skip
ARRAYS = [
    [], [1], ["b"], [1, "b"], [1, "b", None], [1, 1], [1, 2, 3], [1, 2, 3, 4], ["b", "b"], [None, None], [1, None, 1],
    [1, 1, 1], [[1], [1]], [[1], [1.0]], [{"a": 1, "b": 2}, {"a": 1, "b": 2}], [{"a": 1}, {"a": 2}], ["x", "y"],
    [1, "x"], [1, "x", 2], [True, 1], [[], [[]]], ["1", 1],
]  # fmt: skip


def shortest(value: object) -> object:
    """The value with its numbers in their shortest spelling."""
    if isinstance(value, list):
        return [shortest(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text_of(value: object) -> bytes:
    return json.dumps(shortest(value), ensure_ascii=False).encode()


def accepts(compiled, text: bytes) -> bool:
    state = compiled.index.step_bytes(compiled.index.automaton.start, text)
    return state >= 0 and compiled.index.automaton.accepting(state)


def constraint(schema: object, **options: str) -> Constraint:
    return Constraint("json_schema", source_of_schema(schema), tuple(sorted(options.items())))


@pytest.mark.parametrize("name", SCHEMAS)
def test_verdicts_equal_jsonschema(name):
    compiled = compile_constraint(constraint(SCHEMAS[name]), small_vocabulary())
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    values = [*SCALARS, *OBJECTS, *ARRAYS]
    verdicts = {text_of(v): validator.is_valid(v) for v in values}
    assert {text: accepts(compiled, text) for text in verdicts} == verdicts
    if name not in ("true", "unevaluated-items"):
        assert len(set(verdicts.values())) == 2


@pytest.mark.parametrize("name", SCHEMAS)
def test_completed_walks_validate(name):
    vocabulary = small_vocabulary(2)
    compiled = compile_constraint(constraint(SCHEMAS[name]), vocabulary)
    # Decimals, so that jsonschema sees the numbers as they are written.
    exact = json.loads(json.dumps(SCHEMAS[name]), parse_float=Decimal)
    validator = jsonschema.Draft202012Validator(exact)
    ended = 0
    for seed in range(12):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 200, closing_after=30)
        if complete:
            ended += 1
            assert validator.is_valid(json.loads(data, parse_float=Decimal)), data
    assert ended == 12 or name in RARELY_ENDED


@pytest.mark.parametrize("name", SCHEMAS)
def test_mask_equals_brute_force_along_random_walks(name):
    vocabulary = small_vocabulary(3)
    compiled = compile_constraint(constraint(SCHEMAS[name]), vocabulary)
    for seed in range(3):
        rng = random.Random(seed)
        matcher = compiled.start()
        for _ in range(25):
            expected = [
                token
                for token, data in enumerate(vocabulary.token_bytes)
                if (token in vocabulary.eos_ids and matcher.is_accepting)
                or (
                    data
                    and token not in vocabulary.eos_ids
                    and compiled.index.step_bytes(matcher.state_key[1], data) >= 0
                )
            ]
            allowed = mask_of(matcher, vocabulary.size)
            assert allowed == expected
            matcher.advance(rng.choice(allowed))
            if matcher.is_terminated:
                break


def test_every_mask_leads_on():
    """No dead ends: what a mask allows can be completed, also where counts, names and distinct items run out."""
    schemas = [
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 3},
        {"type": "array", "prefixItems": [{"enum": [1, 2]}, {"const": 1}], "uniqueItems": True, "minItems": 2,
         "maxItems": 2},
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "minProperties": 2,
         "additionalProperties": {"const": 1}},
        {"type": "object", "properties": {"a": {"const": 0}, "b": {"const": 0}, "c": {"const": 0}},
         "additionalProperties": False, "minProperties": 2, "maxProperties": 2},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "contains": {"const": 2}, "minContains": 2, "maxContains": 2,
         "maxItems": 4},
        {"type": "object", "properties": {"a": False, "b": {"const": 1}}, "required": ["b"], "maxProperties": 1},
    ]  # fmt: skip
    vocabulary = small_vocabulary(4)
    for schema in schemas:
        compiled = compile_constraint(constraint(schema), vocabulary)
        for seed in range(20):
            data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 200)
            assert complete
            jsonschema.validate(json.loads(data), schema)


@pytest.mark.parametrize(
    "schema, pointer",
    [
        ({"type": "stsring"}, "/type"),
        (
            {"properties": {"a": {"type": "object", "minLength": -1}, "b": {"minLength": "x"}}},
            "/properties/b/minLength",
        ),
        ({"items": {"pattern": "[.*"}}, "/items/pattern"),
        ({"items": {"pattern": "(?=a)"}}, "/items/pattern"),
        ({"properties": {"x": {"$ref": "http://example.com/s.json"}}}, "/properties/x/$ref"),
        ({"$ref": "#/$defs/none"}, "/$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "/$defs/a"),
        ({"anyOf": []}, "/anyOf"),
        ({"anyOf": [{"type": "string"}, 3]}, "/anyOf/1"),
        ({"required": "a"}, "/required"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"not": {"type": "array", "uniqueItems": True}}, "/not"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "/$schema"),
        ({"type": "string", "maxLength": 3, "minLength": 5}, ""),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, ""),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
        ({"enum": []}, ""),
        (False, ""),
    ],
)
def test_wrong_unsupported_and_unsatisfiable_schemas_are_refused_with_their_pointer(schema, pointer):
    with pytest.raises(ConstraintError) as caught:
        check_constraint(constraint(schema))
    assert caught.value.pointer == pointer
    assert caught.value.field == "json_schema"


def test_deep_and_large_schemas_are_refused_or_bounded():
    nested: dict = {"type": "integer"}
    for _ in range(5000):
        nested = {"type": "array", "items": nested}
    text = '{"type": "array", "items": ' * 5000 + "{}" + "}" * 5000
    for source in (text, "[" * 30_000, "{" * 30_000):
        with pytest.raises(ConstraintError):
            check_constraint(Constraint("json_schema", source))
    check_constraint(constraint({"type": "array", "items": {"type": "integer"}, "maxItems": 10**6}))
    check_constraint(constraint({"type": "string", "maxLength": 2**31}))
    check_constraint(constraint({"enum": [f"value_{i}" for i in range(20_000)]}))


def test_spacing_is_fixed_and_optional():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "null"}},
    }
    value = {"a": [1, 2], "b": None}
    vocabulary = small_vocabulary()
    spaced = compile_constraint(constraint(schema), vocabulary)
    compact = compile_constraint(constraint(schema, whitespace="compact"), vocabulary)
    free = compile_constraint(constraint(schema, whitespace="free"), vocabulary)
    texts = [
        json.dumps(value).encode(),
        json.dumps(value, separators=(",", ":")).encode(),
        json.dumps(value, indent=2).encode(),
    ]
    assert [accepts(spaced, t) for t in texts] == [True, False, False]
    assert [accepts(compact, t) for t in texts] == [False, True, False]
    assert [accepts(free, t) for t in texts] == [True, True, True]
    with pytest.raises(ConstraintError, match="whitespace"):
        check_constraint(constraint(schema, whitespace="none"))
    with pytest.raises(ConstraintError, match="unknown option"):
        check_constraint(constraint(schema, spacing="compact"))


def test_keys_come_in_schema_order_and_undeclared_ones_last():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    compiled = compile_constraint(constraint(schema), small_vocabulary())
    assert accepts(compiled, b'{"b": 1, "a": 2, "x": 3}')
    assert not accepts(compiled, b'{"a": 1, "b": 2}')
    assert not accepts(compiled, b'{"x": 1, "a": 2}')
    assert not accepts(compiled, b'{"a": 1, "a": 2}'), "a declared name cannot come again as an undeclared one"


def test_formats_are_checked_or_notes():
    vocabulary = small_vocabulary()
    cases = {
        "date": (["2024-02-29", "1999-12-31"], ["2023-02-29", "2024-13-01", "24-1-1"]),
        "time": (["10:20:30Z", "23:59:59.5+01:00"], ["24:00:00Z", "10:20:30"]),
        "date-time": (["2024-02-29T10:20:30Z"], ["2024-02-29 10:20:30Z", "2024-02-29"]),
        "duration": (["P1Y2M", "PT36H", "P4W"], ["P", "1Y", "P1W2D"]),
        "email": (["a.b@example.com"], ["a@", "@b", "a b@c.d"]),
        "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
        "ipv4": (["192.168.0.1"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
        "ipv6": (["::1", "2001:db8::ff00:42:8329", "::ffff:1.2.3.4"], ["12345::", "1:2:3", ":::"]),
        "hostname": (["example.com", "a-b"], ["-a", "a_b", "a." + "b" * 64]),
        "uri": (["http://a.b/c?d=e#f", "urn:x:y"], ["//a/b", "a b:c", "http://[::1"]),
        "json-pointer": (["", "/a~0b/c"], ["a", "/~2"]),
    }
    for name, (good, bad) in cases.items():
        checked = compile_constraint(constraint({"type": "string", "format": name}), vocabulary)
        note = compile_constraint(constraint({"type": "string", "format": name}, format="annotate"), vocabulary)
        assert [accepts(checked, text_of(t)) for t in good] == [True] * len(good), name
        assert [accepts(checked, text_of(t)) for t in bad] == [False] * len(bad), name
        assert all(accepts(note, text_of(t)) for t in good + bad)
    unknown = compile_constraint(constraint({"type": "string", "format": "made-up"}), vocabulary)
    assert accepts(unknown, b'"x"')


def test_dates_are_those_that_datetime_has():
    rng = random.Random(4)
    compiled = compile_constraint(constraint({"type": "string", "format": "date"}), small_vocabulary())
    years = [0, 1, 4, 10, 40, 100, 400, 999, 1000, 1900, 2000, 2023, 2024, 9999]
    texts = [f"{y:04}-{m:02}-{d:02}" for y in years for m in range(14) for d in (0, 1, 28, 29, 30, 31, 32)]
    for text in [*texts, *(f"{rng.randrange(10_000):04}-02-29" for _ in range(300)), "24-01-01", "2024-1-1"]:
        try:
            valid = len(text) == 10 and datetime.date.fromisoformat(text) is not None
        except ValueError:
            valid = False
        assert accepts(compiled, f'"{text}"'.encode()) == valid, text
