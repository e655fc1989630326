"""Atoms made ready for reading: what may come next in an array or object, given what came so far.

A *track* is one way in which the text so far can be read as one atom: how far it is, and what it has counted. Several
tracks may be alive at once; a text is accepted if one of them is. A track is only entered if it can still be completed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from ..char_algebra import difference, from_texts, intersect, is_disjoint
from ..char_dfa import CharDfa
from .distinct import Values, can_fill, spoilers, values_of
from .formula import Formula, Formulas
from .shape import ArrayAtom, ObjectAtom, Shape, Unsupported

MAX_COUNTED = 3
MAX_COUNT_STATES = 20_000
MAX_FREE_NAMES = 12  # beyond that they have an order too
MAX_ANY_ORDER = 16  # properties of an object whose keys may come in any order

Inhabited = Callable[[Formula], bool]


class Want(NamedTuple):
    """What a value is to meet: a formula; and, if `without` is set, to equal none of those values (canonical texts)."""

    formula: Formula
    without: frozenset[str] | None = None


class ArrayTrack(NamedTuple):
    """`items` read so far (up to where their number stops to matter), `counts` for each counted condition, and the
    canonical texts of the items so far if they must be distinct."""

    items: int
    counts: tuple[int, ...]
    used: frozenset[str]


class ObjectTrack(NamedTuple):
    """The next declared property is number `position`; `named` has a bit for each name so far of those that may come in
    any order; `size` properties so far (if it matters); `witnessed` has a bit per witness met; `seen` are the
    undeclared names so far (where names must be distinct to be counted)."""

    position: int
    named: int
    size: int
    witnessed: int
    seen: frozenset[str]


class ArrayPlan:
    """How to read one `ArrayAtom`."""

    def __init__(self, atom: ArrayAtom, formulas: Formulas, shape_of: Callable[[Formula], Shape]) -> None:
        if len(atom.counted) > MAX_COUNTED:
            raise Unsupported(f"more than {MAX_COUNTED} conditions that count items of one array")
        self.atom = atom
        self.formulas = formulas
        self.shape_of = shape_of
        self.unique = atom.unique and (atom.high is None or atom.high > 1)
        if self.unique and atom.counted and (atom.low > 1 or any(c.low > 1 for c in atom.counted)):
            raise Unsupported("uniqueItems together with contains and a least number of items")
        self.start = ArrayTrack(0, (0,) * len(atom.counted), frozenset())
        # From this many items on only `high` makes a difference.
        self.settled = max([atom.low, len(atom.prefix), *(c.start for c in atom.counted)])
        self._viable: dict[tuple[int, tuple[int, ...]], bool] = {}

    def formulas_used(self) -> Iterator[Formula]:
        """Every formula an item may be asked for."""
        for index in range(len(self.atom.prefix) + 1):
            for formula, _ in self._choices(max(index, *(c.start for c in self.atom.counted), 0), None):
                yield formula
            for formula, _ in self._choices(index, None):
                yield formula

    def _choices(self, index: int, counts: tuple[int, ...] | None) -> list[tuple[Formula, tuple[int, ...]]]:
        """(formula, what it adds to each count) for item `index`."""
        both, negate = self.formulas.all, self.formulas.negate
        choices: list[tuple[list[Formula], tuple[int, ...]]] = [([self.atom.item(index)], ())]
        for i, counted in enumerate(self.atom.counted):
            done = counted.high is None and counts is not None and counts[i] >= counted.low
            if index < counted.start or done:
                choices = [(parts, (*added, 0)) for parts, added in choices]
                continue
            no = [] if counted.high is None else [negate(counted.formula)]
            choices = [
                entry
                for parts, added in choices
                for entry in (([*parts, counted.formula], (*added, 1)), ([*parts, *no], (*added, 0)))
            ]
        return [(both(parts), added) for parts, added in choices]

    def next_items(self, track: ArrayTrack, inhabited: Inhabited) -> Iterator[tuple[ArrayTrack, Want]]:
        """The tracks an item may lead to, and what the item has to meet for each."""
        if self.atom.high is not None and track.items >= self.atom.high:
            return
        without: Values | None = None
        if self.unique:
            without = track.used | spoilers(self._slots(track.items + 1, track), track.used)
        for formula, added in self._choices(track.items, track.counts):
            if inhabited(formula) and not self._used_up(formula, without):
                after = self._after(track, added)
                if self.viable(after, inhabited):
                    yield after, Want(formula, without)

    def _slots(self, begin: int, track: ArrayTrack) -> list[Values | None]:
        """The values of the items that must still come, from number `begin` on; None for more than enough of them."""
        need = self.atom.low - begin
        if need <= 0:
            return []
        enough = need + len(track.used) + 1
        distinct = {i: values_of(self.shape_of(self.atom.item(i)), enough) for i in range(len(self.atom.prefix) + 1)}
        if all(values is None for values in distinct.values()):
            return []
        return [distinct[min(i, len(self.atom.prefix))] for i in range(begin, self.atom.low)]

    def _used_up(self, formula: Formula, without: Values | None) -> bool:
        if not without:
            return False
        values = values_of(self.shape_of(formula), len(without))
        return values is not None and values <= without

    def _after(self, track: ArrayTrack, added: tuple[int, ...]) -> ArrayTrack:
        items = track.items + 1
        if self.atom.high is None:
            items = min(items, self.settled)
        counts = tuple(
            min(have + more, c.low if c.high is None else c.high + 1)
            for have, more, c in zip(track.counts, added, self.atom.counted, strict=True)
        )
        return ArrayTrack(items, counts, track.used)

    def can_close(self, track: ArrayTrack) -> bool:
        met = all(
            c.low <= have and (c.high is None or have <= c.high)
            for have, c in zip(track.counts, self.atom.counted, strict=True)
        )
        return met and track.items >= self.atom.low

    def viable(self, track: ArrayTrack, inhabited: Inhabited) -> bool:
        """Whether the array can still be completed."""
        atom = self.atom
        if any(c.high is not None and have > c.high for have, c in zip(track.counts, atom.counted, strict=True)):
            return False
        if self.can_close(track):
            return True
        if not atom.counted:
            if atom.high is not None and atom.high < atom.low:
                return False
            if self.unique and not can_fill(self._slots(track.items, track), track.used):
                return False
            return all(inhabited(atom.item(i)) for i in range(track.items, min(atom.low, len(atom.prefix) + 1)))
        key = (track.items, track.counts)
        known = self._viable.get(key)
        if known is None:
            known = self._viable[key] = self._search(track, inhabited)
        return known

    def _search(self, track: ArrayTrack, inhabited: Inhabited) -> bool:
        """Breadth-first over what can be counted."""
        seen, todo = {track}, [track]
        for at in todo:
            if self.can_close(at):
                return True
            if len(seen) > MAX_COUNT_STATES:
                raise Unsupported("bounds on counted items that are too large")
            if self.atom.high is not None and at.items >= self.atom.high:
                continue
            for formula, added in self._choices(at.items, at.counts):
                after = self._after(at, added)
                over = any(
                    c.high is not None and have > c.high
                    for have, c in zip(after.counts, self.atom.counted, strict=True)
                )
                if after not in seen and not over and inhabited(formula):
                    seen.add(after)
                    todo.append(after)
        return False

    def inhabited(self, inhabited: Inhabited) -> bool:
        """Whether some array meets the atom, given which formulas are known to be inhabited."""
        self._viable.clear()
        return self.viable(self.start, inhabited)


@dataclass
class Undeclared:
    """A set of names, those in `declared` left out, and the formula of their values."""

    every: CharDfa
    declared: Collection[str]
    formula: Formula

    @cached_property
    def names(self) -> CharDfa:
        return difference(self.every, from_texts(self.declared)) if self.declared else self.every

    @property
    def count(self) -> int | None:
        """How many names there are; None if there is no end of them."""
        return None if not self.every.is_finite else self.names.count


class ObjectPlan:
    """How to read one `ObjectAtom` whose witnesses, if any, are undeclared properties.

    Declared properties come first, in order; then, in any order, names that are only required somewhere (or spoken of
    by a condition) and undeclared ones. With `any_order` all names may come in any order.
    """

    def __init__(self, atom: ObjectAtom, formulas: Formulas, any_order: bool = False) -> None:
        if len(atom.witnesses) > MAX_COUNTED:
            raise Unsupported(f"more than {MAX_COUNTED} conditions on the presence of undeclared properties")
        self.atom = atom
        self.formulas = formulas
        ordered = [name for name, p in atom.properties.items() if p.declared]
        free = [name for name, p in atom.properties.items() if not p.declared]
        if any_order:
            if len(atom.properties) > MAX_ANY_ORDER:
                raise Unsupported(f"key_order='any' with more than {MAX_ANY_ORDER} properties of one object")
            ordered, free = [], [*ordered, *free]
        elif len(free) > MAX_FREE_NAMES:
            ordered, free = [*ordered, *free], []
        self.names = [*ordered, *free]
        self.num_ordered = len(ordered)
        self._numbers = {name: i for i, name in enumerate(self.names)}
        self.properties = [atom.properties[name] for name in self.names]
        self.start = ObjectTrack(0, 0, 0, 0, frozenset())
        self._free_required = sum(1 << i for i, name in enumerate(free) if atom.properties[name].required)
        self.undeclared: list[Undeclared] = []
        for names, formula in atom.rest:
            classes = [names]
            for witness in atom.witnesses:  # a class has all of a witness's names, or none
                classes = [f(c, witness.names) for c in classes for f in (intersect, difference)]
            undeclared = [Undeclared(c, atom.properties, formula) for c in classes]
            self.undeclared += [u for u in undeclared if u.count != 0]
        self.counts = atom.high is not None or atom.low > sum(p.required for p in self.properties)
        # Values of repeated names are not told apart unless names must be distinct to be counted.
        self.distinct = bool(self.undeclared) and (bool(atom.witnesses) or (self.counts and atom.low > 0))
        self._all_witnessed = (1 << len(atom.witnesses)) - 1
        # Then any track can be completed, and what may come depends on the names so far alone.
        self.is_loose = not self.counts and not atom.witnesses
        # Then a track is no more than the next property.
        self.is_in_order = self.is_loose and not free

    def formulas_used(self) -> Iterator[Formula]:
        """Every formula a value may be asked for."""
        for declared in self.properties:
            yield declared.formula
        for which in range(len(self.undeclared)):
            for formula, _ in self.choices(which, 0):
                yield formula

    def choices(self, which: int, witnessed: int) -> list[tuple[Formula, int]]:
        """(formula, witnesses met) for the value of an undeclared name of the class `which`."""
        entry = self.undeclared[which]
        open_bits = [
            i
            for i, witness in enumerate(self.atom.witnesses)
            if not witnessed >> i & 1 and not is_disjoint(witness.names, entry.every)
        ]
        out = [(entry.formula, 0)]
        for size in range(1, len(open_bits) + 1):
            for chosen in combinations(open_bits, size):
                parts = [entry.formula, *(self.atom.witnesses[i].formula for i in chosen)]
                out.append((self.formulas.all(parts), sum(1 << i for i in chosen)))
        return out

    # What is still to come

    def prepare(self, inhabited: Inhabited) -> bool:
        """Work out what the formulas allow; returns whether the atom is inhabited. Called again as more is known."""
        self.possible = [inhabited(p.formula) for p in self.properties]
        if any(p.required and not ok for p, ok in zip(self.properties, self.possible, strict=True)):
            return False
        end = self.num_ordered
        self._required, self._optional, self.first_required = [0] * (end + 1), [0] * (end + 1), [end] * (end + 1)
        for i in range(end - 1, -1, -1):
            required = self.properties[i].required
            self._required[i] = self._required[i + 1] + required
            self._optional[i] = self._optional[i + 1] + (self.possible[i] and not required)
            self.first_required[i] = i if required else self.first_required[i + 1]
        self._possible_bits = sum(1 << i for i, ok in enumerate(self.possible) if ok)
        self._free_possible = self._possible_bits >> end
        usable = [
            [(formula, bits) for formula, bits in self.choices(which, 0) if inhabited(formula)]
            for which in range(len(self.undeclared))
        ]
        self._usable = [bool(options) for options in usable]
        self._capacity: int | None = 0
        for entry, ok in zip(self.undeclared, self._usable, strict=True):
            if ok:
                count = entry.count
                self._capacity = None if count is None or self._capacity is None else self._capacity + count
        if self._capacity is not None and any(self._usable):
            self.distinct = self.distinct or self.counts
        self._needed = self._witness_costs([bits for options in usable for _, bits in options])
        return self.viable(self.start)

    def _witness_costs(self, gains: list[int]) -> dict[int, int]:
        """The fewest undeclared properties that complete each set of witnesses; a set that cannot be is left out."""
        costs = {self._all_witnessed: 0}
        for _ in self.atom.witnesses:
            for before in range(self._all_witnessed):
                reached = [costs[before | gain] for gain in gains if gain & ~before and before | gain in costs]
                if reached:
                    costs[before] = 1 + min(reached)
        return costs

    def viable(self, track: ObjectTrack) -> bool:
        """Whether the object can still be completed."""
        atom, at = self.atom, track.position
        needed = self._needed.get(track.witnessed)
        if needed is None:
            return False
        if not self.counts:
            return needed == 0 or self._capacity is None or self._capacity - len(track.seen) >= needed
        left = None if self._capacity is None else self._capacity - len(track.seen)
        if left is not None and needed > left:
            return False
        free_required = self._free_required & ~track.named
        obligatory = track.size + self._required[at] + free_required.bit_count() + needed
        if atom.high is not None and obligatory > atom.high:
            return False
        optional = self._optional[at] + (self._free_possible & ~self._free_required & ~track.named).bit_count()
        missing = atom.low - obligatory - optional
        return missing <= 0 or left is None or missing <= left - needed

    def can_close(self, track: ObjectTrack) -> bool:
        enough = not self.counts or track.size >= self.atom.low
        named = not self._required[track.position] and not self._free_required & ~track.named
        return enough and named and track.witnessed == self._all_witnessed

    # Steps

    def next_bits(self, track: ObjectTrack) -> int:
        """A bit for the number of each declared property that may come next."""
        if not self.is_loose:
            return sum(1 << number for number, _ in self.declared_next(track))
        at, end = track.position, self.num_ordered
        bits = (1 << min(self.first_required[at] + 1, end)) - (1 << at)
        if not self._required[at]:
            bits |= (self._free_possible & ~track.named) << end
        return bits & self._possible_bits

    def is_usable(self, which: int) -> bool:
        """Whether an undeclared name of the class `which` can have a value."""
        return self._usable[which]

    def may_add(self, track: ObjectTrack, which: int) -> bool:
        """Whether an undeclared name of the class `which` may come next."""
        if self.is_loose and not self.distinct:
            return not self._required[track.position] and self._usable[which]
        return bool(self.undeclared_next(track, which, None))

    def declared_next(self, track: ObjectTrack) -> Iterator[tuple[int, ObjectTrack]]:
        """(property number, track once it is read) for the declared properties that may come next."""
        at, end = track.position, self.num_ordered
        numbers = range(at, min(self.first_required[at] + 1, end))
        for number in (*numbers, *(range(end, len(self.names)) if not self._required[at] else ())):
            after = self._after_number(track, number)
            if after is not None:
                yield number, after

    def after_declared(self, track: ObjectTrack, name: str) -> ObjectTrack | None:
        """The track once the declared property `name` is read; None if it may not come next."""
        number = self._numbers.get(name)
        if number is None:
            return None
        at, end = track.position, self.num_ordered
        in_order = at <= number <= self.first_required[at] if number < end else not self._required[at]
        return self._after_number(track, number) if in_order else None

    def _after_number(self, track: ObjectTrack, number: int) -> ObjectTrack | None:
        if not self.possible[number]:
            return None
        free, size = number - self.num_ordered, self._count(track)
        if free < 0:
            after = ObjectTrack(number + 1, track.named, size, track.witnessed, track.seen)
        elif track.named >> free & 1:
            return None
        else:
            named = track.named | 1 << free
            after = ObjectTrack(self.num_ordered, named, size, track.witnessed, track.seen)
        return after if self.viable(after) else None

    def undeclared_next(self, track: ObjectTrack, which: int, name: str | None) -> list[tuple[ObjectTrack, Formula]]:
        """(track, formula of the value) for an undeclared name of the class `which`; None: for any name."""
        end = self.num_ordered
        if self._required[track.position] or not self._usable[which]:
            return []
        seen = track.seen | {name} if self.distinct and name is not None else track.seen
        if self.distinct and name is None and self._capacity is not None:
            seen = track.seen | {""}  # stands for one more name
        out = []
        for formula, bits in self.choices(which, track.witnessed):
            after = ObjectTrack(end, track.named, self._count(track), track.witnessed | bits, seen)
            if self.viable(after):
                out.append((after, formula))
        return out

    def _count(self, track: ObjectTrack) -> int:
        if not self.counts:
            return 0
        return track.size + 1 if self.atom.high is not None else min(track.size + 1, self.atom.low)


def split_witnesses(atom: ObjectAtom, formulas: Formulas) -> list[ObjectAtom]:
    """The same objects as a union of atoms whose witnesses are undeclared properties only."""
    done: list[ObjectAtom] = []
    todo = [(atom, 0)]
    while todo:
        current, first = todo.pop()
        if first == len(current.witnesses):
            done.append(current)
            continue
        witness = current.witnesses[first]
        todo.append((current, first + 1))
        for name, declared in current.properties.items():
            if witness.names.matches(name):
                formula = formulas.all((declared.formula, witness.formula))
                if formula is formulas.false:
                    continue
                properties = {**current.properties, name: replace(declared, formula=formula, required=True)}
                rest_witnesses = (*current.witnesses[:first], *current.witnesses[first + 1 :])
                todo.append((replace(current, properties=properties, witnesses=rest_witnesses), first))
    return done
