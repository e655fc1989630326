"""Automata over bytes, made of automata over characters and of how characters are written.

A `CharDfa` reads characters; a `Speller` says how they are written. A `ByteDfa` is the pair: its states are (character
state, place in the tree), so that nothing is multiplied out and `.{1,5000}` stays small.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from .char_dfa import BoolArray, CharDfa, IntArray
from .native import given, library, written
from .native_walk import Leaf, NativeDfa, native_dfa
from .speller import Spelling, speller_of
from .token_index import Mask, expand
from .token_trie import LongArray, TokenTrie
from .wide import inside_row, lengths_left

WIDE = 24  # states with more moves than this are walked in arrays

_MAX_SHARED = 1024
_shared: OrderedDict[tuple[bytes, Spelling], ByteDfa] = OrderedDict()
_standard: dict[tuple[bytes, Spelling], ByteDfa] = {}  # those kept for good
_shared_lock = threading.Lock()


def shared_byte_dfa(chars: CharDfa, spelling: Spelling, *, keep: bool = False) -> ByteDfa:
    """One `ByteDfa` per language and spelling in this process, so that what masks cost is shared by all constraints.

    `keep` it for good: for the few that most schemas need.
    """
    key = (chars.key, spelling)
    with _shared_lock:
        if key in _standard:
            return _standard[key]
        if keep:
            return _standard.setdefault(key, ByteDfa(chars, spelling))
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = ByteDfa(chars, spelling)
        _shared.move_to_end(key)
        if len(_shared) > _MAX_SHARED:
            _shared.popitem(last=False)
        return found


def forget_shared_dfas() -> None:
    """Drop the shared automata but the standard ones. Those in use stay with their users."""
    with _shared_lock:
        _shared.clear()


def _class_bits(of_class: BoolArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """[N, C] bool -> [N, ceil(C / 64)] with a bit for each class."""
    count, width = of_class.shape
    padded = np.zeros((count, -(-width // 64) * 64), bool)
    padded[:, :width] = of_class
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def _live(delta: IntArray, reach: BoolArray) -> BoolArray:
    """Whether each node leads from each state to a class that may come there, [S * K]."""
    lib = library()
    live = np.zeros((len(delta), len(reach)), bool)
    if lib is not None:
        parts = [given(np.ascontiguousarray(a)) for a in (delta, reach)]
        lib.dfa_live(*delta.shape, len(reach), *parts, written(live))
        return live.reshape(-1)
    can, below = _class_bits(delta != 0), _class_bits(reach)
    for word in range(can.shape[1]):
        live |= (can[:, word, None] & below[None, :, word]) != 0
    return live.reshape(-1)


class ByteDfa:
    """A `CharDfa` read byte by byte. State s * K + k is character state s at node k; -1 is dead.

    Every state that `moves` and `step_many` lead to can reach acceptance.
    """

    def __init__(self, chars: CharDfa, spelling: Spelling) -> None:
        self.chars = chars
        self.spelling: Spelling = spelling
        self.speller = speller_of(chars.bounds, chars.classes, spelling)
        self.width = len(self.speller.table)
        self.start = chars.start * self.width if chars.start else -1
        self.live: BoolArray = _live(chars.delta, self.speller.reach)  # [S * K]
        self._moves: dict[int, dict[int, int]] = {}
        self._num_moves = 0

    @property
    def num_states(self) -> int:
        return int(self.live.sum()) + int((self.chars.accept & ~(self.chars.delta != 0).any(axis=1)).sum())

    @property
    def num_bytes(self) -> int:
        chars, table = self.chars, self.speller.table
        return chars.delta.nbytes + table.nbytes + self.live.nbytes + 64 * self._num_moves

    def accepting(self, state: int) -> bool:
        return state % self.width == 0 and bool(self.chars.accept[state // self.width])

    def moves(self, state: int) -> Mapping[int, int]:
        """Byte to next state, dead ones left out."""
        found = self._moves.get(state)
        if found is None:
            s, k = divmod(state, self.width)
            delta, base = self.chars.delta[s].tolist(), s * self.width
            found = {}
            for byte, entry in self.speller.row(k).items():
                if entry < 0:
                    if target := delta[~entry]:
                        found[byte] = target * self.width
                elif self.live[base + entry]:
                    found[byte] = base + entry
            if len(self._moves) < 20_000:
                self._moves[state] = found
                self._num_moves += len(found)
        return found

    def step_many(self, states: IntArray, data: np.ndarray[Any, np.dtype[np.uint8]]) -> IntArray:
        """Next states of `states` [n] int32 reading `data` [n], -1 where dead."""
        s, k = np.divmod(states, self.width)
        entry = self.speller.table[k, data]
        is_leaf = entry < 0
        target = self.chars.delta[s, np.where(is_leaf, ~entry, 0)]
        after = np.where(is_leaf, target * self.width, states - k + entry)
        dead = np.where(is_leaf, target == 0, ~self.live[after])
        return np.where(dead, -1, after).astype(np.int32)

    def step(self, state: int, byte: int) -> int:
        """The state after a byte, -1 if it is not allowed."""
        return self.moves(state).get(byte, -1)

    def few_moves(self, state: int) -> Mapping[int, int]:
        return self.moves(state)

    def fresh(self) -> ByteDfa:
        return self

    def single(self, state: int) -> bool:
        """Whether exactly one byte may come next."""
        return len(self.moves(state)) == 1

    def describe(self, context: int) -> Leaf:
        """For the compiled walk: one context, whose texts have nothing behind them."""
        return Leaf(self, (0,) * (int(self.chars.labels.max()) + 1), is_string=False)

    def leave(self, context: int, outcome: int) -> int:
        return -1

    def wide_mask(self, state: int, trie: TokenTrie) -> Mask | None:
        """The mask of `state`, EOS left out; None for a state with few moves."""
        if len(self.moves(state)) <= WIDE:
            return None
        row = inside_row(self, state, trie)
        return Mask(row, np.zeros(0, np.int64), row[:0])

    @cached_property
    def native(self) -> NativeDfa | None:
        """The automaton for the compiled walk; None without it."""
        return native_dfa(self)

    @cached_property
    def alphabet(self) -> tuple[str, bytes, bool, Spelling]:
        """A name of the characters that occur in the language, and of how they are spelled."""
        bounds, there = self.chars.bounds, self.chars.classes != 0
        changes = np.flatnonzero(np.concatenate([[True], there[1:] != there[:-1]]))
        return ("alphabet", bounds[changes].tobytes(), bool(there[0]), self.spelling)

    @cached_property
    def free_state(self) -> int | None:
        """The character state in which everything may come and nothing changes, if every state allows as much."""
        delta = self.chars.delta
        if delta.shape[1] < 2 or not (delta[1:, 1:] != 0).all():
            return None
        loops = np.flatnonzero((delta[1:, 1:] == np.arange(1, len(delta))[:, None]).all(axis=1))
        return int(loops[0]) + 1 if len(loops) else None

    def chain_left(self, s: int) -> int:
        """For a chain (`wide.is_chain`): how many characters may come after character state s."""
        return int(self._lengths_left[s])

    @cached_property
    def _lengths_left(self) -> IntArray:
        return lengths_left(self.chars)

    @cached_property
    def prefixes(self) -> tuple[ByteDfa, IntArray]:
        """The automaton of all beginnings, and the character state there for each here."""
        chars, states = self.chars.prefixes
        return shared_byte_dfa(chars, self.spelling), states

    def walk(self, state: int, trie: TokenTrie) -> tuple[LongArray, IntArray]:
        """The nodes below the root that can be read from `state`, level by level, and the state at each."""
        nodes, states = expand(trie, np.zeros(1, np.int64), np.array([state], np.int32))
        found = [(nodes[:0], states[:0])]
        while nodes.size:
            states = self.step_many(states, trie.bytes[nodes])
            nodes, states = nodes[states >= 0], states[states >= 0]
            found.append((nodes, states))
            nodes, states = expand(trie, nodes, states)
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
