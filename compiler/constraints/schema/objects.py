"""Keywords on objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..char_algebra import ALL, difference, intersect
from ..char_dfa import CharDfa
from . import read
from .document import Node, schema_error
from .scalars import pattern_language
from .shape import ObjectAtom, Property

if TYPE_CHECKING:
    from .formula import Formula, Formulas
    from .lower import Lowering

MAX_PATTERNS = 12


def atoms(lowering: Lowering, node: Node) -> tuple[ObjectAtom, ...]:
    """properties, required, patternProperties, additionalProperties, propertyNames, min/maxProperties."""
    formulas = lowering.formulas
    patterns = [
        (pattern_language(pattern, node.at("patternProperties", pattern)),
         lowering.child(node, "patternProperties", pattern))
        for pattern in read.mapping(node, "patternProperties")
    ]  # fmt: skip
    if len(patterns) > MAX_PATTERNS:
        raise schema_error(f"more than {MAX_PATTERNS} patterns are not supported", node.at("patternProperties"))
    others = lowering.child(node, "additionalProperties") if "additionalProperties" in node.value else formulas.true
    allowed = _names(lowering, node)
    required = read.names(node, "required") if not isinstance(node.value.get("required"), bool) else []
    properties: dict[str, Property] = {}
    for name in (*read.mapping(node, "properties"), *required):
        if name in properties:
            continue
        parts = [formula for names, formula in patterns if names.matches(name)]
        if name in node.value.get("properties", {}):
            parts.insert(0, lowering.child(node, "properties", name))
        elif not parts:
            parts = [others]
        formula = formulas.all(parts) if allowed is ALL or allowed.matches(name) else formulas.false
        properties[name] = Property(formula, name in required, name in node.value.get("properties", {}))
    low, high = read.count(node, "minProperties") or 0, read.count(node, "maxProperties")
    rest = _rest(formulas, patterns, others, allowed)
    if not properties and (low, high) == (0, None) and rest == ((ALL, formulas.true),):
        return (lowering.any_object,)
    atom = lowering.tidy_object(ObjectAtom(properties, rest, low, high))
    return () if atom is None else (atom,)


def _names(lowering: Lowering, node: Node) -> CharDfa:
    """The language of propertyNames."""
    if "propertyNames" not in node.value:
        return ALL
    return lowering.shape(lowering.child(node, "propertyNames")).strings


def _rest(
    formulas: Formulas, patterns: list[tuple[CharDfa, Formula]], others: Formula, allowed: CharDfa
) -> tuple[tuple[CharDfa, Formula], ...]:
    """The undeclared names by which patterns they match, with the formulas of their values."""
    classes: list[tuple[CharDfa, tuple[Formula, ...]]] = [(allowed, ())]
    for names, formula in patterns:
        split: list[tuple[CharDfa, tuple[Formula, ...]]] = []
        for language, parts in classes:
            split.append((intersect(language, names), (*parts, formula)))
            split.append((difference(language, names), parts))
        classes = [entry for entry in split if not entry[0].is_empty]
    rest = [(language, formulas.all(parts) if parts else others) for language, parts in classes]
    return tuple((language, formula) for language, formula in rest if formula is not formulas.false)
