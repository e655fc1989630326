"""Keywords that combine schemas on one value: references, allOf, anyOf, oneOf, not, if/then/else, dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import read, unevaluated
from .document import Node, schema_error, shown
from .shape import ObjectAtom, Property, Shape

if TYPE_CHECKING:
    from .formula import Formula
    from .lower import Lowering


def target(lowering: Lowering, node: Node, keyword: str) -> Node:
    """The schema that a reference points to."""
    reference = node.value[keyword]
    if not isinstance(reference, str):
        raise schema_error(f"must be a string, not {shown(reference)}", node.at(keyword))
    found = lowering.document.resolve(node, reference, keyword)
    anchor = found.get("$dynamicAnchor")
    if keyword == "$dynamicRef" and anchor is not None and reference.endswith(f"#{anchor}"):
        # One that can only mean one schema is an ordinary reference.
        same = [n for n in lowering.document.nodes.values() if n.get("$dynamicAnchor") == anchor]
        if len(same) > 1:
            raise schema_error(f"$dynamicAnchor {anchor!r} stands in {len(same)} places", node.at(keyword))
    return found


def conditions(lowering: Lowering, node: Node, within: Shape) -> Iterator[tuple[str, Formula]]:
    """(keyword, formula) for every combinator in the schema; all of them must hold. `within` holds anyway."""
    value, formulas = node.value, lowering.formulas
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in value:
            yield keyword, formulas.node(target(lowering, node, keyword))
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
    if lowering.document.draft >= 2019:
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if value.get(keyword, True) is not True:
                yield keyword, unevaluated.leftover(lowering, node, keyword)


def _one_of(lowering: Lowering, options: list[Formula], within: Shape) -> Formula:
    """Exactly one option: the plain union where no two can hold together, else each without the others."""
    formulas = lowering.formulas
    overlaps: list[list[Formula]] = [[] for _ in options]
    tags = [_tags(lowering, option) for option in options]
    for i, option in enumerate(options):
        for j in range(i):
            if not _told_apart(tags[i], tags[j]) and not lowering.disjoint(options[j], option, within):
                overlaps[i].append(options[j])
                overlaps[j].append(option)
    return formulas.any(
        formulas.all((option, *map(formulas.negate, others))) for option, others in zip(options, overlaps, strict=True)
    )


Tags = dict[str, frozenset[tuple[bool, object]]]


def _tags(lowering: Lowering, option: Formula) -> Tags:
    """The scalars that each required property of an option can be, where option says so itself: what tells most options
    apart, without making automata."""
    node, value = option.node, option.node.value if option.node is not None else None
    for _ in range(_MAX_STEPS):
        if node is None or not isinstance(value, dict) or "$ref" not in value:
            break
        node = target(lowering, node, "$ref")
        value = node.value
    if not isinstance(value, dict) or value.get("type") != "object" or "$ref" in value:
        return {}
    properties, required = value.get("properties"), value.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    found: Tags = {}
    for name in required:
        inner = properties.get(name) if isinstance(name, str) else None
        if isinstance(inner, dict) and "$ref" not in inner:
            constants = [inner["const"]] if "const" in inner else inner.get("enum")
            if isinstance(constants, list) and not any(isinstance(c, (list, dict)) for c in constants):
                found[name] = frozenset((isinstance(c, bool), c) for c in constants)
    return found


_MAX_STEPS = 20  # references that are followed


def _told_apart(a: Tags, b: Tags) -> bool:
    return any(name in b and a[name].isdisjoint(b[name]) for name in a)


def _dependencies(lowering: Lowering, node: Node) -> Iterator[tuple[str, Formula]]:
    keywords = ["dependencies"] if lowering.document.draft <= 7 else ["dependentRequired", "dependentSchemas"]
    for keyword in keywords:
        for name, condition in read.mapping(node, keyword).items():
            if isinstance(condition, list):
                needed = read.names(node, keyword, name)
                then = _objects(
                    lowering, {n: Property(lowering.formulas.true, True, False) for n in needed}, node.at(keyword)
                )
            else:
                then = lowering.child(node, keyword, name)
            yield keyword, lowering.formulas.any((property_absent(lowering, name, node.at(keyword)), then))


def property_absent(lowering: Lowering, name: str, pointer: str) -> Formula:
    """Anything but an object with this property."""
    return _objects(lowering, {name: Property(lowering.formulas.false, False, False)}, pointer)


def _objects(lowering: Lowering, properties: dict[str, Property], pointer: str) -> Formula:
    """Anything that is no object, or an object with these properties and any others."""
    every: Shape = lowering.anything
    objects = (ObjectAtom(properties, lowering.any_object.rest),)
    shape = Shape(every.null, every.bools, every.numbers, every.strings, every.arrays, objects)
    return lowering.formulas.shape(shape, pointer)
