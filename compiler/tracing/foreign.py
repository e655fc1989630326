"""Operations on objects of the user's process: `len(CATALOGUE)`, f"{persona}", `ROWS["x"]`, `if settings:`.

What such an operation does is a method of the object's class, or reads what may have changed by the time of the run. So
a traced copy does not make it: the run does, once, where it stands. A method that only computes is followed, as plain
functions are: what it reads becomes guards. Plain values, and lists, tuples, dicts and sets of them, are read at once:
their values are guarded as a whole.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .host import is_immutable
from .purity import TRACEABLE, is_pure_module, is_users_function
from .symbols import Symbol

if TYPE_CHECKING:
    from .tracer import PathTracer

_PLAIN = frozenset(
    {str, int, float, bool, complex, bytes, type(None), list, tuple, dict, set, frozenset, range, slice, Symbol,
     types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type}
)  # fmt: skip
_CHANGEABLE = frozenset({list, dict, set})
_TYPING = frozenset({"typing", "typing_extensions"})  # Literal[...], Optional[...]: types, which nobody changes
_GUARDED = (list, tuple, dict, set, frozenset)  # a guard compares all that they hold

_ITERATION = ("__iter__", "__next__", "__getitem__")
_ORDER = ("__lt__", "__gt__", "__le__", "__ge__", "__eq__")
_TEXT = ("__format__", "__str__", "__repr__")
_ARITHMETIC = tuple(
    f"__{side}{name}__"
    for name in "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split()
    for side in ("", "r")
)
ITERATION = _ITERATION
CONTEXT = ("__enter__",)
TRUTH = ("__bool__", "__len__")
# What Python's own functions ask of the class of their arguments. Those not listed may ask for anything.
_ASKED: dict[Any, tuple[str, ...]] = {
    len: ("__len__",), bool: TRUTH, str: ("__str__", "__repr__"), repr: ("__repr__",), format: _TEXT,
    operator.getitem: ("__missing__", "__getitem__"), operator.contains: ("__contains__", "__eq__", *_ITERATION),
    operator.not_: TRUTH, operator.neg: ("__neg__",), operator.pos: ("__pos__",), operator.invert: ("__invert__",),
    operator.eq: ("__eq__",), operator.ne: ("__ne__", "__eq__"),
    **dict.fromkeys((operator.lt, operator.le, operator.gt, operator.ge), _ORDER),
    **dict.fromkeys((list, tuple, set, frozenset, iter, next, zip, enumerate, reversed, dict), (*_ITERATION, "keys")),
}  # fmt: skip
_GO_INSIDE = frozenset({str, repr, format, set, frozenset, operator.contains})  # they ask what a container holds
_ITERATING = frozenset(  # methods of Python's own containers that go over their arguments
    "join extend update union intersection difference symmetric_difference issubset issuperset isdisjoint".split()
)
_ASKS_NOTHING = frozenset({isinstance, issubclass, type, id, callable, object, slice, getattr, hasattr, property})
_ANYTHING = (
    *_ITERATION, *_ORDER, *_TEXT, *_ARITHMETIC, *TRUTH, *CONTEXT, "__contains__", "__hash__", "__int__", "__float__",
    "__index__", "__abs__", "__round__", "__neg__", "__pos__", "__invert__", "__bytes__", "__copy__", "__deepcopy__",
    "__post_init__", "__missing__", "__call__",
)  # fmt: skip
# The method that an operation on its first operand comes to, and what it must give to be followed.
_METHODS: dict[Any, tuple[tuple[str, ...], tuple[type, ...] | None]] = {
    len: (("__len__",), (int,)), bool: (("__bool__", "__len__"), (bool, int)), str: (("__str__", "__repr__"), (str,)),
    repr: (("__repr__",), (str,)), format: (("__format__", "__str__", "__repr__"), (str,)),
    operator.getitem: (("__getitem__",), None), operator.contains: (("__contains__",), (bool,)),
}  # fmt: skip

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mult": operator.mul, "Div": operator.truediv, "MatMult": operator.matmul,
    "FloorDiv": operator.floordiv, "Mod": operator.mod, "Pow": operator.pow, "BitAnd": operator.and_,
    "BitOr": operator.or_, "BitXor": operator.xor, "LShift": operator.lshift, "RShift": operator.rshift,
    "Eq": operator.eq, "NotEq": operator.ne, "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt,
    "GtE": operator.ge,
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {"USub": operator.neg, "UAdd": operator.pos, "Invert": operator.invert}


def _is_ours(kind: type) -> bool:
    """Whether a class is the language's or the tracer's."""
    return bool(getattr(kind, TRACEABLE, False)) or kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def is_foreign(tracer: PathTracer, value: Any, asked: Sequence[str]) -> bool:
    """Whether one of these methods of the value is code that is not ours, or reads what no guard holds."""
    kind = type(value)
    if kind in _CHANGEABLE:
        tracer.note_looked_at(value)
        return tracer.is_changed(value)
    if kind in _PLAIN or _is_ours(kind):
        return False
    owner = next((cls for cls in kind.__mro__ if any(name in cls.__dict__ for name in asked)), object)
    if owner is object:
        return False
    if owner.__module__ in _TYPING:
        return False
    if not is_pure_module(owner.__module__):
        return True
    if not tracer.is_captured(value) or is_immutable(value):
        return False
    return not isinstance(value, _GUARDED) or "__missing__" in owner.__dict__


def is_foreign_call(tracer: PathTracer, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of one of Python's own functions would run code that is not ours."""
    try:
        if function in _ASKS_NOTHING:
            return False
        asked = _ASKED.get(function)
    except TypeError:  # unhashable
        return False
    receiver = getattr(function, "__self__", None)
    values = [*args, *kwargs.values()] if kwargs else args
    if isinstance(receiver, str) and function.__name__ in ("format", "format_map"):
        return any(is_foreign(tracer, part, _TEXT) for value in values for part in _parts(value))
    if isinstance(receiver, (str, *_GUARDED)) and function.__name__ in _ITERATING:
        return any(is_foreign(tracer, value, _ITERATION) for value in values)
    if receiver is not None and not isinstance(receiver, (types.ModuleType, type)):
        return is_foreign(tracer, receiver, _ANYTHING)
    if asked is not None and function not in _GO_INSIDE:
        return any(is_foreign(tracer, value, asked) for value in values)
    return any(is_foreign(tracer, part, asked or _ANYTHING) for value in values for part in _parts(value))


def _parts(value: Any, depth: int = 3) -> Iterator[Any]:
    """The value, and what it holds if it is a container of Python's."""
    yield value
    if depth and isinstance(value, _GUARDED):
        for part in value.values() if isinstance(value, dict) else value:
            if type(part) not in (str, int, float, bool):
                yield from _parts(part, depth - 1)


def asked_by(function: Any) -> Sequence[str]:
    """The methods that an operation asks for."""
    return _ASKED.get(function, _ANYTHING)


def operate(tracer: PathTracer, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """An operation on an object of the process: followed where it only computes, else made by the run."""
    found = _followed(tracer, function, args) if not kwargs else None
    return found[0] if found is not None else tracer.host_call(function, args, kwargs)


def _followed(tracer: PathTracer, function: Any, args: Sequence[Any]) -> tuple[Any] | None:
    names, kinds = _METHODS.get(function, ((), None))
    if function is format and args[1:] not in ((), ("",)):
        return None
    method = next((m for name in names if (m := _defined(type(args[0]), name)) is not None), None)
    if method is None or not is_users_function(method):
        return None
    given = args if getattr(method, "__name__", "") in ("__format__", "__getitem__", "__contains__") else args[:1]
    found = tracer.attempt(lambda: tracer.follow(method, given, {}))
    if found is None or (kinds is not None and type(found[0]) not in kinds):
        return None
    return (bool(found[0]),) if function is bool else found


def _defined(kind: type, name: str) -> Any:
    """What a class other than `object` defines under a name. (An Enum's `__format__` is its `__str__`.)"""
    known = (cls for cls in kind.__mro__ if cls is not object and (name, cls.__module__) != ("__format__", "enum"))
    return next((cls.__dict__[name] for cls in known if name in cls.__dict__), None)


def attribute(tracer: PathTracer, owner: Any, name: str) -> tuple[Any] | None:
    """The attribute of an object of the process, if reading it runs code: a property, `__getattr__`. Else None."""
    kind = type(owner)
    if kind in _PLAIN or isinstance(owner, type) or _is_ours(kind):
        return None
    found = _defined(kind, name)
    if isinstance(found, property):
        if is_pure_module(kind.__module__):
            return None
        get = found.fget
        made = None
        if get is not None and is_users_function(get):
            made = tracer.attempt(lambda: tracer.follow(get, (owner,), {}))
        return made if made is not None else (tracer.host_call(getattr, (owner, name)),)
    if isinstance(found, cached_property):
        is_active = name not in vars(owner)
    elif found is not None:
        is_active = isinstance(getattr(type(found), "__get__", None), types.FunctionType) and not is_pure_module(
            type(found).__module__
        )
    else:
        is_active = _defined(kind, "__getattr__") is not None and name not in getattr(owner, "__dict__", ())
    getter = _defined(kind, "__getattribute__")
    is_active |= isinstance(getter, types.FunctionType) and not is_pure_module(kind.__module__)
    return (tracer.host_call(getattr, (owner, name)),) if is_active else None
