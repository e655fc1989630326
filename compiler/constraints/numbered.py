"""What automata share whose states are numbered as texts are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from .token_index import Mask
from .token_trie import TokenTrie

SHIFT = 32
LEAF_BITS = (1 << SHIFT) - 1
_MAX_MOVES = 400_000  # entries kept

Frame = TypeVar("Frame", bound=Hashable)


class NumberedStates(ABC, Generic[Frame]):
    """A state is `number << 32 | leaf`; the number stands for a frame, and equal frames have one number.

    The most of an `Automaton`: a subclass says what the moves of a state are, and where a text may end.
    """

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._numbers: dict[Frame, int] = {}
        self._moves: dict[int, dict[int, int]] = {}
        self._num_moves = 0

    @abstractmethod
    def _compute_moves(self, state: int) -> dict[int, int]:
        """Allowed byte to next state."""

    def _number(self, frame: Frame) -> int:
        found = self._numbers.get(frame)
        if found is None:
            found = self._numbers[frame] = len(self._frames)
            self._frames.append(frame)
        return found

    def moves(self, state: int) -> Mapping[int, int]:
        """Allowed byte to next state; those of many states are remembered."""
        found = self._moves.get(state)
        if found is None:
            found = self._compute_moves(state)
            if self._num_moves > _MAX_MOVES:
                self._moves.clear()
                self._num_moves = 0
            self._num_moves += len(found)
            self._moves[state] = found
        return found

    few_moves = moves

    def step(self, state: int, byte: int) -> int:
        """The state after a byte, -1 if it is not allowed."""
        return self.moves(state).get(byte, -1)

    def single(self, state: int) -> bool:
        """Whether exactly one byte may come next."""
        return len(self.moves(state)) == 1

    def wide_mask(self, state: int, trie: TokenTrie) -> Mask | None:
        """None: these are walked."""
        return None
