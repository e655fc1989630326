"""Automata as the compiled walk reads them, and the masks it makes.

An automaton that can say what a context is (`Described`) is read context by context: each is described when a walk
first meets it, and what a text's end leads to is asked when it is first needed. One that is a stack of frames
(`Stacked`) gives the tables of its usual frames instead, and its contexts are made by the walk itself.
"""

from __future__ import annotations

import ctypes
import json
import threading
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from .interface import MaskRow
from .native import RESOLVE, STEP, given, library, written

if TYPE_CHECKING:
    from .schema.names import NameTrie
    from .speller import Spelling
    from .spelling import ByteDfa
    from .token_trie import LongArray, TokenTrie

MAX_DEPTH = 250  # lengths are kept in a byte
LEAF_BITS = 32
_FAILED = -3
_NON_ASCII, _INVALID, _WITH_SPACES = 1, 2, 4
_LENGTHS = (4, 8, 16, 32, 255)  # to which those of closures are rounded down, so that they share rows
_LOOKED_AT = 96  # contexts around a state, when a walk looks ahead
_ASK_VALUE, _ASK_MOVE = -2, -10  # as in walk.h
PIECEMEAL = -4  # the mask has to be put together in Python
NO_BASE, CLOSURE = -1, -2
_COUNT, _BASES = (1 << 32) - 1, 2  # the number of a row comes above the count, so much larger
# Spellings of which the alphabet of all characters has rows that are shared:
USUAL: dict[Spelling, int] = {"json": 0, "json-plain": 1}


class Moves(NamedTuple):
    """A context with one state and these moves."""

    moves: Mapping[int, int]


class Leaf(NamedTuple):
    """A text read by `dfa`. `outcomes[label]` is 0 where a text with that label may not end.

    A string ends with a double quote, another text before the first byte that it cannot take.
    """

    dfa: ByteDfa
    outcomes: tuple[int, ...]
    is_string: bool


class Name(NamedTuple):
    """One of the declared names whose bit is set."""

    trie: NameTrie
    allowed: int


class OpenName(NamedTuple):
    """Any name: label 2 + i for declared name i, 1 for others, which `free` reads; its states begin at `base`."""

    trie: NameTrie
    free: ByteDfa
    base: int
    outcomes: tuple[int, ...]


Description = Moves | Leaf | Name | OpenName


@runtime_checkable
class Described(Protocol):
    """What the compiled walk asks of an automaton with states `context << 32 | leaf`."""

    def describe(self, context: int) -> Description | None:
        """What a context is; None: its steps are to be asked for one by one."""

    def leave(self, context: int, outcome: int) -> int:
        """The state behind a text of this context that ends with a label (`Leaf`, `OpenName`) or name number."""

    def moves(self, state: int) -> Mapping[int, int]: ...

    def step(self, state: int, byte: int) -> int: ...


class Stacked(Described, Protocol):
    """An automaton whose contexts are frames with a parent, counted by the compiled walk once there is one."""

    native: NativeMachine | None

    def attach(self, native: NativeMachine) -> None:
        """Hand the contexts that are there over, and let `native` count from now on."""

    def define_value(self, demand: int) -> None:
        """Give the tables of a value."""


def _pointer(values: np.ndarray[Any, Any]) -> int:
    return int(values.ctypes.data)


class Closure(ctypes.Structure):
    """All texts over some characters, up to a length (255: any). As in walk.c."""

    _fields_ = (
        ("low", ctypes.c_uint64), ("high", ctypes.c_uint64), ("flags", ctypes.c_uint8), ("length", ctypes.c_uint8)
    )  # fmt: skip

    @property
    def key(self) -> tuple[int, int, int, int]:
        return self.low, self.high, self.flags, self.length


def usual_closures() -> list[Closure]:
    """Those that patterns often have: any text but line ends or spaces, and the usual sets of letters and digits."""
    found = []
    printable = "".join(map(chr, range(0x20, 0x7F))).replace('"', "").replace("\\", "")
    for characters in (printable, printable.replace(" ", "")):
        for flags in (_NON_ASCII, _NON_ASCII | _WITH_SPACES):
            found += [_over(characters + "\x7f", flags, n) for n in _LENGTHS]
    lower, upper, digits = ascii_lowercase, ascii_uppercase, "0123456789"
    for letters in (lower, upper, lower + upper):
        for more in ("", digits, digits + "_", digits + "-", digits + "_-", digits + "._-", " "):
            found += [_over(letters + more, 0, n) for n in _LENGTHS[1:]]
    letters = lower + upper + digits
    in_uri, query = letters + "._~-!$&'()*+,;=", "/?"  # RFC 3986; then the name in an address (RFC 5321)
    found += [_over(in_uri + more, 0, 255) for more in ("", ":", "@", ":@", ":@/", ":@" + query)]
    found += [_over(letters + "!#$%&'*+/=?^_`{|}~-", 0, 255), _over(digits + "abcdefABCDEF", 0, 255)]
    return found


def _over(characters: str, flags: int, length: int) -> Closure:
    bits = sum(1 << ord(c) for c in characters)
    return Closure(bits & (1 << 64) - 1, bits >> 64, flags, length)


class _Scratch(ctypes.Structure):
    _fields_ = (
        ("whole", ctypes.c_void_p), ("quoted", ctypes.c_void_p), ("behind", ctypes.c_void_p), ("odd", ctypes.c_void_p),
        ("max_plain", ctypes.c_int64), ("row", ctypes.c_void_p), ("values", ctypes.c_void_p),
        ("words", ctypes.c_void_p), ("ends", ctypes.c_void_p), ("shared", ctypes.c_void_p),
        ("closures", ctypes.c_void_p), ("num_ends", ctypes.c_int32), ("num_closures", ctypes.c_int32),
        ("max_length", ctypes.c_int32), ("base", ctypes.c_int32), ("closure", Closure),
    )  # fmt: skip


Cut = tuple["TokenTrie", "LongArray"]  # a tree over the ends of some tokens, and the ids in the order of its tokens


class NativeTrie:
    """A `TokenTrie` for the walk, whole and cut down to the tokens with a double quote, with scratch space.

    `behind` holds those with plain text before the first double quote, from that on; `odd` the others.
    """

    def __init__(self, trie: TokenTrie, lib: ctypes.PyDLL) -> None:
        self.lib = lib
        behind, odd, max_plain = split_at_quotes(trie)
        self.whole = self._tree((trie, trie.tokens), 0, trie.num_words)
        self.quoted = self._tree((trie, trie.tokens), 1, 0)
        self.behind, self.odd = self._tree(behind, 0, 0), self._tree(odd, 0, 0)
        self.num_words = trie.num_words
        self.words = np.zeros(trie.num_words + 1, np.int64)
        self.values = np.zeros(trie.num_words + 1, np.int32)
        self._row = np.zeros(trie.num_words, np.int32)
        self._ends = np.array(trie.eos_ids, np.int32)
        self._scratch = _Scratch(
            self.whole,
            self.quoted,
            self.behind,
            self.odd,
            max_plain,
            _pointer(self._row),
            _pointer(self.values),
            _pointer(self.words),
            _pointer(self._ends),
            None,
            None,
            len(self._ends),
        )
        self.scratch = ctypes.addressof(self._scratch)
        self._shared: tuple[object, ...] = ()
        self.rows: list[MaskRow] = []  # with which masks may begin
        self.lock = threading.RLock()  # for the scratch space: a walk may call back, and another thread come in

    def _tree(self, cut: Cut, quoted: int, num_words: int) -> int:
        trie, tokens = cut
        parts = [np.ascontiguousarray(a) for a in (trie.bytes, *(a.astype(np.int64) for a in (
            trie.children, trie.token_starts, tokens)))]  # fmt: skip
        made: int = self.lib.trie_new(trie.num_nodes, *map(_pointer, parts), quoted, num_words)
        weakref.finalize(self, self.lib.trie_free, made)
        return made

    def share(self, by_length: list[list[MaskRow]], closures: list[Closure], rows: list[MaskRow]) -> None:
        """Let masks begin with these rows: for each alphabet of USUAL of 0, 1, ... characters, and of closures."""
        every = [row for alphabet in by_length for row in alphabet] + rows
        pointers = (ctypes.c_void_p * len(every))(*map(_pointer, every))
        kept = (Closure * len(closures))(*closures)
        scratch = self._scratch
        scratch.closures, scratch.num_closures = ctypes.addressof(kept), len(closures)
        scratch.max_length = len(by_length[0]) - 1
        scratch.shared = ctypes.addressof(pointers)
        self._shared, self.rows = (pointers, kept), every

    def closure(self) -> Closure:
        """The texts whose row the last mask begins with, where that is none of `rows`."""
        return Closure.from_buffer_copy(self._scratch.closure)

    def found(self, count: int) -> tuple[LongArray, MaskRow]:
        """Copies of the first words and values."""
        return self.words[:count].copy(), self.values[:count].copy()

    def row_of(self, count: int) -> MaskRow:
        row = np.zeros(self.num_words, np.int32)
        row[self.words[:count]] = self.values[:count]
        return row

    def closure_row(self, closure: Closure) -> MaskRow:
        """The tokens that are such a text, or begin one."""
        row = np.zeros(self.num_words, np.int32)
        self.lib.closure_row(self.whole, ctypes.addressof(closure), written(row), self.num_words)
        return row


class NativeDfa:
    """A `ByteDfa` for the compiled walk, which reads its arrays in place."""

    def __init__(self, dfa: ByteDfa, lib: ctypes.PyDLL) -> None:
        chars = dfa.chars
        parts = (dfa.speller.table, chars.delta, chars.labels, dfa.live, chars.bounds, chars.classes)
        self._arrays = [np.ascontiguousarray(a, np.uint8 if a.dtype == bool else np.int32) for a in parts]
        self._kept = [given(a) for a in self._arrays]
        usual = USUAL.get(dfa.spelling, -1)
        self.handle: int = lib.dfa_new(*chars.delta.shape, dfa.width, *self._kept, len(chars.bounds), usual)
        self.lib = lib
        weakref.finalize(self, lib.dfa_free, self.handle)

    def freedom(self, s: int) -> int:
        """How many characters of any live class can be read from character state s, in any order (255: any number)."""
        count: int = self.lib.dfa_freedom(self.handle, s)
        return count

    def mask(self, state: int, trie: NativeTrie) -> int:
        """Writes words into the trie's scratch; returns how many."""
        count: int = self.lib.dfa_mask(self.handle, trie.scratch, state)
        return count

    def states(self, state: int, trie: NativeTrie, vocab_size: int) -> LongArray:
        """For each token the state it leads to, -1 where it cannot be read."""
        out = np.full(vocab_size, -1, np.int64)
        self.lib.dfa_states(self.handle, trie.whole, state, written(out))
        return out


class NativeReader:
    """An automaton of texts with what they deliver by label (0: a text with that label may not end)."""

    def __init__(self, dfa: ByteDfa, outcomes: tuple[int, ...], lib: ctypes.PyDLL) -> None:
        native = dfa.native
        assert native is not None
        flags = array("i", [outcome != 0 for outcome in outcomes])
        self.dfa = dfa  # which it points to
        self.handle: int = lib.reader_new(native.handle, len(flags), flags.buffer_info()[0], dfa.start)
        weakref.finalize(self, lib.reader_free, self.handle)


class NativeMachine:
    """The contexts of one automaton as the walk knows them. Not thread-safe; its users hold the index's lock."""

    def __init__(self, automaton: Described, lib: ctypes.PyDLL) -> None:
        self._automaton = weakref.ref(automaton)  # which may keep this one
        self.lib = lib
        self._kept: dict[int, object] = {}  # what the tables point to
        self._names: dict[int, int] = {}
        self._error: BaseException | None = None
        self.has_stack = hasattr(automaton, "attach")
        this = weakref.ref(self)  # no cycle through the callbacks
        self._callbacks = (RESOLVE(partial(_resolve, this)), STEP(partial(_step, this)))
        self.handle: int = lib.machine_new(*self._callbacks)
        self._sizes = (ctypes.c_int64 * 2).from_address(self.handle)  # contexts, bytes
        weakref.finalize(self, lib.machine_free, self.handle)

    @property
    def automaton(self) -> Described:
        found = self._automaton()
        assert found is not None
        return found

    @property
    def num_contexts(self) -> int:
        return self._sizes[0]

    def define(self, context: int) -> None:
        """Describe a context."""
        lib, handle = self.lib, self.handle
        found = self.automaton.describe(context)
        if found is None:
            lib.define_python(handle, context)
        elif isinstance(found, Moves):
            targets = array("q", found.moves.values())
            lib.define_moves(handle, context, len(targets), bytes(found.moves), targets.buffer_info()[0])
        elif isinstance(found, Leaf):
            flags = array("i", [outcome != 0 for outcome in found.outcomes])
            lib.define_leaf(handle, context, found.is_string, self.dfa(found.dfa), len(flags), flags.buffer_info()[0])
        elif isinstance(found, Name):
            allowed = found.allowed.to_bytes(found.allowed.bit_length() // 8 + 1, "little")
            lib.define_name(handle, context, self._tree(found.trie), allowed, len(allowed))
        else:
            flags = array("i", [outcome != 0 for outcome in found.outcomes])
            lib.define_open_name(
                handle, context, self._tree(found.trie), found.base, self.dfa(found.free), len(flags),
                flags.buffer_info()[0],
            )  # fmt: skip

    def dfa(self, dfa: ByteDfa) -> int:
        """The handle of an automaton, kept from now on."""
        self._kept[id(dfa)] = dfa
        native = dfa.native
        assert native is not None
        return native.handle

    def _tree(self, trie: NameTrie) -> int:
        handle = self._names.get(id(trie))
        if handle is None:
            lengths, text = spelled(trie.names)
            self._kept[id(trie)] = trie
            handle = self._names[id(trie)] = self.lib.names_new(len(lengths), lengths.buffer_info()[0], text)
            weakref.finalize(self, self.lib.names_free, handle)
        return handle

    def mask(self, state: int, trie: NativeTrie, ends: bool) -> tuple[int, int]:
        """Words of the tokens that may come, in the trie's scratch: how many, and the row in which the others are.

        That is a number of `trie.rows`, NO_BASE, or CLOSURE for the row of `trie.closure()`; PIECEMEAL: Python has to
        make the mask. `ends`: with EOS, of an automaton that is not `Stacked`.
        """
        found: int = self.lib.machine_mask(self.handle, trie.scratch, state, ends)
        if found == _FAILED:
            self._raise()
        return (found & _COUNT, (found >> 32) - _BASES) if found >= 0 else (0, found)

    @property
    def num_bytes(self) -> int:
        """Of all tables, the automata that they point to left out."""
        return 2000 + self._sizes[1]

    def explore(self, state: int, limit: int) -> int:
        """Meet up to `limit` contexts ahead of their use, those nearest to `state`; returns how many."""
        met: int = self.lib.machine_explore(self.handle, state, _LOOKED_AT, limit)
        self._raise()
        return met

    def step(self, state: int, data: bytes) -> int:
        """The state after some bytes; -1 if they are not allowed."""
        after: int = self.lib.step_bytes(self.handle, state, data, len(data))
        if after == _FAILED:
            self._raise()
        return after

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def spelled(names: Sequence[str]) -> tuple[array[int], bytes]:
    """The lengths of names between quotes in JSON, in bytes (-1: it cannot be written), and all of them in a row."""
    joined = "".join(names)
    if joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined:
        return array("i", map(len, names)), joined.encode()
    texts = [None if any(0xD800 <= ord(c) <= 0xDFFF for c in name) else
             json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in names]  # fmt: skip
    return array("i", [-1 if text is None else len(text) for text in texts]), b"".join(text or b"" for text in texts)


def _resolve(this: Callable[[], NativeMachine | None], context: int, outcome: int) -> int:
    machine = this()
    assert machine is not None
    try:
        if outcome >= 0:
            return machine.automaton.leave(context, outcome)
        if outcome <= _ASK_MOVE:
            return machine.automaton.moves(context << LEAF_BITS).get(_ASK_MOVE - outcome, -1)
        if outcome == _ASK_VALUE:
            machine.automaton.define_value(context)  # type: ignore[attr-defined]
        else:
            machine.define(context)
    except BaseException as error:  # carried over the C frames, raised behind them
        machine._error = error
        return _FAILED
    return 0


def _step(this: Callable[[], NativeMachine | None], state: int, byte: int) -> int:
    machine = this()
    assert machine is not None
    try:
        return machine.automaton.step(state, byte)
    except BaseException as error:
        machine._error = error
        return _FAILED


def native_dfa(dfa: ByteDfa) -> NativeDfa | None:
    """A `ByteDfa` for the compiled walk; None where there is none. Asked through `ByteDfa.native`, which keeps it."""
    lib = library()
    return None if lib is None else NativeDfa(dfa, lib)


def native_machine(automaton: object) -> NativeMachine | None:
    """The contexts of an automaton that can describe them; None for others, or without the compiled walk."""
    lib = library()
    if lib is None or not isinstance(automaton, Described):
        return None
    if not hasattr(automaton, "attach"):
        return NativeMachine(automaton, lib)
    stacked = cast(Stacked, automaton)
    if stacked.native is None:
        stacked.attach(NativeMachine(stacked, lib))
    return stacked.native


def native_trie(trie: TokenTrie) -> NativeTrie | None:
    """The tree for the compiled walk, made once; None where there is none, or tokens are too long for it."""
    lib = library()
    if lib is None or trie.max_token_len > MAX_DEPTH or not trie.num_nodes:
        return None
    return NativeTrie(trie, lib)


def split_at_quotes(trie: TokenTrie) -> tuple[Cut, Cut, int]:
    """The tokens with a double quote as two trees, and the most characters before a quote in the first.

    The first has the tokens in which whole characters that stand for themselves in JSON come before the first double
    quote, each from that quote on; the second has the other tokens, whole.
    """
    behind, odd, most = [], [], 0
    for token in trie.quoted_ids:
        data = trie.vocabulary.token_bytes[token] or b""
        head, quote, rest = data.partition(b'"')
        try:
            text = head.decode("utf-8")
        except UnicodeDecodeError:
            text = "\\"
        if "\\" in text or min(text, default=" ") < " ":
            odd.append((token, data))
        else:
            behind.append((token, quote + rest))
            most = max(most, len(text))
    return _cut(behind), _cut(odd), most


def _cut(tokens: list[tuple[int, bytes]]) -> Cut:
    from ...core.constraint import Vocabulary
    from .token_trie import TokenTrie

    trie = TokenTrie(Vocabulary(tuple(data for _, data in tokens), (), ""))
    return trie, np.array([token for token, _ in tokens], np.int64)[trie.tokens] if tokens else trie.tokens
