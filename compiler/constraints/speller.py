"""How characters are written in bytes: a small tree over bytes whose leaves are character classes.

The trees of two partitions that differ below U+0080 only are alike. So a tree is made from that of the finest such
partition (`_pattern`), of which there are few: one for those that tell nothing beyond ASCII apart, one for `.`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from .native import given, library, written

IntArray = np.ndarray[Any, np.dtype[np.int32]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

# "json" is the inside of a JSON string; "json-plain" without the \\u escapes of what can be written plainly.
Spelling = Literal["utf8", "json", "json-plain"]

QUOTE, BACKSLASH = 0x22, 0x5C
_SHORT_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", QUOTE: '"', BACKSLASH: "\\"}
_DEAD = ~0  # an entry >= 0 is a node, ~c a leaf of class c; class 0 is the dead one


class _SpellerBuilder:
    """Trees over bytes, equal nodes made once. Code points map to classes by `bounds` and `classes`."""

    def __init__(self, bounds: list[int], classes: list[int]) -> None:
        self.bounds, self.classes = bounds, classes
        self.rows: list[dict[int, int]] = [{}]
        self.known: dict[tuple[tuple[int, int], ...], int] = {}

    def node(self, entries: dict[int, int]) -> int:
        """The node with these live entries; the dead leaf if there are none."""
        live = {byte: entry for byte, entry in entries.items() if entry != _DEAD}
        if not live:
            return _DEAD
        key = tuple(sorted(live.items()))
        if key not in self.known:
            self.known[key] = len(self.rows)
            self.rows.append(live)
        return self.known[key]

    def class_of(self, code_point: int) -> int:
        return self.classes[bisect_right(self.bounds, code_point) - 1]

    def uniform(self, low: int, high: int) -> int | None:
        """The class of all code points low..high; None if they differ."""
        i = bisect_right(self.bounds, low) - 1
        return self.classes[i] if i + 1 == len(self.bounds) or self.bounds[i + 1] > high else None

    def digits(
        self, low: int, width: int, alphabet: Sequence[tuple[int, ...]], memo: dict[tuple[int, int], int]
    ) -> int:
        """A tree that reads the offset from `low` as digits; `width` code points are left. Digit d is any of
        `alphabet[d]`."""
        if width == 1:
            return ~self.class_of(low)
        same = self.uniform(low, low + width - 1)
        if same is not None and (same, width) in memo:
            return memo[same, width]
        step = width // len(alphabet)
        entries = {}
        for d, spelled in enumerate(alphabet):
            child = self.digits(low + d * step, step, alphabet, memo)
            for byte in spelled:
                entries[byte] = child
        made = self.node(entries)
        if same is not None:
            memo[same, width] = made
        return made


_CONTINUATION = [(0x80 + d,) for d in range(64)]
_HEX = [tuple({ord(f"{d:x}"), ord(f"{d:X}")}) for d in range(16)]


def _utf8_entries(builder: _SpellerBuilder) -> dict[int, int]:
    """The root's entries for plain UTF-8 (Unicode 15, table 3-7; surrogates have the dead class)."""
    memo: dict[tuple[int, int], int] = {}
    entries = {byte: ~builder.class_of(byte) for byte in range(0x80)}
    for lead in range(0xC2, 0xE0):
        entries[lead] = builder.digits((lead - 0xC0) << 6, 64, _CONTINUATION, memo)
    for lead, low, first in [(0xE0, 0, 0x20), *((lead, (lead - 0xE0) << 12, 0) for lead in range(0xE1, 0xF0))]:
        entries[lead] = _lead(builder, low, 6, first, 64, memo)
    for lead in range(0xF0, 0xF5):
        first, last = (0x10 if lead == 0xF0 else 0), (0x10 if lead == 0xF4 else 64)
        entries[lead] = _lead(builder, (lead - 0xF0) << 18, 12, first, last, memo)
    return entries


def _lead(
    builder: _SpellerBuilder, low: int, shift: int, first: int, last: int, memo: dict[tuple[int, int], int]
) -> int:
    """What follows a lead byte whose second byte has digits first..last - 1."""
    same = builder.uniform(low + (first << shift), low + (last << shift) - 1)
    key = (same if same is not None else -1, (shift << 16) + (first << 8) + last)  # widths never reach that far
    if same is not None and key in memo:
        return memo[key]
    made = builder.node(
        {0x80 + d: builder.digits(low + (d << shift), 1 << shift, _CONTINUATION, memo) for d in range(first, last)}
    )
    if same is not None:
        memo[key] = made
    return made


def _json_entries(builder: _SpellerBuilder, plain: bool) -> dict[int, int]:
    """The root's entries for the inside of a JSON string (RFC 8259, section 7), one spelling per ASCII character.

    Printable ASCII is written plainly; `"`, `\\` and the controls with a short escape by that; other controls as
    \\u00XX. From U+007F on, a character may be written plainly or as \\uXXXX (in pairs from U+10000 on).
    """
    entries = _utf8_entries(builder)
    for byte in [*range(0x20), QUOTE, BACKSLASH]:
        entries.pop(byte)
    escapes = {ord(letter): ~builder.class_of(cp) for cp, letter in _SHORT_ESCAPES.items()}
    first_escaped = 0x110000 if plain else 0x7F
    low = {cp: ~builder.class_of(cp) if cp >= first_escaped or (cp < 0x20 and cp not in _SHORT_ESCAPES) else _DEAD
           for cp in range(0x100)}  # fmt: skip
    memo: dict[tuple[int, int], int] = {}

    def hex_node(children: list[int]) -> int:
        return builder.node({byte: child for d, child in enumerate(children) for byte in _HEX[d]})

    page_zero = [hex_node([low[16 * hi + lo] for lo in range(16)]) for hi in range(16)]
    if plain:
        escapes[ord("u")] = hex_node([hex_node([hex_node(page_zero)])])
        entries[BACKSLASH] = builder.node(escapes)
        return entries
    blocks = [hex_node(page_zero), *(builder.digits(page << 8, 256, _HEX, memo) for page in range(1, 16))]
    leads = [hex_node(blocks), *(builder.digits(lead << 12, 4096, _HEX, memo) for lead in range(1, 16))]
    leads[0xD] = _surrogate_lead(builder, memo, hex_node)
    escapes[ord("u")] = hex_node(leads)
    entries[BACKSLASH] = builder.node(escapes)
    return entries


def _surrogate_lead(
    builder: _SpellerBuilder, memo: dict[tuple[int, int], int], hex_node: Callable[[list[int]], int]
) -> int:
    """What follows `\\ud`: U+D000..U+D7FF, or the rest of a surrogate pair."""
    pairs: dict[int, int] = {}

    def low_half(base: int) -> int:
        same = builder.uniform(base, base + 1023)
        if same is not None and same in pairs:
            return pairs[same]
        node = hex_node([_DEAD] * 12 + [builder.digits(base + 256 * q, 256, _HEX, memo) for q in range(4)])
        for text in (b"dD", b"u", b"\\"):
            node = builder.node(dict.fromkeys(text, node))
        if same is not None:
            pairs[same] = node
        return node

    def high_rest(base: int, left: int) -> int:
        if left == 0:
            return low_half(base)
        span = 1 << (10 + 4 * (left - 1))
        return hex_node([high_rest(base + d * span, left - 1) for d in range(16)])

    plain = [builder.digits(0xD000 + (q << 8), 256, _HEX, memo) for q in range(8)]
    halves = [high_rest(0x10000 + (q << 18), 2) for q in range(4)]
    return hex_node([*plain, *halves])


class Speller:
    """The tree: `table` [K, 256] int32 with entries >= 0 nodes and ~c leaves of class c. Node 0 is the root.

    `reach` [K, C] says which classes are below a node.
    """

    def __init__(self, table: IntArray, reach: BoolArray) -> None:
        self.table = table
        self.reach = reach
        self._rows: dict[int, dict[int, int]] = {}

    def row(self, node: int) -> dict[int, int]:
        """The live entries of a node."""
        found = self._rows.get(node)
        if found is None:
            live = np.flatnonzero(self.table[node] != _DEAD)
            found = self._rows[node] = dict(zip(live.tolist(), self.table[node, live].tolist(), strict=True))
        return found


def build_speller(bounds: IntArray, classes: IntArray, spelling: Spelling) -> Speller:
    """The tree of a partition, node by node."""
    builder = _SpellerBuilder(bounds.tolist(), classes.tolist())
    root = _utf8_entries(builder) if spelling == "utf8" else _json_entries(builder, spelling == "json-plain")
    builder.rows[0] = {byte: entry for byte, entry in root.items() if entry != _DEAD}
    table: IntArray = np.full((len(builder.rows), 256), _DEAD, np.int32)
    reach: BoolArray = np.zeros((len(builder.rows), int(classes.max()) + 1), bool)
    for k in [*range(1, len(builder.rows)), 0]:  # children come before their parents, but for the root
        row = builder.rows[k]
        table[k, list(row.keys())] = list(row.values())
        for entry in set(row.values()):
            if entry < 0:
                reach[k, ~entry] = True
            else:
                reach[k] |= reach[entry]
    return Speller(table, reach)


@lru_cache(maxsize=16)
def _pattern(bounds: bytes, classes: bytes, spelling: Spelling) -> Speller:
    """The tree of a partition beyond ASCII in which each ASCII character is a class, 1 + its number."""
    beyond, of_beyond = np.frombuffer(bounds, np.int32), np.frombuffer(classes, np.int32)
    every = np.concatenate([np.arange(128, dtype=np.int32), beyond])
    return build_speller(every, np.concatenate([np.arange(1, 129, dtype=np.int32), of_beyond]), spelling)


@lru_cache(maxsize=256)
def _speller(bounds_bytes: bytes, classes_bytes: bytes, spelling: Spelling) -> Speller:
    lib = library()
    if lib is None:
        return build_speller(np.frombuffer(bounds_bytes, np.int32), np.frombuffer(classes_bytes, np.int32), spelling)
    bounds, classes = array("i", bounds_bytes), array("i", classes_bytes)
    # Beyond ASCII the classes are numbered 129, 130, ... as they occur; 0 stays what nothing reads.
    first = bisect_right(bounds, 128) - 1
    number = {0: 0}
    of_beyond = array("i", [number.setdefault(c, 128 + len(number)) for c in classes[first:]])
    beyond = bounds[first:]
    beyond[0] = 128
    pattern = _pattern(beyond.tobytes(), of_beyond.tobytes(), spelling)
    old = array("i", (0,))  # the class here of each class there
    for i in range(first + 1):
        old.extend(classes[i : i + 1] * ((bounds[i + 1] if i < first else 128) - bounds[i]))
    old.extend(c for c in number if c)
    return _from_pattern(lib, pattern, old.tobytes(), max(classes) + 1)


def _from_pattern(lib: Any, pattern: Speller, new_class: bytes, num_classes: int) -> Speller:
    table = np.empty_like(pattern.table)
    reach = np.zeros((len(table), num_classes), bool)
    parts = (given(pattern.table), new_class, written(table), written(reach))
    count = lib.speller_from_pattern(len(table), num_classes, *parts)
    return Speller(table, reach) if count == len(table) else Speller(table[:count].copy(), reach[:count].copy())


def speller_of(bounds: IntArray, classes: IntArray, spelling: Spelling) -> Speller:
    """The tree of a partition into classes, in which class 0 cannot be read."""
    return _speller(bounds.tobytes(), classes.tobytes(), spelling)


def forget_spellers() -> None:
    """Drop the trees that are kept; those in use stay with their automata."""
    _speller.cache_clear()
