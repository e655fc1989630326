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
from .token_trie import TokenTrie

if TYPE_CHECKING:
    from .char_dfa import IntArray
    from .spelling import ByteDfa

ByteArray = np.ndarray[Any, np.dtype[np.uint8]]

_NEVER = 255
_MAX_MAPPED = 2000  # states of an automaton that is mapped to that of its beginnings
_MAX_LENGTH = 250  # of tokens that are counted by characters


def inside_row(dfa: ByteDfa, state: int, trie: TokenTrie) -> MaskRow:
    """The row of tokens that can be read from `state`, EOS left out. Kept with the vocabulary; do not write to it."""
    s, k = divmod(state, dfa.width)
    if k == 0:
        if is_chain(dfa.chars) and trie.max_token_len <= _MAX_LENGTH:
            return _chain_row(dfa, s, trie)
        if dfa.chars.num_states <= _MAX_MAPPED:
            prefixes, states = dfa.prefixes
            if prefixes is not dfa:
                return inside_row(prefixes, int(states[s]) * prefixes.width, trie)
    row: MaskRow = trie.remember(("row", dfa, state), lambda: _sized(trie.dense_row(dfa.walk(state, trie)[0])))
    return row


def _sized(row: MaskRow) -> tuple[MaskRow, int]:
    return row, row.nbytes + 200


def is_chain(chars: CharDfa) -> bool:
    """Whether all live characters are alike, so that only the length of a text counts."""
    return int(chars.delta.shape[1]) == 2


def lengths_left(chars: CharDfa) -> IntArray:
    """For a chain: how many characters may still come at each state (a large number: no bound)."""
    height = distances(chars.delta, chars.accept)[1]
    return np.where(height == CYCLIC, 1 << 30, height).astype(np.int32)


def _chain_row(dfa: ByteDfa, s: int, trie: TokenTrie) -> MaskRow:
    left = min(dfa.chain_left(s), _MAX_LENGTH)
    key = ("chain", dfa.chars.bounds.tobytes(), dfa.chars.classes.tobytes(), dfa.spelling)
    needed: ByteArray = trie.remember(key, lambda: _needed_lengths(dfa, trie))
    longest = trie.max_token_len
    row: MaskRow = trie.remember((*key, min(left, longest)), lambda: _sized(trie.packed(needed <= left)))
    return row


def _needed_lengths(dfa: ByteDfa, trie: TokenTrie) -> tuple[ByteArray, int]:
    """For each token how many characters it takes or begins, 255 if it has others. [vocab_size] uint8"""
    counted = counting_dfa(dfa, trie.max_token_len)
    nodes, states = counted.walk(counted.start, trie)
    by_node = np.full(trie.num_nodes + 1, _NEVER, np.uint8)
    by_node[nodes] = states // counted.width - 1 + (states % counted.width != 0)
    needed = by_node[trie.node_of_token]
    return needed, needed.nbytes


def counting_dfa(dfa: ByteDfa, length: int) -> ByteDfa:
    """For a chain: texts of up to `length` of its characters; state 1 + n after n of them."""
    from .spelling import ByteDfa

    delta = np.zeros((length + 2, 2), np.int32)
    delta[1:-1, 1] = np.arange(2, length + 2)
    labels = np.ones(length + 2, np.int32)
    labels[0] = 0
    return ByteDfa(CharDfa(dfa.chars.bounds, dfa.chars.classes, delta, labels, 1), dfa.spelling)
