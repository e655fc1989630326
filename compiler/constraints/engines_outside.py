"""A matcher of another package behind our interface: its masks decide, and we keep the promises around them.

The guide's row is cut down to tokens with bytes, end-of-text ids are ours, and a token that its mask does not allow
never reaches it (some guides stay broken after one).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Protocol

import numpy as np

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .interface import ConstraintStats, MaskRow, mask_words

Encode = Callable[[str], list[int]]


class Guide(Protocol):
    """One generation in another package. `row` has `mask_words(vocabulary.size)` words, all of which are set."""

    def fill(self, row: MaskRow) -> None: ...

    def consume(self, token_id: int) -> bool: ...

    def accepting(self) -> bool: ...

    def forced(self) -> list[int]: ...


class OutsideConstraint:
    """Implements `CompiledConstraint`. `begin` makes a guide at the beginning of the text."""

    def __init__(
        self, engine: str, constraint: Constraint, vocabulary: Vocabulary, begin: Callable[[], Guide], started: float
    ) -> None:
        self.engine = engine
        self.constraint = constraint
        self.vocabulary = vocabulary
        self.begin = begin
        self.texts, self.ends = token_rows(vocabulary)
        self.masks_computed = 0
        self._compile_s = time.perf_counter() - started

    def start(self) -> OutsideMatcher:
        """A matcher at the beginning."""
        return OutsideMatcher(self)

    @property
    def stats(self) -> ConstraintStats:
        """The package does not tell its states and sizes: those are 0."""
        return ConstraintStats(self.engine, 0, self._compile_s, self.masks_computed, 0, 0)


class OutsideMatcher:
    """Implements `Matcher`. A guide goes forward only: rolling back and copying read the tokens again."""

    __slots__ = ("_compiled", "_guide", "_path", "_row", "is_terminated")

    def __init__(self, compiled: OutsideConstraint, path: tuple[int, ...] = ()) -> None:
        self._compiled = compiled
        self._guide = compiled.begin()
        self._path: list[int] = []
        self._row: MaskRow | None = None
        self.is_terminated = False
        for token in path:
            self._consume(token)

    def _consume(self, token_id: int) -> None:
        if not self._guide.consume(token_id):
            raise ConstraintError(
                f"{self._compiled.engine} refuses token {token_id} after {len(self._path)} tokens; its mask allows it",
                field=self._compiled.constraint.kind,
            )
        self._path.append(token_id)
        self._row = None

    def _texts(self) -> MaskRow:
        """The allowed tokens with bytes at this place, computed once."""
        if self._row is None:
            compiled = self._compiled
            row = np.zeros(mask_words(compiled.vocabulary.size), np.int32)
            self._guide.fill(row)
            self._row = row & compiled.texts
            compiled.masks_computed += 1
        return self._row

    def fill_mask(self, row: MaskRow) -> None:
        row.fill(0)
        if self.is_terminated:
            return
        allowed = self._texts()
        row[: len(allowed)] = allowed
        if self.is_accepting:
            row[: len(allowed)] |= self._compiled.ends

    def look_ahead(self, limit: int) -> int:
        return 0

    def advance(self, token_id: int) -> None:
        compiled = self._compiled
        kind = compiled.constraint.kind
        if self.is_terminated:
            raise ConstraintError(f"token {token_id} comes after the end of the text", field=kind)
        if not 0 <= token_id < compiled.vocabulary.size:
            raise ConstraintError(
                f"token {token_id} is not in the vocabulary of {compiled.vocabulary.size}", field=kind
            )
        if token_id in compiled.vocabulary.eos_ids and self.is_accepting:
            self.is_terminated = True
        elif int(self._texts()[token_id >> 5]) >> (token_id & 31) & 1:
            self._consume(token_id)
        else:
            raise ConstraintError(f"token {token_id} is not allowed after {len(self._path)} tokens", field=kind)

    @property
    def is_accepting(self) -> bool:
        return self.is_terminated or self._guide.accepting()

    @property
    def must_stop(self) -> bool:
        return self.is_terminated or (self.is_accepting and not self._texts().any())

    def forced(self) -> list[int]:
        return [] if self.is_terminated or self.is_accepting else self._guide.forced()

    def shortest_end(self) -> tuple[int, ...] | None:
        raise ConstraintError(
            "this grammar backend does not tell how far the end is: finish_valid needs grammar_backend='automaton'",
            field="finish_valid",
        )

    def rollback(self, num_tokens: int) -> None:
        taken = len(self._path) + self.is_terminated
        if not 0 <= num_tokens <= taken:
            raise ConstraintError(
                f"cannot roll back {num_tokens} of {taken} tokens", field=self._compiled.constraint.kind
            )
        if num_tokens and self.is_terminated:
            self.is_terminated = False
            num_tokens -= 1
        if num_tokens:
            other = OutsideMatcher(self._compiled, tuple(self._path[:-num_tokens]))
            self._guide, self._path, self._row = other._guide, other._path, None

    def copy(self) -> OutsideMatcher:
        other = OutsideMatcher(self._compiled, tuple(self._path))
        other.is_terminated = self.is_terminated
        return other

    @property
    def state_key(self) -> Hashable:
        """The tokens taken: these packages do not name their states."""
        return (self.is_terminated, *self._path)


_MAX_VOCABULARIES = 4
_known: dict[str, tuple[MaskRow, MaskRow]] = {}  # by the vocabulary's hash: the value itself is slow to hash


def token_rows(vocabulary: Vocabulary) -> tuple[MaskRow, MaskRow]:
    """Rows [mask_words] of the tokens that add bytes, and of the end-of-text ids. Those of the last few are kept."""
    found = _known.get(vocabulary.hash)
    if found is None:
        texts, ends = np.zeros((2, mask_words(vocabulary.size) * 32), bool)
        texts[: vocabulary.size] = [bool(token) for token in vocabulary.token_bytes]
        ends[list(vocabulary.eos_ids)] = True
        packed = np.packbits(np.stack([texts & ~ends, ends]), axis=1, bitorder="little")
        rows = packed.view("<i4").astype(np.int32)
        while len(_known) >= _MAX_VOCABULARIES:
            del _known[next(iter(_known))]
        found = _known[vocabulary.hash] = (rows[0], rows[1])
    return found
