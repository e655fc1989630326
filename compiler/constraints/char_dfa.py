"""Deterministic automata over Unicode characters: what regexes and string schemas are compiled to first.

A `CharDfa` is trimmed: every state but 0 can be reached and can reach acceptance; state 0 is the dead one. It is
minimal unless it is very large (`minimise.MAX_MINIMISED`). It says not only yes or no but gives each text a label, so
that several languages can be decided in one reading.
`char_algebra` holds the boolean operations, `spelling` turns an automaton into one over bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from . import charset
from .charset import MAX_CODE_POINT, Ranges
from .effort import left, spend
from .minimise import CYCLIC, LongArray, distances, minimise, partition
from .native import library
from .nfa import Nfa, TooLarge, build_nfa, text_lengths
from .regex_ast import Regex

IntArray = np.ndarray[Any, np.dtype[np.int32]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

MAX_STATES = 50_000
MAX_WORK = 4_000_000  # state-set members looked at while making sets of positions into states
MAX_CELLS = 8_000_000  # states x classes
MAX_STEPS = 100_000_000  # of a compiled minimisation
MAX_SUBSET_STEPS = 200_000_000  # of making sets of positions into states, compiled: about a second
COMPILED_STEPS = 20  # as long as one of `effort`'s
_TOO_MANY_STATES = 1  # as in determinise.c


@dataclass(frozen=True, eq=False)
class CharDfa:
    """`delta[s, c]` is the state after reading a character of class c in state s; 0 is dead, `start` may be 0.

    `bounds` [R] int32 are the first code points of consecutive ranges, `classes` [R] the class of each. Class 0 holds
    what no transition reads, surrogates included: its column is dead. `labels[s]` is what a text that ends in s gets,
    0 if it is not in the language; a plain language has the one label 1.
    """

    bounds: IntArray
    classes: IntArray
    delta: IntArray  # [S, C]
    labels: IntArray  # [S]
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
        return bool(self.labels[self.start])

    @cached_property
    def accept(self) -> BoolArray:
        """Whether each state accepts, [S]."""
        accept: BoolArray = self.labels != 0
        return accept

    @cached_property
    def key(self) -> bytes:
        """A name of the language: minimal automata have equal keys if and only if their languages are equal."""
        digest = hashlib.blake2b(repr((self.start, self.delta.shape)).encode(), digest_size=20)
        for part in (self.bounds, self.classes, self.delta, self.labels):
            digest.update(part.tobytes())
        return digest.digest()

    @property
    def num_bytes(self) -> int:
        return self.delta.nbytes + self.labels.nbytes + self.bounds.nbytes + self.classes.nbytes + 300

    def class_of(self, code_point: int) -> int:
        if code_point < 128:
            return self._ascii[code_point]
        return int(self.classes[np.searchsorted(self.bounds, code_point, side="right") - 1])

    @cached_property
    def _ascii(self) -> list[int]:
        """The classes of ASCII characters: indexing an array of numpy's takes many times as long."""
        found = self.classes[np.searchsorted(self.bounds, np.arange(128), side="right") - 1]
        listed: list[int] = found.tolist()
        return listed

    def matches(self, text: str) -> bool:
        """Whether the whole text is in the language."""
        return self.label(text) != 0

    def label(self, text: str) -> int:
        """The label of the whole text, 0 if it is not in the language."""
        state, target = self.start, self.delta.item
        for char in text:
            state = target(state, self.class_of(ord(char)))
            if state == 0:
                return 0
        return int(self.labels[state])

    @cached_property
    def is_finite(self) -> bool:
        """Whether the language has finitely many texts: no state can be reached from itself."""
        return self.longest is not None

    @cached_property
    def longest(self) -> int | None:
        """The length of the longest text in characters; None if there is none longest, -1 if there are no texts."""
        if self.is_empty:
            return -1
        height = int(distances(self.delta, self.accept)[1][self.start])
        return None if height == CYCLIC else height

    @cached_property
    def ends_soon(self) -> BoolArray:
        """Whether only finitely many texts lead from each state to acceptance, [S]."""
        soon: BoolArray = distances(self.delta, self.accept)[1] != CYCLIC
        return soon

    def passes_end(self, text: str) -> bool:
        """Whether reading `text` leads through a state from which only finitely many texts lead to acceptance."""
        state = self.start
        for char in text:
            if self.ends_soon[state]:
                return True
            state = int(self.delta[state, self.class_of(ord(char))])
        return bool(self.ends_soon[state])

    @cached_property
    def prefixes(self) -> tuple[CharDfa, IntArray]:
        """The automaton of all beginnings of texts, and for each state here the state there with the same futures."""
        labels = np.ones(self.num_states, np.int32)
        labels[0] = 0
        blocks = partition(self.delta, labels)
        rows, classes = self.delta.tolist(), range(self.delta.shape[1])
        dfa = tidy(self.bounds, self.classes, *_quotient(self.delta, blocks, self.start))
        there = np.zeros(int(blocks.max()) + 1, np.int32)
        todo = [(self.start, dfa.start)] if self.start else []
        spans = [int(np.flatnonzero(self.classes == c)[0]) if (self.classes == c).any() else -1 for c in classes]
        class_there = [0 if span < 0 else dfa.class_of(int(self.bounds[span])) for span in spans]
        if todo:
            there[blocks[self.start]] = dfa.start
        for state, other in todo:
            for c in classes:
                target = rows[state][c]
                if target and not there[blocks[target]]:
                    there[blocks[target]] = dfa.delta[other, class_there[c]]
                    todo.append((target, int(there[blocks[target]])))
        return dfa, there[blocks]

    @cached_property
    def count(self) -> int | None:
        """How many texts the language has; None if there is no end of them."""
        if self.is_empty or not self.is_finite:
            return 0 if self.is_empty else None
        widths = self._class_widths()
        counts: dict[int, int] = {0: 0}
        heights = distances(self.delta, self.accept)[1]
        for state in sorted(range(1, self.num_states), key=lambda s: int(heights[s])):
            row = self.delta[state].tolist()
            below = sum(widths[c] * counts[t] for c, t in enumerate(row) if t)
            counts[state] = below + bool(self.labels[state])
        return counts[self.start]

    def _class_widths(self) -> list[int]:
        ends = np.append(self.bounds[1:], MAX_CODE_POINT + 1)
        widths = np.bincount(self.classes, weights=ends - self.bounds, minlength=self.delta.shape[1])
        return [int(w) for w in widths]

    def texts(self) -> Iterator[str]:
        """All texts of a finite language."""
        if not self.is_finite:
            raise ValueError("the language is infinite")
        todo = [("", self.start)] if self.start else []
        while todo:
            text, state = todo.pop()
            if self.labels[state]:
                yield text
            for span, which in enumerate(self.classes.tolist()):
                if target := int(self.delta[state, which]):
                    end = int(self.bounds[span + 1]) if span + 1 < len(self.bounds) else MAX_CODE_POINT + 1
                    todo.extend((text + chr(cp), target) for cp in range(int(self.bounds[span]), end))

    def some_text(self) -> str | None:
        """A shortest text of the language; None if it is empty."""
        shortest = distances(self.delta, self.accept)[0]
        text, state = "", self.start
        if not state:
            return None
        while shortest[state]:
            row = self.delta[state].tolist()
            which = next(c for c, t in enumerate(row) if t and shortest[t] == shortest[state] - 1)
            span = int(np.flatnonzero(self.classes == which)[-1])
            printable = [r for r in np.flatnonzero(self.classes == which).tolist() if self.bounds[r] >= 0x20]
            text += chr(int(self.bounds[printable[0] if printable else span]))
            state = row[which]
        return text


def _quotient(delta: IntArray, blocks: LongArray, start: int) -> tuple[IntArray, IntArray, int]:
    """One state per block (0 for that of state 0), every other one accepting."""
    distinct, first, number = np.unique(blocks, return_index=True, return_inverse=True)
    dead = int(np.searchsorted(distinct, blocks[0]))
    order = np.array([dead, *(i for i in range(len(distinct)) if i != dead)])
    rank = np.zeros(len(distinct), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    state = rank[number.reshape(-1)]
    labels = np.ones(len(order), np.int32)
    labels[0] = 0
    return state[delta[first[order]]], labels, int(state[start])


def from_regex(node: Regex) -> CharDfa:
    """The minimal automaton of a regex tree. Raises TooLarge within about a second, RegexError for inner anchors."""
    shortest, longest = text_lengths(node)
    if shortest > MAX_STATES or MAX_STATES < longest < math.inf:  # each place in a longest text is a state
        raise TooLarge(f"texts of more than {MAX_STATES} characters")
    return from_nfa(build_nfa(node))


def from_nfa(nfa: Nfa) -> CharDfa:
    """The minimal automaton of sets of positions. Raises TooLarge."""
    lib = library()
    parts = charset.minterms(nfa.sets)
    if lib is not None:
        bounds, classes = class_map(parts)
        return tidy(bounds, classes, *_compiled_subsets(lib, nfa, parts))
    return from_nfa_in_python(nfa)


def _compiled_subsets(lib: ctypes.PyDLL, nfa: Nfa, parts: list[Ranges]) -> tuple[IntArray, IntArray, int]:
    """Table, labels and start of the sets of positions that can be reached. Raises TooLarge, and TakesLong."""
    allowed = left()
    follow = [*nfa.follow, nfa.start]
    first = np.zeros(len(follow) + 1, np.int64)
    np.cumsum([len(f) for f in follow], out=first[1:])
    sets = [np.array([bool(charset.intersect(part, s)) for part in parts], np.uint8) for s in nfa.sets]
    inputs = (
        np.array(nfa.chars, np.int32),
        first,
        np.fromiter(chain.from_iterable(follow), np.int32, int(first[-1])),
        np.array(sets, np.uint8),
    )
    limits = min(MAX_STATES, MAX_CELLS // (len(parts) + 1)), MAX_WORK, MAX_SUBSET_STEPS
    if allowed is not None:
        limits = (*limits[:2], min(MAX_SUBSET_STEPS, allowed * COMPILED_STEPS))
    steps, status = np.zeros(1, np.int64), np.zeros(1, np.int32)
    shape = len(nfa.chars), len(nfa.sets), len(parts)
    table = lib.subsets(*shape, *(p.ctypes.data for p in inputs), *limits, steps.ctypes.data, status.ctypes.data)
    spend(int(steps[0]) // COMPILED_STEPS + 1, locked=False)
    if status[0] == _TOO_MANY_STATES:
        raise TooLarge(f"more than {limits[0]} automaton states")
    if table is None:
        raise TooLarge("too many combinations of positions")
    delta, labels = read_table(lib, table, len(parts) + 1)
    return delta, labels, 1 if len(delta) > 1 else 0


def read_table(lib: ctypes.PyDLL, table: int, width: int) -> tuple[IntArray, IntArray]:
    """A table that was made in C, [states, width], and its labels. Frees it."""
    count = lib.table_states(table)
    delta, labels = np.empty((count, width), np.int32), np.empty(count, np.int32)
    lib.table_read(table, delta.ctypes.data, labels.ctypes.data)
    lib.table_free(table)
    return delta, labels


def from_nfa_in_python(nfa: Nfa) -> CharDfa:
    """`from_nfa` without what is compiled: what that is held against. Bit p of an integer stands for position p."""
    accept = 1 << len(nfa.chars)
    follow = [sum(1 << p for p in positions) for positions in nfa.follow]
    parts = charset.minterms(nfa.sets)
    bounds, classes = class_map(parts)
    part_of_set = [[i + 1 for i, part in enumerate(parts) if charset.intersect(part, s)] for s in nfa.sets]
    masks = [sum(1 << i for i in members) for members in part_of_set]
    number: dict[int, int] = {0: 0}
    order = [0]
    rows: list[dict[int, int]] = [{}]  # bitset of classes -> state
    work = before = 0

    def visit(positions: int) -> int:
        if positions not in number:
            if len(order) >= MAX_STATES or len(order) * (len(parts) + 1) > MAX_CELLS:
                raise TooLarge(f"more than {len(order)} automaton states")
            number[positions] = len(order)
            order.append(positions)
        return number[positions]

    start = visit(sum(1 << p for p in nfa.start))
    at = 1
    while at < len(order):
        positions = order[at] & ~accept
        by_set: dict[int, int] = {}
        while positions:
            low = positions & -positions
            p = low.bit_length() - 1
            positions ^= low
            by_set[nfa.chars[p]] = by_set.get(nfa.chars[p], 0) | follow[p]
            work += 1
        if work > MAX_WORK:
            raise TooLarge("too many combinations of positions")
        spend(5 + work - before)
        before = work
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
    labels = np.array([1 if s & accept else 0 for s in order], np.int32)
    return tidy(bounds, classes, delta, labels, start)


def class_map(parts: Sequence[Ranges]) -> tuple[IntArray, IntArray]:
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


def tidy(bounds: IntArray, classes: IntArray, delta: IntArray, labels: IntArray, start: int) -> CharDfa:
    """Trim, minimise, merge equal classes and number everything in order of first use: the canonical form."""
    lib = library()
    made = None if lib is None else _compiled_form(lib, classes, delta, labels, start)
    if made is not None:
        new_class, table, new_labels = made
        starts = np.flatnonzero(np.concatenate([[True], new_class[classes[1:]] != new_class[classes[:-1]]]))
        merged = new_class[classes[starts]]
        return CharDfa(bounds[starts].astype(np.int32), merged, table, new_labels, 1 if len(table) > 1 else 0)
    return tidy_in_python(bounds, classes, delta, labels, start)


def _compiled_form(
    lib: ctypes.PyDLL, classes: IntArray, delta: IntArray, labels: IntArray, start: int
) -> tuple[IntArray, IntArray, IntArray] | None:
    """New class of each old one, table and labels; None if that would take too long."""
    table = np.ascontiguousarray(delta, np.int32)
    old_labels = np.ascontiguousarray(labels, np.int32)
    order = np.array(list(dict.fromkeys(classes.tolist())), np.int32)
    made, made_labels = np.empty(table.size + len(table), np.int32), np.empty(len(table) + 1, np.int32)
    new_class, width = np.empty(table.shape[1], np.int32), np.zeros(1, np.int32)
    inputs = (part.ctypes.data for part in (table, old_labels))
    outputs = (part.ctypes.data for part in (made, made_labels, new_class, width))
    count = lib.canonical(*table.shape, *inputs, start, len(order), order.ctypes.data, MAX_STEPS, *outputs)
    if count < 0:
        return None
    return new_class, made[: count * int(width[0])].reshape(count, -1).copy(), made_labels[:count].copy()


def tidy_in_python(bounds: IntArray, classes: IntArray, delta: IntArray, labels: IntArray, start: int) -> CharDfa:
    """`tidy` without the compiled form: what it is held against, and what is used where there is none."""
    delta, labels, start = minimise(delta, labels, start)
    # Classes with equal columns are one; the dead column becomes class 0.
    columns = {bytes(4 * delta.shape[0]): 0}
    keep: list[int] = []
    new_class = np.zeros(delta.shape[1], np.int32)
    in_order = dict.fromkeys(classes.tolist())
    for c in in_order:
        column = delta[:, c].tobytes()
        if column not in columns:
            columns[column] = len(columns)
            keep.append(c)
        new_class[c] = columns[column]
    merged = new_class[classes]
    starts = np.ones(len(merged), bool)
    starts[1:] = merged[1:] != merged[:-1]
    bounds, merged = bounds[starts], merged[starts]
    delta = np.concatenate([np.zeros((delta.shape[0], 1), np.int32), delta[:, keep]], axis=1)
    # States in breadth-first order over the classes.
    numbering = {0: 0}
    queue = [start] if start else []
    numbering.update({s: i + 1 for i, s in enumerate(queue)})
    rows = delta.tolist()
    for state in queue:
        for target in rows[state]:
            if target not in numbering:
                numbering[target] = len(numbering)
                queue.append(target)
    old_of_new = np.array([0, *queue], np.int64)
    renumber = np.zeros(delta.shape[0], np.int32)
    renumber[old_of_new] = np.arange(len(old_of_new), dtype=np.int32)
    return CharDfa(
        bounds.astype(np.int32), merged, renumber[delta[old_of_new]], labels[old_of_new], int(renumber[start])
    )
