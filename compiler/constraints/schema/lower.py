"""From schemas to shapes: the context that keyword groups share, and the dispatch over a schema's keywords."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..char_algebra import from_texts, intersect
from ..nfa import TooLarge
from . import arrays, logic, objects, scalars
from .document import Document, Node, schema_error, shown
from .formula import Formula, Formulas
from .numbers import numbers_of
from .shape import MAX_ATOMS, ArrayAtom, ObjectAtom, Property, Shape, ShapeAlgebra, Unsupported

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MAX_NESTING = 150  # schemas applied to one value through references and combinators
MAX_FORMULAS = 200_000

# Keywords that would change what is valid and are not supported.
REFUSED = ("$recursiveRef",)


@dataclass(frozen=True, slots=True)
class SchemaOptions:
    """How schemas are read. `assert_formats`: `format` is checked, not only a note. `any_order`: keys come in any."""

    assert_formats: bool = True
    any_order: bool = False


class _Circular(Exception):
    """A look ahead has come to a schema whose shape is just being worked out."""


class Lowering(ShapeAlgebra):
    """Shapes of formulas, each computed once. Raises ConstraintError with the keyword's pointer."""

    def __init__(self, document: Document, options: SchemaOptions) -> None:
        super().__init__(Formulas())
        self.document = document
        self.options = options
        self._shapes: dict[Formula, Shape] = {self.formulas.true: self.anything, self.formulas.false: self.never}
        self._running: dict[Formula, None] = {}
        self._num_looks = 0  # looks ahead, one within another: what they come round to is no error
        self._constants: dict[str, Formula] = {}
        self._empty: set[Formula] = set()

    def child(self, node: Node, *steps: str | int) -> Formula:
        """The formula of a subschema of `node`."""
        return self.formulas.node(self.document.nodes[node.at(*steps)])

    def shape(self, formula: Formula) -> Shape:
        found = self._shapes.get(formula)
        if found is not None:
            return found
        if formula in self._running:
            if self._num_looks:
                raise _Circular
            raise schema_error("the schema refers to itself without an array or object in between", formula.pointer)
        if len(self._running) > MAX_NESTING:
            raise schema_error(f"more than {MAX_NESTING} schemas apply to one value", formula.pointer)
        if self.formulas.count > MAX_FORMULAS:
            raise schema_error("too many combinations of subschemas", formula.pointer)
        self._running[formula] = None
        try:
            shape = self._compute(formula)
        except (Unsupported, TooLarge) as error:
            raise schema_error(f"not supported: {error}", formula.pointer) from None
        finally:
            del self._running[formula]
        self._shapes[formula] = shape
        return shape

    def _compute(self, formula: Formula) -> Shape:
        if formula.kind == "node":
            assert formula.node is not None
            return self._node_shape(formula.node)
        if formula.kind == "shape":
            assert formula.shape is not None
            return formula.shape
        if formula.kind == "not":
            return self.complement(self.shape(formula.parts[0]))
        shapes = [self.shape(part) for part in formula.parts]
        result = shapes[0]
        for shape in shapes[1:]:
            result = self.intersect(result, shape) if formula.kind == "and" else self.union(result, shape)
        return result

    def provably_empty(self, formula: Formula, depth: int = 4) -> bool:
        """Whether nothing meets `formula`, as far as can be told without going round in circles."""
        if formula is self.formulas.false or formula in self._empty:
            return True
        if formula is self.formulas.true or formula in self._running or depth == 0:
            return False
        known = formula in self._shapes
        if not known and any(part in self._running for part in _leaves(formula)):
            return False
        self._num_looks += 1
        try:
            shape = self.shape(formula)
        except _Circular:
            return False
        finally:
            self._num_looks -= 1
        if shape.null or shape.bools or not shape.numbers.is_empty or not shape.strings.is_empty:
            return False
        if not all(self._empty_array(array, depth - 1) for array in shape.arrays):
            return False
        if not all(self._empty_object(obj, depth - 1) for obj in shape.objects):
            return False
        self._empty.add(formula)
        return True

    def disjoint(self, a: Formula, b: Formula, within: Shape) -> bool:
        """Whether it is known that no value of the shape `within` meets both."""
        x, y = self.shape(a), self.shape(b)
        if (x.null and y.null and within.null) or x.bools & y.bools & within.bools:
            return False
        for p, q, r in ((x.numbers, y.numbers, within.numbers), (x.strings, y.strings, within.strings)):
            if not (p.is_empty or q.is_empty or r.is_empty or intersect(intersect(p, q), r).is_empty):
                return False
        if within.objects and not all(self.exclude_each_other(p, q) for p in x.objects for q in y.objects):
            met = self.meet_objects(self.meet_objects(x.objects, y.objects), within.objects)
            if not all(self._empty_object(o, 3) for o in met):
                return False
        if within.arrays:
            both = self.meet_arrays(self.meet_arrays(x.arrays, y.arrays), within.arrays)
            return all(self._empty_array(array, 3) for array in both)
        return True

    def _empty_array(self, array: ArrayAtom, depth: int) -> bool:
        return any(self.provably_empty(array.item(i), depth) for i in range(min(array.low, 16)))

    def _empty_object(self, obj: ObjectAtom, depth: int) -> bool:
        return any(p.required and self.provably_empty(p.formula, depth) for p in obj.properties.values())

    # One schema

    def _node_shape(self, node: Node) -> Shape:
        value = node.value
        if isinstance(value, bool):
            return self.anything if value else self.never
        if self.document.draft <= 7 and "$ref" in value:
            return self.shape(self.formulas.node(logic.target(self, node, "$ref")))
        for keyword in REFUSED:
            if keyword in value:
                raise schema_error("this keyword is not supported", node.at(keyword))
        shape = self._assertions(node)
        for keyword, formula in logic.conditions(self, node, shape):
            try:
                shape = self.intersect(shape, self.shape(formula))
            except (Unsupported, TooLarge) as error:
                raise schema_error(f"not supported: {error}", node.at(keyword)) from None
        return shape

    def _assertions(self, node: Node) -> Shape:
        """What the keywords that speak of the value itself allow."""
        types = self._types(node)
        shape = Shape(
            null="null" in types,
            bools=3 if "boolean" in types else 0,
            numbers=scalars.numbers(node, types, self.document.draft),
            strings=scalars.strings(self, node) if "string" in types else self.never.strings,
            arrays=arrays.atoms(self, node) if "array" in types else (),
            objects=objects.atoms(self, node) if "object" in types else (),
        )
        if "const" in node.value:
            shape = self.intersect(shape, self.constants([node.value["const"]], node.at("const")))
        if "enum" in node.value:
            values = node.value["enum"]
            if not isinstance(values, list):
                raise schema_error(f"must be a list, not {shown(values)}", node.at("enum"))
            shape = self.intersect(shape, self.constants(values, node.at("enum")))
        return shape

    def _types(self, node: Node) -> frozenset[str]:
        if "type" not in node.value:
            return frozenset(TYPES)
        given = node.value["type"]
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise schema_error(f"must be a name of a type or a list of them, not {shown(given)}", node.at("type"))
        for name in names:
            if name not in TYPES:
                raise schema_error(f"unknown type {name!r}; one of {', '.join(TYPES)}", node.at("type"))
        return frozenset(names)

    # Constants

    def constants(self, values: list[Any], pointer: str) -> Shape:
        """The finite set of these JSON values."""
        if sum(isinstance(v, (list, dict)) for v in values) > MAX_ATOMS:
            raise schema_error(f"more than {MAX_ATOMS} arrays and objects in it are not supported", pointer)
        texts = [v for v in values if isinstance(v, str)]
        numbers = [v for v in values if isinstance(v, (int, Decimal)) and not isinstance(v, bool)]
        try:
            return Shape(
                null=any(v is None for v in values),
                bools=(1 if any(v is False for v in values) else 0) | (2 if any(v is True for v in values) else 0),
                numbers=numbers_of(numbers),
                strings=from_texts(texts),
                arrays=tuple(self._constant_array(v, pointer) for v in values if isinstance(v, list)),
                objects=tuple(self._constant_object(v, pointer) for v in values if isinstance(v, dict)),
            )
        except TooLarge as error:
            raise schema_error(str(error), pointer) from None

    def constant(self, value: Any, pointer: str) -> Formula:
        key = repr(value)
        if key not in self._constants:
            self._constants[key] = self.formulas.shape(self.constants([value], pointer), pointer)
        return self._constants[key]

    def _constant_array(self, value: list[Any], pointer: str) -> ArrayAtom:
        prefix = tuple(self.constant(v, pointer) for v in value)
        return ArrayAtom(prefix, self.formulas.false, len(value), len(value))

    def _constant_object(self, value: dict[str, Any], pointer: str) -> ObjectAtom:
        return ObjectAtom({k: Property(self.constant(v, pointer), True) for k, v in value.items()}, ())


def _leaves(formula: Formula) -> list[Formula]:
    out, todo = [], [formula]
    while todo:
        at = todo.pop()
        todo.extend(at.parts)
        if not at.parts:
            out.append(at)
    return out


__all__ = ["Lowering", "SchemaOptions"]
