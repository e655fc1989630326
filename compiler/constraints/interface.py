"""What a constraint looks like to an engine: compile once per vocabulary, then one matcher per generation."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...core.constraint import Constraint, Vocabulary

MaskRow = np.ndarray[Any, np.dtype[np.int32]]


def mask_words(vocab_size: int) -> int:
    """Number of int32 words in a mask row over `vocab_size` ids."""
    return (vocab_size + 31) // 32


@dataclass(frozen=True, slots=True)
class ConstraintStats:
    """What a compiled constraint has cost so far. Times are in seconds, sizes in bytes.

    `num_states` counts automaton states built (lazily built automata grow); `masks_computed` the distinct mask rows
    computed, `masks_reused` the fills that found theirs ready; `num_bytes` what masks and tables take.
    """

    engine: str
    num_states: int
    compile_s: float
    masks_computed: int
    masks_reused: int
    num_bytes: int


class Matcher(Protocol):
    """Where one generation stands in its constraint. Not thread-safe; cheap to copy."""

    def fill_mask(self, row: MaskRow) -> None:
        """Write the allowed tokens into `row` (int32, at least `mask_words(vocabulary.size)` words; all are set).

        Bit i % 32 of word i // 32 is 1 if and only if token i may come next: its bytes lead from here to a state from
        which the constraint can still be met. EOS ids are allowed exactly in accepting states.
        """

    def look_ahead(self, limit: int) -> int:
        """Work out up to `limit` things that the next masks may need; returns how many there were. Changes no answer.

        For the time in which a model runs: what is known by then need not be worked out by `fill_mask`.
        """

    def advance(self, token_id: int) -> None:
        """Take a token. Raises ConstraintError if it is not allowed here. An EOS id ends the matcher."""

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete: EOS is allowed."""

    @property
    def is_terminated(self) -> bool:
        """Whether an EOS id was taken."""

    @property
    def must_stop(self) -> bool:
        """Whether the text is complete and nothing but EOS can follow (also true once terminated)."""

    def forced(self) -> list[int]:
        """Canonical tokens of the bytes that must come next, in order; often empty.

        Trailing tokens that a longer token could still replace are left out. Taking them changes no state.
        """

    def shortest_end(self) -> tuple[int, ...] | None:
        """Tokens that make the text complete, as few as can be told; empty where it is; None if no way was found.

        Taking them changes no state.
        """

    def rollback(self, num_tokens: int) -> None:
        """Undo the last `num_tokens` advances. Raises ConstraintError if there were fewer."""

    def copy(self) -> Matcher:
        """An independent matcher at the same place."""

    @property
    def state_key(self) -> Hashable:
        """Equal keys of one compiled constraint mean the same automaton state, whatever text led there."""


class CompiledConstraint(Protocol):
    """A constraint over one vocabulary. Shared by requests and threads; what it caches inside is bounded."""

    @property
    def constraint(self) -> Constraint: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def start(self) -> Matcher:
        """A matcher at the beginning of the text."""

    @property
    def stats(self) -> ConstraintStats: ...
