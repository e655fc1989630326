"""How characters are written in bytes, and automata over bytes made of the two.

A `CharDfa` reads characters; a `Speller` is a small tree over bytes whose leaves are its character classes. A
`ByteDfa` is the pair: its states are (character state, place in the tree), so that nothing is multiplied out and
`.{1,5000}` stays small.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from .char_dfa import BoolArray, CharDfa, IntArray
from .native_walk import Leaf, NativeDfa, native_dfa
from .token_index import Mask, expand
from .token_trie import LongArray, TokenTrie
from .wide import inside_row, lengths_left

# "json" is the inside of a JSON string; "json-plain" without the \\u escapes of what can be written plainly.
Spelling = Literal["utf8", "json", "json-plain"]
WIDE = 24  # states with more moves than this are walked in arrays

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
    """The tree: `table` [K, 256] int32 with entries >= 0 nodes and ~c leaves of class c. Node 0 is the root."""

    def __init__(self, bounds: IntArray, classes: IntArray, spelling: Spelling) -> None:
        builder = _SpellerBuilder(bounds.tolist(), classes.tolist())
        root = _utf8_entries(builder) if spelling == "utf8" else _json_entries(builder, spelling == "json-plain")
        builder.rows[0] = {byte: entry for byte, entry in root.items() if entry != _DEAD}
        self.rows: list[dict[int, int]] = builder.rows
        self.table: IntArray = np.full((len(self.rows), 256), _DEAD, np.int32)
        for k, row in enumerate(self.rows):
            self.table[k, list(row.keys())] = list(row.values())
        num_classes = int(classes.max()) + 1
        self.reach: BoolArray = np.zeros((len(self.rows), num_classes), bool)  # classes below a node
        done: set[int] = set()

        def visit(k: int) -> None:
            for entry in set(self.rows[k].values()):
                if entry < 0:
                    self.reach[k, ~entry] = True
                else:
                    if entry not in done:
                        visit(entry)
                    self.reach[k] |= self.reach[entry]
            done.add(k)

        visit(0)


@lru_cache(maxsize=256)
def _speller(bounds: bytes, classes: bytes, spelling: Spelling) -> Speller:
    return Speller(np.frombuffer(bounds, np.int32), np.frombuffer(classes, np.int32), spelling)


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


class ByteDfa:
    """A `CharDfa` read byte by byte. State s * K + k is character state s at node k; -1 is dead.

    Every state that `moves` and `step_many` lead to can reach acceptance.
    """

    def __init__(self, chars: CharDfa, spelling: Spelling) -> None:
        self.chars = chars
        self.spelling: Spelling = spelling
        self.speller = _speller(chars.bounds.tobytes(), chars.classes.tobytes(), spelling)
        self.width = len(self.speller.rows)
        self.start = chars.start * self.width if chars.start else -1
        can, below = _class_bits(chars.delta != 0), _class_bits(self.speller.reach)
        live = np.zeros((len(can), len(below)), bool)
        for word in range(can.shape[1]):
            live |= (can[:, word, None] & below[None, :, word]) != 0
        self.live: BoolArray = live.reshape(-1)  # [S * K]
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
            for byte, entry in self.speller.rows[k].items():
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
