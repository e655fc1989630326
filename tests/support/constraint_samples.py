"""Vocabularies of the usual kinds, and schemas and regexes in number, for tests of masks."""

from __future__ import annotations

import random
from typing import Any

from support.constraint_support import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dslc.core.constraint import Vocabulary

MORE_TEXTS = [
    *TEXTS,
    '{"id": 12, "items": [{"a": "x", "b": [1, 2.5, -3]}, {"a": "y\\n"}], "email": "ada@example.com", "é": "ü"}',
    "true false null name value type string number integer 2024-02-29T10:20:30Z 123e4567-e89b-12d3-a456-426614174000",
    'She said: "Yes, maybe", and left. \\u00e9 \\" \\\\ 😀😀 你好世界 Ελληνικά Привет',
]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table from printable characters to bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def byte_level(size: int = 1500) -> Vocabulary:
    """Byte-level BPE: all bytes, merges that may cut characters, EOS at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(MORE_TEXTS * 2, trainer)
    table, ids = _byte_of_char(), tokenizer.get_vocab()
    tokens: list[bytes | None] = [bytes(table[c] for c in text) for text in sorted(ids, key=lambda t: ids[t])]
    return Vocabulary.of((*tokens, None), (len(tokens),))


def sentencepiece_style(size: int = 1200) -> Vocabulary:
    """<unk>, <s>, </s>, 256 byte-fallback tokens, then pieces of whole characters with spaces in front."""
    rng, pieces = random.Random(1), set()
    for text in MORE_TEXTS:
        for word in text.split(" "):
            pieces |= {(" " + word)[:n] for n in range(1, min(len(word) + 2, 12))} | {
                word[i : i + 3] for i in range(len(word))
            }
    kept = rng.sample(sorted(pieces - {""}), min(size, len(pieces) - 1))
    tokens: list[bytes | None] = [None, None, None, *(bytes([b]) for b in range(256)), *(p.encode() for p in kept)]
    return Vocabulary.of(tuple(tokens), (2,))


def tekken_style(size: int = 1500) -> Vocabulary:
    """A thousand special ids in front, EOS among them, then bytes and merges."""
    tokens = byte_level(size).token_bytes[:-1]
    return Vocabulary.of((*[None] * 1000, *tokens), (2,))


_SCALARS: list[dict[str, Any]] = [
    {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"},
    {"type": "string", "maxLength": 7}, {"type": "string", "minLength": 2, "maxLength": 40},
    {"type": "string", "minLength": 3}, {"type": "string", "pattern": "^\\S+(\\s\\S+)?$"},
    {"type": "string", "pattern": "^[a-z]+$"}, {"type": "string", "pattern": "^[A-Z][a-z]{0,9}( [a-z]+)*$"},
    {"type": "string", "pattern": "é+|x"}, {"type": "string", "pattern": "^.{2,5}$"},
    {"type": "string", "format": "date"}, {"type": "string", "format": "email"}, {"type": "string", "format": "uuid"},
    {"type": "string", "format": "date-time"}, {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uri"},
    {"type": "integer", "minimum": 3, "maximum": 1234}, {"type": "number", "exclusiveMinimum": -1.5, "maximum": 20},
    {"type": "integer", "multipleOf": 7}, {"enum": ["red", "green", "blu\\e", "gr\u00fcn"]},
    {"enum": [1, 12, 123, "a", None]},
    {"const": "a \"quoted\" one"}, {"type": ["string", "null"]}, {"type": ["integer", "boolean"]}, {},
    {"not": {"type": "string"}}, {"type": "string", "not": {"enum": ["a", "ab"]}}, {"const": {"a": [1, 2]}},
]  # fmt: skip
_NAMES = ["id", "name", "tags", "é", "na me", "n", "nam", "value\\", "x1", "type", 'na"me', '"', "t\n"]


def random_schema(rng: random.Random, depth: int = 2) -> Any:
    """One of many schemas, the same for the same state of `rng`."""
    kind = rng.choice(["scalar", "object", "object", "array", "any"]) if depth else "scalar"
    if kind == "scalar":
        return rng.choice(_SCALARS)
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    if kind == "array":
        made: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth - 1)}
        if rng.random() < 0.5:
            made["maxItems"] = rng.randint(1, 4)
        if rng.random() < 0.3:
            made["minItems"] = 1
        if rng.random() < 0.3:
            made["prefixItems"] = [random_schema(rng, 0)]
        if made["items"] in _SCALARS and "enum" in made["items"]:
            made["uniqueItems"] = True
        return made
    names = rng.sample(_NAMES, rng.randint(1, 5))
    made = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names}}
    made["required"] = [name for name in names if rng.random() < 0.5]
    if rng.random() < 0.6:
        made["additionalProperties"] = rng.choice([False, {"type": "integer"}])
    if rng.random() < 0.2:
        made["patternProperties"] = {"^x": random_schema(rng, 0)}
    if rng.random() < 0.2:
        made["maxProperties"] = rng.randint(len(made["required"]), 5)
    return made


_ATOMS = [
    "a",
    "b",
    "[a-f]",
    "[0-9]",
    r"\d",
    r"\w",
    "é",
    "日",
    "[а-я]",
    ".",
    r"\s",
    "[^x]",
    '"',
    r"\\",
    " ",
    "-",
    "ab",
    "the",
]


def random_regex(rng: random.Random, depth: int = 3) -> str:
    """One of many patterns that Python's `re` takes."""
    kind = rng.choice(["atom", "cat", "cat", "alt", "repeat"]) if depth else "atom"
    if kind == "atom":
        return rng.choice(_ATOMS)
    if kind == "cat":
        return "".join(random_regex(rng, depth - 1) for _ in range(rng.randint(2, 3)))
    if kind == "alt":
        return "(" + "|".join(random_regex(rng, depth - 1) for _ in range(2)) + ")"
    return f"({random_regex(rng, depth - 1)})" + rng.choice(["*", "+", "?", "{2}", "{1,4}", "{0,30}", "{3,}"])
