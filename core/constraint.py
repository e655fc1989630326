"""A constraint on generated text, as a value. Its compiled form lives in `compiler.constraints`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["regex", "json_schema", "ebnf", "seq"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generated text must match, whole. Made by `gen(...)`, compiled once per (constraint, vocabulary).

    `source` is a regex, the canonical JSON text of a schema (keys in the author's order: they decide the order of
    properties), an EBNF grammar, or the parts of a sequence as JSON (see `compiler.constraints.sequence`); `options`
    are sorted (name, value) pairs that change the language, such as ("whitespace", "compact").
    """

    kind: ConstraintKind
    source: str
    options: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        maker = {"json_schema": "json"}.get(self.kind, self.kind)
        return f"dslc.{maker}({', '.join([repr(self.source), *(f'{name}={value!r}' for name, value in self.options)])})"

    @property
    def key(self) -> str:
        """A stable name of the constraint: 16 hex digits, equal for equal constraints in every process."""
        text = "\x00".join((self.kind, self.source, *(f"{k}={v}" for k, v in self.options)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a constraint engine needs to know of a tokenizer.

    `token_bytes[i]` are the bytes that token i adds to the text, or None for a special or unused id. `eos_ids` end a
    generation. `hash` is stable across processes and names the vocabulary in caches.
    """

    token_bytes: tuple[bytes | None, ...]
    eos_ids: tuple[int, ...]
    hash: str

    @property
    def size(self) -> int:
        """Number of ids, special and unused ones included."""
        return len(self.token_bytes)

    @classmethod
    def of(cls, token_bytes: tuple[bytes | None, ...], eos_ids: tuple[int, ...]) -> Vocabulary:
        """Build one, hashing its contents."""
        digest = hashlib.sha256(repr((len(token_bytes), eos_ids)).encode())
        for token in token_bytes:
            digest.update(b"\xff" if token is None else len(token).to_bytes(4, "little") + token)
        return cls(token_bytes, eos_ids, digest.hexdigest()[:16])
