"""What is worked out while a model runs changes no mask; it only leaves less to be worked out when one is needed."""

from __future__ import annotations

import random

import pytest
from support.constraint_samples import random_schema
from support.constraint_support import mask_of, small_vocabulary

from dslc.compiler.constraints import ConstraintCache, check_constraint, native, source_of_schema
from dslc.compiler.constraints.automata import Automata
from dslc.compiler.constraints.compile import build_automaton
from dslc.compiler.constraints.matcher import AutomatonConstraint
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

VOCABULARY = small_vocabulary()
NESTED = {
    "type": "object",
    "properties": {f"field_{i}": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": [1, None]}},
                                  "required": ["a"]} for i in range(12)},
    "required": ["field_3"],
}  # fmt: skip
SOURCES = [
    Constraint("json_schema", source_of_schema(NESTED)),
    Constraint("regex", r"(ab|cd)*[x-z]{1,4}"),
    Constraint("ebnf", 'start: "(" item ("," item)* ")"\nitem: /[a-z]+/ | start\n'),
]


def compiled(constraint: Constraint) -> AutomatonConstraint:
    made = ConstraintCache().get(constraint, VOCABULARY)
    assert isinstance(made, AutomatonConstraint)
    return made


def has_values(schema: Constraint) -> bool:
    try:
        check_constraint(schema)
    except ConstraintError as error:
        assert "no value meets" in str(error), "these are all supported"
        return False
    return True


@pytest.mark.parametrize("limit", [1, 5, 10_000])
def test_masks_are_the_same_whatever_is_looked_at_before(limit):
    rng = random.Random(limit)
    schemas = (Constraint("json_schema", source_of_schema(random_schema(rng))) for _ in range(25))
    constraints = [*SOURCES, *(schema for schema in schemas if has_values(schema))]
    assert len(constraints) > 15
    for constraint in constraints:
        plain, ahead = compiled(constraint).start(), compiled(constraint).start()
        for _ in range(40):
            assert 0 <= ahead.look_ahead(limit) <= limit
            allowed = mask_of(plain, VOCABULARY.size)
            assert allowed == mask_of(ahead, VOCABULARY.size)
            token = rng.choice(allowed)
            plain.advance(token)
            ahead.advance(token)
            if plain.is_terminated:
                assert ahead.look_ahead(limit) == 0
                break


def test_what_was_looked_at_is_not_asked_again():
    if native.library() is None:
        pytest.skip("without the compiled walk there is nothing to make ready")
    matcher = compiled(SOURCES[0]).start()
    total, found = 0, matcher.look_ahead(7)
    assert found == 7, "there is more than that"
    while found:
        total, found = total + found, matcher.look_ahead(7)
    asked = []
    automaton = matcher.index.automaton
    describe = automaton.describe
    automaton.describe = lambda context: asked.append(context) or describe(context)
    assert matcher.look_ahead(10_000) == 0 and not asked
    mask_of(matcher, VOCABULARY.size)
    assert not asked, "the first mask found all it needs"
    assert total > 20


def test_nothing_is_looked_at_when_a_constraint_is_compiled():
    kept = Automata(build_automaton)
    made = AutomatonConstraint(SOURCES[0], VOCABULARY, kept.get(SOURCES[0]), None, 0.0)
    before = made.index.automaton.num_states
    made.start().look_ahead(50)
    assert before <= 4
    if native.library() is not None:
        assert made.index.automaton.num_states > before
    assert kept.get(SOURCES[0]).num_states == before, "what others get has read nothing"
