"""Questions and small changes of syntax trees, as `rewrite` needs them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

_Node = TypeVar("_Node", bound=ast.AST)


def may_be_any(node: ast.expr) -> bool:
    """Whether an expression may be an object of the process: operators and calls give values of the program."""
    return isinstance(node, (ast.Name, ast.Attribute, ast.Subscript))


_CHANGERS = frozenset(
    "append extend insert pop remove clear sort reverse update setdefault popitem add discard".split()
)


def changed_in(body: Iterable[ast.AST]) -> list[str]:
    """The variables that statements set, or whose containers they change, in order."""
    found: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = None
            return
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGERS:
            note(node.func.value)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            note(node.value)
        for child in children(node):
            visit(child)

    def note(owner: ast.AST) -> None:
        if isinstance(owner, ast.Name):
            found[owner.id] = None

    for node in body:
        visit(node)
    return list(found)


def num_loads(tree: ast.AST) -> Counter[str]:
    """How often each name is read."""
    return Counter([n.id for n in walk(tree) if type(n) is ast.Name and type(n.ctx) is ast.Load])


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that hold anything, outer ones first; in a third of the time of `ast.walk`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(children(node))


def has_star(target: ast.Tuple | ast.List) -> bool:
    return any(isinstance(part, ast.Starred) for part in target.elts)


def placed(node: _Node, like: ast.AST) -> _Node:
    """A made node at the place of the user's; what is placed already stays, with all in it."""
    todo: list[ast.AST] = [node]
    while todo:
        made = todo.pop()
        if "lineno" in made._attributes:
            if hasattr(made, "lineno"):
                continue
            ast.copy_location(made, like)
        todo += children(made)
    return node


def located(tree: _Node) -> _Node:
    """Every node that has no place gets that of the node around it, as `compile` wants it."""
    todo: list[tuple[ast.AST, Any]] = [(tree, (1, 0, 1, 0))]
    while todo:
        node, place = todo.pop()
        if "lineno" in node._attributes:
            if hasattr(node, "lineno"):
                place = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
            else:
                node.lineno, node.col_offset, node.end_lineno, node.end_col_offset = place  # type: ignore[attr-defined]
        todo += [(child, place) for child in children(node)]
    return tree


# Fields that hold words, or nodes with nothing in them: `Load`, `Add`, `Eq`.
_WORDS = frozenset("id attr ctx op ops kind type_comment conversion is_async level module simple asname".split())
_inner: dict[type[ast.AST], tuple[str, ...]] = {ast.Constant: ()}  # the fields that may hold others


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes right below, in order, but for those that hold nothing: `Load`, `Add` and the like."""
    kind = type(node)
    names = _inner.get(kind)
    if names is None:
        names = _inner[kind] = tuple([name for name in kind._fields if name not in _WORDS])
    found: list[ast.AST] = []
    if names:
        values = node.__dict__
        for name in names:
            value = values.get(name)
            if type(value) is list:
                found += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST):
                found.append(value)
    return found


def key_of(target: ast.Subscript | ast.Attribute) -> ast.expr:
    return index(target.slice) if isinstance(target, ast.Subscript) else ast.Constant(value=target.attr)


def index(node: ast.expr) -> ast.expr:
    """A subscript's index as an expression of its own (`a[1:2]` -> slice(1, 2, None))."""
    if isinstance(node, ast.Slice):
        parts = [part if part is not None else ast.Constant(value=None) for part in (node.lower, node.upper, node.step)]
        call = ast.Call(func=ast.Name(id="slice", ctx=ast.Load()), args=parts, keywords=[])
        return ast.copy_location(call, node)
    return node
