"""Matchers roll back, copy and force; the cache compiles once, is bounded, and counts; threads share automata."""

from __future__ import annotations

import json
import random
import threading

import pytest
from support.constraint_support import mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import ConstraintCache, compile_constraint, source_of_schema
from dslc.compiler.constraints import matcher as matcher_module
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

REPORT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "severity": {"enum": ["low", "high"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0},
    },
    "required": ["title", "severity", "tags", "count"],
    "additionalProperties": {"type": "boolean"},
}  # fmt: skip
REPORT_CONSTRAINT = Constraint("json_schema", source_of_schema(REPORT))


def longest_match(vocabulary):
    """A tokenizer that takes the longest token at each place."""
    ids: dict[bytes, int] = {}
    for token, data in enumerate(vocabulary.token_bytes):
        if data:
            ids.setdefault(data, token)
    longest = max(map(len, ids))

    def encode(text: str) -> list[int]:
        data, out, at = text.encode(), [], 0
        while at < len(data):
            size = next(n for n in range(min(longest, len(data) - at), 0, -1) if data[at : at + n] in ids)
            out.append(ids[data[at : at + size]])
            at += size
        return out

    return encode


def test_rollback_and_copy_restore_masks():
    vocabulary = small_vocabulary()
    compiled = compile_constraint(REPORT_CONSTRAINT, vocabulary)
    rng = random.Random(5)
    matcher = compiled.start()
    history = []
    while not matcher.is_terminated and len(history) < 120:
        allowed = mask_of(matcher, vocabulary.size)
        history.append((matcher.state_key, allowed))
        matcher.advance(rng.choice(allowed))
    twin = matcher.copy()
    back = len(history) // 2
    matcher.rollback(back)
    assert (matcher.state_key, mask_of(matcher, vocabulary.size)) == history[-back]
    assert not matcher.is_terminated
    assert twin.state_key != matcher.state_key
    matcher.rollback(len(history) - back)
    assert matcher.state_key == compiled.start().state_key
    with pytest.raises(ConstraintError, match="roll back"):
        matcher.rollback(1)


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing():
    vocabulary = small_vocabulary()
    matcher = compile_constraint(Constraint("regex", "ab"), vocabulary).start()
    before = mask_of(matcher, vocabulary.size)
    for token in (vocabulary.token_bytes.index(b"b"), vocabulary.eos_ids[0], -1, vocabulary.size):
        with pytest.raises(ConstraintError):
            matcher.advance(token)
    assert mask_of(matcher, vocabulary.size) == before
    matcher.advance(vocabulary.token_bytes.index(b"a"))
    matcher.advance(vocabulary.token_bytes.index(b"b"))
    assert matcher.is_accepting and matcher.must_stop and not matcher.is_terminated
    assert mask_of(matcher, vocabulary.size) == sorted(vocabulary.eos_ids)
    matcher.advance(vocabulary.eos_ids[1])
    assert matcher.is_terminated and mask_of(matcher, vocabulary.size) == []


def test_forced_tokens_are_canonical_and_the_only_bytes_that_can_come():
    vocabulary = small_vocabulary(6)
    encode = longest_match(vocabulary)
    compiled = compile_constraint(REPORT_CONSTRAINT, vocabulary, encode=encode)
    num_forced = 0
    for seed in range(20):
        rng = random.Random(seed)
        matcher = compiled.start()
        for _ in range(200):
            forced = matcher.forced()
            data = b"".join(vocabulary.token_bytes[t] for t in forced)
            assert compiled.index.forced_bytes(matcher.state_key[1])[0].startswith(data)
            assert encode(data.decode()) == forced
            # A longer token that begins like the last forced one cannot come instead.
            after = matcher.copy()
            for token in forced:
                allowed = mask_of(after, vocabulary.size)
                assert token in allowed
                piece = vocabulary.token_bytes[token]
                longer = [t for t in allowed if (b := vocabulary.token_bytes[t]) and len(b) > len(piece)]
                assert not any(vocabulary.token_bytes[t].startswith(piece) and token == forced[-1] for t in longer)
                after.advance(token)
            num_forced += len(forced)
            matcher = after
            if matcher.is_terminated:
                break
            matcher.advance(rng.choice(mask_of(matcher, vocabulary.size)))
            if matcher.is_terminated:
                break
    assert num_forced > 50


def test_nothing_is_forced_without_a_tokenizer():
    assert compile_constraint(REPORT_CONSTRAINT, small_vocabulary()).start().forced() == []


def test_the_cache_compiles_once_counts_and_is_bounded():
    vocabulary = small_vocabulary()
    cache = ConstraintCache(max_bytes=500_000)
    first = cache.get(REPORT_CONSTRAINT, vocabulary)
    assert cache.get(Constraint("json_schema", source_of_schema(REPORT)), vocabulary) is first
    assert (cache.counters.compiled, cache.counters.hits) == (1, 1)
    for _ in range(2):
        with pytest.raises(ConstraintError):
            cache.get(Constraint("regex", "("), vocabulary)
    assert cache.counters.compiled == 1
    for i in range(300):
        compiled = cache.get(Constraint("regex", f"value {i}: [a-z ]{{1,40}}"), vocabulary)
        random_walk(compiled.start(), vocabulary, random.Random(i), 5)
    counters = cache.counters
    assert counters.compiled == 301 and counters.evicted > 0
    assert counters.num_bytes < 600_000


def test_a_constraint_that_grows_begins_anew(monkeypatch):
    monkeypatch.setattr(matcher_module, "MAX_AUTOMATON_BYTES", 100_000)
    vocabulary = small_vocabulary()
    compiled = ConstraintCache().get(Constraint("json_schema", '{"type": "array", "uniqueItems": true}'), vocabulary)
    old = compiled.start()
    first = mask_of(old, vocabulary.size)
    for seed in range(8):
        random_walk(compiled.start(), vocabulary, random.Random(seed), 60)
    assert mask_of(old, vocabulary.size) == first == mask_of(compiled.start(), vocabulary.size)
    assert compiled.start().state_key != old.state_key
    assert compiled.index.automaton.num_bytes < 5_000_000


def test_threads_share_one_constraint():
    vocabulary = small_vocabulary()
    alone = ConstraintCache().get(REPORT_CONSTRAINT, vocabulary)
    shared = ConstraintCache().get(REPORT_CONSTRAINT, vocabulary)
    expected = [random_walk(alone.start(), vocabulary, random.Random(seed), 80, 30) for seed in range(12)]
    found: dict[int, tuple[bytes, bool]] = {}

    def run(seed: int) -> None:
        found[seed] = random_walk(shared.start(), vocabulary, random.Random(seed), 80, 30)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(12)] == expected
    for data, complete in expected:
        assert not complete or json.loads(data)["severity"] in ("low", "high")


def test_what_the_cache_holds_stays_within_its_bound_as_masks_are_made():
    """Entries grow after they were compiled; the oldest go, and the count of bytes is what is there."""
    vocabulary, rng = small_vocabulary(), random.Random(0)
    cache = ConstraintCache(max_bytes=3_000_000)
    for number in range(120):
        constraint = Constraint("json_schema", source_of_schema({**REPORT, "title": f"number {number}"}))
        random_walk(cache.get(constraint, vocabulary).start(), vocabulary, rng, 25)
        if number % 3 == 0:
            assert cache.get(constraint, vocabulary) is cache.get(constraint, vocabulary)
        newest = cache.get(constraint, vocabulary).stats.num_bytes
        assert cache.counters.num_bytes <= cache.max_bytes + 2 * newest
    assert 0 < cache.counters.evicted < 119 and cache.counters.hits == 120 + 2 * 40
    assert cache._num_bytes == sum(cache._sizes.values()) and cache._sizes.keys() == cache._entries.keys()
    cache.clear()
    assert cache.counters.num_bytes == 0 == cache._num_bytes
