"""The matcher of an automaton constraint: a state, and the states before it."""

from __future__ import annotations

import time
from collections.abc import Hashable

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .interface import ConstraintStats, MaskRow
from .prepare import prepare_vocabulary
from .token_index import Automaton, Encode, TokenIndex

MAX_AUTOMATON_BYTES = 128 * 2**20  # of a constraint; beyond it new generations begin with a fresh automaton


class AutomatonConstraint:
    """A constraint whose language an automaton decides byte by byte. Implements `CompiledConstraint`."""

    def __init__(
        self,
        constraint: Constraint,
        vocabulary: Vocabulary,
        automaton: Automaton,
        encode: Encode | None,
        started: float,
    ) -> None:
        self.constraint = constraint
        self.vocabulary = vocabulary
        self.index = TokenIndex(automaton, prepare_vocabulary(vocabulary), encode)
        self._generation = 0
        self._compile_s = time.perf_counter() - started

    def start(self) -> AutomatonMatcher:
        """A matcher at the beginning. One that is running keeps the index it began with."""
        index = self.index
        if index.automaton.num_bytes > MAX_AUTOMATON_BYTES and index.automaton.fresh() is not index.automaton:
            self.index = TokenIndex(index.automaton.fresh(), index.trie, index.encode)
            self._generation += 1
        return AutomatonMatcher(self, self.index, self._generation)

    @property
    def num_bytes(self) -> int:
        return self.index.num_bytes

    @property
    def stats(self) -> ConstraintStats:
        index = self.index
        return ConstraintStats(
            engine="automaton",
            num_states=index.automaton.num_states,
            compile_s=self._compile_s,
            masks_computed=index.masks_computed,
            masks_reused=index.masks_reused,
            num_bytes=index.num_bytes,
        )


class AutomatonMatcher:
    """Implements `Matcher`. `_state` is the automaton's state, `_path` the states before each token taken."""

    __slots__ = ("_compiled", "_generation", "_index", "_path", "_state", "is_terminated")

    def __init__(self, compiled: AutomatonConstraint, index: TokenIndex, generation: int) -> None:
        self._compiled = compiled
        self._index = index
        self._generation = generation
        self._state = index.automaton.start
        self._path: list[int] = []
        self.is_terminated = False

    def fill_mask(self, row: MaskRow) -> None:
        if self.is_terminated:
            row.fill(0)
        else:
            self._index.mask(self._state).write(row)

    def look_ahead(self, limit: int) -> int:
        return 0 if self.is_terminated else self._index.look_ahead(self._state, limit)

    def advance(self, token_id: int) -> None:
        after = -1 if self.is_terminated else self._index.step(self._state, token_id)
        if after >= 0:
            self._path.append(self._state)
            self._state = after
        elif token_id in self._compiled.vocabulary.eos_ids and self.is_accepting and not self.is_terminated:
            self._path.append(self._state)
            self.is_terminated = True
        else:
            raise ConstraintError(self._refusal(token_id), field=self._compiled.constraint.kind)

    def _refusal(self, token_id: int) -> str:
        vocabulary = self._compiled.vocabulary
        if self.is_terminated:
            return f"token {token_id} comes after the end of the text"
        if not 0 <= token_id < vocabulary.size:
            return f"token {token_id} is not in the vocabulary of {vocabulary.size}"
        what = repr(vocabulary.token_bytes[token_id]) if token_id not in vocabulary.eos_ids else "end of text"
        return f"token {token_id} ({what}) is not allowed after {len(self._path)} tokens"

    @property
    def index(self) -> TokenIndex:
        """What the matcher reads its masks from."""
        return self._index

    def enter(self, data: bytes) -> bool:
        """Go to where `data` leads from the beginning, as if it had come before any token. False: it is not allowed."""
        state = self._index.step_bytes(self._index.automaton.start, data)
        if state < 0:
            return False
        self._state = state
        self._path.clear()
        self.is_terminated = False
        return True

    @property
    def is_accepting(self) -> bool:
        return self._index.accepting(self._state)

    @property
    def must_stop(self) -> bool:
        return self.is_terminated or self._index.is_final(self._state)

    def forced(self) -> list[int]:
        return [] if self.is_terminated else list(self._index.forced(self._state))

    def shortest_end(self) -> tuple[int, ...] | None:
        return () if self.is_terminated else self._index.shortest_end(self._state)

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= len(self._path):
            raise ConstraintError(
                f"cannot roll back {num_tokens} of {len(self._path)} tokens", field=self._compiled.constraint.kind
            )
        if num_tokens:
            self._state = self._path[-num_tokens]
            del self._path[-num_tokens:]
            self.is_terminated = False

    def copy(self) -> AutomatonMatcher:
        other = AutomatonMatcher(self._compiled, self._index, self._generation)
        other._state = self._state
        other._path = self._path.copy()
        other.is_terminated = self.is_terminated
        return other

    @property
    def state_key(self) -> Hashable:
        return (self._generation, -1 if self.is_terminated else self._state)
