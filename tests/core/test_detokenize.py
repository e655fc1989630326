"""Incremental detokenisation: the pieces add up to the whole, and nothing shown is ever taken back."""

import functools
import random

import pytest
from support import tokenizer_kinds as kinds

from dslc.core.text.detokenize import IncrementalDetokenizer, kept_ids
from dslc.core.text.load import load_tokenizer


@functools.cache
def tokenizer_of(kind):
    return load_tokenizer(kinds.folder(kind))


def random_ids(tokenizer, rng):
    """Ids at random, or those of a text of wide characters with some dropped, so that characters are cut in pieces."""
    if rng.random() < 0.5:
        return [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(12))]
    text = "".join(rng.choice(["😀", "日本", "é ", "a b", " c", "\n", "🇫🇷", "ก"]) for _ in range(rng.randrange(8)))
    return [i for i in tokenizer.encode(text) if rng.random() < 0.9]


def chunks(ids, rng):
    at = 0
    while at < len(ids):
        size = rng.randrange(1, 4)
        yield ids[at : at + size]
        at += size


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "llama2", "gemma", "bert"])
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_add_up_to_the_whole(kind, skip):
    tokenizer, rng = tokenizer_of(kind), random.Random(1)
    broken = 0
    for _ in range(500):
        ids = random_ids(tokenizer, rng)
        detokenizer = IncrementalDetokenizer(tokenizer, skip)
        text = ""
        for part in chunks(ids, rng):
            text += detokenizer.add(part)
            assert tokenizer.decode(ids, skip).startswith(text)
        text += detokenizer.finish()
        assert text == tokenizer.decode(ids, skip)
        assert detokenizer.text_len == len(text)
        broken += "\ufffd" in text
    assert broken > 50 or kind == "bert"


def test_a_character_waits_for_its_last_byte_and_broken_bytes_do_not():
    tokenizer = tokenizer_of("llama2")
    a, *smile = tokenizer.encode("a\U0001f9ff")
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.add([i]) for i in (a, *smile)] == ["a", "", "", "", "\U0001f9ff"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.add([i]) for i in (*smile[:2], a)] == ["", "", "\ufffda"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.add(smile[:3]) == "" and detokenizer.finish() == "\ufffd"


def test_each_id_is_looked_at_once():
    class Counting:
        calls = 0

        def token_bytes(self, token_id):
            self.calls += 1
            return b"x" if token_id else None

        def decode(self, ids, skip_special_tokens):
            assert len(ids) == 1
            return ""

    tokenizer = Counting()
    detokenizer = IncrementalDetokenizer(tokenizer)
    for i in range(1000):
        detokenizer.add([i % 7])
    assert tokenizer.calls == 1000


@pytest.mark.parametrize("kind", ["llama3", "llama2", "qwen2"])
@pytest.mark.parametrize("skip", [True, False])
def test_kept_ids_and_tail_make_up_every_cut(kind, skip):
    tokenizer, rng = tokenizer_of(kind), random.Random(2)
    for _ in range(200):
        ids = random_ids(tokenizer, rng)
        text = tokenizer.decode(ids, skip)
        for end in range(len(text) + 1):
            kept, tail = kept_ids(tokenizer, ids, text[:end], skip)
            assert kept == tuple(ids[: len(kept)])
            assert tokenizer.decode(kept, skip) + tail == text[:end]
            # No more ids could have been kept: the next place where whole characters end lies beyond the cut.
            longer = [
                n for n in range(len(kept) + 1, len(ids) + 1) if text[:end].startswith(tokenizer.decode(ids[:n], skip))
            ]
            assert all(tokenizer.decode(ids[:n], skip).endswith("\ufffd") for n in longer)


def test_kept_ids_of_a_plain_cut():
    tokenizer = tokenizer_of("gpt2")
    ids = tokenizer.encode("the lazy dog")
    first = len(tokenizer.encode("the lazy"))
    assert kept_ids(tokenizer, ids, "the lazy") == (tuple(ids[:first]), "")
    kept, tail = kept_ids(tokenizer, ids, "the lazy d")
    assert kept[:first] == tuple(ids[:first]) and tokenizer.decode(kept) + tail == "the lazy d"
    assert kept_ids(tokenizer, ids, "") == ((), "")
