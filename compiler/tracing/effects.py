"""What a function of the user's may change, as its source tells: names that it sets, objects that it may store into.

A program that reads such an object itself must look at it when it runs, not when it is traced. A use that only looks
(`TABLE[key]`, `for row in ROWS`, `len(ROWS)`) changes nothing; whatever is not known to only look may change.
"""

from __future__ import annotations

import ast
import dis
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .purity import is_of_python, is_pure, is_pure_module, is_users_function
from .source import statements

_PLAIN = (str, int, float, bool, complex, bytes, type(None))
_CONTAINERS = (list, dict, set, tuple, frozenset)
_LIMIT = 256  # functions whose source is read for one; of the others it is only known what they read and set


class Effects(NamedTuple):
    """What calling a function may change in the process."""

    objects: tuple[Any, ...]  # and what they hold
    names: tuple[tuple[int, str], ...]  # globals that it sets: the id of their dict, and the name


class _Uses(NamedTuple):
    """What a function's source does with the names it reads; of code objects, as others may share them."""

    handed: dict[str, frozenset[int]]  # by name: at which depths parts of its value may be changed, or handed on
    sets: tuple[str, ...]  # globals and variables of functions around


_known: weakref.WeakKeyDictionary[types.CodeType, _Uses] = weakref.WeakKeyDictionary()


def effects_of(function: Any) -> Effects:
    """The effects of a function, method or class of the user's, and of those that it reads."""
    objects: list[Any] = []
    names: list[tuple[int, str]] = []
    todo, seen = [_plain_function(function)], set[int]()  # not of code: closures share theirs
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen or not is_users_function(current):
            continue
        seen.add(id(current))
        uses = _uses(current) if len(seen) <= _LIMIT else _without_source(current)
        names += [(id(current.__globals__), name) for name in uses.sets]
        for name, value in _read_by(current):
            if isinstance(value, (types.FunctionType, types.MethodType)) or _is_users_class(value):
                todo.append(_plain_function(value))
            elif not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)) and _may_change(
                name, value, uses
            ):
                objects.append(value)
    return Effects(tuple(objects), tuple(names))


def changes_argument(function: Any, position: int | str, value: Any) -> bool:
    """Whether a call may change what it is given at a position, or under a name."""
    plain = _plain_function(function)
    if plain is None or not is_users_function(plain):
        if not is_of_python(function):
            return True
        return position == 0 and getattr(function, "__name__", "") in _STORING
    if not isinstance(value, _CONTAINERS):
        return True
    code = plain.__code__
    if isinstance(position, int):
        position += 0 if plain is function else 1  # `self`
        if position >= code.co_argcount:
            return True
        position = code.co_varnames[position]
    return _may_change(position, value, _uses(plain))


def _may_change(name: str, value: Any, uses: _Uses) -> bool:
    """Whether something in the value that can be changed is stored into or handed on."""
    if isinstance(value, _PLAIN):
        return False
    depths = uses.handed.get(name, _ALL)
    if not isinstance(value, _CONTAINERS):
        return bool(depths)
    return any(not _is_plain_at(value, depth) for depth in depths)


def _is_plain_at(value: Any, depth: int) -> bool:
    """Whether nothing that a container holds at this depth can be changed; 0 is the container itself."""
    if isinstance(value, _PLAIN):
        return True
    if depth == 0 or not isinstance(value, _CONTAINERS):
        return False
    return all(_is_plain_at(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))


def _is_users_class(value: Any) -> bool:
    return isinstance(value, type) and not is_pure_module(value.__module__) and "__init__" in vars(value)


def _plain_function(value: Any) -> types.FunctionType | None:
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, type):
        value = vars(value).get("__init__")
    value = getattr(value, "__wrapped__", value)
    return value if isinstance(value, types.FunctionType) else None


def _read_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


def _uses(function: types.FunctionType) -> _Uses:
    found = _known.get(function.__code__)
    if found is None:
        try:
            tree = statements(function)[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            found = _without_source(function)
        else:
            found = _Reader(function, tree).uses()
        _known[function.__code__] = found
    return found


def _without_source(function: types.FunctionType) -> _Uses:
    """It may do anything with what it reads."""
    sets: dict[str, None] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        sets.update(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname in _SETTING))
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return _Uses({}, tuple(sets))


_SETTING = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})


class _Reader:
    """Goes from each name that is read to what becomes of its value."""

    def __init__(self, function: types.FunctionType, tree: ast.AST) -> None:
        self.function = function
        self.tree = tree
        self.around = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.names: dict[str, list[ast.Name]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                self.names.setdefault(node.id, []).append(node)

    def uses(self) -> _Uses:
        sets = [name for n in ast.walk(self.tree) if isinstance(n, (ast.Global, ast.Nonlocal)) for name in n.names]
        args = [n.arg for n in ast.walk(self.tree) if isinstance(n, ast.arg)]
        return _Uses({name: self._of_name(name, 0) for name in dict.fromkeys([*self.names, *args])}, tuple(sets))

    def _of_name(self, name: str, depth: int, seen: frozenset[tuple[str, int]] = frozenset()) -> frozenset[int]:
        """At which depths something is handed on of an object that is, or is held by, what the name stands for."""
        if (name, depth) in seen or depth > _DEEPEST:
            return _NOTHING
        reads = [node for node in self.names.get(name, ()) if isinstance(node.ctx, ast.Load)]
        return _all_of(self._of_use(node, depth, seen | {(name, depth)}) for node in reads)

    def _of_use(self, node: ast.expr, depth: int, seen: frozenset[tuple[str, int]]) -> frozenset[int]:
        """The same of an expression whose value stands at this depth in the object."""
        around = self.around.get(node)
        if isinstance(around, (ast.Compare, ast.FormattedValue, ast.UnaryOp, ast.If, ast.While, ast.Assert, ast.Expr)):
            return _NOTHING
        if isinstance(around, ast.IfExp) and node is around.test:
            return _NOTHING
        if isinstance(around, ast.Subscript):
            if node is not around.value:
                return _NOTHING
            is_read = isinstance(around.ctx, ast.Load)
            return self._of_use(around, depth + (not isinstance(around.slice, ast.Slice)), seen) if is_read else _ALL
        if isinstance(around, (ast.For, ast.comprehension)) and node is around.iter:
            names = [n.id for n in ast.walk(around.target) if isinstance(n, ast.Name)]
            return _all_of(self._of_name(name, depth + 1, seen) for name in names)
        if isinstance(around, ast.Assign) and all(isinstance(target, ast.Name) for target in around.targets):
            names = [target.id for target in around.targets if isinstance(target, ast.Name)]
            return _all_of(self._of_name(name, depth, seen) for name in names)
        if isinstance(around, ast.Attribute):
            return self._of_method(around, depth, seen)
        if isinstance(around, ast.Call) and node is not around.func:
            return self._of_argument(around, depth, seen)
        if isinstance(around, (ast.BinOp, ast.Starred)):  # a new container of the same parts, or a new string
            return frozenset({depth + 1})
        return frozenset({depth}) if depth else _ALL

    def _of_method(self, attribute: ast.Attribute, depth: int, seen: frozenset[tuple[str, int]]) -> frozenset[int]:
        call = self.around.get(attribute)
        if not isinstance(attribute.ctx, ast.Load):
            return _ALL
        if isinstance(call, ast.Call) and call.func is attribute:
            if attribute.attr in ("items", "values", "keys", "copy"):
                return self._of_use(call, depth, seen)
            if attribute.attr == "get":
                return self._of_use(call, depth + 1, seen)
            return _NOTHING if attribute.attr in _LOOKING else frozenset({depth})
        return self._of_use(attribute, depth, seen)

    def _of_argument(self, call: ast.Call, depth: int, seen: frozenset[tuple[str, int]]) -> frozenset[int]:
        function = call.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Constant):
            return _NOTHING  # `", ".join(ROWS)`
        known = self._value_of(function)
        if known is not None and is_pure(known) and known.__name__ not in _STORING:
            return _NOTHING if known in _TELLING else self._of_use(call, depth, seen)
        return _NOTHING if known is print else frozenset({depth})

    def _value_of(self, function: ast.expr) -> Any:
        """The global or builtin that is called, where it is known."""
        if isinstance(function, ast.Name):
            if function.id in self.function.__code__.co_varnames:
                return None
            builtins = self.function.__globals__.get("__builtins__", {})
            table = builtins if isinstance(builtins, dict) else vars(builtins)
            return self.function.__globals__.get(function.id, table.get(function.id))
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            module = self.function.__globals__.get(function.value.id)
            return getattr(module, function.attr, None) if isinstance(module, types.ModuleType) else None
        return None


def _all_of(found: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*found)


_DEEPEST = 6
_NOTHING: frozenset[int] = frozenset()
_ALL = frozenset(range(_DEEPEST + 1))
_TELLING = (len, str, repr, bool, sum, any, all, format, isinstance, hash)  # what they give holds no part
_LOOKING = frozenset(  # methods that change nothing and give none of it
    "index count join strip split lower upper startswith endswith format replace title find encode isdigit".split()
)
# Python's own functions that change their first argument.
_STORING = frozenset(
    "heappush heappop heapify heappushpop heapreplace insort insort_left insort_right setitem delitem setattr delattr "
    "next shuffle iadd iconcat iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor".split()
)
