"""From an automaton over bytes to masks over a vocabulary: computed once per state, when a matcher first gets there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from .endings import shortest_end
from .interface import MaskRow
from .native_walk import NO_BASE, PIECEMEAL, native_machine
from .token_trie import LongArray, TokenTrie
from .wide import closure_row

Encode = Callable[[str], list[int]]

MAX_MASK_BYTES = 64 * 2**20  # per compiled constraint
MAX_MEMO = 100_000  # entries of the small memos (token steps, forced runs)
MAX_FORCED_BYTES = 2048
_NO_WORDS = np.zeros(0, np.int64)
_NO_VALUES = np.zeros(0, np.int32)
_FEW = 24  # children that are tried one by one, without asking for all moves of a state
_SPARSE_SHARE = 16  # a mask is stored as words where fewer than one word in this many is set


class Automaton(Protocol):
    """A deterministic automaton over bytes. States are integers; every state can reach acceptance."""

    @property
    def start(self) -> int:
        """The first state; -1 if nothing matches."""

    def moves(self, state: int) -> Mapping[int, int]:
        """Allowed byte to next state."""

    def few_moves(self, state: int) -> Mapping[int, int] | None:
        """`moves` where they are few or known; None where it is cheaper to ask for single bytes."""

    def accepting(self, state: int) -> bool: ...

    def step(self, state: int, byte: int) -> int:
        """The state after a byte, -1 if it is not allowed."""

    def single(self, state: int) -> bool:
        """Whether exactly one byte may come next."""

    def wide_mask(self, state: int, trie: TokenTrie) -> Mask | None:
        """The mask of a state with many tokens, in arrays, without EOS; None: walk it byte by byte."""

    def fresh(self) -> Automaton:
        """The same automaton without what it has grown by; itself if it does not grow."""

    @property
    def num_states(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(slots=True)
class Mask:
    """A packed row: `base` (None: nothing allowed; may be shared by masks), and some words that differ.

    Not to be changed once made.
    """

    base: MaskRow | None
    words: LongArray
    values: MaskRow

    def write(self, out: MaskRow) -> None:
        base = self.base
        if base is None:
            out[:] = _nothing(len(out))
        elif len(base) == len(out):
            out[:] = base
        else:
            out[: len(base)] = base
            out[len(base) :] = 0
        if len(self.words):
            out[self.words] = self.values

    @property
    def num_bytes(self) -> int:
        return (0 if self.base is None else self.base.nbytes) + 12 * len(self.words) + 300

    def with_tokens(self, tokens: Iterable[int]) -> Mask:
        """This mask with more tokens allowed."""
        words, values = pack([*tokens])
        if not len(words):
            return self
        if self.base is not None:
            values |= self.base[words]
        return Mask(self.base, *merge_words((self.words, self.values), (words, values)))


@lru_cache(maxsize=8)
def _nothing(num_words: int) -> MaskRow:
    """Zeros, which are quicker to copy than to write."""
    return np.zeros(num_words, np.int32)


def pack(tokens: list[int]) -> tuple[LongArray, MaskRow]:
    """The words that hold the bits of `tokens`, ascending, and their values."""
    words: dict[int, int] = {}
    for token in tokens:
        words[token >> 5] = words.get(token >> 5, 0) | 1 << (token & 31)
    index = np.array(sorted(words), np.int64)
    return index, np.array([words[w] for w in sorted(words)], np.uint32).view(np.int32)


def merge_words(*parts: tuple[LongArray, MaskRow]) -> tuple[LongArray, MaskRow]:
    """The union of several sets of words."""
    words = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int64)
    if len(parts) < 2:
        return words, parts[0][1] if parts else np.zeros(0, np.int32)
    distinct, inverse = np.unique(words, return_inverse=True)
    values = np.zeros(len(distinct), np.int32)
    np.bitwise_or.at(values, inverse, np.concatenate([p[1] for p in parts]))
    return distinct, values


class TokenIndex:
    """Masks, token steps and forced tokens of one automaton over one vocabulary. Shared by threads."""

    def __init__(self, automaton: Automaton, trie: TokenTrie, encode: Encode | None) -> None:
        self.automaton, self.trie, self.encode = automaton, trie, encode
        self.masks_computed = 0
        self.masks_reused = 0
        self._masks: dict[int, Mask] = {}
        self._mask_bytes = 0
        self._steps: dict[tuple[int, int], int] = {}
        self._forced: dict[int, tuple[int, ...]] = {}
        self.healed_rows: dict[bytes, Mask] = {}  # see `healing`
        self.reasoning_rows: dict[tuple[bytes, bytes, int], MaskRow] = {}  # see `after_reasoning`
        self._ends: dict[int, tuple[int, ...] | None] = {}
        self._eos = frozenset(trie.eos_ids)
        self._accepting: dict[int, bool] = {}
        self.lock = threading.RLock()  # automata grow as they are read: one reader at a time
        self._native = native_machine(automaton) if trie.native is not None else None

    @property
    def num_bytes(self) -> int:
        memos = 100 * (len(self._steps) + len(self._forced))
        native = 0 if self._native is None else self._native.num_bytes
        return self._mask_bytes + memos + native + self.automaton.num_bytes

    def mask(self, state: int) -> Mask:
        """The mask of a state, EOS ids included where it accepts."""
        found = self._masks.get(state)
        if found is not None:
            self.masks_reused += 1
            return found
        with self.lock:
            found = self._masks.get(state)
            if found is not None:
                self.masks_reused += 1
                return found
            made = self._compute(state)
            self.masks_computed += 1
            self._mask_bytes += made.num_bytes
            while self._mask_bytes > MAX_MASK_BYTES and self._masks:
                self._mask_bytes -= self._masks.pop(next(iter(self._masks))).num_bytes
            self._masks[state] = made
        return made

    def look_ahead(self, state: int, limit: int) -> int:
        """Make ready what masks after `state` may need, the nearest first: up to `limit` contexts and ends of texts.

        Changes no answer. Returns how many there were.
        """
        if self._native is None or state < 0 or limit <= 0:
            return 0
        with self.lock:
            return self._native.explore(state, limit)

    def _compute(self, state: int) -> Mask:
        """The mask by the compiled walk: all of it, or what a shared row for the inside of a string leaves out."""
        native, trie = self._native, self.trie.native
        if native is None or trie is None:
            return self.compute_in_python(state)
        ends = not native.has_stack and self.automaton.accepting(state)
        with trie.lock:
            count, base = native.mask(state, trie, ends)
            if base >= 0:
                return Mask(trie.rows[base], *trie.found(count))
            if base == NO_BASE and count * _SPARSE_SHARE < trie.num_words:
                return Mask(None, *trie.found(count))
            if base == NO_BASE:
                return Mask(trie.row_of(count), _NO_WORDS, _NO_VALUES)
            if base == PIECEMEAL:
                return self.compute_in_python(state)
            row, (words, values) = closure_row(trie.closure(), self.trie), trie.found(count)
            return Mask(row, words, values | row[words])

    def compute_in_python(self, state: int) -> Mask:
        """The mask without the compiled walk: what it is held against, and what is used where it is not there."""
        ends = self.trie.eos_ids if self.automaton.accepting(state) else ()
        wide = self.automaton.wide_mask(state, self.trie)
        if wide is not None:
            return wide.with_tokens(ends)
        words, values = pack([*walk(self.automaton, self.trie, state), *ends])
        if len(words) * _SPARSE_SHARE < self.trie.num_words:
            return Mask(None, words, values)
        row = np.zeros(self.trie.num_words, np.int32)
        row[words] = values
        return Mask(row, words[:0], values[:0])

    def step(self, state: int, token_id: int) -> int:
        """The state after a token that is not EOS; -1 if it is not allowed."""
        key = (state, token_id)
        after = self._steps.get(key)
        if after is None:
            vocabulary = self.trie.vocabulary
            data = vocabulary.token_bytes[token_id] if 0 <= token_id < vocabulary.size else None
            after = self.step_bytes(state, data) if data and token_id not in self._eos else -1
            with self.lock:
                if len(self._steps) >= MAX_MEMO:
                    self._steps.clear()
                self._steps[key] = after
        return after

    def step_bytes(self, state: int, data: bytes) -> int:
        """The state after some bytes; -1 if they are not allowed."""
        with self.lock:
            if self._native is not None:
                return self._native.step(state, data)
            for byte in data:
                state = self.automaton.step(state, byte)
                if state < 0:
                    break
            return state

    def accepting(self, state: int) -> bool:
        """Whether the text may end in `state`."""
        found = self._accepting.get(state)
        if found is None:
            with self.lock:
                if len(self._accepting) >= MAX_MEMO:
                    self._accepting.clear()
                found = self._accepting[state] = self.automaton.accepting(state)
        return found

    def is_final(self, state: int) -> bool:
        """Whether the text may end in `state`, and nothing else can come."""
        if not self.accepting(state):
            return False
        with self.lock:
            return not self.automaton.moves(state)

    def shortest_end(self, state: int) -> tuple[int, ...] | None:
        """Tokens of a short way from `state` to acceptance; see `endings`."""
        if state in self._ends:
            return self._ends[state]
        with self.lock:
            found = shortest_end(self.automaton, self.trie, state)
            if len(self._ends) >= MAX_MEMO:
                self._ends.clear()
            self._ends[state] = found
        return found

    # Forced text

    def forced(self, state: int) -> tuple[int, ...]:
        """Canonical tokens of the bytes that must come after `state`."""
        found = self._forced.get(state)
        if found is None:
            with self.lock:
                found = self._forced_tokens(state)
                if len(self._forced) >= MAX_MEMO:
                    self._forced.clear()
                self._forced[state] = found
        return found

    def forced_after(self, begin: bytes) -> tuple[int, ...]:
        """Canonical tokens of `begin` and the bytes that must come after it at the beginning of the constraint."""
        with self.lock:
            data, after = self.forced_bytes(self.automaton.start)
            return self._canonical(begin + data, after)

    def forced_bytes(self, state: int) -> tuple[bytes, int]:
        """The bytes that must come after `state`, and the state they lead to."""
        out = bytearray()
        while len(out) < MAX_FORCED_BYTES and not self.automaton.accepting(state):
            if not self.automaton.single(state):
                break
            ((byte, state),) = self.automaton.moves(state).items()
            out.append(byte)
        return bytes(out), state

    def _forced_tokens(self, state: int) -> tuple[int, ...]:
        return self._canonical(*self.forced_bytes(state))

    def _canonical(self, data: bytes, after: int) -> tuple[int, ...]:
        """The tokens of bytes that must come and lead to `after`, less a last one that a longer one could replace."""
        if not data or self.encode is None:
            return ()
        whole = data[: _whole_chars(data)]
        try:
            ids = self.encode(whole.decode("utf-8"))
        except UnicodeDecodeError:  # begins within a character: the mask alone has to lead on
            return ()
        token_bytes = self.trie.vocabulary.token_bytes
        pieces = [token_bytes[i] or b"" if 0 <= i < len(token_bytes) else b"" for i in ids]
        if b"".join(pieces) != whole or b"" in pieces:  # a tokenizer that rewrites text
            return ()
        at = 0
        for count, piece in enumerate(pieces):
            if self._may_grow(data[at:], after):
                return tuple(ids[:count])
            at += len(piece)
        return tuple(ids)

    def _may_grow(self, begin: bytes, after: int) -> bool:
        """Whether some longer token begins with `begin` and goes on as the automaton does from `after`."""
        node = self.trie.find(begin)
        return node >= 0 and bool(walk(self.automaton, self.trie, after, node, first_only=True))


def walk(automaton: Automaton, trie: TokenTrie, state: int, node: int = 0, first_only: bool = False) -> list[int]:
    """Ids of the tokens strictly below `node` whose remaining bytes the automaton allows from `state`."""
    child_start, token_start, token_ids = trie.child_start, trie.token_start, trie.token_ids
    out: list[int] = []
    todo = [(node, state)]
    while todo:
        for child, target in readable_children(automaton, trie, *todo.pop()):
            if token_start[child] != token_start[child + 1]:
                out.extend(token_ids[token_start[child] : token_start[child + 1]])
                if first_only:
                    return out
            if child_start[child] != child_start[child + 1]:
                todo.append((child, target))
    return out


def readable_children(automaton: Automaton, trie: TokenTrie, node: int, state: int) -> list[tuple[int, int]]:
    """The children of `node` that can be read from `state`, each with the state it leads to."""
    low, high = trie.child_start[node], trie.child_start[node + 1]
    if low == high:
        return []
    node_byte = trie.node_byte
    moves = automaton.few_moves(state) if high - low <= _FEW else automaton.moves(state)
    if moves is None:
        return [(n, target) for n in range(low, high) if (target := automaton.step(state, node_byte[n])) >= 0]
    if high - low < len(moves):
        return [(n, target) for n in range(low, high) if (target := moves.get(node_byte[n], -1)) >= 0]
    find = node_byte.find
    return [(n, target) for byte, target in moves.items() if (n := find(byte, low, high)) >= 0]


def expand(trie: TokenTrie, nodes: LongArray, states: np.ndarray[Any, Any]) -> tuple[LongArray, np.ndarray[Any, Any]]:
    """All children of `nodes`, each with its parent's state."""
    first = trie.children[nodes]
    counts = trie.children[nodes + 1] - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    children = np.repeat(first - ends + counts, counts) + np.arange(total)
    return children, np.repeat(states, counts)


def _whole_chars(data: bytes) -> int:
    """How many bytes of `data` are left without a last character that is cut short."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if back >= needed else len(data) - back
        if byte < 0x80:
            break
    return len(data)
