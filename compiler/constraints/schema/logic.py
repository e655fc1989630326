"""Keywords that combine schemas on one value: references, allOf, anyOf, oneOf, not, if/then/else, dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import read
from .document import Node, schema_error, shown
from .shape import ObjectAtom, Property, Shape

if TYPE_CHECKING:
    from .formula import Formula
    from .lower import Lowering


def reference(lowering: Lowering, node: Node, keyword: str) -> Formula:
    """The formula of what a reference points to."""
    target = node.value[keyword]
    if not isinstance(target, str):
        raise schema_error(f"must be a string, not {shown(target)}", node.at(keyword))
    return lowering.formulas.node(lowering.document.resolve(node, target, keyword))


def conditions(lowering: Lowering, node: Node, within: Shape) -> Iterator[tuple[str, Formula]]:
    """(keyword, formula) for every combinator in the schema; all of them must hold. `within` holds anyway."""
    value, formulas = node.value, lowering.formulas
    if "$ref" in value:
        yield "$ref", reference(lowering, node, "$ref")
    if "$dynamicRef" in value:
        yield "$dynamicRef", _dynamic_reference(lowering, node)
    for i in range(read.schema_list(node, "allOf")):
        yield "allOf", lowering.child(node, "allOf", i)
    if count := read.schema_list(node, "anyOf"):
        yield "anyOf", formulas.any(lowering.child(node, "anyOf", i) for i in range(count))
    if count := read.schema_list(node, "oneOf"):
        yield "oneOf", _one_of(lowering, [lowering.child(node, "oneOf", i) for i in range(count)], within)
    if "not" in value:
        yield "not", formulas.negate(lowering.child(node, "not"))
    if "if" in value and lowering.document.draft >= 7:
        test = lowering.child(node, "if")
        then = lowering.child(node, "then") if "then" in value else formulas.true
        other = lowering.child(node, "else") if "else" in value else formulas.true
        yield "if", formulas.any((formulas.all((test, then)), formulas.all((formulas.negate(test), other))))
    yield from _dependencies(lowering, node)


def _dynamic_reference(lowering: Lowering, node: Node) -> Formula:
    """A dynamic reference that can only mean one schema is an ordinary one."""
    target = lowering.document.resolve(node, str(node.value["$dynamicRef"]), "$dynamicRef")
    anchor = target.get("$dynamicAnchor")
    if anchor is not None and str(node.value["$dynamicRef"]).endswith("#" + str(anchor)):
        same = [n for n in lowering.document.nodes.values() if n.get("$dynamicAnchor") == anchor]
        if len(same) > 1:
            raise schema_error(f"$dynamicAnchor {anchor!r} stands in {len(same)} places", node.at("$dynamicRef"))
    return lowering.formulas.node(target)


def _one_of(lowering: Lowering, options: list[Formula], within: Shape) -> Formula:
    """Exactly one option: the plain union where no two can hold together, else each without the others."""
    formulas = lowering.formulas
    overlaps: list[list[Formula]] = [[] for _ in options]
    for i, option in enumerate(options):
        for j in range(i):
            if not lowering.disjoint(options[j], option, within):
                overlaps[i].append(options[j])
                overlaps[j].append(option)
    return formulas.any(
        formulas.all((option, *map(formulas.negate, others))) for option, others in zip(options, overlaps, strict=True)
    )


def _dependencies(lowering: Lowering, node: Node) -> Iterator[tuple[str, Formula]]:
    keywords = ["dependencies"] if lowering.document.draft <= 7 else ["dependentRequired", "dependentSchemas"]
    for keyword in keywords:
        for name, condition in read.mapping(node, keyword).items():
            if isinstance(condition, list):
                needed = read.names(node, keyword, name)
                then = _objects(lowering, {n: Property(lowering.formulas.true, True) for n in needed}, node.at(keyword))
            else:
                then = lowering.child(node, keyword, name)
            absent = _objects(lowering, {name: Property(lowering.formulas.false)}, node.at(keyword))
            yield keyword, lowering.formulas.any((absent, then))


def _objects(lowering: Lowering, properties: dict[str, Property], pointer: str) -> Formula:
    """Anything that is no object, or an object with these properties and any others."""
    every: Shape = lowering.anything
    objects = (ObjectAtom(properties, lowering.any_object.rest),)
    shape = Shape(every.null, every.bools, every.numbers, every.strings, every.arrays, objects)
    return lowering.formulas.shape(shape, pointer)
