"""Objects of the user's process that a traced program names: functions it calls, values it captures.

The Program holds names only, so that it prints and saves; the table says what they stand for in this process. A name
is `module:qualname` where the object can be found by it, else `module:` and what it is, with a number if several are
alike.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from ..expressions import evaluate
from . import patterns
from .purity import is_pure

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None), range, type, types.ModuleType, types.FunctionType)


class HostTable:
    """Names and objects of one trace. `objects` is what the Program's names stand for."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def name_of(self, value: Any, hint: str = "") -> str:
        """The name of an object in the table, which it is put into if it is new. `hint`: "module:name" as read."""
        known = self._names.get(id(value))
        if known is not None and self.objects[known] is value:
            return known
        base = hint or _full_name(value)
        name, number = base, 1
        while name in self.objects and not _is_same(self.objects[name], value):
            number += 1
            name = f"{base}#{number}"
        self.objects[name] = value
        self._names[id(value)] = name
        return name

    def expr_name(self, fn: str) -> str:
        """The name of a function of the IR, for a place where its failure is caught."""
        name = f"expr:{fn}"
        self.objects.setdefault(name, partial(_evaluate, fn))
        return name


def _evaluate(fn: str, *args: Any) -> Any:
    return evaluate(fn, args)


def _full_name(value: Any) -> str:
    receiver = getattr(value, "__self__", None)
    if isinstance(receiver, type):  # `date.today`
        return f"{receiver.__module__}:{receiver.__qualname__}.{value.__name__}"
    if not hasattr(value, "__qualname__"):  # `os.environ`: where its class is, it may have a name
        for name, held in vars(sys.modules.get(type(value).__module__, object)).items():
            if held is value:
                return f"{type(value).__module__}:{name}"
    module = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or f"<{type(value).__qualname__}>"
    return f"{module}:{name}"


def module_name(function: Any) -> str | None:
    """The name of a method that a module has as a function: `random.choice`."""
    module = sys.modules.get(type(function.__self__).__module__)
    name = getattr(function, "__name__", "")
    return f"{module.__name__}:{name}" if module is not None and vars(module).get(name) == function else None


def is_harmless(name: str) -> bool:
    """Whether a plan may call this of Python's own without being told so: it only computes, or stores into an object
    of the program."""
    module = name.partition(":")[0]
    if name in _STORES or module == patterns.__name__:
        return True
    try:
        found = resolve(name)
    except KeyError:
        return False
    return module.partition(".")[0] in sys.stdlib_module_names and is_pure(found)


_STORES = frozenset({"builtins:setattr", "builtins:delattr"})


def _is_same(a: Any, b: Any) -> bool:
    """Bound methods are made anew each time they are read."""
    return a is b or (isinstance(a, types.MethodType) and isinstance(b, types.MethodType) and a == b)


def resolve(name: str) -> Any:
    """The object that a name of the form `module:qualname` stands for, if the module is loaded. Raises KeyError."""
    module, _, path = name.partition(":")
    if module == "expr":
        return partial(_evaluate, path)
    found: Any = sys.modules[module]
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise KeyError(name) from None
    return found


def mentions_language(function: types.FunctionType, is_ours: Callable[[Any], bool]) -> bool:
    """Whether a function, or a plain function that it calls, reads something of the language (a gen, a role, dslc).

    Such a function makes parts of a program, so a trace follows it; any other only computes.
    """
    todo, seen = [function], set()
    while todo:
        current = todo.pop()
        if id(current.__code__) in seen:
            continue
        seen.add(id(current.__code__))
        for value in _read_by(current):
            if is_ours(value) or _is_language_module(value):
                return True
            if isinstance(value, types.FunctionType) and value.__module__ == current.__module__:
                todo.append(value)
    return False


def _is_language_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.split(".")[0] == __name__.split(".")[0]


def _read_by(function: types.FunctionType) -> list[Any]:
    found: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        found += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return found


def is_immutable(value: Any) -> bool:
    """Whether a value made while tracing may be shared by all runs."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(is_immutable, value))
    return isinstance(value, _IMMUTABLE) or _is_value(value)


def _is_value(value: Any) -> bool:
    """Compiled patterns, decimals, dates, enums."""
    return type(value).__module__ in ("re", "decimal", "datetime", "fractions", "uuid", "pathlib") or hasattr(
        type(value), "__members__"
    )
