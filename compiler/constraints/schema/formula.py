"""Conditions on a JSON value as formulas over schemas: equal formulas are one object, so that recursion closes.

A formula names a set of values; `shape.Shapes` says which. Formulas are made by `Formulas` only and compared by
identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from .document import Node

if TYPE_CHECKING:
    from .shape import Shape

Kind = Literal["true", "false", "node", "shape", "not", "and", "or"]


class Formula:
    """`parts` are the operands; `node` or `shape` is set for the leaves. `pointer` is where it came from first."""

    __slots__ = ("kind", "node", "number", "parts", "pointer", "shape")

    def __init__(
        self,
        kind: Kind,
        number: int,
        parts: tuple[Formula, ...] = (),
        node: Node | None = None,
        shape: Shape | None = None,
        pointer: str = "",
    ) -> None:
        self.kind, self.number, self.parts = kind, number, parts
        self.node, self.shape, self.pointer = node, shape, pointer

    def __repr__(self) -> str:
        if self.kind == "node":
            return f"<{self.pointer or '/'}>"
        if self.kind == "shape":
            return f"<shape {self.number}>"
        return self.kind + (f"({', '.join(map(repr, self.parts))})" if self.parts else "")


class Formulas:
    """Makes formulas, with the simplifications that keep their number finite."""

    def __init__(self) -> None:
        self.count = 0
        self.true = self._new("true")
        self.false = self._new("false")
        self._nodes: dict[str, Formula] = {}
        self._compound: dict[tuple[Kind, tuple[int, ...]], Formula] = {}

    def _new(self, kind: Kind, **fields: object) -> Formula:
        self.count += 1
        return Formula(kind, self.count, **fields)  # type: ignore[arg-type]

    def node(self, node: Node) -> Formula:
        if isinstance(node.value, bool):
            return self.true if node.value else self.false
        found = self._nodes.get(node.pointer)
        if found is None:
            found = self._nodes[node.pointer] = self._new("node", node=node, pointer=node.pointer)
        return found

    def shape(self, shape: Shape, pointer: str) -> Formula:
        """A formula for a shape built by hand. Each call makes a new one."""
        return self._new("shape", shape=shape, pointer=pointer)

    def negate(self, formula: Formula) -> Formula:
        if formula is self.true:
            return self.false
        if formula is self.false:
            return self.true
        if formula.kind == "not":
            return formula.parts[0]
        if formula.kind == "and":
            return self.any(self.negate(p) for p in formula.parts)
        if formula.kind == "or":
            return self.all(self.negate(p) for p in formula.parts)
        return self._made("not", (formula,))

    def all(self, formulas: Iterable[Formula]) -> Formula:
        return self._joined("and", formulas, unit=self.true, zero=self.false)

    def any(self, formulas: Iterable[Formula]) -> Formula:
        return self._joined("or", formulas, unit=self.false, zero=self.true)

    def _joined(self, kind: Literal["and", "or"], formulas: Iterable[Formula], unit: Formula, zero: Formula) -> Formula:
        parts: dict[Formula, None] = {}
        for formula in formulas:
            for part in formula.parts if formula.kind == kind else (formula,):
                if part is zero or (part.kind == "not" and part.parts[0] in parts):
                    return zero
                if part is not unit:
                    parts[part] = None
        if any(part.kind == "not" and part.parts[0] in parts for part in parts):
            return zero
        if len(parts) <= 1:
            return next(iter(parts), unit)
        return self._made(kind, tuple(parts))

    def _made(self, kind: Kind, parts: tuple[Formula, ...]) -> Formula:
        key = (kind, tuple(p.number for p in parts))
        found = self._compound.get(key)
        if found is None:
            pointer = next((p.pointer for p in parts if p.pointer), "")
            found = self._compound[key] = self._new(kind, parts=parts, pointer=pointer)
        return found
