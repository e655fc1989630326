"""The mask of every state reached is what trying every token byte by byte gives, in Python and without the walk.

Vocabularies of three kinds; the compiled walk, the Python walk, and both against an automaton of their own that is
stepped one byte at a time.
"""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
import pytest
from support.constraint_samples import byte_level, random_regex, random_schema, sentencepiece_style, tekken_style
from support.constraint_support import allowed_ids, mask_of, small_vocabulary

from dslc.compiler.constraints import compile_constraint, mask_words
from dslc.compiler.constraints.compile import build_automaton
from dslc.compiler.constraints.native import library
from dslc.core.constraint import Constraint, Vocabulary
from dslc.core.errors import ConstraintError

KINDS = {
    "byte level": byte_level,
    "byte fallback": sentencepiece_style,
    "tekken": tekken_style,
    "cut": small_vocabulary,
}
NUM_SCHEMAS, NUM_REGEXES, GROUP = 200, 100, 20


@cache
def vocabulary(number: int) -> Vocabulary:
    return [*KINDS.values()][number % len(KINDS)]()


@cache
def sorted_tokens(number: int) -> list[tuple[bytes, int]]:
    found = vocabulary(number)
    return sorted((data, token) for token, data in enumerate(found.token_bytes) if data and token not in found.eos_ids)


class Oracle:
    """An automaton that is read one byte at a time."""

    def __init__(self, constraint: Constraint) -> None:
        self.automaton = build_automaton(constraint)
        self.state = self.automaton.start

    def after(self, data: bytes) -> int:
        state = self.state
        for byte in data:
            state = self.automaton.step(state, byte) if state >= 0 else -1
        return state

    def allowed(self, tokens: list[tuple[bytes, int]], eos: tuple[int, ...]) -> list[int]:
        """Every token tried; neighbours share the states of their common beginning."""
        path, read, out = [self.state], b"", []
        for data, token in tokens:
            same = 0
            while same < min(len(read), len(data)) and read[same] == data[same]:
                same += 1
            del path[same + 1 :]
            for byte in data[same:]:
                path.append(self.automaton.step(path[-1], byte) if path[-1] >= 0 else -1)
            read = data
            if path[-1] >= 0:
                out.append(token)
        return sorted([*out, *(eos if self.automaton.accepting(self.state) else ())])


def check(constraint: Constraint, number: int, walks: int, length: int) -> int:
    """Compare along random walks; returns how many states were compared."""
    words, tokens = vocabulary(number), sorted_tokens(number)
    compiled = compile_constraint(constraint, words)
    states = set()
    for seed in range(walks):
        rng, matcher, oracle = random.Random(seed), compiled.start(), Oracle(constraint)
        for _ in range(length):
            allowed = mask_of(matcher, words.size)
            if matcher.state_key not in states:
                states.add(matcher.state_key)
                assert allowed == oracle.allowed(tokens, words.eos_ids), constraint.source
                row = np.full(mask_words(words.size), -1, np.int32)
                compiled.index.compute_in_python(matcher.state_key[1]).write(row)
                assert allowed_ids(row, words.size) == allowed, constraint.source
            assert allowed, f"dead end under {constraint.source}"
            token = rng.choice(allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
            oracle.state = oracle.after(words.token_bytes[token] or b"")
    return len(states)


@cache
def schemas() -> list[str]:
    """The first NUM_SCHEMAS of a fixed sequence that can be met."""
    rng, found = random.Random(11), []
    while len(found) < NUM_SCHEMAS:
        source = json.dumps(random_schema(rng), ensure_ascii=False)
        try:
            build_automaton(Constraint("json_schema", source))
        except ConstraintError:
            continue
        found.append(source)
    return found


@pytest.mark.parametrize("group", range(0, NUM_SCHEMAS, GROUP))
def test_masks_of_schemas(group):
    states = sum(
        check(Constraint("json_schema", source), group + i, walks=3, length=14)
        for i, source in enumerate(schemas()[group : group + GROUP])
    )
    assert states > 5 * GROUP


@pytest.mark.parametrize("group", range(0, NUM_REGEXES, GROUP))
def test_masks_of_regexes(group):
    rng = random.Random(group)
    states = sum(check(Constraint("regex", random_regex(rng, 4)), group + i, walks=4, length=9) for i in range(GROUP))
    assert states > 2 * GROUP


def test_the_walk_is_compiled_where_there_is_a_compiler():
    """So that the comparisons above are comparisons."""
    if library() is None:
        pytest.skip("no C compiler: masks come from the Python walk alone")
    compiled = compile_constraint(Constraint("regex", "[a-z]+"), vocabulary(0))
    assert compiled.index._native is not None


@pytest.mark.slow
def test_masks_over_131k_tokens():
    """200 states of as many schemas over mistral-common's bundled vocabulary."""
    pytest.importorskip("mistral_common", reason="needs the vocabulary that mistral-common brings")
    import tempfile
    from pathlib import Path

    import mistral_common

    from dslc.core.text.load import load_tekken

    with tempfile.TemporaryDirectory() as folder:
        data = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
        (Path(folder) / "tekken.json").symlink_to(data)
        words = load_tekken(Path(folder)).vocabulary
    tokens = sorted(
        (data, token) for token, data in enumerate(words.token_bytes) if data and token not in words.eos_ids
    )
    compared = 0
    for number, source in enumerate(schemas() * 5):
        compiled = compile_constraint(Constraint("json_schema", source), words)
        rng, matcher, oracle = random.Random(number), compiled.start(), Oracle(Constraint("json_schema", source))
        for step in range(10):
            allowed = mask_of(matcher, words.size)
            if step == number % 8:
                assert allowed == oracle.allowed(tokens, words.eos_ids), source
                compared += 1
                break
            token = rng.choice(allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
            oracle.state = oracle.after(words.token_bytes[token] or b"")
        if compared == 200:
            return
    raise AssertionError(f"only {compared} states were reached")
