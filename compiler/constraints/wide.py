"""Masks of states in which most of the vocabulary may come: computed in arrays, and shared between states alike.

Whether a token may be read depends on the beginnings of texts only. So states are first mapped to the automaton of
all beginnings, which is often tiny: for free text, and for any name but a few, it has one state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .char_dfa import CharDfa
from .interface import MaskRow
from .minimise import CYCLIC, distances
from .native_walk import Closure
from .token_trie import TokenTrie

if TYPE_CHECKING:
    from .char_dfa import IntArray
    from .spelling import ByteDfa

ByteArray = np.ndarray[Any, np.dtype[np.uint8]]

_NEVER = 255
_MAX_MAPPED = 2000  # states of an automaton that is mapped to that of its beginnings
_MAX_LENGTH = 250  # of tokens that are counted by characters


def closure_row(closure: Closure, trie: TokenTrie) -> MaskRow:
    """The row of the tokens in a set of texts, kept with the vocabulary."""
    assert trie.native is not None
    native = trie.native
    row: MaskRow = trie.remember(closure.key, lambda: _sized(native.closure_row(closure)))
    return row


def inside_row(dfa: ByteDfa, state: int, trie: TokenTrie) -> MaskRow:
    """The row of tokens that can be read from `state`, EOS left out. Kept with the vocabulary; do not write to it."""
    s, k = divmod(state, dfa.width)
    if k == 0:
        if trie.max_token_len <= _MAX_LENGTH:
            freedom = dfa.native.freedom(s) if dfa.native is not None else 0
            if freedom >= trie.max_token_len or is_chain(dfa.chars):
                return _length_row(dfa, freedom if dfa.native is not None else dfa.chain_left(s), trie)
        if dfa.native is None and dfa.chars.num_states <= _MAX_MAPPED:
            prefixes, states = dfa.prefixes
            if prefixes is not dfa:
                return inside_row(prefixes, int(states[s]) * prefixes.width, trie)
    row: MaskRow = trie.remember(("row", dfa, state), lambda: _sized(_computed_row(dfa, state, trie)))
    return row


def pin_rows(dfa: ByteDfa, trie: TokenTrie) -> list[MaskRow]:
    """Make the rows of the automaton's characters, by the length that is left, and keep them with the vocabulary."""
    if trie.max_token_len > _MAX_LENGTH:
        return []
    key = dfa.alphabet
    needed = _needed_lengths(dfa, trie)[0]
    trie.pin(key, needed)
    rows = [trie.packed(needed <= left) for left in range(trie.max_token_len + 1)]
    for left, row in enumerate(rows):
        trie.pin((key, left), row)
    return rows


def _computed_row(dfa: ByteDfa, state: int, trie: TokenTrie) -> MaskRow:
    if dfa.native is None or trie.native is None:
        return trie.dense_row(dfa.walk(state, trie)[0])
    with trie.native.lock:
        return trie.native.row_of(dfa.native.mask(state, trie.native))


def _sized(row: MaskRow) -> tuple[MaskRow, int]:
    return row, row.nbytes + 200


def is_chain(chars: CharDfa) -> bool:
    """Whether all live characters are alike, so that only the length of a text counts."""
    return int(chars.delta.shape[1]) == 2


def lengths_left(chars: CharDfa) -> IntArray:
    """For a chain: how many characters may still come at each state (a large number: no bound)."""
    height = distances(chars.delta, chars.accept)[1]
    return np.where(height == CYCLIC, 1 << 30, height).astype(np.int32)


def _length_row(dfa: ByteDfa, left: int, trie: TokenTrie) -> MaskRow:
    """The tokens that are a text of at most `left` of the automaton's characters, or the beginning of one."""
    key = dfa.alphabet
    left = min(left, trie.max_token_len)
    pinned: MaskRow | None = trie.pinned.get((key, left))
    if pinned is not None:
        return pinned
    needed: ByteArray = trie.remember(key, lambda: _needed_lengths(dfa, trie))
    row: MaskRow = trie.remember((key, left), lambda: _sized(trie.packed(needed <= left)))
    return row


def _needed_lengths(dfa: ByteDfa, trie: TokenTrie) -> tuple[ByteArray, int]:
    """For each token how many characters it takes or begins, 255 if it has others. [vocab_size] uint8"""
    counted = counting_dfa(dfa, trie.max_token_len)
    if counted.native is not None and trie.native is not None:
        after = counted.native.states(counted.start, trie.native, trie.vocab_size)
        lengths = np.where(after < 0, _NEVER, after // counted.width - 1 + (after % counted.width != 0))
        return lengths.astype(np.uint8), trie.vocab_size
    nodes, states = counted.walk(counted.start, trie)
    by_node = np.full(trie.num_nodes + 1, _NEVER, np.uint8)
    by_node[nodes] = states // counted.width - 1 + (states % counted.width != 0)
    needed = by_node[trie.node_of_token]
    return needed, needed.nbytes


def counting_dfa(dfa: ByteDfa, length: int) -> ByteDfa:
    """Texts of up to `length` of the characters that occur in a language; state 1 + n after n of them."""
    from .spelling import ByteDfa

    delta = np.zeros((length + 2, 2), np.int32)
    delta[1:-1, 1] = np.arange(2, length + 2)
    labels = np.ones(length + 2, np.int32)
    labels[0] = 0
    return ByteDfa(CharDfa(dfa.chars.bounds, np.minimum(dfa.chars.classes, 1), delta, labels, 1), dfa.spelling)
