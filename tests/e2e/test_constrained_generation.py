"""Random weights at temperature 1 under constraints: what completes matches, what is cut could still have matched."""

import json
import re

import jsonschema
import pytest
import torch
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.compiler.constraints import compile_constraint
from dslc.core.constraint import Constraint

SEEDS = 200
REGEXES = [
    r"[a-z]{1,8}",
    r"\d{3}-\d{4}",
    r"(yes|no|maybe)",
    r"[+-]?[0-9]{1,6}(\.[0-9]{1,3})?",
    r"[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6}){0,2}",
    r"#([0-9a-f]{6}|[0-9a-f]{3})",
    r"(ab|a)c{0,3}b?",
    r"[^\n]{0,12}",
    r"\w{1,5}@\w{1,5}\.(com|org)",
    r"(1[0-2]|0[1-9]):[0-5][0-9] (am|pm)",
]
SCHEMAS = [
    {"type": "boolean"},
    {"enum": ["red", "green", 3, None]},
    {"type": "integer", "minimum": -20, "maximum": 300},
    {"type": "string", "maxLength": 6},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
     "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5},
     "age": {"type": "integer", "minimum": 0, "maximum": 120}},
     "required": ["name", "age"], "additionalProperties": False},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    {"$ref": "#/$defs/pair", "$defs": {"pair": {"type": "array", "prefixItems": [{"const": "k"}, {"type": "boolean"}],
     "items": False, "minItems": 2}}},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    path = tiny_checkpoint("llama")
    with dslc.Engine(model_path=str(path), dtype="float32") as engine:
        yield engine


def _generate(engine, option, max_new_tokens=96):
    params = [
        {"temperature": 1.0, "max_new_tokens": max_new_tokens, "sampling_seed": seed, **option} for seed in range(SEEDS)
    ]
    outputs = engine.generate(["Answer: "] * SEEDS, params)
    complete = [o["text"] for o in outputs if o["meta_info"]["finish_reason"]["type"] == "stop"]
    cut = [o["text"] for o in outputs if o["meta_info"]["finish_reason"]["type"] == "length"]
    assert len(complete) + len(cut) == SEEDS
    assert len(complete) >= 0.95 * SEEDS, f"only {len(complete)} complete"
    return complete, cut


def _is_viable(engine, kind, source, text):
    """Whether the automaton takes the ids of a cut text without complaint."""
    matcher = compile_constraint(Constraint(kind, source), engine.tokenizer.vocabulary).start()
    for token in engine.tokenizer.encode(text):
        matcher.advance(token)
    return True


@pytest.mark.parametrize("pattern", REGEXES)
def test_regexes(engine, pattern):
    complete, cut = _generate(engine, {"regex": pattern})
    assert all(re.fullmatch(pattern, text) for text in complete)
    assert all(_is_viable(engine, "regex", pattern, text) for text in cut)
    assert len(set(complete)) > 1


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_schemas(engine, number):
    schema = SCHEMAS[number]
    complete, cut = _generate(engine, {"json_schema": json.dumps(schema)})
    for text in complete:
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    assert all(_is_viable(engine, "json_schema", json.dumps(schema), text) for text in cut)
    assert len(set(complete)) > 1
