"""Statements that the rewritten copy knows in simpler forms: `match` as `if`s, the `else` of a loop behind it, and what
the test of a `while` names inside of it.

Left as they are, each of them would ask a Symbol what only Python's own code can ask a value: a pattern asks for its
class, and a loop that is traced once ends both with and without its `break`. The forms made here are what a person
could have written, so the hooks see their parts.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

from .nodes import placed

IS_SEQUENCE = "is_sequence"  # methods of the hooks, which a pattern asks
IS_MAPPING = "is_mapping"
REST_OF = "rest_of"
# Classes whose one positional pattern is the value itself (the language reference, "class patterns").
_WHOLE = frozenset("bool bytearray bytes dict float frozenset int list set str tuple".split())


def desugar(tree: ast.FunctionDef, hooks: str, branches: frozenset[int] = frozenset()) -> ast.FunctionDef:
    """The function without `match` and `else` of loops. `hooks` is the name by which its copy calls the hooks.

    An `if` at one of the lines `branches` goes into a loop of one round, `while True: if ...: ...; break`. Paths double
    at each `if`; what a loop sets is handed on as values, so that the two ways through this one are one way behind it.
    """
    made: ast.FunctionDef = _Desugarer(hooks, branches).visit(tree)
    return made


class _Desugarer(ast.NodeTransformer):
    def __init__(self, hooks: str, branches: frozenset[int]) -> None:
        self.hooks = hooks
        self.branches = branches
        self.num_names = 0

    def new_name(self, stem: str) -> str:
        self.num_names += 1
        return f"__dslc_{stem}_{self.num_names}"

    # -- loops

    def visit_For(self, node: ast.For) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        return self._without_else(node) if node.orelse else node

    def visit_While(self, node: ast.While) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if any(isinstance(n, ast.NamedExpr) for n in ast.walk(node.test)):
            # `while (x := f()):` is `while True: if not (x := f()): break`.
            stop = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=node.test), body=[ast.Break()], orelse=[])
            ended: list[ast.stmt] = self._without_else(node) if node.orelse else [node]
            node.body.insert(0, placed(stop, node.test))
            node.test = placed(ast.Constant(value=True), node.test)
            return ended
        return self._without_else(node) if node.orelse else node

    def _without_else(self, node: Any) -> list[ast.stmt]:
        """`for ...: ... else: more` as the loop, a flag that a `break` clears, and `if flag: more` behind it."""
        breaks = _Breaks(self.new_name("ended"))
        node.body = [made for statement in node.body for made in _listed(breaks.visit(statement))]
        more, node.orelse = node.orelse, []
        if not breaks.num_found:
            return [node, *more]
        flag = placed(_assigned(breaks.flag, ast.Constant(value=True)), node)
        test = placed(ast.Name(id=breaks.flag, ctx=ast.Load()), more[0])
        return [flag, node, placed(ast.If(test=test, body=more, orelse=[]), more[0])]

    # -- if

    def visit_If(self, node: ast.If) -> ast.stmt:
        lines = range(node.test.lineno, (node.test.end_lineno or node.test.lineno) + 1)
        is_forced = not self.branches.isdisjoint(lines) and not _goes_elsewhere([node])
        inner = node.orelse[0] if len(node.orelse) == 1 else None
        if is_forced and isinstance(inner, ast.If):  # `elif`: a part of this one
            around, self.branches = self.branches, self.branches - {inner.test.lineno}
            self.generic_visit(inner)
            self.branches = around
            node.test = self.visit(node.test)
            node.body = [made for statement in node.body for made in _listed(self.visit(statement))]
        else:
            self.generic_visit(node)
        if not is_forced:
            return node
        return placed(ast.While(test=ast.Constant(value=True), body=[node, ast.Break()], orelse=[]), node)

    # -- match

    def visit_Match(self, node: ast.Match) -> list[ast.stmt]:
        self.generic_visit(node)
        name = self.new_name("subject")
        first = placed(_assigned(name, node.subject), node)
        orelse: list[ast.stmt] = []
        for case in reversed(node.cases):
            subject = ast.Name(id=name, ctx=ast.Load())
            test = self.test_of(case.pattern, subject)
            if case.guard is not None:
                test = _all([test, case.guard])
            orelse = [placed(ast.If(test=test, body=case.body, orelse=orelse), case.pattern)]
        if not self.branches.isdisjoint(range(node.lineno, (node.end_lineno or 0) + 1)) and not _goes_elsewhere(orelse):
            orelse = [placed(ast.While(test=ast.Constant(value=True), body=[*orelse, ast.Break()], orelse=[]), node)]
        return [first, *orelse]

    def test_of(self, pattern: ast.pattern, value: ast.expr) -> ast.expr:
        """An expression that says whether the value fits, and sets the names of the pattern as it goes."""
        if isinstance(pattern, ast.MatchValue):
            test: ast.expr = ast.Compare(left=value, ops=[ast.Eq()], comparators=[pattern.value])
        elif isinstance(pattern, ast.MatchSingleton):
            test = self._singleton(pattern.value, value)
        elif isinstance(pattern, ast.MatchAs):
            tests = [self.test_of(pattern.pattern, value)] if pattern.pattern is not None else []
            if pattern.name is not None:
                tests.append(_named(pattern.name, copy.deepcopy(value)))
            test = _all(tests)
        elif isinstance(pattern, ast.MatchOr):
            test = ast.BoolOp(op=ast.Or(), values=[self.test_of(p, copy.deepcopy(value)) for p in pattern.patterns])
        elif isinstance(pattern, ast.MatchSequence):
            test = self._sequence(pattern, value)
        elif isinstance(pattern, ast.MatchMapping):
            test = self._mapping(pattern, value)
        else:
            assert isinstance(pattern, ast.MatchClass)
            test = self._class(pattern, value)
        return placed(test, pattern)

    def _singleton(self, constant: bool | None, value: ast.expr) -> ast.expr:
        if constant is None:
            return ast.Compare(left=value, ops=[ast.Is()], comparators=[ast.Constant(value=None)])
        same = ast.Compare(left=copy.deepcopy(value), ops=[ast.Eq()], comparators=[ast.Constant(value=constant)])
        return _all([_call("isinstance", value, ast.Name(id="bool", ctx=ast.Load())), same])

    def _part(self, tests: list[ast.expr], pattern: ast.pattern, part: ast.expr) -> None:
        """Add the test of a part of the value, which is looked up once."""
        if isinstance(pattern, ast.MatchAs) and pattern.pattern is None:
            if pattern.name is not None:
                tests.append(_named(pattern.name, part))
            return
        name = self.new_name("part")
        tests += [_named(name, part), self.test_of(pattern, ast.Name(id=name, ctx=ast.Load()))]

    def _hook(self, name: str, *args: ast.expr) -> ast.expr:
        hook = ast.Attribute(value=ast.Name(id=self.hooks, ctx=ast.Load()), attr=name, ctx=ast.Load())
        return ast.Call(func=hook, args=list(args), keywords=[])

    def _sequence(self, pattern: ast.MatchSequence, value: ast.expr) -> ast.expr:
        stars = [i for i, part in enumerate(pattern.patterns) if isinstance(part, ast.MatchStar)]
        least = len(pattern.patterns) - len(stars)
        sizes = [ast.Constant(value=least), ast.Constant(value=not stars)]
        tests = [self._hook(IS_SEQUENCE, copy.deepcopy(value), *sizes)]
        for i, part in enumerate(pattern.patterns):
            at = i if not stars or i < stars[0] else i - len(pattern.patterns)
            if not isinstance(part, ast.MatchStar):
                self._part(tests, part, _item(copy.deepcopy(value), ast.Constant(value=at)))
            elif part.name is not None:
                stop = None if at == -1 else ast.Constant(value=at + 1)
                cut = ast.Slice(lower=ast.Constant(value=i), upper=stop)
                tests.append(_named(part.name, _call("list", _item(copy.deepcopy(value), cut))))
        return _all(tests)

    def _mapping(self, pattern: ast.MatchMapping, value: ast.expr) -> ast.expr:
        tests = [self._hook(IS_MAPPING, copy.deepcopy(value))]
        for key in pattern.keys:
            tests.append(ast.Compare(left=copy.deepcopy(key), ops=[ast.In()], comparators=[copy.deepcopy(value)]))
        for key, part in zip(pattern.keys, pattern.patterns, strict=True):
            self._part(tests, part, _item(copy.deepcopy(value), copy.deepcopy(key)))
        if pattern.rest is not None:
            keys = ast.Tuple(elts=[copy.deepcopy(key) for key in pattern.keys], ctx=ast.Load())
            tests.append(_named(pattern.rest, self._hook(REST_OF, copy.deepcopy(value), keys)))
        return _all(tests)

    def _class(self, pattern: ast.MatchClass, value: ast.expr) -> ast.expr:
        tests: list[ast.expr] = [_call("isinstance", copy.deepcopy(value), copy.deepcopy(pattern.cls))]
        is_whole = isinstance(pattern.cls, ast.Name) and pattern.cls.id in _WHOLE
        for i, part in enumerate(pattern.patterns):
            if is_whole:
                tests.append(self.test_of(part, copy.deepcopy(value)))
                continue
            names = ast.Attribute(value=copy.deepcopy(pattern.cls), attr="__match_args__", ctx=ast.Load())
            self._part(tests, part, _call("getattr", copy.deepcopy(value), _item(names, ast.Constant(value=i))))
        for name, part in zip(pattern.kwd_attrs, pattern.kwd_patterns, strict=True):
            tests.append(_call("hasattr", copy.deepcopy(value), ast.Constant(value=name)))
            self._part(tests, part, ast.Attribute(value=copy.deepcopy(value), attr=name, ctx=ast.Load()))
        return _all(tests)


def _goes_elsewhere(body: list[ast.stmt], is_inside: bool = False) -> bool:
    """Whether statements may return, or leave or go on with a loop around them."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.Return) or (isinstance(node, (ast.Break, ast.Continue)) and not is_inside):
            return True
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inside = is_inside or (name == "body" and isinstance(node, (ast.For, ast.While)))
            if _goes_elsewhere(getattr(node, name, []), inside):
                return True
    return False


class _Breaks(ast.NodeTransformer):
    """Lets each `break` of one loop, not of those inside it, clear a flag first."""

    def __init__(self, flag: str) -> None:
        self.flag = flag
        self.num_found = 0

    def visit_Break(self, node: ast.Break) -> list[ast.stmt]:
        self.num_found += 1
        return [placed(_assigned(self.flag, ast.Constant(value=False)), node), node]

    def _of_others(self, node: Any) -> Any:
        """A loop's own body holds its own breaks; its `else`, those of the loop around it."""
        node.orelse = [made for statement in node.orelse for made in _listed(self.visit(statement))]
        return node

    visit_For = visit_While = _of_others

    def _as_it_is(self, node: ast.stmt) -> ast.stmt:
        return node

    visit_FunctionDef = visit_ClassDef = _as_it_is


def _listed(made: Any) -> list[ast.stmt]:
    return made if isinstance(made, list) else [made]


def _assigned(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=value)


def _named(name: str, value: ast.expr) -> ast.expr:
    """An expression that sets the name and is true, whatever the value is."""
    same = [ast.Name(id=name, ctx=ast.Load())]
    setting = ast.NamedExpr(target=ast.Name(id=name, ctx=ast.Store()), value=value)
    return ast.Compare(left=setting, ops=[ast.Is()], comparators=list(same))


def _item(value: ast.expr, key: ast.expr) -> ast.expr:
    return ast.Subscript(value=value, slice=key, ctx=ast.Load())


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(func=ast.Name(id=function, ctx=ast.Load()), args=list(args), keywords=[])


def _all(tests: list[ast.expr]) -> ast.expr:
    if not tests:
        return ast.Constant(value=True)
    return tests[0] if len(tests) == 1 else ast.BoolOp(op=ast.And(), values=tests)
