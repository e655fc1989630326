"""The rewritten copy of a program's body: the same code, with every place that forces plain values going through hooks.

f-strings, `%`, calls, `in`, `is None`, iteration, subscripts and stores are replaced by calls of the hook object bound
to `HOOKS` in the copy's globals; line numbers stay the user's. The copy reads a snapshot of the original's globals and
closure, so that it can change neither.
"""

from __future__ import annotations

import ast
import copy as copying
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from ...core.errors import SourceLoc, TraceError
from .desugar import desugar
from .hooks import Recipe
from .nodes import changed_in, has_star, index, key_of, located, may_be_any, num_loads, placed, walk
from .purity import HOOKS
from .source import statements

_FACTORY = "__dslc_factory__"
_RECIPES = "__dslc_recipes__"
_OVER = "__dslc_over__"


class NoSource(TraceError):
    """The function's source cannot be read (typed into a plain Python shell, or built by exec)."""


class CannotRewrite(TraceError):
    """The function does something that a copy of it must not do; the message names it."""


def location(function: Callable[..., Any]) -> SourceLoc:
    """Where a Python function begins."""
    code = function.__code__
    return SourceLoc(code.co_filename, code.co_firstlineno, code.co_name)


class _Rewritten(NamedTuple):
    """What rewriting a code object gives, whatever globals and closure its functions have."""

    code: types.CodeType  # makes the factory of copies
    recipes: tuple[Recipe, ...]  # without globals


_Name: TypeAlias = "tuple[str, str, frozenset[int]]"
# By code object, then by file, name and forced branches: code objects of other files may be equal.
_known: weakref.WeakKeyDictionary[types.CodeType, dict[_Name, _Rewritten]] = weakref.WeakKeyDictionary()


def rewrite(function: types.FunctionType, hooks: Any, branches: frozenset[int] = frozenset()) -> types.FunctionType:
    """A copy of `function` whose code goes through `hooks`. The rewriting is done once for each code object, and for
    each set of lines whose `if`s are to be regions (`branches`).

    Raises NoSource where there is no source, CannotRewrite for async and generator functions and for those that assign
    to globals or to variables of an enclosing function.
    """
    known = _known.setdefault(function.__code__, {})
    name = (function.__code__.co_filename, function.__qualname__, branches)
    rewritten = known.get(name)
    if rewritten is None:
        rewritten = known[name] = _rewritten(function, branches)
    made: dict[str, Any] = {}
    recipes = [recipe._replace(globals=function.__globals__, made=made) for recipe in rewritten.recipes]
    namespace: dict[str, Any] = {**function.__globals__, HOOKS: hooks, _RECIPES: recipes}
    exec(rewritten.code, namespace)
    values = [_cell_value(cell) for cell in function.__closure__ or ()]
    copy: types.FunctionType = namespace.pop(_FACTORY)(*values)
    copy.__defaults__ = function.__defaults__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _rewritten(function: types.FunctionType, branches: frozenset[int]) -> _Rewritten:
    tree = _parse(function)
    _refuse(tree, function)
    name = tree.name
    _strip_header(tree)
    tree = desugar(tree, HOOKS, branches)
    code = function.__code__
    rewriter = _Rewriter(function, tree)
    factory = ast.FunctionDef(
        name=_FACTORY,
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(arg=n) for n in code.co_freevars], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=[rewriter.visit(tree), ast.Return(value=ast.Name(id=name, ctx=ast.Load()))],
        decorator_list=[],
    )
    module = located(ast.Module(body=[factory], type_ignores=[]))
    return _Rewritten(compile(module, code.co_filename, "exec"), tuple(rewriter.recipes))


class _Unset:
    """Stands for a closure variable that has no value yet."""


def _cell_value(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _Unset()


def _parse(function: types.FunctionType) -> ast.FunctionDef:
    """The function's statement, at its lines in the file."""
    try:
        node = statements(function)[0]
    except (OSError, TypeError) as error:
        raise NoSource(
            f"the source of {function.__qualname__} cannot be read ({error})", where=location(function)
        ) from None
    except (SyntaxError, IndexError):  # a lambda or a def inside a larger expression
        raise NoSource(f"{function.__qualname__} is not a plain def statement", where=location(function)) from None
    if isinstance(node, ast.AsyncFunctionDef):
        raise CannotRewrite("an async program runs as it is written", where=location(function))
    if not isinstance(node, ast.FunctionDef):
        raise NoSource(f"{function.__qualname__} is not a plain def statement", where=location(function))
    return node


def _refuse(tree: ast.FunctionDef, function: types.FunctionType) -> None:
    """Refuse what would reach outside the copy, or suspend it."""

    def refuse(what: str, node: ast.AST) -> None:
        line = getattr(node, "lineno", function.__code__.co_firstlineno)
        raise CannotRewrite(what, where=SourceLoc(function.__code__.co_filename, line, function.__name__))

    local_names = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
    for node in walk(tree):
        if isinstance(node, ast.Global):
            refuse(f"it assigns to the global {', '.join(node.names)}", node)
        if isinstance(node, ast.Nonlocal) and not set(node.names) <= local_names:
            refuse(f"it assigns to {', '.join(node.names)} of an enclosing function", node)
        if isinstance(node, (ast.Yield, ast.YieldFrom)) and function.__code__.co_flags & inspect.CO_GENERATOR:
            refuse("it is a generator", node)
        if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)):
            refuse("it awaits", node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("super", "locals"):
            refuse(f"it calls {node.func.id}()", node)
        if isinstance(node, ast.ImportFrom) and (node.level or node.module not in sys.modules):
            refuse(f"it imports {'.' * node.level}{node.module or ''}, which is not loaded yet", node)
        if isinstance(node, ast.Import) and (new := [a.name for a in node.names if a.name not in sys.modules]):
            refuse(f"it imports {new[0]}, which is not loaded yet", node)


def _strip_header(tree: ast.FunctionDef) -> None:
    """Drop decorators, annotations and default expressions: they have been evaluated once already."""
    tree.decorator_list = []
    tree.returns = None
    args = tree.args
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]:
        arg.annotation = None
    args.defaults = [ast.Constant(value=None) for _ in args.defaults]
    args.kw_defaults = [None if default is None else ast.Constant(value=None) for default in args.kw_defaults]


class _Rewriter(ast.NodeTransformer):
    """Replaces each forcing construct by a hook call at the same place."""

    def __init__(self, function: types.FunctionType, tree: ast.FunctionDef) -> None:
        code = function.__code__
        self.num_names = 0
        self.state = code.co_varnames[0] if code.co_argcount else ""  # its `+=` is the state's own
        self.num_loads = num_loads(tree)
        self.loops: list[str] = []  # the names of the drivers of the loops around
        self.in_finally = False  # inside of the innermost loop, in a `try` with a `finally`
        self.function = function
        self.recipes: list[Recipe] = []
        # Names that are no globals, with those of the functions and comprehensions inside that are being visited.
        self.local_names = [{*code.co_varnames, *code.co_cellvars, *code.co_freevars}]
        # Names that may be set where the visited code stands: in the function, and in those inside around it.
        self.settable = [{*code.co_varnames, *code.co_cellvars}]
        self.nonlocals = [name for n in walk(tree) if isinstance(n, ast.Nonlocal) for name in n.names]

    def _hook(self, name: str, node: ast.AST, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
        hook = ast.Attribute(value=ast.Name(id=HOOKS, ctx=ast.Load()), attr=name, ctx=ast.Load())
        return ast.copy_location(ast.Call(func=hook, args=list(args), keywords=keywords or []), node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        func = node.func
        args = [self._argument(arg) for arg in node.args]
        keywords = [
            ast.keyword(arg=k.arg, value=self._argument(k.value) if k.arg else self._spread(k.value))
            for k in node.keywords
        ]
        if not isinstance(func, ast.Attribute):
            return self._hook("call", node, self.visit(func), *args, keywords=keywords)
        name = ast.copy_location(ast.Constant(value=func.attr), node)
        return self._hook("method", node, self.visit(func.value), name, *args, keywords=keywords)

    def visit_Starred(self, node: ast.Starred) -> ast.expr:
        is_read = isinstance(node.ctx, ast.Load)
        node.value = self._spread(node.value) if is_read else self.visit(node.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        node.values = [
            self.visit(v) if key is not None else self._spread(v) for key, v in zip(node.keys, node.values, strict=True)
        ]
        node.keys = [self.visit(key) if key is not None else None for key in node.keys]
        return node

    def _spread(self, node: ast.expr) -> ast.expr:
        visited: ast.expr = self.visit(node)
        return self._hook("spread", node, visited) if may_be_any(node) else visited

    def _argument(self, node: ast.expr) -> ast.expr:
        """An argument of a call; a list or dict written there is held by nobody else."""
        is_fresh = isinstance(node, (ast.List, ast.Dict, ast.Set))
        visited: ast.expr = self.visit(node)
        return self._hook("fresh", node, visited) if is_fresh else visited

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._hook("getattr", node, node.value, ast.copy_location(ast.Constant(value=node.attr), node))

    def visit_Try(self, node: ast.Try) -> ast.stmt:
        """The body of a `try` with handlers says what they catch, so that what fails in the run gets there."""
        kinds = [copying.deepcopy(handler.type) for handler in node.handlers]
        around = self.in_finally
        self.in_finally = around or bool(node.finalbody)
        self.generic_visit(node)
        self.in_finally = around
        if not node.handlers:
            return node
        types = [kind if kind is not None else ast.Name(id="BaseException", ctx=ast.Load()) for kind in kinds]
        caught = self._lambda([], ast.Tuple(elts=list(types), ctx=ast.Load()), node)
        guard = ast.withitem(context_expr=self._hook("guarded", node, caught))
        node.body = [ast.copy_location(ast.With(items=[guard], body=node.body), node)]
        for handler in node.handlers:
            if handler.name is not None:
                name = ast.copy_location(ast.Name(id=handler.name, ctx=ast.Load()), handler)
                target = ast.copy_location(ast.Name(id=handler.name, ctx=ast.Store()), handler)
                value = self._hook("caught", handler, name)
                handler.body.insert(0, ast.copy_location(ast.Assign(targets=[target], value=value), handler))
        return node

    # -- functions inside: the user's own is needed where one is handed to a function of the user's

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        names = {arg.arg for arg in walk(node.args) if isinstance(arg, ast.arg)}
        recipe = self._recipe(node, "<lambda>", names)
        self.local_names.append(names)
        self.generic_visit(node)
        self.local_names.pop()
        return self._hook("function", node, self._recipe_at(recipe, node), node, self._values(recipe, node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        own = {arg.arg for arg in walk(node.args) if isinstance(arg, ast.arg)}
        own |= {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.local_names.append(own)
        self.settable.append(own)
        self.generic_visit(node)
        self.settable.pop()
        self.local_names.pop()
        return node

    def _comprehension(self, node: Any) -> ast.expr:
        bound = {
            n.id for g in node.generators for n in walk(g.target) if isinstance(n, ast.Name)
        }  # fmt: skip
        whole = copying.deepcopy(node)
        first = whole.generators[0].iter
        whole.generators[0].iter = ast.copy_location(ast.Name(id=_OVER, ctx=ast.Load()), first)
        recipe = self._recipe(whole, f"<{type(node).__name__.lower()}>", {*bound, _OVER}, _OVER)
        over = self.visit(node.generators[0].iter)
        node.generators[0].iter = ast.copy_location(ast.Name(id=_OVER, ctx=ast.Load()), node)
        self.local_names.append(bound)
        self.generic_visit(node)
        self.local_names.pop()
        copy = self._lambda([_OVER], node, node)
        at = self._recipe_at(recipe, node)
        return self._hook("comprehension", node, at, over, copy, self._values(recipe, node))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _recipe(self, node: ast.expr, kind: str, own: set[str], *first: str) -> int:
        """The number of the recipe for a function whose own names are `own`."""
        reads = tuple(
            dict.fromkeys(n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        )
        around = set().union(*self.local_names)
        names = tuple(name for name in reads if name in around and name not in own)
        tree = self._lambda([*first, *names], copying.deepcopy(node), node)
        name = f"{self.function.__qualname__}.{kind}#{len(self.recipes)}"
        self.recipes.append(
            Recipe(
                name, located(ast.Expression(tree)), names, {}, self.function.__code__.co_filename,
                tuple(n for n in reads if n not in around and n not in own), {},
            )
        )  # fmt: skip
        return len(self.recipes) - 1

    def _recipe_at(self, number: int, node: ast.AST) -> ast.expr:
        table = ast.copy_location(ast.Name(id=_RECIPES, ctx=ast.Load()), node)
        index = ast.copy_location(ast.Constant(value=number), node)
        return ast.copy_location(ast.Subscript(value=table, slice=index, ctx=ast.Load()), node)

    def _values(self, number: int, node: ast.AST) -> ast.expr:
        """A function that gives the values of the names that the recipe reads."""
        names = [ast.copy_location(ast.Name(id=name, ctx=ast.Load()), node) for name in self.recipes[number].names]
        return self._lambda([], ast.copy_location(ast.Tuple(elts=list(names), ctx=ast.Load()), node), node)

    def _lambda(self, names: list[str], body: ast.expr, node: ast.AST) -> ast.Lambda:
        params = [ast.copy_location(ast.arg(arg=name), node) for name in names]
        args = ast.arguments(posonlyargs=[], args=params, kwonlyargs=[], kw_defaults=[], defaults=[])
        return ast.copy_location(ast.Lambda(args=args, body=body), node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        parts: list[ast.expr] = []
        values = [value.value for value in node.values if isinstance(value, ast.FormattedValue)]
        # Up to the last value whose evaluation may call something, each is formatted before the next is evaluated.
        num_first = max((i for i, v in enumerate(values) if not isinstance(v, (ast.Name, ast.Constant))), default=0)
        for value in node.values:
            if not isinstance(value, ast.FormattedValue):
                parts.append(value)
                continue
            spec: ast.expr = ast.Constant(value="") if value.format_spec is None else self.visit(value.format_spec)
            conversion = ast.Constant(value=chr(value.conversion) if value.conversion != -1 else "")
            triple = [self.visit(value.value), conversion, spec]
            if num_first > 0 and may_be_any(value.value):
                parts.append(self._hook("part", node, *triple))
            else:
                parts.append(ast.Tuple(elts=triple, ctx=ast.Load()))
            num_first -= 1
        for part in parts:
            ast.copy_location(part, node)
        return self._hook("fstring", node, *parts)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        is_any = may_be_any(node.left) or may_be_any(node.right)
        self.generic_visit(node)
        if isinstance(node.op, ast.Mod):
            return self._hook("mod", node, node.left, node.right)
        return self._binary(node, node.op, node.left, node.right) if is_any else node

    def _binary(self, node: ast.expr, op: ast.AST, left: ast.expr, right: ast.expr) -> ast.expr:
        """An operation that the class of an operand may define: on an object of the process, the run makes it."""
        return self._hook("binary", node, ast.copy_location(ast.Constant(value=type(op).__name__), node), left, right)

    def _test(self, node: ast.expr) -> ast.expr:
        """What is asked whether it holds, visited."""
        test: ast.expr = self.visit(node)
        return self._hook("test", node, test) if may_be_any(node) else test

    def _with_test(self, node: Any) -> Any:
        test, node.test = node.test, ast.copy_location(ast.Constant(value=None), node.test)
        self.generic_visit(node)
        node.test = self._test(test)
        return node

    visit_If = visit_IfExp = visit_Assert = _with_test

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        kinds = [may_be_any(value) for value in node.values]
        self.generic_visit(node)
        node.values = [
            self._hook("operand", value, value) if is_any else value
            for value, is_any in zip(node.values, kinds, strict=True)
        ]
        return node

    def visit_With(self, node: ast.With) -> ast.stmt:
        are_any = [may_be_any(item.context_expr) for item in node.items]
        self.generic_visit(node)
        for item, is_any in zip(node.items, are_any, strict=True):
            entered = item.context_expr
            item.context_expr = self._hook("manager", entered, entered) if is_any else entered
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        is_any = may_be_any(node.left) or any(map(may_be_any, node.comparators))
        self.generic_visit(node)
        if len(node.ops) != 1:  # a chain goes through the values' own operators
            node.left = self._hook("compared", node, node.left) if is_any else node.left
            node.comparators = [self._hook("compared", v, v) for v in node.comparators] if is_any else node.comparators
            return node
        op, left, right = node.ops[0], node.left, node.comparators[0]
        if isinstance(op, (ast.In, ast.NotIn)):
            return self._negated(self._hook("contains", node, left, right), isinstance(op, ast.NotIn))
        if isinstance(op, (ast.Is, ast.IsNot)) and isinstance(right, ast.Constant) and right.value is None:
            return self._negated(self._hook("is_none", node, left), isinstance(op, ast.IsNot))
        if isinstance(op, (ast.Is, ast.IsNot)):
            return self._negated(self._hook("is_same", node, left, right), isinstance(op, ast.IsNot))
        return self._binary(node, op, left, right) if is_any else node

    def _negated(self, call: ast.Call, negate: bool) -> ast.expr:
        return self._hook("negate", call, call) if negate else call

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        is_any = may_be_any(node.operand)
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            return self._hook("negate", node, node.operand)
        name = ast.copy_location(ast.Constant(value=type(node.op).__name__), node)
        return self._hook("unary", node, name, node.operand) if is_any else node

    # -- loops: `LoopDriver` goes round, and tells what the variables are in the body and behind the loop

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        names = self._set_in([node.target, *node.body])
        variables = self._carried(names, node)
        target = node.target
        is_plain = isinstance(target, (ast.Tuple, ast.List)) and not any(
            isinstance(e, ast.Starred) for e in target.elts
        )
        width = ast.Constant(value=len(target.elts) if is_plain else 0)  # type: ignore[attr-defined]
        own = {n.id for n in walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        num_own = ast.Constant(value=len(own))  # they are the first of `names`
        driver = self._hook("for_loop", node, self.visit(node.iter), variables, width, num_own)
        name = self._loop_name()
        self.loops.append(name)
        around, self.in_finally = self.in_finally, False
        body = self._block(node.body)
        self.in_finally = around
        self.loops.pop()
        node.iter = self._name(name, node)
        node.body = [*self._rebind(name, names, node, own), *body]
        return [self._assign(name, driver, node), node, self._ended(name, node), *self._rebind(name, names, node)]

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        names = self._set_in(node.body)
        name = self._loop_name()
        driver = self._hook("while_loop", node, self._carried(names, node))
        is_endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        again = self._test(copying.deepcopy(node.test))
        test = self._lambda([], self._test(node.test), node)
        self.loops.append(name)
        around, self.in_finally = self.in_finally, False
        body = self._block(node.body)
        self.in_finally = around
        self.loops.pop()
        node.test = self._call(name, "round", node, test, ast.Constant(value=is_endless))
        leave = [ast.Expr(value=self._call(name, "leave", node)), ast.Break()]
        inside = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=again), body=leave, orelse=[])
        check = ast.If(test=self._attribute(name, "is_symbolic", node), body=[inside], orelse=[])
        node.body = [*self._rebind(name, names, node), *([] if is_endless else [placed(check, node)]), *body]
        return [self._assign(name, driver, node), node, self._ended(name, node), *self._rebind(name, names, node)]

    def _ended(self, name: str, node: ast.stmt) -> ast.stmt:
        """What stands behind a loop: by then every `finally` around its `break` has run."""
        return placed(ast.Expr(value=self._call(name, "end_if_left", node)), node)

    def visit_Break(self, node: ast.Break) -> ast.stmt | list[ast.stmt]:
        if not self.loops:
            return node
        how = "leave_later" if self.in_finally else "leave"
        return [placed(ast.Expr(value=self._call(self.loops[-1], how, node)), node), node]

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            visited = self.visit(statement)
            found += visited if isinstance(visited, list) else [visited]
        return found

    def _loop_name(self) -> str:
        self.num_names += 1
        return f"__dslc_loop_{self.num_names}"

    def _set_in(self, body: Sequence[ast.AST]) -> list[str]:
        """The variables of the function that a loop's body sets, itself or by a function inside that it may call."""
        names = changed_in(body)
        if self.nonlocals and any(isinstance(n, ast.Call) for part in body for n in walk(part)):
            names += self.nonlocals
        return [n for n in dict.fromkeys(names) if n in self.settable[-1] or n.startswith("__dslc_")]

    def _carried(self, names: list[str], node: ast.stmt) -> ast.expr:
        """(name, whether code outside of the loop reads it, a function that gives its value) of each variable."""
        read = self.num_loads - num_loads(node)
        rows: list[ast.expr] = []
        for name in names:
            value = self._lambda([], self._name(name, node), node)
            rows.append(
                ast.Tuple(elts=[ast.Constant(value=name), ast.Constant(value=name in read), value], ctx=ast.Load())
            )
        return placed(ast.Tuple(elts=rows, ctx=ast.Load()), node)

    def _rebind(self, loop: str, names: list[str], node: ast.stmt, own: Iterable[str] = ()) -> list[ast.stmt]:
        """`if loop.has(i): name = loop.value(i)` for each variable, but for those that the loop itself sets."""
        found: list[ast.stmt] = []
        for number, name in enumerate(names):
            if name in own:
                continue
            value = self._call(loop, "value", node, ast.Constant(value=number))
            has = self._call(loop, "has", node, ast.Constant(value=number))
            found.append(placed(ast.If(test=has, body=[self._assign(name, value, node)], orelse=[]), node))
        return found

    def _name(self, name: str, node: ast.AST) -> ast.expr:
        return placed(ast.Name(id=name, ctx=ast.Load()), node)

    def _attribute(self, name: str, attribute: str, node: ast.AST) -> ast.expr:
        return placed(ast.Attribute(value=self._name(name, node), attr=attribute, ctx=ast.Load()), node)

    def _call(self, name: str, method: str, node: ast.AST, *args: ast.expr) -> ast.expr:
        return placed(ast.Call(func=self._attribute(name, method, node), args=list(args), keywords=[]), node)

    def _assign(self, name: str, value: ast.expr, node: ast.AST) -> ast.stmt:
        target = ast.Name(id=name, ctx=ast.Store())
        return placed(ast.Assign(targets=[target], value=value), node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        self.generic_visit(node)
        node.iter = self._hook("iterate", node.iter, node.iter)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            return self._hook("getitem", node, node.value, index(node.slice))
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        target = node.targets[0]
        is_taken_apart = len(node.targets) == 1 and isinstance(target, (ast.Tuple, ast.List)) and not has_star(target)
        if is_taken_apart and not isinstance(node.value, (ast.Tuple, ast.List)):
            width = ast.Constant(value=len(target.elts))  # type: ignore[attr-defined]
            node.value = self._hook("unpack", node, node.value, width)
        if len(node.targets) == 1 and isinstance(target, (ast.Subscript, ast.Attribute)):
            return ast.copy_location(ast.Expr(value=self._store(target, node.value)), node)
        # `s["a"], s["b"] = x, y`: the values go into names first, and from there into their places.
        stores: list[ast.stmt] = []
        node.targets = [self._through_names(target, stores) for target in node.targets]
        return [node, *stores]

    def _through_names(self, target: ast.expr, stores: list[ast.stmt]) -> ast.expr:
        if isinstance(target, (ast.Subscript, ast.Attribute)):
            self.num_names += 1
            name = f"__dslc_value_{self.num_names}"
            value = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
            stores.append(ast.copy_location(ast.Expr(value=self._store(target, value)), target))
            return ast.copy_location(ast.Name(id=name, ctx=ast.Store()), target)
        if isinstance(target, (ast.Tuple, ast.List)):
            target.elts = [self._through_names(part, stores) for part in target.elts]
        elif isinstance(target, ast.Starred):
            target.value = self._through_names(target.value, stores)
        return target

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        add = ast.Constant(value=type(node.op).__name__)
        if isinstance(node.target, ast.Name):
            if node.target.id == self.state:
                return node
            before = ast.copy_location(ast.Name(id=node.target.id, ctx=ast.Load()), node.target)
            after = self._hook("in_place", node, add, before, node.value)
            return ast.copy_location(ast.Assign(targets=[node.target], value=after), node)
        # `forks[0] += x`, `d[k] += x`: the object is read once, changed in place or replaced, and stored back.
        base, key = node.target.value, key_of(node.target)
        kind = ast.Constant(value="item" if isinstance(node.target, ast.Subscript) else "attr")
        return ast.copy_location(ast.Expr(value=self._hook("augment", node, base, key, kind, add, node.value)), node)

    def visit_Delete(self, node: ast.Delete) -> list[ast.stmt]:
        self.generic_visit(node)
        if all(isinstance(target, ast.Name) for target in node.targets):
            return [node]
        return [ast.copy_location(ast.Expr(value=self._hook("opaque_store", node)), node), node]

    def _store(self, target: ast.Subscript | ast.Attribute, value: ast.expr) -> ast.expr:
        name = "setitem" if isinstance(target, ast.Subscript) else "setattr"
        return self._hook(name, target, target.value, key_of(target), value)
