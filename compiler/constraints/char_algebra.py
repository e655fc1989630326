"""Operations on languages of characters: boolean ones, finite sets, lengths. All exact; all results minimal."""

from __future__ import annotations

import ctypes
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache, partial

import numpy as np

from .char_dfa import MAX_STEPS, CharDfa, IntArray, class_map, from_regex, read_table, tidy
from .charset import ANY, MAX_CODE_POINT
from .effort import spend
from .minimise import LongArray
from .native import library
from .nfa import TooLarge
from .regex_ast import ANY_TEXT, NEVER, Chars, repeat

# Longer than the text of any context: a bound beyond it is none.
MAX_COUNTED_LENGTH = 2**20
MAX_PRODUCT_STATES, MAX_PRODUCT_CELLS = 500_000, 10_000_000  # a URI of up to 2,083 characters has 370,000
_FEW_STATES, _FEW_TEXTS = 100, 20  # of languages that are joined text by text

ALL = from_regex(ANY_TEXT)
NONE = from_regex(NEVER)


class _Memo:
    """Results of operations by the keys of their operands, least recently used out first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes, bytes], CharDfa] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, operation: str, a: CharDfa, b: CharDfa, make: Callable[[], CharDfa]) -> CharDfa:
        key = (operation, a.key, b.key)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = made
                self._num_bytes += made.num_bytes
            while self._num_bytes > self.max_bytes and len(self._entries) > 1:
                self._num_bytes -= self._entries.popitem(last=False)[1].num_bytes
        return made

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._num_bytes = 0


_memo = _Memo(64 * 2**20)


def forget_combined() -> None:
    """Drop the results of operations that are kept."""
    _memo.clear()


def intersect(a: CharDfa, b: CharDfa) -> CharDfa:
    if a is ALL or b is NONE or a.key == b.key:
        return b
    if b is ALL or a is NONE:
        return a
    both = partial(product, a, b, lambda x, y: int(x > 0 and y > 0), need_a=True, need_b=True)
    return _memo.get("and", a, b, both)


def union(a: CharDfa, b: CharDfa) -> CharDfa:
    if a is NONE or b is ALL or a.key == b.key:
        return b
    if b is NONE or a is ALL:
        return a
    return _memo.get("or", a, b, partial(product, a, b, lambda x, y: int(x > 0 or y > 0)))


def difference(a: CharDfa, b: CharDfa) -> CharDfa:
    if b is NONE or a is NONE:
        return a
    if b is ALL:
        return NONE
    return _memo.get("minus", a, b, partial(product, a, b, lambda x, y: int(x > 0 and not y), need_a=True))


def complement(a: CharDfa) -> CharDfa:
    return difference(ALL, a)


def union_all(languages: Iterable[CharDfa]) -> CharDfa:
    result = NONE
    for language in languages:
        result = union(result, language)
    return result


def is_disjoint(a: CharDfa, b: CharDfa) -> bool:
    return intersect(a, b).is_empty


def product(
    a: CharDfa, b: CharDfa, label: Callable[[int, int], int], *, need_a: bool = False, need_b: bool = False
) -> CharDfa:
    """Read both at once; a text labelled x by `a` and y by `b` gets label(x, y), with label(0, 0) == 0.

    `need_a`: label(0, y) is always 0 (then nothing is built where `a` is dead); `need_b` likewise.
    Raises TooLarge.
    """
    bounds, classes, delta_a, delta_b = _align(a, b)
    num_a, num_b = a.num_states, b.num_states
    width = delta_a.shape[1]
    lib = library()
    spend(50)
    if lib is not None:
        of_a, of_b, reached = _compiled_product(lib, delta_a, delta_b, a.start, b.start, need_a, need_b)
        spend(reached.size // 10)
        found = _label_table(a, b, label)[a.labels[of_a], b.labels[of_b]]
        return tidy(bounds, classes, reached, found, 1 if len(of_a) > 1 else 0)
    if num_a * num_b * width <= 400_000:
        codes: LongArray = np.arange(num_a * num_b)
        delta = (delta_a[:, None, :].astype(np.int64) * num_b + delta_b[None, :, :]).reshape(-1, width)
        start = a.start * num_b + b.start
    else:
        codes, delta, start = _reachable_product(delta_a, delta_b, a.start, b.start, need_a, need_b)
    table = _label_table(a, b, label)
    labels = table[a.labels[codes // num_b], b.labels[codes % num_b]]
    alive = np.ones(len(codes), bool)
    if need_a:
        alive &= codes // num_b != 0
    if need_b:
        alive &= codes % num_b != 0
    renumber = np.where(alive, np.arange(len(codes)), 0)
    return tidy(bounds, classes, renumber[delta].astype(np.int32), labels, int(renumber[start]))


def _compiled_product(
    lib: ctypes.PyDLL, delta_a: IntArray, delta_b: IntArray, start_a: int, start_b: int, need_a: bool, need_b: bool
) -> tuple[IntArray, IntArray, IntArray]:
    """The states reached, as those of each part (0: both dead, 1: the start), and their table."""
    width = delta_a.shape[1]
    tables = [np.ascontiguousarray(delta, np.int32) for delta in (delta_a, delta_b)]
    limit = min(MAX_PRODUCT_STATES, MAX_PRODUCT_CELLS // width)
    made = lib.product_new(width, *(t.ctypes.data for t in tables), start_a, start_b, need_a, need_b, limit)
    if made is None:
        raise TooLarge(f"more than {limit} states where two conditions meet")
    count = lib.product_count(made)
    parts = np.empty(count, np.int32), np.empty(count, np.int32), np.empty((count, width), np.int32)
    lib.product_read(made, width, *(part.ctypes.data for part in parts))
    lib.product_free(made)
    return parts


def _reachable_product(
    delta_a: IntArray, delta_b: IntArray, start_a: int, start_b: int, need_a: bool, need_b: bool
) -> tuple[LongArray, LongArray, int]:
    """Pair codes a * |B| + b of the states reached, their table (indices into the codes), and the start's index."""
    num_b = delta_b.shape[0]
    codes = [np.zeros(1, np.int64), np.array([start_a * num_b + start_b], np.int64)]
    targets = [np.zeros((1, delta_a.shape[1]), np.int64)]
    known = np.unique(np.concatenate(codes))
    frontier = codes[1]
    count = 2
    while frontier.size:
        after = delta_a[frontier // num_b].astype(np.int64) * num_b + delta_b[frontier % num_b]
        if need_a:
            after[after < num_b] = 0
        if need_b:
            after[after % num_b == 0] = 0
        targets.append(after)
        found = np.unique(after)
        at = np.searchsorted(known, found)
        frontier = found[known[np.minimum(at, len(known) - 1)] != found]
        known = np.insert(known, np.searchsorted(known, frontier), frontier)
        codes.append(frontier)
        count += len(frontier)
        if count > MAX_PRODUCT_STATES or count * delta_a.shape[1] > MAX_PRODUCT_CELLS:
            raise TooLarge(f"more than {count} states where two conditions meet")
    every = np.concatenate(codes)
    order = np.argsort(every, kind="stable")
    delta = order[np.searchsorted(every[order], np.concatenate(targets))]
    return every, delta, 1


def _label_table(a: CharDfa, b: CharDfa, label: Callable[[int, int], int]) -> IntArray:
    table = np.zeros((int(a.labels.max()) + 1, int(b.labels.max()) + 1), np.int32)
    for x in np.unique(a.labels).tolist():
        for y in np.unique(b.labels).tolist():
            table[x, y] = label(x, y)
    return table


def concat(a: CharDfa, b: CharDfa) -> CharDfa:
    """A text of `a` followed by one of `b`. Raises TooLarge."""
    if a.is_empty or b.is_empty:
        return NONE
    bounds, classes, delta_a, delta_b = _align(a, b)
    rows_b = delta_b.tolist()
    number: dict[tuple[int, int], int] = {(0, 0): 0}
    order = [(0, 0)]
    rows: list[list[int]] = [[0] * delta_a.shape[1]]

    def visit(state: int, others: int) -> int:
        """`others`: the states `b` may be in, as bits."""
        entry = (state, others | (1 << b.start if a.labels[state] else 0))
        at = number.get(entry)
        if at is None:
            if len(order) >= MAX_PRODUCT_STATES:
                raise TooLarge(f"more than {len(order)} states where one text follows another")
            at = number[entry] = len(order)
            order.append(entry)
        return at

    start = visit(a.start, 0)
    at = 1
    while at < len(order):
        state, others = order[at]
        members = [j for j in range(others.bit_length()) if others >> j & 1]
        targets = [sum({1 << t for j in members if (t := rows_b[j][c])}) for c in range(delta_a.shape[1])]
        rows.append([visit(t, o) for t, o in zip(delta_a[state].tolist(), targets, strict=True)])
        at += 1
    ends = sum(1 << j for j in np.flatnonzero(b.labels).tolist())
    labels = np.array([1 if others & ends else 0 for _, others in order], np.int32)
    return tidy(bounds, classes, np.array(rows, np.int32), labels, start)


def _align(a: CharDfa, b: CharDfa) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Both tables over common classes: (bounds, classes, a's table, b's)."""
    bounds = np.union1d(a.bounds, b.bounds).astype(np.int32)
    class_a = a.classes[np.searchsorted(a.bounds, bounds, side="right") - 1]
    class_b = b.classes[np.searchsorted(b.bounds, bounds, side="right") - 1]
    width = b.delta.shape[1]
    pairs, classes = np.unique(class_a.astype(np.int64) * width + class_b, return_inverse=True)
    return bounds, classes.reshape(-1).astype(np.int32), a.delta[:, pairs // width], b.delta[:, pairs % width]


def tag(languages: Sequence[CharDfa]) -> tuple[CharDfa, tuple[int, ...]]:
    """One automaton for several languages, and what its labels mean: bit i of sets[label] says that a text is in
    languages[i]."""
    if len(languages) == 1:
        return languages[0], (0, 1)
    distinct: dict[bytes, tuple[CharDfa, int]] = {}
    for i, language in enumerate(languages):
        if not language.is_empty:
            known, members = distinct.get(language.key, (language, 0))
            distinct[language.key] = known, members | 1 << i
    if not distinct:
        return NONE, (0,)
    few = _few_texts(distinct.values())
    if few is not None:
        numbers = {0: 0}  # members -> label
        labels = [numbers.setdefault(members, len(numbers)) for members in few.values()]
        return from_texts(few, labels), tuple(numbers)
    (result, members), *others = distinct.values()
    bits = [0, members]
    for language, members in others:
        sets = {0: 0}  # members so far -> label
        result = product(result, language, partial(_add_member, sets, bits, members))
        bits = list(sets)
    return result, tuple(bits)


def _few_texts(languages: Collection[tuple[CharDfa, int]]) -> dict[str, int] | None:
    """The texts of several small languages, each with the members of those it is in; None where they are not small."""
    found: dict[str, int] = {}
    if len(languages) < 3:  # the product is quick
        return None
    for language, members in languages:
        if language.num_states > _FEW_STATES or not language.is_finite or (language.count or 0) > _FEW_TEXTS:
            return None
        for text in language.texts():
            found[text] = found.get(text, 0) | members
    return found


def _add_member(sets: dict[int, int], bits: list[int], members: int, x: int, y: int) -> int:
    return sets.setdefault(bits[x] | (members if y else 0), len(sets))


def from_texts(texts: Iterable[str], labels: Sequence[int] | None = None) -> CharDfa:
    """The finite language of `texts`, each with its label (1 if none are given). Raises TooLarge."""
    given = [*texts]
    numbers = [1] * len(given) if labels is None else [*labels]
    joined = "".join(given)
    if not joined.isascii() and _SURROGATE.search(joined):
        pairs = [(t, n) for t, n in zip(given, numbers, strict=True) if not _SURROGATE.search(t)]
        given, numbers = [t for t, _ in pairs], [n for _, n in pairs]
        joined = "".join(given)
    lib = library()
    if lib is None:
        return from_texts_in_python(zip(given, numbers, strict=True))
    return _compiled_tree(lib, given, numbers, joined) or _compiled_words(lib, given, numbers, joined)


_SURROGATE = re.compile("[\ud800-\udfff]")  # not writable as UTF-8
_MAX_TREE_CELLS = 2_000_000
MAX_TEXT_CELLS = 16_000_000  # states x characters of a set of texts
_CHARS_PER_STEP = 60  # of many texts, read without the interpreter's lock


def _compiled_tree(lib: ctypes.PyDLL, texts: list[str], labels: list[int], joined: str) -> CharDfa | None:
    """The language of texts with labels; None where the table of its tree would be large."""
    total = len(joined)
    if 2 * total > _MAX_TREE_CELLS or (total + 2) * (width := len(set(joined)) + 1) > _MAX_TREE_CELLS:
        return None
    spend(total + 2)
    lengths, of_text = array("i", map(len, texts)), array("i", labels)
    out, sizes = np.empty(4 * width + (total + 2) * (width + 1), np.int32), array("i", (0, 0, 0))
    given = len(texts), lengths.buffer_info()[0], joined.encode("utf-32-le"), of_text.buffer_info()[0]
    if lib.texts_automaton(*given, total, width, MAX_STEPS, out.ctypes.data, sizes.buffer_info()[0]) < 0:
        return None
    states, columns, ranges = sizes
    table = out[4 * width :]
    cells = states * columns
    return CharDfa(
        out[:ranges].copy(),
        out[2 * width :][:ranges].copy(),
        table[:cells].reshape(states, columns).copy(),
        table[cells:][:states].copy(),
        1 if states > 1 else 0,
    )


def _compiled_words(lib: ctypes.PyDLL, texts: list[str], numbers: list[int], joined: str) -> CharDfa:
    """The language of many texts with labels, without a tree of all of them. Raises TooLarge."""
    codes = np.frombuffer(joined.encode("utf-32-le"), np.int32)
    spend((len(codes) + len(texts)) // _CHARS_PER_STEP)
    occurs = np.zeros(MAX_CODE_POINT + 1, bool)
    occurs[codes] = True
    alphabet = np.flatnonzero(occurs)
    column: IntArray = np.zeros(MAX_CODE_POINT + 1, np.int32)
    column[alphabet] = np.arange(1, len(alphabet) + 1, dtype=np.int32)
    data, width = column[codes], len(alphabet) + 1
    lengths, labels = np.fromiter(map(len, texts), np.int32, len(texts)), np.array(numbers, np.int32)
    start = np.zeros(1, np.int32)
    inputs = (part.ctypes.data for part in (lengths, data, labels))
    table = lib.words_automaton(len(texts), *inputs, width, MAX_TEXT_CELLS, start.ctypes.data)
    if table is None:
        raise TooLarge(f"more than {MAX_TEXT_CELLS // width} automaton states over {len(alphabet)} characters")
    delta, states = read_table(lib, table, width)
    bounds, classes = class_map([((c, c),) for c in alphabet.tolist()])
    return tidy(bounds, classes, delta, states, int(start[0]))


def from_texts_in_python(pairs: Iterable[tuple[str, int]]) -> CharDfa:
    """`from_texts` without what is compiled: what that is held against."""
    nodes: list[dict[str, int]] = [{}, {}]
    ends: dict[int, int] = {}
    for text, label in pairs:
        node = 1
        for char in text:
            after = nodes[node].get(char)
            if after is None:
                after = nodes[node][char] = len(nodes)
                nodes.append({})
            node = after
        ends.setdefault(node, label)
    spend(len(nodes))
    return _from_trie(nodes, ends)


def _from_trie(nodes: list[dict[str, int]], ends: dict[int, int]) -> CharDfa:
    """Merge equal subtrees from the leaves up (children have higher numbers), then make the table."""
    merged = [0] * len(nodes)
    known: dict[tuple[object, ...], int] = {(0,): 0}
    rows: list[dict[str, int]] = [{}]
    labels = [0]
    for node in range(len(nodes) - 1, 0, -1):
        row = {char: merged[child] for char, child in nodes[node].items()}
        key = (ends.get(node, 0), *sorted(row.items()))
        found = known.get(key)
        if found is None:
            found = known[key] = len(rows)
            rows.append(row)
            labels.append(ends.get(node, 0))
        merged[node] = found
    alphabet = sorted({char for row in rows for char in row})
    if len(rows) * (len(alphabet) + 1) > MAX_TEXT_CELLS:
        raise TooLarge(f"{len(rows)} automaton states over {len(alphabet)} characters")
    column = {char: i + 1 for i, char in enumerate(alphabet)}
    delta = np.zeros((len(rows), len(alphabet) + 1), np.int32)
    for state, row in enumerate(rows):
        if row:
            delta[state, [column[c] for c in row]] = list(row.values())
    bounds, classes = class_map([((ord(c), ord(c)),) for c in alphabet])
    return tidy(bounds, classes, delta, np.array(labels, np.int32), merged[1] if ends else 0)


@lru_cache(maxsize=256)
def of_length(low: int, high: int | None) -> CharDfa:
    """All texts of `low` to `high` characters. A bound above MAX_COUNTED_LENGTH counts as that, or as none."""
    low = min(low, MAX_COUNTED_LENGTH)
    if high is not None and high > MAX_COUNTED_LENGTH:
        high = None
    if high is not None and high < low:
        return NONE
    if low == 0 and high is None:
        return ALL
    last = low if high is None else high
    delta = np.zeros((last + 2, 2), np.int32)
    delta[1:, 1] = np.arange(2, last + 3)
    delta[last + 1, 1] = last + 1 if high is None else 0
    labels = np.zeros(last + 2, np.int32)
    labels[low + 1 :] = 1
    return CharDfa(ALL.bounds, ALL.classes, delta, labels, 1)


def any_of(ranges: tuple[tuple[int, int], ...] = ANY) -> CharDfa:
    """All texts over a set of characters."""
    return from_regex(repeat(Chars(ranges), 0, None))
