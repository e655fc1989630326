"""What reads the inside of a string, a number or a literal, and what it delivers at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from .. import native_walk
from ..interface import MaskRow
from ..native import library
from ..native_walk import Description, NativeReader
from ..spelling import ByteDfa
from ..token_trie import TokenTrie
from ..wide import inside_row
from .string_masks import HeadLabels, head_labels, is_wide


class Reader(Protocol):
    """A deterministic reader of text; `outcomes[label]` is what a text with that label delivers, 0 for nothing."""

    @property
    def outcomes(self) -> tuple[int, ...]: ...

    @property
    def start(self) -> int: ...

    def moves(self, state: int) -> Mapping[int, int]:
        """Byte to next state, dead ones left out."""

    def step(self, state: int, byte: int) -> int:
        """The state after a byte, -1 if it is not allowed."""

    def single(self, state: int) -> bool:
        """Whether exactly one byte may come next, if the text does not end."""

    def outcome(self, state: int) -> int:
        """What a text that ends in `state` delivers; 0 if it may not end there."""

    def is_wide(self, state: int) -> bool:
        """Whether masks are computed in arrays: `row` and `heads` may be asked for."""

    def is_between(self, state: int) -> bool:
        """Whether `state` is between two characters, not within one."""

    def row(self, state: int, vocabulary: TokenTrie) -> MaskRow:
        """The tokens that stay inside. Shared; not to be written to."""

    def described(self) -> Description:
        """The reader of a string, for the compiled walk."""

    def heads(self, state: int, vocabulary: TokenTrie) -> HeadLabels:
        """The labels that beginnings of tokens give the text if it ends behind them."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A `Reader` with an automaton."""

    dfa: ByteDfa
    outcomes: tuple[int, ...]

    @property
    def start(self) -> int:
        return self.dfa.start

    def moves(self, state: int) -> Mapping[int, int]:
        return self.dfa.moves(state)

    def step(self, state: int, byte: int) -> int:
        return self.dfa.moves(state).get(byte, -1)

    def single(self, state: int) -> bool:
        return len(self.dfa.moves(state)) == 1

    def outcome(self, state: int) -> int:
        s, k = divmod(state, self.dfa.width)
        return 0 if k else self.outcomes[self.dfa.chars.labels[s]]

    def is_wide(self, state: int) -> bool:
        return is_wide(self.dfa, state)

    def is_between(self, state: int) -> bool:
        return state % self.dfa.width == 0

    def row(self, state: int, vocabulary: TokenTrie) -> MaskRow:
        return inside_row(self.dfa, state, vocabulary)

    @cached_property
    def native(self) -> NativeReader:
        """The reader for the compiled walk, where there is one."""
        lib = library()
        assert lib is not None
        return NativeReader(self.dfa, self.outcomes, lib)

    def described(self) -> Description:
        return native_walk.Leaf(self.dfa, self.outcomes, is_string=True)

    def heads(self, state: int, vocabulary: TokenTrie) -> HeadLabels:
        return head_labels(self.dfa, state, vocabulary)
