"""Constraints that would take for ever, or all memory: each a clear error or a bounded compile."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.constraint_support import mask_of, small_vocabulary

from dslc.compiler.constraints import automata as automata_module
from dslc.compiler.constraints import compile_constraint
from dslc.compiler.constraints.automata import Automata
from dslc.compiler.constraints.bounds import INLINE_WORK, QUICK_WORK, work_of
from dslc.compiler.constraints.compile import build_automaton
from dslc.compiler.constraints.effort import TakesLong, at_most, short_turns
from dslc.compiler.constraints.native import library
from dslc.compiler.constraints.persist import automaton_from_bytes, automaton_to_bytes
from dslc.compiler.constraints.worker import compile_apart, stop_workers
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError


def regex(pattern: str) -> Constraint:
    return Constraint("regex", pattern)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def test_what_backtracking_engines_choke_on_is_small():
    compiled = compile_constraint(regex("(a+)+b"), small_vocabulary())
    assert compiled.stats.num_states < 10
    assert mask_of(compiled.start(), small_vocabulary().size)


@pytest.mark.parametrize(
    "constraint",
    [
        regex("(.{1,5000}){1,5000}"),
        regex("((a{1,100}){1,100}){1,100}"),
        regex("(a|b)*a(a|b){25}"),
        regex("(" * 30_000 + "a" + ")" * 30_000),
        schema({"type": "string", "minLength": 10**6, "pattern": "^[a-z]+$"}),
        schema({"type": "integer", "multipleOf": 19_997}),
        schema({"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]}),
        Constraint("json_schema", '{"type": "array", "items": ' * 230 + "{}" + "}" * 230),
    ],
    ids=lambda c: c.source[:30],
)
def test_what_is_too_large_is_refused_by_name(constraint):
    with pytest.raises(ConstraintError) as caught:
        compile_constraint(constraint, small_vocabulary())
    assert caught.value.field == constraint.kind and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "constraint",
    [
        regex(".{1,5000}"),
        regex("|".join(f"word{i}" for i in range(100_000))),
        schema({"enum": [f"value {i}" for i in range(100_000)]}),
        schema({"type": "array", "items": {"type": "integer"}, "maxItems": 10**6}),
        schema({"type": "string", "maxLength": 10**6}),
        schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}),
    ],
    ids=lambda c: c.source[:30],
)
def test_what_is_large_but_regular_is_served(constraint):
    vocabulary = small_vocabulary()
    compiled = compile_constraint(constraint, vocabulary)
    assert mask_of(compiled.start(), vocabulary.size)
    assert compiled.stats.num_bytes < 50 * 2**20


def test_the_bound_tells_small_from_large_without_building():
    assert work_of(regex(r"\d{4}-\d{2}-\d{2}")) <= QUICK_WORK
    assert work_of(schema({"type": "object", "properties": {"a": {"type": "string"}}})) <= QUICK_WORK
    assert work_of(regex("[ab]{1,50000}")) > QUICK_WORK
    assert work_of(schema({"enum": [f"value {i}" for i in range(100_000)]})) > QUICK_WORK
    assert work_of(schema({"type": "string", "pattern": "^(a|b)*c$", "maxLength": 60_000})) > QUICK_WORK
    # What is refused for its length alone needs no other process.
    assert work_of(regex("(.{1,5000}){1,5000}")) <= INLINE_WORK


def test_another_process_gives_the_same_automaton_and_the_same_errors():
    for constraint in (regex("[a-z]{1,40}é?"), schema({"type": "array", "items": {"type": "integer"}})):
        here, there = build_automaton(constraint), automaton_from_bytes(compile_apart(constraint))
        assert here.num_states == there.num_states
        assert sorted(here.moves(here.start)) == sorted(there.moves(there.start))
    with pytest.raises(ConstraintError) as caught:
        compile_apart(schema({"properties": {"a": {"type": "strng"}}}))
    assert caught.value.pointer == "/properties/a/type" and caught.value.field == "json_schema"
    assert str(caught.value).count("json_schema:") == 1


def test_a_process_that_takes_too_long_or_too_much_is_ended():
    options = "|".join(f"[ab]{{{i},{i + 700}}}c" for i in range(1, 60))
    with pytest.raises(ConstraintError, match=r"0\.05 s"):
        compile_apart(regex(f"({options})d"), seconds=0.05)
    assert automaton_from_bytes(compile_apart(regex("ab"))).num_states == 3, "the next is served by a new one"
    with pytest.raises(ConstraintError, match="MiB"):
        compile_apart(schema({"enum": [f"value {i}" for i in range(200_000)]}), seconds=60, max_bytes=2**20)
    stop_workers()


@pytest.mark.parametrize(
    "constraint",
    [regex("(a|b)*a(a|b){11}c"), regex(".{1,3000}"), schema({"enum": [f"value {i}" for i in range(500)]})],
    ids=["blow-up", "long", "enum"],
)  # fmt: skip
def test_what_a_small_bound_did_not_tell_is_left_to_another_process(constraint, monkeypatch):
    """Few steps are tried in place; what needs more of Python's is made elsewhere, and is the same."""
    monkeypatch.setenv("DSLC_CACHE_DIR", "off")
    apart: list[Constraint] = []

    def compiled_apart(asked: Constraint) -> bytes:
        apart.append(asked)
        return automaton_to_bytes(build_automaton(asked))

    monkeypatch.setattr(automata_module, "compile_apart", compiled_apart)
    kept = Automata(build_automaton)
    assert work_of(constraint) <= QUICK_WORK
    monkeypatch.setattr(automata_module, "QUICK_STEPS", 100)
    assert not kept.try_quickly(constraint) and not kept.try_quickly(constraint)
    made = kept.get(constraint)
    elsewhere = (
        [] if library() is not None and constraint.kind == "regex" and "*" in constraint.source else [constraint]
    )
    assert apart == elsewhere and made.num_states == build_automaton(constraint).num_states
    assert kept.try_quickly(constraint), "it is there now"
    small = regex("ab?c")
    assert kept.try_quickly(small) and kept.get(small) is not None and apart == elsewhere
    wrong = schema({"type": "stsring"})
    assert kept.try_quickly(wrong), "an error is quick"
    with pytest.raises(ConstraintError):
        kept.get(wrong)


def test_a_limit_on_steps_holds_in_its_thread_and_within_its_block():
    big = regex(".{1,200}")
    with pytest.raises(TakesLong), at_most(50):
        build_automaton(big)
    with at_most(50), ThreadPoolExecutor(1) as other:
        assert other.submit(build_automaton, big).result().num_states > 200
    assert build_automaton(big).num_states > 200


def test_turns_are_short_while_something_compiles_and_as_before_afterwards():
    before = sys.getswitchinterval()
    with short_turns():
        inside = sys.getswitchinterval()
        with short_turns():
            assert sys.getswitchinterval() == inside
        assert sys.getswitchinterval() == inside < before
    assert sys.getswitchinterval() == before
