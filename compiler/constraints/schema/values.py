"""Several formulas read at once: what a value may begin with, and which of the formulas it has met when it ends.

A *demand* is a tuple of wants; a result is an integer with one bit per want of the demand.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from ..char_algebra import difference, from_texts, product, tag, union
from ..char_dfa import CharDfa, tidy
from ..minimise import distances
from ..spelling import ByteDfa, Spelling
from .numbers import spelled
from .plans import ArrayPlan, ArrayTrack, ObjectPlan, ObjectTrack, Want
from .shape import Shape
from .universe import Universe

Demand = tuple[Want, ...]
ArrayTracks = tuple[tuple[int, ArrayTrack], ...]  # (member, track), sorted
ObjectTracks = tuple[tuple[int, ObjectTrack], ...]
PendingArray = tuple[tuple[int, ArrayTrack, Want], ...]
PendingObject = tuple[tuple[int, ObjectTrack, Want], ...]
Track = TypeVar("Track", ArrayTrack, ObjectTrack)

_MAX_SHARED = 1024
_byte_dfas: OrderedDict[tuple[bytes, Spelling], ByteDfa] = OrderedDict()


def shared_byte_dfa(chars: CharDfa, spelling: Spelling) -> ByteDfa:
    """One `ByteDfa` per language and spelling in this process, so that what masks cost is shared by all schemas."""
    key = (chars.key, spelling)
    found = _byte_dfas.get(key)
    if found is None:
        found = _byte_dfas[key] = ByteDfa(chars, spelling)
        if len(_byte_dfas) > _MAX_SHARED:
            _byte_dfas.popitem(last=False)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A text read by one automaton. `outcomes[label]` is what a text with that label delivers; 0: it may not end."""

    dfa: ByteDfa
    outcomes: tuple[int, ...]

    def outcome(self, state: int) -> int:
        """What a text that ends in `state` delivers; 0 if it may not end there."""
        s, k = divmod(state, self.dfa.width)
        return 0 if k else self.outcomes[self.dfa.chars.labels[s]]


@lru_cache(maxsize=16)
def _literals(null: bool, bools: int) -> CharDfa:
    return from_texts([t for t, there in (("null", null), ("false", bools & 1), ("true", bools & 2)) if there])


class ValueProgram:
    """How to begin a value that is to meet one of the formulas of a demand."""

    def __init__(self, demand: Demand, universe: Universe) -> None:
        self.demand = demand
        shapes = [_scalars_without(universe.shapes[w.formula], w.without) for w in demand]
        self.strings = _value_leaf([s.strings for s in shapes], "json")
        self.plain = _value_leaf([union(_literals(s.null, s.bools), spelled(s.numbers)) for s in shapes], "utf8")
        arrays = [(1 << i, plan) for i, w in enumerate(demand) for plan in universe.arrays[w.formula]]
        objects = [(1 << i, plan) for i, w in enumerate(demand) for plan in universe.objects[w.formula]]
        self.arrays = ArrayProgram(arrays, universe) if arrays else None
        self.objects = ObjectProgram(objects) if objects else None


def _value_leaf(languages: list[CharDfa], spelling: Spelling) -> Leaf | None:
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


def surviving_arrays(pending: PendingArray, result: int, value: str | None) -> ArrayTracks:
    """The tracks whose want the item met. `value`: its canonical text, where it was recorded."""
    met = _met(pending, result)
    return _in_order(
        (m, t if want.without is None else t._replace(used=t.used | {str(value)}))
        for m, t, want in pending
        if want in met
    )


def surviving_objects(pending: PendingObject, result: int) -> ObjectTracks:
    """The tracks whose want the property's value met."""
    met = _met(pending, result)
    return _in_order((m, track) for m, track, want in pending if want in met)


def _met(pending: PendingArray | PendingObject, result: int) -> set[Want]:
    return {want for i, want in enumerate(demand_of(pending)) if result >> i & 1}


def _in_order(tracks: Iterable[tuple[int, Track]]) -> tuple[tuple[int, Track], ...]:
    def order(entry: tuple[int, Track]) -> tuple[object, ...]:
        return (entry[0], *(tuple(sorted(part)) if isinstance(part, frozenset) else part for part in entry[1]))

    return tuple(sorted(set(tracks), key=order))


def demand_of(pending: PendingArray | PendingObject) -> Demand:
    """The wants of what is pending, each once, in order."""
    return tuple(dict.fromkeys(want for _, _, want in pending))


class ArrayProgram:
    """The arrays of a demand, read together."""

    def __init__(self, members: list[tuple[int, ArrayPlan]], universe: Universe) -> None:
        self.bits = [bit for bit, _ in members]
        self.plans = [plan for _, plan in members]
        self.universe = universe
        self.start: ArrayTracks = tuple((m, plan.start) for m, plan in enumerate(self.plans))

    def close(self, tracks: ArrayTracks) -> int:
        """The bits met if the array ends here."""
        bits = 0
        for member, track in tracks:
            if self.plans[member].can_close(track):
                bits |= self.bits[member]
        return bits

    def next_item(self, tracks: ArrayTracks) -> PendingArray:
        """What one more item may lead to."""
        inhabited = self.universe.inhabited
        return tuple(
            (member, after, want)
            for member, track in tracks
            for after, want in self.plans[member].next_items(track, inhabited)
        )


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


@dataclass(frozen=True, slots=True, eq=False)
class _OpenNames:
    """All names at once. `meanings[label]`: the classes (bits) a name is in, and its number if it is declared."""

    chars: CharDfa
    meanings: list[tuple[int, int | None]]
    classes: list[tuple[int, int]]  # (member, class of undeclared names)
    everywhere: list[bool]  # labels that every state leads to


class ObjectProgram:
    """The objects of a demand, read together."""

    def __init__(self, members: list[tuple[int, ObjectPlan]]) -> None:
        self.bits = [bit for bit, _ in members]
        self.plans = [plan for _, plan in members]
        self.start: ObjectTracks = tuple((m, plan.start) for m, plan in enumerate(self.plans))
        self.distinct = any(plan.distinct for plan in self.plans)
        self.trie = NameTrie(list(dict.fromkeys(name for plan in self.plans for name in plan.names)))
        self._number = {name: i for i, name in enumerate(self.trie.names)}
        self._open: _OpenNames | None = None

    def close(self, tracks: ObjectTracks) -> int:
        """The bits met if the object ends here."""
        bits = 0
        for member, track in tracks:
            if self.plans[member].can_close(track):
                bits |= self.bits[member]
        return bits

    def after_key(self, tracks: ObjectTracks, name: str | None, number: int | None, classes: int) -> PendingObject:
        """Where a key leads: the declared name `number`, which is also undeclared in the members of `classes`."""
        pending: list[tuple[int, ObjectTrack, Want]] = []
        if number is not None:
            declared = self.trie.names[number]
            for member, track in tracks:
                plan = self.plans[member]
                for at, after in plan.declared_next(track):
                    if plan.names[at] == declared:
                        pending.append((member, after, Want(plan.properties[at].formula)))
        if classes:
            for i, (member, which) in enumerate(self._open_names().classes):
                for m, track in tracks:
                    if m == member and classes >> i & 1:
                        options = self.plans[member].undeclared_next(track, which, name)
                        pending += [(member, after, Want(formula)) for after, formula in options]
        return tuple(pending)

    def declared_bits(self, tracks: ObjectTracks) -> int:
        """A bit for each declared name that may come next."""
        bits = 0
        for member, track in tracks:
            plan = self.plans[member]
            for at, _ in plan.declared_next(track):
                bits |= 1 << self._number[plan.names[at]]
        return bits & self.trie.below[0]

    def open_leaf(self, tracks: ObjectTracks) -> Leaf | None:
        """How the next key is read where undeclared names may come; None where they may not. Outcomes: label + 1."""
        plans = self.plans
        if not any(
            plans[m].undeclared_next(track, which, None)
            for m, track in tracks
            for which in range(len(plans[m].undeclared))
        ):
            return None
        names = self._open_names()
        allowed = [bool(self.after_key(tracks, None, number, classes)) for classes, number in names.meanings]
        allowed[0] = False
        outcomes = tuple(i + 1 if ok else 0 for i, ok in enumerate(allowed))
        chars = names.chars
        seen = sorted({name for _, track in tracks for name in track.seen})
        if seen or not any(ok and there for ok, there in zip(allowed, names.everywhere, strict=True)):
            chars = _restricted(chars, tuple(allowed), tuple(seen))
        return None if chars.is_empty else Leaf(shared_byte_dfa(chars, "json"), outcomes)

    def meaning(self, outcome: int) -> tuple[int, int | None]:
        """(classes, declared number) of what an open leaf delivered."""
        return self._open_names().meanings[outcome - 1]

    def _open_names(self) -> _OpenNames:
        if self._open is None:
            classes = [(m, w) for m, plan in enumerate(self.plans) for w in range(len(plan.undeclared))]
            chars, sets = tag([self.plans[m].undeclared[w].names for m, w in classes])
            declared = self.trie.names
            meanings: dict[tuple[int, int | None], int] = {(0, None): 0}

            def label(x: int, y: int) -> int:
                return meanings.setdefault((sets[x], y - 1 if y else None), len(meanings))

            chars = product(chars, from_texts(declared, range(1, len(declared) + 1)), label)
            everywhere = [
                i > 0 and bool((distances(chars.delta, chars.labels == i)[0][1:] >= 0).all())
                if declared_number is None
                else False
                for i, (_, declared_number) in enumerate(meanings)
            ]
            self._open = _OpenNames(chars, list(meanings), classes, everywhere)
        return self._open


@lru_cache(maxsize=512)
def _restricted(chars: CharDfa, allowed: tuple[bool, ...], without: tuple[str, ...]) -> CharDfa:
    """The texts with an allowed label that are not among `without`, labels kept."""
    labels = np.where(np.array(allowed)[chars.labels], chars.labels, 0).astype(np.int32)
    kept = tidy(chars.bounds, chars.classes, chars.delta, labels, chars.start)
    return product(kept, from_texts(without), lambda x, y: 0 if y else x, need_a=True) if without else kept
