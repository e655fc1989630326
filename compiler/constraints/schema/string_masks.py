"""Masks inside JSON strings: tokens that stay in the string, and tokens that end it and go on.

The first depend only on the string's automaton and are kept for the whole process; the second are cut at the closing
quote, so that only what may stand behind it is walked, once for all the different pieces before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..interface import MaskRow
from ..spelling import WIDE, ByteDfa
from ..token_index import Mask, merge_words, pack, walk
from ..token_trie import LongArray, TokenTrie

if TYPE_CHECKING:
    from .machine import SchemaMachine
    from .values import Leaf


@dataclass(frozen=True, slots=True, eq=False)
class StringTokens:
    """`inside`: the row of tokens within the string. `ending[label][piece]`: tokens that end it with that label and
    have that piece (a number of `QuoteTails`) behind the quote; as packed words, and one by one."""

    inside: MaskRow
    ending: dict[int, dict[int, tuple[LongArray, MaskRow]]]
    ids: dict[int, dict[int, list[int]]]


def is_wide(dfa: ByteDfa, state: int) -> bool:
    return len(dfa.moves(state)) > WIDE


def string_tokens(dfa: ByteDfa, state: int, trie: TokenTrie) -> StringTokens:
    """What tokens do from a state inside a string. Kept with the vocabulary."""
    made = trie.remember((id(dfa), state), lambda: (dfa, _compute(dfa, state, trie)))
    tokens: StringTokens = made[1]  # the automaton is held too, so that its id stays its own
    return tokens


def _compute(dfa: ByteDfa, state: int, trie: TokenTrie) -> StringTokens:
    nodes, states = dfa.walk(state, trie)
    inside = trie.dense_row(nodes)
    nodes, states = np.append(0, nodes), np.append(np.int32(state), states)
    ends = (states % dfa.width == 0) & (trie.quote_child[nodes] >= 0)
    nodes, labels = nodes[ends], dfa.chars.labels[states[ends] // dfa.width]
    ids: dict[int, dict[int, list[int]]] = {}
    for label in np.unique(labels).tolist():
        if label:
            tokens, pieces = trie.tails.behind(np.sort(trie.quote_child[nodes[labels == label]]))
            groups = ids[label] = {}
            for token, piece in zip(tokens.tolist(), pieces.tolist(), strict=True):
                groups.setdefault(piece, []).append(token)
    ending = {label: {piece: pack(found) for piece, found in groups.items()} for label, groups in ids.items()}
    return StringTokens(inside, ending, ids)


def string_mask(
    machine: SchemaMachine,
    leaf: Leaf,
    state: int,
    behind: Callable[[int], int],
    reads: Callable[[bytes], bool] | None,
    trie: TokenTrie,
) -> Mask:
    """The mask in `state` of a string. `behind(outcome)` is the machine's state after the closing quote.

    `reads` is set where later text may depend on this string's: it decides tokens that go as far as that one by one.
    """
    tokens = string_tokens(leaf.dfa, state, trie)
    parts: list[tuple[LongArray, MaskRow]] = []
    for label, pieces in tokens.ending.items():
        outcome = leaf.outcomes[label]
        if not outcome:
            continue
        after = behind(outcome)
        allowed = [0, *walk(machine, trie.tails.trie, after)] if after >= 0 else []
        if reads is not None:
            allowed = [piece for piece in allowed if not trie.tails.far[piece]]
            far = [token for piece, ids in tokens.ids[label].items() if trie.tails.far[piece] for token in ids]
            token_bytes = trie.vocabulary.token_bytes
            parts.append(pack([token for token in far if reads(token_bytes[token] or b"")]))
        parts.extend(pieces[piece] for piece in allowed if piece in pieces)
    return Mask(tokens.inside, *merge_words(*parts))
