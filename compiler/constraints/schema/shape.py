"""What a formula allows, type by type, with all negation carried out: a union of atoms without alternatives inside.

Scalars are languages (`CharDfa`), so their boolean operations are exact. An array or object atom is a conjunction whose
parts are formulas on items and properties; a shape's arrays and objects are the unions of their atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..char_algebra import ALL, NONE, difference, from_texts, intersect, union
from ..char_dfa import CharDfa
from .formula import Formula, Formulas
from .numbers import ALL_NUMBERS, NO_NUMBERS

MAX_ATOMS = 1000

T = TypeVar("T")


class Unsupported(Exception):
    """A set of values that has no shape; the message says why."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Between `low` and `high` (None: any number) of the items from index `start` on meet `formula`."""

    formula: Formula
    start: int
    low: int
    high: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ArrayAtom:
    """Item i meets prefix[i], or `rest` beyond the prefix; there are `low` to `high` items; `counted` holds."""

    prefix: tuple[Formula, ...]
    rest: Formula
    low: int = 0
    high: int | None = None
    counted: tuple[Counted, ...] = ()
    unique: bool = False

    def item(self, index: int) -> Formula:
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Property:
    """`declared`: it has a place in the order of properties; not so where it is only required, or excluded."""

    formula: Formula
    required: bool = False
    declared: bool = True


@dataclass(frozen=True, slots=True)
class Witness:
    """Some property with a name in `names` has a value that meets `formula`."""

    names: CharDfa
    formula: Formula


@dataclass(frozen=True, slots=True, eq=False)
class ObjectAtom:
    """Properties by name, in the order in which they are written; other names by `rest`.

    `rest` are disjoint sets of names, each with the formula of its values; a name in none of them (and not declared)
    may not occur. There are `low` to `high` properties, and each witness exists.
    """

    properties: dict[str, Property]
    rest: tuple[tuple[CharDfa, Formula], ...]
    low: int = 0
    high: int | None = None
    witnesses: tuple[Witness, ...] = ()

    def formula_of(self, name: str, false: Formula) -> Formula:
        declared = self.properties.get(name)
        if declared is not None:
            return declared.formula
        return next((formula for names, formula in self.rest if names is ALL or names.matches(name)), false)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """`bools` has bit 0 for false and bit 1 for true."""

    null: bool = False
    bools: int = 0
    numbers: CharDfa = NO_NUMBERS
    strings: CharDfa = NONE
    arrays: tuple[ArrayAtom, ...] = ()
    objects: tuple[ObjectAtom, ...] = ()

    @property
    def is_never(self) -> bool:
        """Whether nothing at all is left (atoms count, even those that turn out empty)."""
        scalars = self.null or self.bools or not self.numbers.is_empty or not self.strings.is_empty
        return not (scalars or self.arrays or self.objects)


@dataclass(eq=False)
class ShapeAlgebra:
    """Union, intersection and complement of shapes."""

    formulas: Formulas
    never: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        true = self.formulas.true
        self.any_array = ArrayAtom((), true)
        self.any_object = ObjectAtom({}, ((ALL, true),))
        self.anything = Shape(True, 3, ALL_NUMBERS, ALL, (self.any_array,), (self.any_object,))

    def provably_empty(self, formula: Formula) -> bool:
        """Whether `formula` is known to allow nothing. Overridden by what can look into formulas."""
        return formula is self.formulas.false

    def union(self, a: Shape, b: Shape) -> Shape:
        if a is self.anything or b is self.never:
            return a
        if b is self.anything or a is self.never:
            return b
        return Shape(
            a.null or b.null,
            a.bools | b.bools,
            union(a.numbers, b.numbers),
            union(a.strings, b.strings),
            _limited(dict.fromkeys((*a.arrays, *b.arrays))),
            _limited(dict.fromkeys((*a.objects, *b.objects))),
        )

    def intersect(self, a: Shape, b: Shape) -> Shape:
        if a is self.anything or b is self.never:
            return b
        if b is self.anything or a is self.never:
            return a
        return Shape(
            a.null and b.null,
            a.bools & b.bools,
            intersect(a.numbers, b.numbers),
            intersect(a.strings, b.strings),
            self.meet_arrays(a.arrays, b.arrays),
            self.meet_objects(a.objects, b.objects),
        )

    def complement(self, a: Shape) -> Shape:
        arrays: tuple[ArrayAtom, ...] = (self.any_array,)
        for array in a.arrays:
            arrays = self.meet_arrays(arrays, self.array_complement(array))
        objects: tuple[ObjectAtom, ...] = (self.any_object,)
        for obj in a.objects:
            objects = self.meet_objects(objects, self.object_complement(obj))
        return Shape(
            not a.null, 3 ^ a.bools, difference(ALL_NUMBERS, a.numbers), difference(ALL, a.strings), arrays, objects
        )

    # Arrays

    def meet_arrays(self, left: Sequence[ArrayAtom], right: Sequence[ArrayAtom]) -> tuple[ArrayAtom, ...]:
        return _limited(atom for a in left for b in right if (atom := self._meet_array(a, b)) is not None)

    def _meet_array(self, a: ArrayAtom, b: ArrayAtom) -> ArrayAtom | None:
        if a is self.any_array:
            return b
        if b is self.any_array:
            return a
        both = self.formulas.all
        length = max(len(a.prefix), len(b.prefix))
        met = ArrayAtom(
            tuple(both((a.item(i), b.item(i))) for i in range(length)),
            both((a.rest, b.rest)),
            max(a.low, b.low),
            _least(a.high, b.high),
            tuple(dict.fromkeys((*a.counted, *b.counted))),
            a.unique or b.unique,
        )
        return self.tidy_array(met)

    def tidy_array(self, atom: ArrayAtom) -> ArrayAtom | None:
        """The same arrays with a bound where an item is impossible; None if there are none."""
        high = atom.high
        for i, formula in enumerate((*atom.prefix, atom.rest)):
            looked_at = (high is None or i < high) and (i <= atom.low or formula is self.formulas.false)
            if looked_at and self.provably_empty(formula):
                high = i
                break
        if high is not None and high < atom.low:
            return None
        return atom if high == atom.high else replace(atom, high=high, prefix=atom.prefix[:high])

    def array_complement(self, atom: ArrayAtom) -> tuple[ArrayAtom, ...]:
        if atom.unique:
            raise Unsupported("the opposite of uniqueItems")
        negate, true = self.formulas.negate, self.formulas.true
        out: list[ArrayAtom] = []
        if atom.low:
            out.append(ArrayAtom((), true, 0, atom.low - 1))
        if atom.high is not None:
            out.append(ArrayAtom((), true, atom.high + 1))
        for i, formula in enumerate(atom.prefix):
            if formula is not true:
                out.append(ArrayAtom((*(true,) * i, negate(formula)), true, i + 1))
        if atom.rest is not true:
            out.append(self._has(Counted(negate(atom.rest), len(atom.prefix), 1, None)))
        for counted in atom.counted:
            if counted.low:
                out.append(self._has(replace(counted, low=0, high=counted.low - 1)))
            if counted.high is not None:
                out.append(self._has(replace(counted, low=counted.high + 1, high=None)))
        return tuple(out)

    def _has(self, counted: Counted) -> ArrayAtom:
        """Arrays with this many items of a kind, in the simplest form."""
        true = self.formulas.true
        if counted.high == 0:
            return ArrayAtom((true,) * counted.start, self.formulas.negate(counted.formula))
        if counted.formula is true and counted.high is None:
            return ArrayAtom((), true, counted.start + counted.low)
        return ArrayAtom((), true, counted.start + counted.low, None, (counted,))

    # Objects

    def meet_objects(self, left: Sequence[ObjectAtom], right: Sequence[ObjectAtom]) -> tuple[ObjectAtom, ...]:
        return _limited(atom for a in left for b in right if (atom := self._meet_object(a, b)) is not None)

    def _meet_object(self, a: ObjectAtom, b: ObjectAtom) -> ObjectAtom | None:
        if a is self.any_object:
            return b
        if b is self.any_object:
            return a
        false = self.formulas.false
        properties: dict[str, Property] = {}
        names = dict.fromkeys(name for o in (a, b) for name, p in o.properties.items() if p.declared)
        for name in names | dict.fromkeys((*a.properties, *b.properties)):
            formula = self.formulas.all((a.formula_of(name, false), b.formula_of(name, false)))
            required = any(o.properties[name].required for o in (a, b) if name in o.properties)
            if required and self.provably_empty(formula):
                return None
            properties[name] = Property(formula, required, name in names)
        rest = []
        for names_a, formula_a in a.rest:
            for names_b, formula_b in b.rest:
                common, formula = intersect(names_a, names_b), self.formulas.all((formula_a, formula_b))
                if not common.is_empty and formula is not false:
                    rest.append((common, formula))
        met = ObjectAtom(
            properties,
            tuple(rest),
            max(a.low, b.low),
            _least(a.high, b.high),
            tuple(dict.fromkeys((*a.witnesses, *b.witnesses))),
        )
        return self.tidy_object(met)

    def exclude_each_other(self, a: ObjectAtom, b: ObjectAtom) -> bool:
        """Whether some property is required by one and cannot meet both."""
        return any(
            self.provably_empty(self.formulas.all((x.formula, y.formula)))
            for name, x in a.properties.items()
            if (y := b.properties.get(name)) is not None and (x.required or y.required)
        )

    def tidy_object(self, atom: ObjectAtom) -> ObjectAtom | None:
        """The atom itself; None if it is plainly empty."""
        required = sum(p.required for p in atom.properties.values())
        if atom.high is not None and (required > atom.high or atom.low > atom.high):
            return None
        if any(p.required and p.formula is self.formulas.false for p in atom.properties.values()):
            return None
        return atom

    def object_complement(self, atom: ObjectAtom) -> tuple[ObjectAtom, ...]:
        negate, true, false = self.formulas.negate, self.formulas.true, self.formulas.false
        rest = ((ALL, true),)
        out: list[ObjectAtom] = []
        for name, declared in atom.properties.items():
            if declared.formula is not true:
                out.append(ObjectAtom({name: Property(negate(declared.formula), True, False)}, rest))
            if declared.required:
                out.append(ObjectAtom({name: Property(false, False, False)}, rest))
        declared_names = from_texts(atom.properties)
        covered = NONE
        for names, formula in atom.rest:
            covered = union(covered, names)
            others = difference(names, declared_names)
            if formula is not true and not others.is_empty:
                out.append(ObjectAtom({}, rest, 1, None, (Witness(others, negate(formula)),)))
        uncovered = difference(difference(ALL, covered), declared_names)
        if not uncovered.is_empty:
            out.append(ObjectAtom({}, rest, 1, None, (Witness(uncovered, true),)))
        if atom.low:
            out.append(ObjectAtom({}, rest, 0, atom.low - 1))
        if atom.high is not None:
            out.append(ObjectAtom({}, rest, atom.high + 1))
        for witness in atom.witnesses:
            others = difference(ALL, witness.names)
            classes = ((witness.names, negate(witness.formula)), *(() if others.is_empty else ((others, true),)))
            out.append(ObjectAtom({}, classes))
        return tuple(out)


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _limited(atoms: Iterable[T]) -> tuple[T, ...]:
    out: list[T] = []
    for atom in atoms:
        out.append(atom)
        if len(out) > MAX_ATOMS:
            raise Unsupported(f"more than {MAX_ATOMS} combinations of alternatives")
    return tuple(out)
