"""The shortest way to a whole text, against a search over all tokens; rolling back, against never having gone."""

import json
import random
import re

import pytest

from dslc.compiler.constraints import compile_constraint
from dslc.compiler.constraints.endings import fewest_of_all, fewest_tokens, shortest_text
from dslc.compiler.constraints.interface import mask_words
from dslc.core.constraint import Constraint, Vocabulary

TOKENS = [b"a", b"b", b"c", b"ab", b"abc", b"e", b"1", b"2", b"22", b'"', b'":', b"{", b"}", b'"}', b", ", b" ", b",",
          b": ", b":", b"[", b"]", b"true", b"false", b"n", b"null", b"]}", b'{"', b"t", b"r", b"u", b"f", b"l", b"s",
          b"\xc3", b"\xa9", b"-", b'{"a": ', b'"a"']  # fmt: skip
VOCABULARY = Vocabulary.of((None, *TOKENS), (0,))
CONSTRAINTS = [
    Constraint("regex", "[abc]{3,9}"), Constraint("regex", "(ab)*ce"), Constraint("regex", "(22|1){4}é?"),
    Constraint("regex", "a{7}b?"), Constraint("json_schema", '{"type": "array", "items": {"type": "boolean"}}'),
    Constraint("json_schema", json.dumps({"type": "object", "properties": {"a": {"enum": [1, "abc", None]},
        "b": {"type": "array", "items": {"type": "string", "pattern": "^[ab]{2}$"}, "minItems": 2}},
        "required": ["a", "b"], "additionalProperties": False})),
    Constraint("ebnf", 'start: "[" (start ("," start)*)? "]" | "a"'),
]  # fmt: skip


def matchers(constraint, rng, num=12, length=9):
    """Places that random tokens lead to, and how."""
    compiled = compile_constraint(constraint, VOCABULARY)
    for _ in range(num):
        matcher, taken = compiled.start(), []
        for _ in range(rng.randrange(length)):
            allowed = allowed_after(matcher)
            if not allowed:
                break
            taken.append(rng.choice(allowed))
            matcher.advance(taken[-1])
        yield matcher, taken


def allowed_after(matcher):
    import numpy as np

    row = np.zeros(mask_words(VOCABULARY.size), np.int32)
    matcher.fill_mask(row)
    return [i for i in range(1, VOCABULARY.size) if row.view(np.uint32)[i // 32] >> (i % 32) & 1]


def least_by_search(matcher, most=30):
    """The number of tokens of a shortest way, by trying all tokens."""
    layer, seen = [matcher], {matcher.state_key}
    for depth in range(most + 1):
        if any(m.is_accepting for m in layer):
            return depth
        later = []
        for m in layer:
            for token in allowed_after(m):
                ahead = m.copy()
                ahead.advance(token)
                if ahead.state_key not in seen:
                    seen.add(ahead.state_key)
                    later.append(ahead)
        layer = later
    raise AssertionError("no way")


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=[c.source[:20] for c in CONSTRAINTS])
def test_the_shortest_end_is_one_and_has_the_fewest_tokens(constraint):
    for matcher, _ in matchers(constraint, random.Random(3)):
        key = matcher.state_key
        way = matcher.shortest_end()
        assert way is not None and len(way) == least_by_search(matcher)
        assert matcher.state_key == key
        for token in way:
            matcher.advance(token)
        assert matcher.is_accepting


def test_a_bound_is_given_where_too_much_is_within_reach():
    compiled = compile_constraint(Constraint("regex", "[abc]{3,900}e"), VOCABULARY)
    automaton, trie = compiled.index.automaton, compiled.index.trie
    start = automaton.start
    assert fewest_of_all(automaton, trie, start, max_places=3) is None
    text = shortest_text(automaton, start)
    assert text is not None and re.fullmatch(rb"[abc]{3}e", text)
    assert shortest_text(automaton, start, max_states=2) is None
    assert fewest_tokens(trie, b"abcab1") == (5, 4, 7)
    assert fewest_tokens(trie, b"xyz") is None
    assert fewest_tokens(trie, b"") == ()


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=[c.source[:20] for c in CONSTRAINTS])
def test_rolled_back_is_never_advanced(constraint):
    rng = random.Random(5)
    for matcher, taken in matchers(constraint, rng):
        for _ in range(3):
            back = rng.randrange(len(taken) + 1)
            fresh = compile_constraint(constraint, VOCABULARY).start()
            for token in taken[: len(taken) - back]:
                fresh.advance(token)
            copied = matcher.copy()
            if matcher.is_accepting and rng.random() < 0.5:
                matcher.advance(0)  # the end of text is undone too
                matcher.rollback(back + 1)
            else:
                matcher.rollback(back)
            assert (matcher.state_key, matcher.is_accepting, matcher.is_terminated) == (
                fresh.state_key,
                fresh.is_accepting,
                False,
            )
            assert allowed_after(matcher) == allowed_after(fresh) and matcher.forced() == fresh.forced()
            for token in taken[len(taken) - back :]:  # and on again
                matcher.advance(token)
            assert matcher.state_key == copied.state_key


@pytest.mark.parametrize("least", [2, 3])
def test_an_end_is_found_where_much_is_near(least):
    """Numbers that must differ from one another: each text is a place of its own."""
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}, "minItems": least}
    vocabulary = Vocabulary.of((None, *(bytes([b]) for b in range(256))), (0,))
    matcher = compile_constraint(Constraint("json_schema", json.dumps(schema)), vocabulary).start()
    assert shortest_text(matcher._index.automaton, matcher._state, max_states=2000) is None
    end = matcher.shortest_end()
    items = json.loads(b"".join(vocabulary.token_bytes[token] for token in end))
    assert len(items) == len(set(items)) == least
