"""What is compiled gives what the slow, obvious code gives: canonical forms, spellings, tokens cut at quotes, items."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from support.constraint_support import mask_of

from dslc.compiler.constraints import char_algebra, char_dfa, spelling
from dslc.compiler.constraints.char_dfa import (
    CharDfa,
    from_nfa,
    from_nfa_in_python,
    from_regex,
    tidy,
    tidy_in_python,
)
from dslc.compiler.constraints.compile import ConstraintCache, build_automaton
from dslc.compiler.constraints.effort import TakesLong, at_most
from dslc.compiler.constraints.native import library
from dslc.compiler.constraints.nfa import TooLarge, build_nfa
from dslc.compiler.constraints.regex_syntax import parse_regex
from dslc.compiler.constraints.speller import Spelling, build_speller, speller_of
from dslc.core.constraint import Constraint, Vocabulary

compiled_only = pytest.mark.skipif(library() is None, reason="no C compiler: there is nothing to compare")


@compiled_only
def test_canonical_forms_of_random_tables_are_those_of_the_python_code():
    rng = random.Random(5)
    finite = 0
    for number in range(300):
        states, columns = rng.randrange(2, 16), rng.randrange(1, 5)
        delta = np.array([[rng.choice([0, rng.randrange(states)]) for _ in range(columns)] for _ in range(states)])
        if number % 2:  # no way back: finitely many texts
            delta = np.where(delta > np.arange(states)[:, None], delta, 0)
        delta[0] = 0
        labels = np.array([0, *(rng.choice([0, 0, 1, 2]) for _ in range(states - 1))], np.int32)
        bounds = np.arange(columns + 1, dtype=np.int32) * 7
        classes = np.array([0, *range(columns)], np.int32)
        made = tidy(bounds, classes, delta.astype(np.int32), labels, 1)
        assert made.key == tidy_in_python(bounds, classes, delta.astype(np.int32), labels, 1).key
        finite += not made.is_empty and made.is_finite
    assert 50 < finite < 250


@compiled_only
def test_sets_of_texts_are_those_of_the_python_code():
    rng = random.Random(6)
    for _ in range(200):
        texts = ["".join(rng.choices("abcé日\U0001f600\ud800\0", k=rng.randrange(5))) for _ in range(rng.randrange(9))]
        labels = [rng.randrange(1, 4) for _ in texts]
        pairs = [(text, label) for text, label in zip(texts, labels, strict=True) if "\ud800" not in text]
        made = char_algebra.from_texts(texts, labels)
        assert made.key == char_algebra.from_texts_in_python(pairs).key
        first = dict(reversed(pairs))
        assert {text: made.label(text) for text in first} == first


@compiled_only
def test_many_texts_are_those_of_the_python_code(monkeypatch):
    monkeypatch.setattr(char_algebra, "_MAX_TREE_CELLS", 0)  # as if each set were a large one
    rng = random.Random(7)
    for number in range(200):
        letters = "ab" if number % 2 else "abcé日\U0001f600\ud800\0"
        texts = ["".join(rng.choices(letters, k=rng.randrange(5))) for _ in range(rng.randrange(30))]
        labels = [rng.randrange(1, 4) for _ in texts]
        pairs = [(text, label) for text, label in zip(texts, labels, strict=True) if "\ud800" not in text]
        made = char_algebra.from_texts(texts, labels)
        assert made.key == char_algebra.from_texts_in_python(pairs).key
        first = dict(reversed(pairs))
        assert {text: made.label(text) for text in first} == first
    in_a_bad_order = [chr(0x4E00 + i) for i in range(20_000)]
    assert char_algebra.from_texts(in_a_bad_order).count == 20_000
    monkeypatch.setattr(char_algebra, "MAX_TEXT_CELLS", 100)
    with pytest.raises(TooLarge, match="more than 50 automaton states over 1 characters"):
        char_algebra.from_texts(["a" * 200])


@compiled_only
def test_sets_of_positions_are_those_of_the_python_code():
    rng = random.Random(8)

    def some_regex(depth: int) -> str:
        kind = rng.randrange(7) if depth else 0
        if kind < 2:
            return rng.choice(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "é", ""])
        if kind < 4:
            return some_regex(depth - 1) + some_regex(depth - 1)
        if kind == 4:
            return f"({some_regex(depth - 1)}|{some_regex(depth - 1)})"
        return f"({some_regex(depth - 1)}){rng.choice(['*', '+', '?', '{2,4}', '{3}'])}"

    for _ in range(300):
        nfa = build_nfa(parse_regex(some_regex(5)))
        assert from_nfa(nfa).key == from_nfa_in_python(nfa).key
    for pattern in ("(a|b)*a(a|b){7}", "[^\\s\\S]", ".*a.{6}", r"([^\d]\w?|é){1,9}", "a?" * 70):
        nfa = build_nfa(parse_regex(pattern))
        assert from_nfa(nfa).key == from_nfa_in_python(nfa).key


@compiled_only
def test_sets_of_positions_are_bounded_in_number_and_in_steps(monkeypatch):
    nfa = build_nfa(parse_regex(".*a.{20}"))
    for make in (from_nfa, from_nfa_in_python):
        with pytest.raises(TooLarge, match="more than 50000 automaton states"):
            make(nfa)
        with pytest.raises(TakesLong), at_most(1000):
            make(nfa)
    monkeypatch.setattr(char_dfa, "MAX_WORK", 10_000)
    for make in (from_nfa, from_nfa_in_python):
        with pytest.raises(TooLarge, match="too many combinations"):
            make(nfa)


PATTERNS = [
    "[a-z]*",
    "[^a]*",
    ".*",
    r"\S*x",
    r"\s*",
    "[a-zé日]*",
    r"[\u0080-\u00ff]x.",
    r"[^\ud7ff]*",
    r"(\d\s|[^\d])*",
]


@compiled_only
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("how", ["utf8", "json", "json-plain"])
def test_trees_of_spellings_are_those_made_node_by_node(pattern: str, how: Spelling):
    chars = from_regex(parse_regex(pattern, "ecma"))
    made, wanted = (make(chars.bounds, chars.classes, how) for make in (speller_of, build_speller))
    assert made.table.shape == wanted.table.shape
    todo = [(0, 0)]
    pairs = set(todo)
    for node, other in todo:
        assert (made.reach[node] == wanted.reach[other]).all()
        for entry, expected in zip(made.table[node].tolist(), wanted.table[other].tolist(), strict=True):
            assert (entry < 0) == (expected < 0) and (entry >= 0 or entry == expected)
            if entry >= 0 and (entry, expected) not in pairs:
                pairs.add((entry, expected))
                todo.append((entry, expected))


@compiled_only
def test_what_leads_on_is_worked_out_alike(monkeypatch):
    for pattern in PATTERNS:
        chars: CharDfa = from_regex(parse_regex(pattern, "ecma"))
        reach = speller_of(chars.bounds, chars.classes, "json").reach
        made = spelling._live(chars.delta, reach)
        with monkeypatch.context() as patch:
            patch.setattr(spelling, "library", lambda: None)
            assert (spelling._live(chars.delta, reach) == made).all()


TOKENS = [
    'a', 'b', '"', 'a"', 'ab"', '",', '", "', 'a", "', '", "a"', '", "a", "', '"]', 'a"]', '", "a"]', '", "b", "a"]',
    '\\', '\\"', 'a\\"', '\\\\"', '\\n"', '\\u0061"', '\x01"', 'é"', '日', '日"', ' ', ', ', '[', '{', '}', '": ', '"}',
    '"}, {', '{"a": "', '{"a": "a"}', '"}, {"a": "a"}', '"}, {"a": "', '"}, {"a": "b"}]', '}]', '}, {', '1', '2', '12',
    '1, 1', ', 1', ', 1, 2', '1, 2, 1]', '2]', ']', '[1, [1', ']]', '], [', '1], [1]', 'null', 'true, true',
]  # fmt: skip
RAW = [b"\xc3", b'\xa9"', b'\xff"', b"\xe6\x97", b'\xa5"', b"a\xc3"]
WORDS = Vocabulary.of((*(t.encode() for t in TOKENS), *RAW, *(bytes([b]) for b in range(0x20, 0x7F)), None),
                      (len(TOKENS) + len(RAW) + 0x5F,))  # fmt: skip

COMPARED = [
    {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
    {"type": "array", "uniqueItems": True, "items": {"type": "string", "maxLength": 2}, "minItems": 2},
    {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "ab"]}, "minItems": 2},
    {"type": "array", "uniqueItems": True, "prefixItems": [{"type": "string"}, {"const": "a"}], "items": {"const": 1}},
    {"type": "array", "uniqueItems": True, "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
    {"type": "array", "uniqueItems": True, "items": {"type": ["integer", "boolean", "null"]}, "maxItems": 4},
    {"type": "array", "uniqueItems": True,
     "items": {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, "a", "b"]}}},
    {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": {"enum": ["a", "b", 1]}},
    {"type": "object", "patternProperties": {"^(a|b+|é)$": {"type": "integer"}}, "additionalProperties": False,
     "minProperties": 2},
    {"type": "string"}, {"type": "string", "minLength": 1, "maxLength": 3}, {"type": "array", "items": {}},
    {"type": "object", "properties": {"a": {"type": "string"}, "ab": {"type": "integer"}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", COMPARED, ids=json.dumps)
def test_tokens_that_go_through_several_items_or_quotes_are_weighed_one_by_one(schema: object):
    """The mask along random walks, and below each first token, is what reading every token byte by byte gives."""
    constraint = Constraint("json_schema", json.dumps(schema))
    compiled = ConstraintCache().get(constraint, WORDS)
    compared = 0
    for seed in range(25):
        rng, automaton, matcher = random.Random(seed), build_automaton(constraint), compiled.start()
        state = automaton.start
        for _ in range(9):
            after = {}
            for token, data in enumerate(WORDS.token_bytes):
                target = state
                for byte in data or b"":
                    target = automaton.step(target, byte) if target >= 0 else -1
                if data and target >= 0:
                    after[token] = target
            ends = [*WORDS.eos_ids] if automaton.accepting(state) else []
            assert mask_of(matcher, WORDS.size) == sorted([*after, *ends])
            compared += 1
            if not after:
                break
            long = sorted(after, key=lambda t: -len(WORDS.token_bytes[t] or b""))[: 1 + rng.randrange(len(after))]
            token = rng.choice(long)
            matcher.advance(token)
            state = after[token]
    assert compared > 60
