"""How the next name of an object is read: one of the declared ones, or any other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..char_algebra import ALL, from_texts, product, tag
from ..char_dfa import CharDfa, tidy
from ..interface import MaskRow
from ..minimise import distances
from ..native_walk import Description, OpenName
from ..spelling import ByteDfa, shared_byte_dfa
from ..token_trie import TokenTrie
from ..wide import inside_row
from .readers import Leaf, Reader
from .string_masks import HeadLabels, cut_tokens, head_labels

if TYPE_CHECKING:
    from .plans import ObjectPlan, Undeclared

Meaning = tuple[int, int | None]  # bits of the classes of undeclared names it is in, number of the declared name


class NameTrie:
    """Declared names as bytes between quotes. `below[n]` has a bit for each name that node n leads to or ends."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.children: list[dict[int, int]] = [{}]
        self.below = [0]
        self.ends: dict[int, int] = {}
        for number, name in enumerate(self.names):
            if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
                continue  # not writable as UTF-8
            node, bit = 0, 1 << number
            self.below[0] |= bit
            for byte in json.dumps(name, ensure_ascii=False)[1:-1].encode():
                after = self.children[node].get(byte)
                if after is None:
                    after = self.children[node][byte] = len(self.children)
                    self.children.append({})
                    self.below.append(0)
                node = after
                self.below[node] |= bit
            self.ends[node] = number

    @cached_property
    def is_plain(self) -> bool:
        return are_plain(self.names)


def are_plain(names: Sequence[str]) -> bool:
    """Whether every name has one spelling, byte for byte: printable ASCII without escapes."""
    joined = "".join(names)
    return joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined


class OpenNames:
    """All names of the objects read together. `meanings[label]` is what a name with that label may be."""

    def __init__(self, plans: Sequence[ObjectPlan], trie: NameTrie) -> None:
        self.trie = trie
        self.classes = [(m, w) for m, plan in enumerate(plans) for w in range(len(plan.undeclared))]
        entries = [plans[m].undeclared[w] for m, w in self.classes]
        self.chars: CharDfa | None = None
        self._readers: dict[tuple[tuple[bool, ...], tuple[str, ...]], Reader | None] = {}
        self.meanings: list[Meaning] = [(0, None)]
        if trie.is_plain and all(entry.every is ALL for entry in entries):
            everything = (1 << len(entries)) - 1
            self.meanings.append((everything, None))
            for number, name in enumerate(trie.names):
                bits = sum(1 << i for i, entry in enumerate(entries) if name not in entry.declared)
                self.meanings.append((bits, number))
        else:
            self._read_by_automaton(entries)

    def _read_by_automaton(self, entries: Sequence[Undeclared]) -> None:
        chars, sets = tag([entry.every for entry in entries])
        meanings: dict[Meaning, int] = {(0, None): 0}
        undeclared = [
            sum(1 << i for i, entry in enumerate(entries) if name not in entry.declared) for name in self.trie.names
        ]

        def label(x: int, y: int) -> int:
            meaning = (sets[x] & undeclared[y - 1], y - 1) if y else (sets[x], None)
            return meanings.setdefault(meaning, len(meanings))

        declared = from_texts(self.trie.names, range(1, len(self.trie.names) + 1))
        self.chars = product(chars, declared, label)
        self.meanings = list(meanings)

    @cached_property
    def _everywhere(self) -> list[int]:
        """The labels that every state leads to."""
        assert self.chars is not None
        delta, labels = self.chars.delta, self.chars.labels
        undeclared = [i for i, (_, number) in enumerate(self.meanings) if i and number is None]
        return [i for i in undeclared if (distances(delta, labels == i)[0][1:] >= 0).all()]

    def reader(self, allowed: Sequence[bool], without: Sequence[str]) -> Reader | None:
        """Reads a name with an allowed label that is none of `without`; delivers the label."""
        key = (tuple(allowed), tuple(without))
        if key not in self._readers:
            self._readers[key] = self._make_reader(allowed, without)
        return self._readers[key]

    def _make_reader(self, allowed: Sequence[bool], without: Sequence[str]) -> Reader | None:
        outcomes = tuple(label if ok else 0 for label, ok in enumerate(allowed))
        if not any(outcomes):
            return None
        if self.chars is None and not without:
            return NameReader(self.trie, outcomes)
        chars = self.chars
        if chars is None:
            named = from_texts(self.trie.names, range(2, len(self.trie.names) + 2))
            chars = product(ALL, named, lambda x, y: y or x)
        elif any(allowed[label] for label in self._everywhere) and not without:
            return Leaf(shared_byte_dfa(chars, "json"), outcomes)
        chars = _restricted(chars, tuple(allowed), tuple(without))
        return None if chars.is_empty else Leaf(shared_byte_dfa(chars, "json"), outcomes)


@lru_cache(maxsize=512)
def _restricted(chars: CharDfa, allowed: tuple[bool, ...], without: tuple[str, ...]) -> CharDfa:
    """The texts with an allowed label that are not among `without`, labels kept."""
    labels = np.where(np.array(allowed)[chars.labels], chars.labels, 0).astype(np.int32)
    kept = tidy(chars.bounds, chars.classes, chars.delta, labels, chars.start)
    return product(kept, from_texts(without), lambda x, y: 0 if y else x, need_a=True) if without else kept


def forget_names() -> None:
    """Drop the sets of names that are kept."""
    _restricted.cache_clear()


class NameReader:
    """Reads any name without an automaton of its own: along the tree of declared names, else as free text.

    States below the number of nodes are nodes; the others are states of the free text's automaton. Labels: 1 for a
    name that is not declared, 2 + i for declared name i. Implements `Reader`.
    """

    def __init__(self, trie: NameTrie, outcomes: tuple[int, ...]) -> None:
        self.trie = trie
        self.outcomes = outcomes
        self.start = 0
        self._free = free_text()
        self._base = len(trie.children)
        self._moves: dict[int, dict[int, int]] = {}

    def moves(self, state: int) -> Mapping[int, int]:
        found = self._moves.get(state)
        if found is None:
            free = self._free.start if state < self._base else state - self._base
            found = {byte: self._base + target for byte, target in self._free.moves(free).items()}
            if state < self._base:
                found.update(self.trie.children[state])
            self._moves[state] = found
        return found

    def step(self, state: int, byte: int) -> int:
        if state < self._base:
            child = self.trie.children[state].get(byte)
            if child is not None:
                return child
            state = self._free.start + self._base
        target = self._free.step(state - self._base, byte)
        return target + self._base if target >= 0 else -1

    def single(self, state: int) -> bool:
        return state >= self._base and self._free.single(state - self._base)

    def outcome(self, state: int) -> int:
        return self.outcomes[self._label(state)]

    def _label(self, state: int) -> int:
        if state < self._base:
            return self.trie.ends.get(state, -1) + 2 if state in self.trie.ends else 1
        return 1 if (state - self._base) % self._free.width == 0 else 0

    def is_wide(self, state: int) -> bool:
        return state < self._base or (state - self._base) % self._free.width == 0

    def is_between(self, state: int) -> bool:
        return self.is_wide(state)

    def described(self) -> Description:
        return OpenName(self.trie, self._free, self._base, self.outcomes)

    def row(self, state: int, vocabulary: TokenTrie) -> MaskRow:
        return inside_row(self._free, self._free.start, vocabulary)

    def heads(self, state: int, vocabulary: TokenTrie) -> HeadLabels:
        free = head_labels(self._free, self._free.start, vocabulary)
        if state >= self._base:
            return free
        heads = cut_tokens(vocabulary).head_trie
        changed = {0: self._label(state)}
        todo = [(0, state)]
        while todo:
            node, at = todo.pop()
            low, high = heads.child_start[node], heads.child_start[node + 1]
            for byte, target in self.trie.children[at].items():
                child = heads.node_byte.find(byte, low, high)
                if child >= 0:
                    for i in range(heads.token_start[child], heads.token_start[child + 1]):
                        changed[heads.token_ids[i]] = self._label(target)
                    todo.append((child, target))
        return HeadLabels(free.labels, free.distinct, changed, free.packed)


@lru_cache(maxsize=1)
def free_text() -> ByteDfa:
    """The inside of any JSON string."""
    return shared_byte_dfa(ALL, "json")
