"""Sequences: the language is the concatenation (as `re` has it), and a text is divided as a lazy regex divides it."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from support.constraint_support import mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import check_constraint
from dslc.compiler.constraints.compile import ConstraintCache, build_automaton
from dslc.compiler.constraints.sequence import divided, parts_of, source_of_parts
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError


def until(end: str) -> str:
    """A regex for the texts before the first occurrence of `end`: no `end` begins in them."""
    return f"(?:(?!{re.escape(end)})[\\s\\S])*"


# Parts, and the same as a regex with a lazy group for each.
CASES = {
    "texts": ([("text", "ab"), ("text", "c")], "(ab)(c)"),
    "between": ([("text", "a"), ("until", "bc"), ("text", "bc")], f"(a)({until('bc')})(bc)"),
    "self-overlap": ([("until", "aba"), ("text", "aba")], f"({until('aba')})(aba)"),
    "repeat": ([("until", "aa"), ("text", "aa"), ("any", "")], f"({until('aa')})(aa)([\\s\\S]*)"),
    "ambiguous": ([("regex", "a*"), ("regex", "a*b?"), ("regex", "[ab]*")], "(a*?)(a*?b??)([ab]*?)"),
    "optional": ([("regex", "(ab)?"), ("regex", "a?"), ("text", "b")], "((?:ab)??)(a??)(b)"),
    "any-last": ([("regex", "[bc]+"), ("text", "a"), ("any", "")], "([bc]+?)(a)([\\s\\S]*)"),
    "overlap": ([("regex", "[ab]+"), ("text", "b"), ("regex", "b+c?")], "([ab]+?)(b)(b+?c??)"),
}


def automata(parts):
    return parts_of(source_of_parts([(kind, text, ()) for kind, text in parts]), build_automaton)


def seq(parts) -> Constraint:
    return Constraint("seq", source_of_parts([(*part, ()) if len(part) == 2 else part for part in parts]))


def step(automaton, state: int, data: bytes) -> int:
    for byte in data:
        if state < 0:
            break
        state = automaton.step(state, byte)
    return state


@pytest.mark.parametrize("name", CASES)
def test_language_and_division_are_those_of_a_lazy_regex(name):
    parts, pattern = CASES[name]
    machine = build_automaton(seq(parts))
    texts = ["".join(t) for size in range(7) for t in itertools.product("abc", repeat=size)]
    matches = {text: m for text in texts if (m := re.fullmatch(pattern, text))}
    begun = {text[:n] for text in matches for n in range(len(text) + 1)}
    assert matches
    for text in texts:
        state = step(machine, machine.start, text.encode())
        assert (state >= 0 and machine.accepting(state)) == (text in matches), text
        assert state >= 0 or text not in begun
        if text in matches:
            assert divided(automata(parts), text) == list(matches[text].groups()), text


MIXED = [
    ("text", '{"name": "'),
    ("until", '", '),
    ("text", '", '),
    ("ebnf", 'root ::= "(" root ")" | [0-9]{1,3}'),
    ("text", " then "),
    ("json_schema", '{"type": ["integer", "string", "array"], "items": {"type": "boolean"}, "maxLength": 5}'),
    ("regex", "[a-z]{0,3}"),
    ("json_schema", '{"enum": ["x", 12]}', (("whitespace", "compact"),)),
]


@pytest.mark.parametrize("seed", range(3))
def test_mask_equals_brute_force_and_generations_divide(seed):
    vocabulary = small_vocabulary(seed)
    compiled = ConstraintCache().get(seq(MIXED), vocabulary)
    alone = build_automaton(seq(MIXED))
    parts = parts_of(seq(MIXED).source, build_automaton)
    for walk in range(4):
        rng = random.Random(walk)
        matcher, state = compiled.start(), alone.start
        for _ in range(25):
            after = {t: step(alone, state, piece) for t, piece in enumerate(vocabulary.token_bytes) if piece}
            ends = set(vocabulary.eos_ids)
            expected = {t for t, target in after.items() if target >= 0 and t not in ends}
            allowed = mask_of(matcher, vocabulary.size)
            assert set(allowed) == expected | (ends if alone.accepting(state) else set())
            token = rng.choice(allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
            state = after[token]
    for walk in range(12):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(walk), 30, closing_after=20)
        text = (data if complete else data + shortest_end(alone, step(alone, alone.start, data))).decode()
        pieces = divided(parts, text)
        assert "".join(pieces) == text
        assert pieces[0] == '{"name": "' and '", ' not in pieces[1] and pieces[2] == '", '
        assert re.fullmatch(r"\(*[0-9]{1,3}\)*", pieces[3])
        json.loads(pieces[5])
        assert pieces[7] in ('"x"', "12")


def shortest_end(automaton, state: int) -> bytes:
    paths = {state: b""}
    todo = [state]
    for at in todo:
        if automaton.accepting(at):
            return paths[at]
        for byte, after in automaton.moves(at).items():
            if after not in paths:
                paths[after] = paths[at] + bytes([byte])
                todo.append(after)
    raise AssertionError("no end can be reached")


def test_a_text_that_was_cut_divides_as_far_as_it_goes():
    parts = automata([("text", "a: "), ("regex", "[0-9]+"), ("text", ", b: "), ("until", "."), ("text", ".")])
    assert divided(parts, "a: 12, b: xy.") == ["a: ", "12", ", b: ", "xy", "."]
    assert divided(parts, "a: 12, b: xy") == ["a: ", "12", ", b: ", "xy", ""]
    assert divided(parts, "a: 12, b") == ["a: ", "12", ", b", "", ""]
    assert divided(parts, "a: 12") == ["a: ", "12", "", "", ""]
    assert divided(parts, "a") == ["a", "", "", "", ""]
    assert divided(parts, "") == ["", "", "", "", ""]
    with pytest.raises(ValueError, match="is not what the parts"):
        divided(parts, "a: x")


def test_a_long_text_divides_quickly_enough_to_be_read_once():
    parts = automata([("any", ""), ("text", "b"), ("any", ""), ("text", "c"), ("regex", "a*")])
    text = "ab" * 300 + "c"
    assert divided(parts, text) == ["a", "b", text[2:-1], "c", ""]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("not json", "JSON list"),
        ("[]", "0 parts"),
        ('[["text"]]', "JSON list"),
        ('[["texts", "a", {}]]', "part 0: unknown kind"),
        ('[["text", "a", {}], ["regex", "(", {}]]', "part 1: .*position 0"),
        ('[["json_schema", "{\\"type\\": 3}", {}]]', "part 0.*name of a type"),
        ('[["json_schema", "{}", {"whitespace": "none"}]]', "part 0.*whitespace must be one of"),
        (json.dumps([["text", "a", {}]] * 201), "201 parts"),
    ],
)
def test_wrong_sequences_are_refused(source, message):
    with pytest.raises(ConstraintError, match=message):
        check_constraint(Constraint("seq", source))
