"""Keywords on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import read
from .document import Node, schema_error, shown
from .shape import ArrayAtom, Counted

if TYPE_CHECKING:
    from .formula import Formula
    from .lower import Lowering


def atoms(lowering: Lowering, node: Node) -> tuple[ArrayAtom, ...]:
    """items, prefixItems, additionalItems, contains, min/maxContains, min/maxItems, uniqueItems."""
    prefix, rest = _items(lowering, node)
    unique = node.value.get("uniqueItems", False)
    if not isinstance(unique, bool):
        raise schema_error(f"must be a boolean, not {shown(unique)}", node.at("uniqueItems"))
    low, high = read.count(node, "minItems") or 0, read.count(node, "maxItems")
    counted: tuple[Counted, ...] = ()
    if "contains" in node.value:
        at_least = read.count(node, "minContains") if lowering.document.draft >= 2019 else None
        at_most = read.count(node, "maxContains") if lowering.document.draft >= 2019 else None
        at_least = 1 if at_least is None else at_least
        if at_least or at_most is not None:
            counted = (Counted(lowering.child(node, "contains"), 0, at_least, at_most),)
    if (low, high, counted, unique, prefix) == (0, None, (), False, ()) and rest is lowering.formulas.true:
        return (lowering.any_array,)
    atom = ArrayAtom(prefix, rest, low, high, counted, unique)
    tidied = lowering.tidy_array(atom)
    return () if tidied is None else (tidied,)


def _items(lowering: Lowering, node: Node) -> tuple[tuple[Formula, ...], Formula]:
    value, true = node.value, lowering.formulas.true
    if lowering.document.draft >= 2020:
        length = read.schema_list(node, "prefixItems")
        prefix = tuple(lowering.child(node, "prefixItems", i) for i in range(length))
        if isinstance(value.get("items"), list):
            raise schema_error("a list of schemas is called prefixItems since draft 2020-12", node.at("items"))
        return prefix, lowering.child(node, "items") if "items" in value else true
    items = value.get("items", True)
    if not isinstance(items, list):
        return (), lowering.child(node, "items") if "items" in value else true
    rest = lowering.child(node, "additionalItems") if "additionalItems" in value else true
    return tuple(lowering.child(node, "items", i) for i in range(len(items))), rest
