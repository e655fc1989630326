"""unevaluatedProperties and unevaluatedItems: what is left over by everything else that a value met.

A schema is taken apart into *branches*: each is a way to meet it, with the names and items that are then evaluated.
Where several options of an anyOf hold at once more is evaluated, and so less is left to meet the keyword; it is enough
to look at every set of options that hold, without saying that the others do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from ..char_algebra import ALL, NONE, difference, from_texts, union, union_all
from ..char_dfa import CharDfa
from . import logic, read
from .document import Node, schema_error
from .scalars import pattern_language
from .shape import ArrayAtom, ObjectAtom, Shape

if TYPE_CHECKING:
    from .formula import Formula
    from .lower import Lowering

MAX_BRANCHES = 256


@dataclass(frozen=True, slots=True)
class Branch:
    """`formula` holds; the properties in `names`, the first `items` items (None: all) and those that meet one of
    `containing` are evaluated."""

    formula: Formula
    names: CharDfa = NONE
    items: int | None = 0
    containing: tuple[Formula, ...] = ()


def leftover(lowering: Lowering, node: Node, keyword: str) -> Formula:
    """The condition that `keyword` in `node` adds to the rest of the schema."""
    formulas = lowering.formulas
    condition = lowering.child(node, keyword)
    options = []
    for branch in _branches(lowering, node, keyword, 0):
        shape = (_items if keyword == "unevaluatedItems" else _names)(lowering, branch, condition)
        options.append(formulas.all((branch.formula, formulas.shape(shape, node.at(keyword)))))
    return formulas.any(options)


def _names(lowering: Lowering, branch: Branch, condition: Formula) -> Shape:
    true, false = lowering.formulas.true, lowering.formulas.false
    others = difference(ALL, branch.names)
    rest = [(branch.names, true)] if not branch.names.is_empty else []
    if not others.is_empty and condition is not false:
        rest.append((others, condition))
    return _replaced(lowering, objects=(ObjectAtom({}, tuple(rest)),))


def _items(lowering: Lowering, branch: Branch, condition: Formula) -> Shape:
    if branch.items is None:
        return lowering.anything
    rest = lowering.formulas.any((*branch.containing, condition))
    atom = lowering.tidy_array(ArrayAtom((lowering.formulas.true,) * branch.items, rest))
    return _replaced(lowering, arrays=() if atom is None else (atom,))


def _replaced(
    lowering: Lowering,
    arrays: tuple[ArrayAtom, ...] | None = None,
    objects: tuple[ObjectAtom, ...] | None = None,
) -> Shape:
    every = lowering.anything
    return Shape(
        every.null,
        every.bools,
        every.numbers,
        every.strings,
        every.arrays if arrays is None else arrays,
        every.objects if objects is None else objects,
    )


def _branches(lowering: Lowering, node: Node, asking: str | None, depth: int) -> list[Branch]:
    """The ways to meet `node`. `asking` is the keyword being worked out, if it stands in this very schema."""
    true = lowering.formulas.true
    if depth > 64:
        raise schema_error("schemas nested too deep for an unevaluated keyword", node.pointer)
    if isinstance(node.value, bool):
        return [Branch(true if node.value else lowering.formulas.false)]
    formula = true if asking else lowering.formulas.node(node)
    if asking is None and "unevaluatedProperties" in node.value and "unevaluatedItems" in node.value:
        return [Branch(formula, ALL, None)]
    branches = [_own(lowering, node, asking, formula)]
    for options in _applied(lowering, node, depth + 1):
        branches = [_both(lowering, a, b) for a in branches for b in options]
        if len(branches) > MAX_BRANCHES:
            raise schema_error(f"more than {MAX_BRANCHES} combinations of subschemas", node.at(asking or ""))
    return branches


def _both(lowering: Lowering, a: Branch, b: Branch) -> Branch:
    items = None if a.items is None or b.items is None else max(a.items, b.items)
    formula = lowering.formulas.all((a.formula, b.formula))
    return Branch(formula, union(a.names, b.names), items, tuple(dict.fromkeys((*a.containing, *b.containing))))


def _own(lowering: Lowering, node: Node, asking: str | None, formula: Formula) -> Branch:
    """What the schema's own keywords evaluate."""
    value, draft = node.value, lowering.document.draft
    names = from_texts(read.mapping(node, "properties"))
    patterns = read.mapping(node, "patternProperties")
    names = union_all([names, *(pattern_language(p, node.at("patternProperties", p)) for p in patterns)])
    if "additionalProperties" in value or (asking is None and "unevaluatedProperties" in value):
        names = ALL
    items: int | None = len(value.get("prefixItems", ())) if draft >= 2020 else 0
    if isinstance(value.get("items"), list):
        items = None if "additionalItems" in value else len(value["items"])
    elif "items" in value:
        items = None
    if asking is None and "unevaluatedItems" in value:
        items = None
    containing = (lowering.child(node, "contains"),) if "contains" in value and draft >= 2020 else ()
    return Branch(formula, names, items, containing)


def _applied(lowering: Lowering, node: Node, depth: int) -> list[list[Branch]]:
    """For each combinator in the schema, the branches it may hold by."""
    value, formulas = node.value, lowering.formulas

    def below(*steps: str | int) -> list[Branch]:
        return _branches(lowering, lowering.document.nodes[node.at(*steps)], None, depth)

    applied: list[list[Branch]] = []
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in value:
            target = logic.target(lowering, node, keyword)
            applied.append(_branches(lowering, target, None, depth))
    applied += [below("allOf", i) for i in range(read.schema_list(node, "allOf"))]
    if count := read.schema_list(node, "anyOf"):
        if 2**count > MAX_BRANCHES:
            raise schema_error("too many options beside an unevaluated keyword", node.at("anyOf"))
        each = [below("anyOf", i) for i in range(count)]
        sets = [chosen for size in range(1, count + 1) for chosen in combinations(each, size)]
        applied.append([branch for chosen in sets for branch in _all_of(lowering, chosen)])
    if count := read.schema_list(node, "oneOf"):
        options = [lowering.child(node, "oneOf", i) for i in range(count)]
        single = []
        for i in range(count):
            without = Branch(formulas.all(formulas.negate(other) for j, other in enumerate(options) if j != i))
            single += [_both(lowering, branch, without) for branch in below("oneOf", i)]
        applied.append(single)
    if "if" in value:
        yes = below("if")
        then = below("then") if "then" in value else [Branch(formulas.true)]
        other = below("else") if "else" in value else [Branch(formulas.true)]
        no = Branch(formulas.negate(lowering.child(node, "if")))
        applied.append([_both(lowering, a, b) for a in yes for b in then] + [_both(lowering, no, b) for b in other])
    for name in read.mapping(node, "dependentSchemas"):
        absent = logic.property_absent(lowering, name, node.at("dependentSchemas"))
        present = Branch(formulas.negate(absent))
        then = [_both(lowering, present, branch) for branch in below("dependentSchemas", name)]
        applied.append([Branch(absent), *then])
    return applied


def _all_of(lowering: Lowering, groups: tuple[list[Branch], ...]) -> list[Branch]:
    branches = groups[0]
    for group in groups[1:]:
        branches = [_both(lowering, a, b) for a in branches for b in group]
    return branches
