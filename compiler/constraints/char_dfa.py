"""Deterministic automata over Unicode characters: what regexes and string schemas are compiled to first.

A `CharDfa` is trimmed and minimal: every state but 0 can be reached and can reach acceptance; state 0 is the dead one.
The boolean operations are exact, so two languages can be compared. `spelling` turns one into an automaton over bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import charset
from .charset import MAX_CODE_POINT, Ranges
from .minimise import minimise
from .nfa import Nfa, TooLarge, build_nfa
from .regex_ast import Regex

IntArray = np.ndarray[Any, np.dtype[np.int32]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

MAX_STATES = 50_000
MAX_WORK = 4_000_000  # state-set members looked at while making sets of positions into states
MAX_CELLS = 8_000_000  # states x classes


@dataclass(frozen=True, eq=False)
class CharDfa:
    """`delta[s, c]` is the state after reading a character of class c in state s; 0 is dead, `start` may be 0.

    `bounds` [R] int32 are the first code points of consecutive ranges, `classes` [R] the class of each. Class 0 holds
    what no transition reads, surrogates included: its column is dead.
    """

    bounds: IntArray
    classes: IntArray
    delta: IntArray  # [S, C]
    accept: BoolArray  # [S]
    start: int

    @property
    def num_states(self) -> int:
        return int(self.delta.shape[0])

    @property
    def is_empty(self) -> bool:
        """Whether nothing matches."""
        return self.start == 0

    @property
    def matches_empty(self) -> bool:
        return bool(self.accept[self.start])

    @cached_property
    def key(self) -> bytes:
        """Equal for equal languages, and only then: the automaton is minimal and its states are numbered in order."""
        parts = (self.bounds, self.classes, self.delta, self.accept)
        return b"|".join([*(p.tobytes() for p in parts), repr((self.start, self.delta.shape)).encode()])

    def class_of(self, code_point: int) -> int:
        return int(self.classes[np.searchsorted(self.bounds, code_point, side="right") - 1])

    def matches(self, text: str) -> bool:
        """Whether the whole text is in the language."""
        state = self.start
        for char in text:
            state = int(self.delta[state, self.class_of(ord(char))])
            if state == 0:
                return False
        return bool(self.accept[state])

    @cached_property
    def is_finite(self) -> bool:
        """Whether the language has finitely many texts: no state can be reached from itself."""
        return self.longest() is not None

    def longest(self) -> int | None:
        """The length of the longest text in characters; None if there is none longest, -1 if there are no texts."""
        if self.is_empty:
            return -1
        lengths: dict[int, int] = {}
        on_path: set[int] = set()
        todo = [(self.start, False)]
        while todo:
            state, done = todo.pop()
            targets = {int(t) for t in self.delta[state]} - {0}
            if done:
                on_path.discard(state)
                lengths[state] = max((lengths[t] + 1 for t in targets), default=0)
                continue
            if state in lengths:
                continue
            on_path.add(state)
            todo.append((state, True))
            for target in targets:
                if target in on_path:
                    return None
                if target not in lengths:
                    todo.append((target, False))
        return lengths[self.start]

    def shortest(self) -> int:
        """The length of the shortest text in characters; -1 if there are no texts."""
        level, seen, depth = {self.start} - {0}, {self.start}, 0
        while level:
            if any(self.accept[s] for s in level):
                return depth
            level = {int(t) for s in level for t in self.delta[s]} - seen - {0}
            seen |= level
            depth += 1
        return -1


def from_regex(node: Regex) -> CharDfa:
    """The minimal automaton of a regex tree. Raises TooLarge within about a second, RegexError for inner anchors."""
    return from_nfa(build_nfa(node))


def from_nfa(nfa: Nfa) -> CharDfa:
    parts = charset.minterms(nfa.sets)
    bounds, classes = _class_map(parts)
    part_of_set = [[i + 1 for i, part in enumerate(parts) if charset.intersect(part, s)] for s in nfa.sets]
    masks = [sum(1 << i for i in members) for members in part_of_set]
    number: dict[int, int] = {0: 0}
    order = [0]
    rows: list[dict[int, int]] = [{}]  # bitset of classes -> state
    work = 0

    def visit(positions: int) -> int:
        if positions not in number:
            if len(order) >= MAX_STATES or len(order) * (len(parts) + 1) > MAX_CELLS:
                raise TooLarge(f"more than {len(order)} automaton states")
            number[positions] = len(order)
            order.append(positions)
        return number[positions]

    start = visit(nfa.start)
    at = 1
    while at < len(order):
        positions = order[at] & ~nfa.accept
        by_set: dict[int, int] = {}
        while positions:
            low = positions & -positions
            p = low.bit_length() - 1
            positions ^= low
            by_set[nfa.chars[p]] = by_set.get(nfa.chars[p], 0) | nfa.follow[p]
            work += 1
        if work > MAX_WORK:
            raise TooLarge("too many combinations of positions")
        groups: dict[int, int] = {}  # disjoint bitsets of classes -> positions
        for which, target in by_set.items():
            rest = masks[which]
            for group, reached in list(groups.items()):
                if common := group & rest:
                    del groups[group]
                    if group ^ common:
                        groups[group ^ common] = reached
                    groups[common] = reached | target
                    rest ^= common
            if rest:
                groups[rest] = target
        rows.append({group: visit(reached) for group, reached in groups.items()})
        at += 1
    delta = np.zeros((len(order), len(parts) + 1), np.int32)
    columns: dict[int, list[int]] = {}
    for state, row in enumerate(rows):
        for group, target in row.items():
            if group not in columns:
                columns[group] = [i for i in range(len(parts) + 1) if group >> i & 1]
            delta[state, columns[group]] = target
    accept = np.array([bool(s & nfa.accept) for s in order])
    return tidy(bounds, classes, delta, accept, start)


def _class_map(parts: list[Ranges]) -> tuple[IntArray, IntArray]:
    """Bounds and classes for disjoint sets; what is in none gets class 0."""
    spans = sorted((lo, hi, i + 1) for i, part in enumerate(parts) for lo, hi in part)
    bounds, classes, at = [], [], 0
    for lo, hi, which in spans:
        if lo > at:
            bounds.append(at)
            classes.append(0)
        bounds.append(lo)
        classes.append(which)
        at = hi + 1
    if at <= MAX_CODE_POINT:
        bounds.append(at)
        classes.append(0)
    return np.array(bounds, np.int32), np.array(classes, np.int32)


def tidy(bounds: IntArray, classes: IntArray, delta: IntArray, accept: BoolArray, start: int) -> CharDfa:
    """Trim, minimise, merge equal classes and number everything in order of first use: the canonical form."""
    delta, accept, start = minimise(delta, accept, start)
    # Classes with equal columns are one; the dead column becomes class 0.
    dead = np.zeros((delta.shape[0], 1), np.int32)
    columns, inverse = np.unique(np.concatenate([dead, delta], axis=1), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    merged = inverse[1:][classes]
    starts = np.ones(len(merged), bool)
    starts[1:] = merged[1:] != merged[:-1]
    bounds, merged = bounds[starts], merged[starts]
    order = {int(inverse[0]): 0}
    for c in merged.tolist():
        order.setdefault(c, len(order))
    rename = np.zeros(columns.shape[1], np.int32)
    keep = np.zeros(len(order), np.int64)
    for old, new in order.items():
        rename[old], keep[new] = new, old
    delta = np.ascontiguousarray(columns[:, keep])
    # States in breadth-first order over the classes.
    numbering = {0: 0}
    queue = [start] if start else []
    numbering.update({s: i + 1 for i, s in enumerate(queue)})
    for state in queue:
        for target in delta[state].tolist():
            if target not in numbering:
                numbering[target] = len(numbering)
                queue.append(target)
    old_of_new = np.array([0, *queue], np.int64)
    renumber = np.zeros(delta.shape[0], np.int32)
    renumber[old_of_new] = np.arange(len(old_of_new), dtype=np.int32)
    return CharDfa(
        bounds.astype(np.int32), rename[merged], renumber[delta[old_of_new]], accept[old_of_new], int(renumber[start])
    )
