"""Which foreign calls a traced copy may make: those that are known to do nothing but compute."""

from __future__ import annotations

import builtins
import sys
import sysconfig
import types
from functools import lru_cache
from pathlib import Path
from typing import Any

HOOKS = "__dslc_hooks__"  # the name of the hooks in the globals of a rewritten copy
TRACEABLE = "__dslc_traceable__"  # set to True on our own functions, and on classes whose methods are ours

_PURE_BUILTINS = frozenset(
    getattr(builtins, name)
    for name in (
        "abs all any bin bool bytes callable chr complex dict divmod enumerate filter float format frozenset getattr "
        "hasattr hash hex int isinstance issubclass iter len list map max min next oct ord pow range repr reversed "
        "round set slice sorted str sum tuple type zip object"
    ).split()
)
_PURE_MODULES = frozenset(
    "math cmath json json.decoder json.encoder _json re textwrap string itertools functools _functools operator "
    "_operator collections _collections copy html unicodedata statistics fractions decimal _decimal dataclasses enum "
    "difflib "
    "base64 binascii hashlib _hashlib types typing builtins keyword bisect _bisect heapq _heapq".split()
)
_CALLING = frozenset({"sorted", "min", "max", "iter", "reduce", "sub", "subn"})
_VALUE_MODULES = frozenset("abc datetime uuid pathlib zoneinfo collections.abc contextlib".split())
_MUTATORS = frozenset(
    "append extend insert pop remove clear sort reverse update setdefault popitem add discard appendleft extendleft "
    "popleft rotate difference_update intersection_update symmetric_difference_update __setitem__ __delitem__ "
    "send throw close".split()
)
_MUTABLE = (list, dict, set, bytearray)
_STDLIB = tuple(str(Path(p).resolve()) for p in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if p)
_SITE = tuple(str(Path(p).resolve()) for p in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} if p)


def is_pure(function: Any) -> bool:
    """Whether calling `function` can have no effect outside of its result (and of its receiver: see `mutates`)."""
    try:
        if function in _PURE_BUILTINS:
            return True
    except TypeError:  # unhashable
        return False
    if isinstance(function, type):
        return issubclass(function, BaseException) or function.__module__ in _PURE_MODULES
    receiver = getattr(function, "__self__", None)
    if receiver is not None and not isinstance(receiver, types.ModuleType):
        owner = receiver if isinstance(receiver, type) else type(receiver)
        return owner.__module__ in _PURE_MODULES
    if isinstance(function, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        module = getattr(function, "__module__", None) or getattr(
            getattr(function, "__objclass__", None), "__module__", None
        )
        if module == "builtins" and not isinstance(function, types.MethodDescriptorType):
            return False  # print, open, input, exec ...: the pure ones are listed above
        return module in _PURE_MODULES
    return isinstance(function, types.FunctionType) and function.__module__ in _PURE_MODULES


def is_pure_module(name: Any) -> bool:
    """Whether the classes of a module do nothing but compute: Python's own."""
    return name in _PURE_MODULES or name in _VALUE_MODULES


def calls_back(function: Any) -> bool:
    """Whether a pure function calls functions among its arguments."""
    if isinstance(function, type):
        return function in (map, filter) or function.__module__ == "itertools"
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", None)
    if getattr(function, "__self__", None) is not None and module != "builtins":
        return name in ("sort", "sub", "subn")
    return name in _CALLING or module in ("heapq", "_heapq", "bisect", "_bisect", "_functools", "itertools")


def mutates(function: Any) -> bool:
    """Whether a pure call changes its receiver (`items.append`)."""
    name = getattr(function, "__name__", "")
    receiver = getattr(function, "__self__", None)
    return name in _MUTATORS and receiver is not None and not isinstance(receiver, (str, bytes, tuple, frozenset))


def is_users_function(function: Any) -> bool:
    """Whether this is a plain Python function of the user's own code, which a traced copy may follow into."""
    if not isinstance(function, types.FunctionType):
        return False
    file = function.__code__.co_filename
    if file.startswith("<") and not _has_source(file):
        return False
    return not _is_installed(file) and function.__module__.split(".")[0] != __name__.split(".")[0]


def is_of_python(function: Any) -> bool:
    """Whether this is a function or method of the standard library or of the interpreter itself."""
    if isinstance(function, types.MethodType):
        function = function.__func__
    if isinstance(function, types.FunctionType):
        file = function.__code__.co_filename
        return _is_installed(file) and not str(Path(file).resolve()).startswith(_SITE)
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return module.partition(".")[0] in sys.stdlib_module_names


@lru_cache(4096)
def _is_installed(file: str) -> bool:
    """Whether a file is of the standard library, or of a package."""
    path = str(Path(file).resolve()) if not file.startswith("<") else file
    return path.startswith(_SITE) or path.startswith(_STDLIB)


def _has_source(file: str) -> bool:
    linecache = sys.modules.get("linecache")
    return linecache is not None and file in getattr(linecache, "cache", {})


def reachable_mutables(roots: list[Any], limit: int = 20_000) -> dict[int, Any]:
    """The mutable containers reachable from values a function captures, by id: a traced copy must not change them."""
    found: dict[int, Any] = {}
    todo = list(roots)
    while todo and len(found) < limit:
        value = todo.pop()
        if isinstance(value, (*_MUTABLE, tuple, frozenset)):
            if id(value) in found:
                continue
            found[id(value)] = value
            todo.extend(value.values() if isinstance(value, dict) else () if isinstance(value, bytearray) else value)
        elif isinstance(value, (types.ModuleType, type, types.FunctionType, str, bytes, int, float)) or value is None:
            continue
        elif hasattr(value, "__dict__") and id(value) not in found:
            found[id(value)] = value
            todo.extend(vars(value).values())
        elif not isinstance(value, (complex, range, slice, types.BuiltinFunctionType)):
            found[id(value)] = value  # a deque, an iterator, an object with slots: what is in it is not gone through
    return found
