"""The frames that the compiled walk reads by itself are those of the Python machine, byte for byte."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from support.constraint_samples import random_schema
from support.constraint_support import mask_of, small_vocabulary

from dslc.compiler.constraints import ConstraintCache, source_of_schema
from dslc.compiler.constraints.compile import build_automaton
from dslc.compiler.constraints.matcher import AutomatonConstraint
from dslc.compiler.constraints.native import library
from dslc.compiler.constraints.schema.frames import SHIFT, Kind, Phase
from dslc.compiler.constraints.schema.machine import SchemaMachine
from dslc.compiler.constraints.schema.native_stack import NativeStack
from dslc.compiler.constraints.token_index import TokenIndex
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler: there is nothing to compare")
VOCABULARY = small_vocabulary()
STRING, INTEGER = {"type": "string"}, {"type": "integer"}
NESTED = {"type": "object", "properties": {"next": {"$ref": "#"}, "name": STRING, 'é"': INTEGER}, "required": ["name"]}
SCHEMAS = [
    NESTED,
    {**NESTED, "additionalProperties": False},
    {**NESTED, "additionalProperties": {"type": "array", "items": {"$ref": "#"}}},
    {"type": "object", "properties": {"a": STRING, "ab": {"not": {}}, "abc": {"enum": [1, None, "x"]}, "\ud800": {}}},
    {"type": "object", "properties": {"a": False, "b": INTEGER}, "required": ["b"], "additionalProperties": INTEGER},
    {"type": "object", "properties": {"b": INTEGER}, "required": ["z", "b"]},
    {"type": "object", "patternProperties": {"^x": INTEGER, "^y": STRING}, "properties": {"xa": {"minimum": 3}}},
    {"type": "object", "propertyNames": {"pattern": "^[a-c]+$"}, "properties": {"a": STRING}},
    {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": INTEGER},
    {"anyOf": [NESTED, {"type": "object", "properties": {"name": INTEGER, "other": STRING}}, {"type": "array"}]},
    {"type": "array", "prefixItems": [STRING, INTEGER, STRING], "minItems": 1, "items": STRING},
    {"type": "array", "prefixItems": [STRING, False, STRING], "items": INTEGER},
    {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": {"type": "array", "items": False}},
    {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
    {"type": "array", "contains": INTEGER, "items": {}},
    {"type": ["string", "integer", "null", "object", "array"]},
    {"oneOf": [{"type": "integer", "minimum": 7}, {"type": "string", "pattern": "^a"}, {"type": "boolean"}]},
    {},
]


def compiled(source: str, whitespace: str) -> AutomatonConstraint:
    options = () if whitespace == "spaced" else (("whitespace", whitespace),)
    made = ConstraintCache().get(Constraint("json_schema", source, options), VOCABULARY)
    assert isinstance(made, AutomatonConstraint)
    return made


def walked(made: AutomatonConstraint, rng: random.Random, steps: int) -> SchemaMachine:
    """The machine, having read some texts."""
    for _ in range(3):
        matcher = made.start()
        for _ in range(steps):
            matcher.advance(rng.choice(mask_of(matcher, VOCABULARY.size)))
            if matcher.is_terminated:
                break
    machine = made.index.automaton
    assert isinstance(machine, SchemaMachine)
    return machine


def first_state(machine: SchemaMachine, context: int) -> int:
    """A state of a context that may be on top; -1 for those that are always below others."""
    frame, _ = machine._at(context)
    if frame[0] in (Kind.ROOT, Kind.ITEM_ROOT, Kind.DONE):
        return -1
    if frame[0] in (Kind.OBJECT, Kind.ARRAY) and frame[3] not in (Phase.OPEN, Phase.AFTER):
        return -1
    if frame[0] is Kind.STRING and frame[2]:
        return -1  # within a text that is kept: not every leaf goes with it
    return context << SHIFT | (frame[1].start if frame[0] in (Kind.STRING, Kind.PLAIN) else 0)


def compare(machine: SchemaMachine, limit: int) -> int:
    """Every byte from every context reached, read by both; returns how many contexts there were."""
    native, compared = machine.native, 0
    assert native is not None
    for context in range(min(native.num_contexts, limit)):
        assert machine._stack is not None
        assert machine._stack.push(*machine._at(context)) == context, "both sides have one number for a context"
        state = first_state(machine, context)
        if state < 0:
            continue
        moves = machine.moves(state)
        assert {b: s for b in range(256) if (s := native.step(state, bytes([b]))) >= 0} == moves
        compared += 1
    return compared


@pytest.mark.parametrize("whitespace", ["spaced", "compact", "free"])
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_byte_leads_to_the_state_that_the_python_machine_says(schema, whitespace):
    machine = walked(compiled(json.dumps(schema), whitespace), random.Random(7), 25)
    assert compare(machine, 250) > 3


def test_random_schemas_too():
    rng, compared = random.Random(11), 0
    for _ in range(40):
        try:
            made = compiled(source_of_schema(random_schema(rng)), "spaced")
        except ConstraintError as error:
            assert "no value meets" in str(error)
            continue
        compared += compare(walked(made, rng, 20), 120)
    assert compared > 500


def test_the_usual_needs_no_description(monkeypatch):
    """Objects in order, arrays, strings and numbers are read without a question but for what values begin with."""
    asked = []
    monkeypatch.setattr(SchemaMachine, "describe", lambda self, context: asked.append(context))
    monkeypatch.setattr(SchemaMachine, "leave", lambda self, context, outcome: asked.append(context))
    item = {"type": "object", "properties": {"a": STRING, "b": INTEGER}, "required": ["a"]}
    index = compiled(json.dumps({"type": "array", "items": item}), "spaced").index
    state = index.automaton.start
    for byte in b'[{"a": "x", "b": 12, "c": [1, {"d": null}]}, {"a": "y"}]':
        index.mask(state)
        state = index.step_bytes(state, bytes([byte]))
    assert index.accepting(state)
    assert index.automaton.num_states > 40 and not asked


def test_texts_end_alike_with_and_without_the_walk():
    """A machine that nobody walks, and one that is: the same bytes may come, must come, and may be the last."""
    rng = random.Random(5)
    for schema in SCHEMAS:
        source = json.dumps(schema)
        alone = build_automaton(Constraint("json_schema", source))
        index = compiled(source, "spaced").index
        state, other = alone.start, index.automaton.start
        for _ in range(60):
            assert alone.accepting(state) == index.automaton.accepting(other)
            assert alone.single(state) == index.automaton.single(other)
            moves = alone.moves(state)
            assert sorted(moves) == sorted(index.automaton.moves(other))
            if not moves:
                break
            byte = rng.choice(sorted(moves))
            state, other = moves[byte], index.step_bytes(other, bytes([byte]))


def test_frames_keep_their_numbers_when_the_walk_begins_late():
    machine = build_automaton(Constraint("json_schema", json.dumps(NESTED)))
    assert isinstance(machine, SchemaMachine)
    state = machine.start
    for byte in b'{"next": {"name": "x"}, "na':
        state = machine.moves(state)[byte]
    before = [machine._at(context) for context in range(machine.num_states)]
    made = AutomatonConstraint(Constraint("json_schema", json.dumps(NESTED)), VOCABULARY, machine, None, 0.0)
    assert isinstance(machine._stack, NativeStack)
    assert [machine._at(context) for context in range(len(before))] == before
    assert machine.accepting(made.index.step_bytes(state, b'me": "y"}'))


def test_the_inside_of_strings_begins_with_a_row_that_is_shared():
    schema = {"type": "object", "properties": {"a": STRING, "b": {"type": "string", "maxLength": 300}}}
    index = compiled(json.dumps(schema), "spaced").index
    rows = {id(row) for row in index.trie.native.rows}
    for text in (b'{"', b'{"a": "', b'{"a": "xyz', b'{"b": "', b'{"b": "12'):
        mask = index.mask(index.step_bytes(index.automaton.start, text))
        assert id(mask.base) in rows, text
        row, other = mask_rows(index, text)
        assert (row == other).all()


def mask_rows(index: TokenIndex, text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The row of the compiled walk, and the Python one's."""
    state = index.step_bytes(index.automaton.start, text)
    rows = [np.full(index.trie.num_words + 2, -1, np.int32) for _ in range(2)]
    index.mask(state).write(rows[0])
    index.compute_in_python(state).write(rows[1])
    return rows[0], rows[1]


def test_memory_grows_with_what_is_read():
    properties = {f"property {i}": INTEGER for i in range(400)}
    made = compiled(json.dumps({"type": "object", "properties": properties, "additionalProperties": False}), "spaced")
    before, state = made.num_bytes, made.index.automaton.start
    for byte in b"{" + b", ".join(b'"property %d": 1' % i for i in range(400)) + b"}":
        state = made.index.step_bytes(state, bytes([byte]))
    assert made.index.accepting(state)
    assert 400 * 400 * 4 < made.num_bytes - before < 4_000_000  # the names that may come, at each property
