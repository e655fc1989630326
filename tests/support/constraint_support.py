"""Small vocabularies, brute-force masks and random walks for the constraint tests."""

from __future__ import annotations

import random

import numpy as np

from dslc.compiler.constraints import mask_words
from dslc.core.constraint import Vocabulary

TEXTS = [
    '{"name": "Ada", "age": 36, "tags": ["a", "b"], "x": null, "ok": true, "no": false}',
    "The quick brown fox jumps over the lazy dog. 2024-11-20T10:20:30Z  user@example.com 192.168.0.1 -12.75",
    "Grüße aus München, naïve café, 日本語のテキスト, Привет мир, 😀👍🏽 \n\t\\ \"quoted\" 'single'",
    "def f(x): return [i*2 for i in range(10)] # abc_DEF <tag> https://example.org/a?b=c&d=1",
]


def small_vocabulary(seed: int = 0, merges: int = 400, eos: int = 2) -> Vocabulary:
    """All 256 bytes, `merges` random pieces of the texts (cut anywhere, also within characters), specials, EOS."""
    rng = random.Random(seed)
    data = [t.encode() for t in TEXTS]
    pieces: set[bytes] = set()
    while len(pieces) < merges:
        text = rng.choice(data)
        at = rng.randrange(len(text))
        pieces.add(text[at : at + rng.randint(2, 9)])
    tokens: list[bytes | None] = [None] * eos
    tokens += [bytes([b]) for b in range(256)] + sorted(pieces)
    tokens += [None, b"a", b"{", b" "]  # an unused id, and tokens with equal bytes
    rng.shuffle(tokens)
    tokens += [None] * eos
    return Vocabulary.of(tuple(tokens), tuple(range(len(tokens) - eos, len(tokens))))


def allowed_ids(row: np.ndarray, size: int) -> list[int]:
    """The ids whose bit is set; bits at and beyond `size` must not be."""
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return np.flatnonzero(bits[:size]).tolist()


def mask_of(matcher, size: int) -> list[int]:
    row = np.full(mask_words(size), -1, np.int32)  # stale bits must not survive
    matcher.fill_mask(row)
    return allowed_ids(row, size)


def random_walk(
    matcher, vocabulary: Vocabulary, rng: random.Random, max_tokens: int, closing_after: int | None = None
) -> tuple[bytes, bool]:
    """Tokens drawn evenly from the masks until EOS or `max_tokens`. Returns (bytes, whether it ended).

    After `closing_after` tokens those that close something are preferred, so that unbounded values end.
    """
    out = b""
    for count in range(max_tokens):
        allowed = mask_of(matcher, vocabulary.size)
        assert allowed, f"dead end after {out!r}"
        if closing_after is not None and count >= closing_after:
            closers = [t for t in allowed if (vocabulary.token_bytes[t] or b"}") in (b"}", b"]", b'"')]
            allowed = closers or allowed
        token = rng.choice(allowed)
        matcher.advance(token)
        if matcher.is_terminated:
            return out, True
        out += vocabulary.token_bytes[token] or b""
    return out, False
