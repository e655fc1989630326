"""Masks inside JSON strings: tokens that stay in the string, and tokens that end it and go on.

Tokens with a double quote are cut there into a *head* and a *piece* behind it. Which heads end a string, and with
which label, depends on the string's automaton alone; which pieces may follow depends on the place in the schema, and
is walked once for all heads together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ....core.constraint import Vocabulary
from ..interface import MaskRow
from ..spelling import WIDE, ByteDfa
from ..token_index import Mask, readable_children, walk
from ..token_trie import LongArray, TokenTrie
from ..wide import counting_dfa, is_chain

if TYPE_CHECKING:
    from ..char_dfa import IntArray
    from .machine import SchemaMachine
    from .readers import Reader

CUT_TOKENS = "cut tokens"
_NO_WORDS = np.zeros(0, np.int64)


class CutTokens:
    """Tokens cut at each double quote in them. `pieces[p]` and `heads` are the distinct parts (piece 0: the empty one);
    `tokens[first[p] : first[p + 1]]` are the tokens with piece p, `head_of` the numbers of their heads."""

    def __init__(self, trie: TokenTrie) -> None:
        pieces: dict[bytes, int] = {b"": 0}
        heads: dict[bytes, int] = {b"": 0}
        entries: list[tuple[int, int, int]] = []
        for token in trie.quoted_ids:
            data = trie.vocabulary.token_bytes[token] or b""
            at = data.find(b'"')
            while at >= 0:
                piece, head = data[at + 1 :], data[:at]
                entries.append((pieces.setdefault(piece, len(pieces)), token, heads.setdefault(head, len(heads))))
                at = data.find(b'"', at + 1)
        entries.sort()
        self.pieces = list(pieces)
        self.heads = list(heads)
        self.number_of_head = heads
        self.escaped_heads = [number for head, number in heads.items() if b"\\" in head]
        # Pieces that may end a further name or item.
        self.is_far = [p.count(b'"') > 1 or b"}" in p or b"]" in p for p in self.pieces]
        columns = np.array(entries, np.int64).reshape(-1, 3)
        self.tokens, self.head_of = columns[:, 1], columns[:, 2]
        self.first = np.searchsorted(columns[:, 0], np.arange(len(self.pieces) + 1)).tolist()
        self.of_head: list[list[tuple[int, int]]] = [[] for _ in self.heads]
        for number, token, head_number in entries:
            self.of_head[head_number].append((token, number))
        self.piece_trie = TokenTrie(Vocabulary.of((None, *self.pieces[1:]), ()))
        self.head_trie = TokenTrie(Vocabulary.of((None, *self.heads[1:]), ()))

    @property
    def num_bytes(self) -> int:
        return self.piece_trie.num_bytes + self.head_trie.num_bytes + 200 * len(self.tokens)


def cut_tokens(trie: TokenTrie) -> CutTokens:
    def make() -> tuple[CutTokens, int]:
        made = CutTokens(trie)
        return made, made.num_bytes

    cut: CutTokens = trie.remember(CUT_TOKENS, make)
    return cut


@dataclass(eq=False)
class HeadLabels:
    """The label each head gives a string that it ends, read from some state (0: it does not end there).

    `labels` [H] may be shared with other states; `changed` holds the heads that differ. `packed` keeps words by
    (label, pieces).
    """

    labels: IntArray
    distinct: list[int]
    changed: dict[int, int]
    packed: dict[tuple[int, tuple[int, ...]], tuple[LongArray, MaskRow]] = field(default_factory=dict)


def is_wide(dfa: ByteDfa, state: int) -> bool:
    return state % dfa.width == 0 and len(dfa.moves(state)) > WIDE


def head_labels(dfa: ByteDfa, state: int, trie: TokenTrie) -> HeadLabels:
    """What heads do from a state between two characters. Kept with the vocabulary."""

    def make() -> tuple[HeadLabels, int]:
        made = _head_labels(dfa, state // dfa.width, trie)
        return made, made.labels.nbytes + 1000

    found: HeadLabels = trie.remember(("heads", dfa, state), make)
    return found


def _head_labels(dfa: ByteDfa, s: int, trie: TokenTrie) -> HeadLabels:
    cut, chars = cut_tokens(trie), dfa.chars
    heads = cut.head_trie
    if is_chain(chars):
        return _chain_labels(dfa, s, trie)
    free = dfa.free_state
    if free is not None and free != s:
        base = head_labels(dfa, free * dfa.width, trie)
        changed = {0: int(chars.labels[s])}
        todo = [(0, s * dfa.width)]
        while todo:
            node, state = todo.pop()
            for child in range(heads.child_start[node], heads.child_start[node + 1]):
                target = dfa.step(state, heads.node_byte[child])
                if target == free * dfa.width:
                    continue
                label = int(chars.labels[target // dfa.width]) if target >= 0 and target % dfa.width == 0 else 0
                for i in range(heads.token_start[child], heads.token_start[child + 1]):
                    changed[heads.token_ids[i]] = label
                if target >= 0:
                    todo.append((child, target))
        return HeadLabels(base.labels, base.distinct, changed, base.packed)
    nodes, states = dfa.walk(s * dfa.width, heads)
    by_node = np.zeros(heads.num_nodes + 1, np.int32)
    by_node[nodes] = np.where(states % dfa.width == 0, chars.labels[states // dfa.width], 0)
    labels = by_node[heads.node_of_token]
    labels[0] = chars.labels[s]
    return HeadLabels(labels, [x for x in np.unique(labels).tolist() if x], {})


def _chain_labels(dfa: ByteDfa, s: int, trie: TokenTrie) -> HeadLabels:
    """Where only lengths count: labels along the chain, by the length of each head."""
    chars = dfa.chars
    key = ("head lengths", chars.bounds.tobytes(), chars.classes.tobytes(), dfa.spelling)
    lengths: IntArray = trie.remember(key, lambda: _head_lengths(dfa, trie))
    along, at = [0], s
    for _ in range(int(lengths.max()) + 1):
        along.append(int(chars.labels[at]))
        at = int(chars.delta[at, 1])
    shared = (*key, tuple(along))

    def make() -> tuple[HeadLabels, int]:
        labels = np.array(along, np.int32)[lengths + 1]
        return HeadLabels(labels, sorted(set(along) - {0}), {}), labels.nbytes + 1000

    found: HeadLabels = trie.remember(shared, make)
    return found


def _head_lengths(dfa: ByteDfa, trie: TokenTrie) -> tuple[IntArray, int]:
    """The number of characters of each head, -1 if it has others or ends within one."""
    heads = cut_tokens(trie).head_trie
    counted = counting_dfa(dfa, max(heads.max_token_len, 1))
    nodes, states = counted.walk(counted.start, heads)
    by_node = np.full(heads.num_nodes + 1, -1, np.int32)
    by_node[nodes] = np.where(states % counted.width == 0, states // counted.width - 1, -1)
    lengths = by_node[heads.node_of_token]
    lengths[0] = 0
    return lengths, lengths.nbytes


def string_mask(
    machine: SchemaMachine,
    reader: Reader,
    state: int,
    behind: Callable[[int], int],
    reads: Callable[[bytes], bool] | None,
    compares: Callable[[int], bool],
    unlike: Sequence[bytes],
    depends: bool,
    trie: TokenTrie,
) -> Mask:
    """The mask in `state` of a string. `behind(outcome)` is the machine's state after the closing quote, where this
    string's text is taken to be like no other.

    `reads` is set where later text may depend on this string's, which can only shut more out: it decides tokens one by
    one that go as far as that, through states of which `compares` is true, and those that may end the string as one of
    `unlike`, what it must not go on with, plainly spelled. `depends`: whatever comes behind it may depend on its text.
    """
    cut = cut_tokens(trie)
    found = reader.heads(state, trie)
    allowed: dict[int, tuple[int, ...]] = {}
    doubtful: dict[int, frozenset[int]] = {}
    for label in {*found.distinct, *found.changed.values()} - {0}:
        after = behind(reader.outcomes[label]) if reader.outcomes[label] else -1
        if reads is None:
            pieces = [0, *sorted(walk(machine, cut.piece_trie, after))] if after >= 0 else []
        else:
            pieces, doubtful[label] = _pieces_behind(machine, cut, after, compares, depends)
        allowed[label] = tuple(pieces)
    row = reader.row(state, trie).copy()
    for label in found.distinct:
        words, values = _packed(found, label, allowed[label], cut)
        row[words] |= values
    for head, label in found.changed.items():
        for token, piece in cut.of_head[head]:
            if label and piece in allowed[label]:
                row[token >> 5] |= _BIT[token & 31]
            elif (old := int(found.labels[head])) and piece in allowed[old]:
                row[token >> 5] &= ~_BIT[token & 31]
    if any(doubtful.values()):
        assert reads is not None
        token_bytes = trie.vocabulary.token_bytes
        for label, weighed in doubtful.items():
            for at in (i for p in weighed for i in range(cut.first[p], cut.first[p + 1])):
                token, head = int(cut.tokens[at]), int(cut.head_of[at])
                if found.changed.get(head, int(found.labels[head])) == label and reads(token_bytes[token] or b""):
                    row[token >> 5] |= _BIT[token & 31]
    if unlike:
        assert reads is not None
        numbers = [cut.number_of_head[rest] for rest in unlike if rest in cut.number_of_head]
        for head in {*numbers, *cut.escaped_heads}:
            for token, _ in cut.of_head[head]:
                if reads(trie.vocabulary.token_bytes[token] or b""):
                    row[token >> 5] |= _BIT[token & 31]
                else:
                    row[token >> 5] &= ~_BIT[token & 31]
    return Mask(row, _NO_WORDS, row[:0])


def _pieces_behind(
    machine: SchemaMachine, cut: CutTokens, after: int, compares: Callable[[int], bool], depends: bool
) -> tuple[list[int], frozenset[int]]:
    """The pieces that may come after `after`, and, apart from these, the far ones that would on the way be compared
    (`depends`: all but the empty one)."""
    trie = cut.piece_trie
    pieces = [0] if after >= 0 else []
    doubtful: list[int] = []
    todo = [(0, after, compares(after))] if after >= 0 else []
    while todo:
        node, state, compared = todo.pop()
        for child, target in readable_children(machine, trie, node, state):
            is_compared = compared or compares(target)
            for p in trie.token_ids[trie.token_start[child] : trie.token_start[child + 1]]:
                (doubtful if depends or (is_compared and cut.is_far[p]) else pieces).append(p)
            todo.append((child, target, is_compared))
    return sorted(pieces), frozenset(doubtful)


def _packed(found: HeadLabels, label: int, pieces: tuple[int, ...], cut: CutTokens) -> tuple[LongArray, MaskRow]:
    """The words of the tokens with one of these pieces whose head gives this label."""
    key = (label, pieces)
    made = found.packed.get(key)
    if made is None:
        at = np.concatenate([np.arange(cut.first[p], cut.first[p + 1]) for p in pieces] or [_NO_WORDS])
        tokens = cut.tokens[at][found.labels[cut.head_of[at]] == label]
        words, inverse = np.unique(tokens >> 5, return_inverse=True)
        values = np.zeros(len(words), np.uint32)
        np.bitwise_or.at(values, inverse.reshape(-1), np.uint32(1) << (tokens & 31).astype(np.uint32))
        if len(found.packed) > 256:
            found.packed.clear()
        made = found.packed[key] = (words, values.view(np.int32))
    return made


_BIT: list[Any] = [np.int32(1 << i if i < 31 else -(1 << 31)) for i in range(32)]
