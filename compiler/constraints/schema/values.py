"""Several formulas read at once: what a value may begin with, and which of the formulas it has met when it ends.

A *demand* is a tuple of wants; a result is an integer with one bit per want of the demand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import TypeVar

from ..char_algebra import ALL, difference, from_texts, tag, union
from ..char_dfa import CharDfa
from ..speller import Spelling
from ..spelling import shared_byte_dfa
from .distinct import MAX_ENUMERATED, values_of
from .names import NameTrie, OpenNames, are_plain
from .numbers import ALL_NUMBERS, INTEGERS, NO_NUMBERS, spelled
from .plans import ArrayPlan, ArrayTrack, ObjectPlan, ObjectTrack, Want
from .readers import Leaf, Reader
from .shape import Shape
from .universe import Universe

Demand = tuple[Want, ...]
ArrayTracks = tuple[tuple[int, ArrayTrack], ...]  # (member, track), sorted
ObjectTracks = tuple[tuple[int, ObjectTrack], ...]
PendingArray = tuple[tuple[int, ArrayTrack, Want], ...]
PendingObject = tuple[tuple[int, ObjectTrack, Want], ...]
Track = TypeVar("Track", ArrayTrack, ObjectTrack)
Key = TypeVar("Key")
Value = TypeVar("Value")


@lru_cache(maxsize=16)
def _literals(null: bool, bools: int) -> CharDfa:
    return from_texts([t for t, there in (("null", null), ("false", bools & 1), ("true", bools & 2)) if there])


class ValueProgram:
    """How to begin a value that is to meet one of the formulas of a demand."""

    def __init__(self, demand: Demand, universe: Universe) -> None:
        self.demand = demand
        shapes = [_scalars_without(universe.shapes[w.formula], w.without) for w in demand]
        self.strings = _value_leaf([s.strings for s in shapes], "json")
        self.plain = _plain_leaf(shapes)
        arrays = [(1 << i, plan) for i, w in enumerate(demand) for plan in universe.arrays[w.formula]]
        objects = [(1 << i, plan) for i, w in enumerate(demand) for plan in universe.objects[w.formula]]
        self.arrays = ArrayProgram(arrays, universe) if arrays else None
        self.objects = ObjectProgram(objects) if objects else None


def _plain_leaf(shapes: list[Shape]) -> Leaf | None:
    if len(shapes) == 1:
        only = shapes[0]
        if only.numbers.is_empty and not only.null and not only.bools:
            return None
        found = standard_leaves().get((only.null, only.bools, only.numbers.key))
        if found is not None:
            return found
    return _value_leaf([_plain_texts(s.null, s.bools, s.numbers) for s in shapes], "utf8")


def _plain_texts(null: bool, bools: int, numbers: CharDfa) -> CharDfa:
    if not null and not bools:
        return spelled(numbers)
    return union(_literals(null, bools), spelled(numbers))


@lru_cache(maxsize=1)
def any_string() -> Leaf:
    """The reader of any string, which most schemas have, made once and kept."""
    return Leaf(shared_byte_dfa(ALL, "json", keep=True), (0, 1))


@lru_cache(maxsize=1)
def standard_leaves() -> dict[tuple[bool, int, bytes], Leaf]:
    """Readers by (null, bools, key of the numbers) for the values that most schemas have, made once and kept."""
    leaves = {}
    for numbers in (NO_NUMBERS, INTEGERS, ALL_NUMBERS):
        for null in (False, True):
            for bools in (0, 3):
                texts = _plain_texts(null, bools, numbers)
                if not texts.is_empty:
                    leaves[null, bools, numbers.key] = Leaf(shared_byte_dfa(texts, "utf8", keep=True), (0, 1))
    return leaves


def _value_leaf(languages: list[CharDfa], spelling: Spelling) -> Leaf | None:
    if len(languages) == 1 and languages[0].is_empty:
        return None
    if len(languages) == 1 and languages[0] is ALL and spelling == "json":
        return any_string()
    chars, sets = tag(languages)
    if chars.is_empty:
        return None
    if spelling == "json" and chars.is_finite:
        spelling = "json-plain"
    return Leaf(shared_byte_dfa(chars, spelling), sets)


def exclusions(shape: Shape, without: frozenset[str]) -> frozenset[str]:
    """Those of the values that a text must be kept off from its beginning, so that it does not end up at one of them.

    The others are in a part of the language where a text can always be made longer: it is enough that it may not end
    there.
    """
    out = set()
    for value in without:
        if value[0] in "-0123456789":
            kept = shape.numbers.passes_end(value)
        else:
            kept = value[0] != '"' or shape.strings.passes_end(str(json.loads(value)))
        if kept and value[0] not in "[{":
            out.add(value)
    return frozenset(out)


def _scalars_without(shape: Shape, without: frozenset[str] | None) -> Shape:
    """The scalars of a shape that are none of the given values. (Arrays and objects are compared when they end.)"""
    if not without:
        return shape
    texts = [json.loads(v) for v in without if v.startswith('"')]
    return Shape(
        null=shape.null and "null" not in without,
        bools=shape.bools & ~(("false" in without) | ("true" in without) << 1),
        numbers=difference(shape.numbers, from_texts([v for v in without if v[0] in "-0123456789"])),
        strings=difference(shape.strings, from_texts(texts)),
    )


MAX_KEPT = 5000


def keep(memo: dict[Key, Value], key: Key, value: Value) -> None:
    """Put something into a memo that is emptied when it has grown."""
    if len(memo) >= MAX_KEPT:
        memo.clear()
    memo[key] = value


def surviving_arrays(pending: PendingArray, result: int, value: str | None) -> ArrayTracks:
    """The tracks whose want the item met. `value`: its canonical text, where it was recorded."""
    if len(pending) == 1 and pending[0][2].without is None:
        return ((pending[0][0], pending[0][1]),) if result & 1 else ()
    met = _met(pending, result)
    return _in_order(
        (m, t if want.without is None else t._replace(used=t.used | {str(value)}))
        for m, t, want in pending
        if want in met
    )


def surviving_objects(pending: PendingObject, result: int) -> ObjectTracks:
    """The tracks whose want the property's value met."""
    if len(pending) == 1:
        return ((pending[0][0], pending[0][1]),) if result & 1 else ()
    met = _met(pending, result)
    return _in_order((m, track) for m, track, want in pending if want in met)


def _met(pending: PendingArray | PendingObject, result: int) -> set[Want]:
    return {want for i, want in enumerate(demand_of(pending)) if result >> i & 1}


def _in_order(tracks: Iterable[tuple[int, Track]]) -> tuple[tuple[int, Track], ...]:
    def order(entry: tuple[int, Track]) -> tuple[object, ...]:
        return (entry[0], *(tuple(sorted(part)) if isinstance(part, frozenset) else part for part in entry[1]))

    distinct = set(tracks)
    return tuple(distinct) if len(distinct) < 2 else tuple(sorted(distinct, key=order))


def demand_of(pending: PendingArray | PendingObject) -> Demand:
    """The wants of what is pending, each once, in order."""
    if len(pending) == 1:
        return (pending[0][2],)
    return tuple(dict.fromkeys(want for _, _, want in pending))


class ArrayProgram:
    """The arrays of a demand, read together."""

    def __init__(self, members: list[tuple[int, ArrayPlan]], universe: Universe) -> None:
        self.bits = [bit for bit, _ in members]
        self.plans = [plan for _, plan in members]
        self.universe = universe
        self.start: ArrayTracks = tuple((m, plan.start) for m, plan in enumerate(self.plans))
        self._next: dict[ArrayTracks, PendingArray] = {}

    def close(self, tracks: ArrayTracks) -> int:
        """The bits met if the array ends here."""
        bits = 0
        for member, track in tracks:
            if self.plans[member].can_close(track):
                bits |= self.bits[member]
        return bits

    @cached_property
    def may_run_out(self) -> bool:
        """Whether items of some kind have few values, so that there may be none left that differs from all others."""
        for plan in self.plans:
            for formula in (*plan.atom.prefix, plan.atom.rest):
                if values_of(plan.shape_of(formula), MAX_ENUMERATED):
                    return True
        return False

    def next_item(self, tracks: ArrayTracks) -> PendingArray:
        """What one more item may lead to."""
        found = self._next.get(tracks)
        if found is None:
            inhabited = self.universe.inhabited
            found = tuple(
                (member, after, want)
                for member, track in tracks
                for after, want in self.plans[member].next_items(track, inhabited)
            )
            keep(self._next, tracks, found)
        return found


class ObjectProgram:
    """The objects of a demand, read together."""

    def __init__(self, members: list[tuple[int, ObjectPlan]]) -> None:
        self.bits = [bit for bit, _ in members]
        self.plans = [plan for _, plan in members]
        self.start: ObjectTracks = tuple((m, plan.start) for m, plan in enumerate(self.plans))
        self.distinct = any(plan.distinct for plan in self.plans)
        self._readers: dict[tuple[int, int, frozenset[str]], Reader | None] = {}
        # What follows from the tracks alone, whatever is around the object:
        self._bits: dict[ObjectTracks, int] = {}
        self._open: dict[ObjectTracks, Reader | None] = {}
        self._after: dict[tuple[ObjectTracks, str | None, int | None, int], PendingObject] = {}

    @cached_property
    def trie(self) -> NameTrie:
        """The declared names of all plans."""
        return NameTrie(list(dict.fromkeys(name for plan in self.plans for name in plan.names)))

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.trie.names)}

    @property
    def is_plain(self) -> bool:
        """Whether undeclared names are all other names, and each declared one has one spelling."""
        return are_plain(self.plans[0].names) and all(u.every is ALL for plan in self.plans for u in plan.undeclared)

    def close(self, tracks: ObjectTracks) -> int:
        """The bits met if the object ends here."""
        bits = 0
        for member, track in tracks:
            if self.plans[member].can_close(track):
                bits |= self.bits[member]
        return bits

    def after_key(self, tracks: ObjectTracks, name: str | None, number: int | None, classes: int) -> PendingObject:
        """Where a key leads: the declared name `number`, which is also undeclared in the members of `classes`."""
        key = (tracks, name, number, classes)
        found = self._after.get(key)
        if found is None:
            found = self._after_key(tracks, name, number, classes)
            keep(self._after, key, found)
        return found

    def _after_key(self, tracks: ObjectTracks, name: str | None, number: int | None, classes: int) -> PendingObject:
        pending: list[tuple[int, ObjectTrack, Want]] = []
        if number is not None:
            declared = self.trie.names[number]
            for member, track in tracks:
                plan = self.plans[member]
                after = plan.after_declared(track, declared)
                if after is not None:
                    pending.append((member, after, Want(plan.atom.properties[declared].formula)))
        if classes:
            for i, (member, which) in enumerate(self._names.classes):
                for m, track in tracks:
                    if m == member and classes >> i & 1:
                        options = self.plans[member].undeclared_next(track, which, name)
                        pending += [(member, after, Want(formula)) for after, formula in options]
        return tuple(pending)

    def declared_bits(self, tracks: ObjectTracks) -> int:
        """A bit for each declared name that may come next."""
        found = self._bits.get(tracks)
        if found is None:
            found = self._declared_bits(tracks)
            keep(self._bits, tracks, found)
        return found

    def _declared_bits(self, tracks: ObjectTracks) -> int:
        bits = 0
        for member, track in tracks:
            plan = self.plans[member]
            following = plan.next_bits(track)
            if len(self.plans) > 1:  # with one plan, names have the same numbers here as there
                numbers = [i for i in range(following.bit_length()) if following >> i & 1]
                following = sum(1 << self._number[plan.names[i]] for i in numbers)
            bits |= following
        return bits & self.trie.below[0]

    def open_reader(self, tracks: ObjectTracks) -> Reader | None:
        """How the next key is read where undeclared names may come; None where they may not. Delivers labels."""
        if tracks not in self._open:
            keep(self._open, tracks, self._open_reader(tracks))
        return self._open[tracks]

    def _open_reader(self, tracks: ObjectTracks) -> Reader | None:
        classes = 0
        for i, (member, which) in enumerate(self._names.classes):
            if any(m == member and self.plans[m].may_add(track, which) for m, track in tracks):
                classes |= 1 << i
        if not classes:
            return None
        declared = self.declared_bits(tracks)
        seen = {name for _, track in tracks for name in track.seen} if self.distinct else ()
        key = (classes, declared, frozenset(seen))
        if key not in self._readers:
            self._readers[key] = self._make_reader(classes, declared, sorted(seen))
        return self._readers[key]

    def _make_reader(self, classes: int, declared: int, seen: list[str]) -> Reader | None:
        allowed = [
            bool(bits & classes) or (number is not None and bool(declared >> number & 1))
            for bits, number in self._names.meanings
        ]
        return self._names.reader(allowed, seen)

    def meaning(self, label: int) -> tuple[int, int | None]:
        """(classes of undeclared names, declared number) of what an open reader delivered."""
        return self._names.meanings[label]

    @cached_property
    def _names(self) -> OpenNames:
        return OpenNames(self.plans, self.trie)
