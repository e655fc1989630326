"""Many draws under many constraints: what ends is right, what is cut could have gone on, and no end comes too soon."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal

import jsonschema
import pytest
from support.constraint_samples import random_regex
from support.constraint_support import mask_of, random_walk, small_vocabulary
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.constraints import compile_constraint, source_of_schema
from dslc.core.constraint import Constraint

WORDS = small_vocabulary(9)
REGEXES = [random_regex(random.Random(seed), 3) for seed in range(50)] + [
    r"[a-z]{3,8}", r"-?\d+(\.\d+)?", r"\d{4}-\d{2}-\d{2}", r"(ab|cd)*e", r"[^x]{1,12}", r"(yes|no|maybe)\.?",
    r"[A-Z][a-z]*( [a-z]+){0,3}", r"#([0-9a-f]{3}){1,2}", r"é+日?", r".{2,5}",
]  # fmt: skip


@pytest.mark.parametrize("group", range(0, 60, 10))
def test_sixty_regexes_fifty_seeds(group):
    """Whole texts match, the end is offered exactly where the text matches, and cut ones have somewhere to go."""
    whole = 0
    for pattern in REGEXES[group : group + 10]:
        compiled, matches = compile_constraint(Constraint("regex", pattern), WORDS), re.compile(pattern).fullmatch
        for seed in range(50):
            rng, matcher, data = random.Random(seed), compiled.start(), b""
            for _ in range(8):
                allowed = mask_of(matcher, WORDS.size)
                assert allowed, (pattern, data)
                try:
                    ends = matches(data.decode()) is not None
                except UnicodeDecodeError:
                    ends = False
                assert (not ends) == set(WORDS.eos_ids).isdisjoint(allowed), (pattern, data)
                token = rng.choice(allowed)
                matcher.advance(token)
                if matcher.is_terminated:
                    whole += 1
                    break
                data += WORDS.token_bytes[token] or b""
            else:
                assert matcher.shortest_end() is not None, (pattern, data)
    assert whole > 100


def quoted(text: str) -> str:
    """SGLang's `str`: text between double quotes, without any inside."""
    assert text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1]


@pytest.mark.parametrize(("dtype", "reads"), [(int, int), (float, float), (str, quoted), (bool, {"True", "False"})])
def test_typed_gens_parse_for_fifty_seeds(dtype, reads):
    backend = ScriptedBackend("ok")

    @dslc.function
    def program(s):
        s += dslc.gen("a", dtype=dtype)

    program.run(backend=backend, compiled=False)
    constraint = backend.requests[0].constraint
    assert constraint is not None
    compiled, ended = compile_constraint(constraint, WORDS), 0
    for seed in range(50):
        data, whole = random_walk(compiled.start(), WORDS, random.Random(seed), 60, closing_after=10)
        if whole:
            ended += 1
            assert data.decode() in reads if isinstance(reads, set) else reads(data.decode()) is not None
    assert ended >= 40


def test_any_json_value_loads_for_two_hundred_seeds():
    compiled, ended = compile_constraint(Constraint("json_schema", "{}"), WORDS), 0
    for seed in range(200):
        data, whole = random_walk(compiled.start(), WORDS, random.Random(seed), 200, closing_after=10)
        if whole:
            ended += 1
            json.loads(data)
    assert ended >= 180


def test_a_schema_holds_for_two_hundred_seeds():
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 999}, "kind": {"enum": ["a", "bb", None]},
            "when": {"type": "string", "format": "date"}, "price": {"type": "number", "exclusiveMinimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "uniqueItems": True, "maxItems": 3},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["id", "kind"], "additionalProperties": False,
    }  # fmt: skip
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    compiled, ended = compile_constraint(Constraint("json_schema", source_of_schema(schema)), WORDS), 0
    for seed in range(200):
        data, whole = random_walk(compiled.start(), WORDS, random.Random(seed), 150, closing_after=20)
        if whole:
            ended += 1
            validator.validate(json.loads(data, parse_float=lambda text: float(Decimal(text))))
    assert ended >= 150
