"""What the functions of an Expr mean: one Python function each, with its number of arguments.

The executor runs them on values, fold-text on constants, the verifier reads their arity. "get", "has" and "text" read
the state, so only the executor can run them; they are listed in `STATEFUL`. A list in an Expr is a tuple; it equals,
orders and contains as the user's list does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .ir import EXPR_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STATEFUL: frozenset[str] = frozenset({"get", "has", "text", "typed", "captured", "unordered"})
# Their value is True or False, whatever the operands give.
BOOLEAN: frozenset[str] = frozenset(
    {
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "contains",
        "startswith",
        "endswith",
        "not",
        "bool",
        "has",
        "is_none",
        "isdigit",
        "isalpha",
        "isalnum",
        "isspace",
        "isupper",
        "islower",
    }
)
# Their value is a string.
TEXTUAL: frozenset[str] = frozenset(
    {"text", "format", "str", "repr", "concat", "join", "strip", "lstrip", "rstrip", "lower", "upper", "title",
     "capitalize", "replace", "casefold", "zfill", "removeprefix", "removesuffix"}
)  # fmt: skip
# Their value is a string, a number or a truth value: nobody can change it later, whatever the operands are.
SCALAR: frozenset[str] = BOOLEAN | TEXTUAL | {"len", "int", "float", "find", "rfind", "count", "unordered"}


@dataclass(frozen=True, slots=True)
class Function:
    """A pure function: its least and greatest number of arguments (None: any), and what it computes.

    `is_total`: it cannot raise, whatever its arguments, so an unused one may go.
    """

    least: int
    most: int | None
    compute: Callable[..., Any] | None
    is_total: bool = False

    def takes(self, count: int) -> bool:
        return self.least <= count and (self.most is None or count <= self.most)

    @property
    def arity(self) -> str:
        """How many arguments, in words."""
        if self.most is None:
            return f"at least {self.least}" if self.least else "any number of"
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


def _plain(value: Any) -> Any:
    """Lists as tuples, so that a constant written as a list equals a value that is one."""
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


def _slice(value: Any, start: Any = None, stop: Any = None, step: Any = None) -> Any:
    return value[start:stop:step]


def _contains(container: Any, item: Any) -> bool:
    if isinstance(container, (list, tuple)):
        return _plain(item) in _plain(container)
    return item in container


def _add(left: Any, right: Any) -> Any:
    return [*left, *right] if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) else left + right


def _and(*values: Any) -> Any:
    result: Any = True
    for result in values:
        if not result:
            break
    return result


def _or(*values: Any) -> Any:
    result: Any = False
    for result in values:
        if result:
            break
    return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a Host with `catches` came to: a result, or an exception that was caught."""

    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Unset:
    """What a Python variable holds that is not set yet."""

    name: str


def _unpack(value: Any, count: int) -> tuple[Any, ...]:
    items = tuple(iter(value))  # `tuple(value)` would ask an object of the user's for its length too
    if len(items) != count:
        what = "too many values" if len(items) > count else "not enough values"
        raise ValueError(f"{what} to unpack (expected {count}, got {len(items)})")
    return items


def _part(text: Any, source: str, number: int, kind: str = "str") -> Any:
    from .constraints.sequence import part_of

    return part_of(text, source, number, kind)


def _dict(*items: Any) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _method(name: str) -> Callable[..., Any]:
    def call(value: Any, *args: Any) -> Any:
        return getattr(value, name)(*args)

    return call


FUNCTIONS: dict[str, Function] = {
    "get": Function(1, 1, None),
    "has": Function(1, 1, None, is_total=True),
    "text": Function(0, 0, None, is_total=True),
    "format": Function(1, 2, lambda value, spec="": format(value, spec)),
    "str": Function(1, 1, str),
    "repr": Function(1, 1, repr),
    # An f-string: each part as format(part, "").
    "concat": Function(0, None, lambda *parts: "".join(format(part, "") for part in parts)),
    "join": Function(2, 2, lambda separator, parts: separator.join(parts)),
    "slice": Function(2, 4, _slice),
    "index": Function(2, 2, lambda value, key: value[key]),
    "replace": Function(3, 4, _method("replace")),
    "split": Function(1, 3, _method("split")),
    "strip": Function(1, 2, _method("strip")),
    "lstrip": Function(1, 2, _method("lstrip")),
    "rstrip": Function(1, 2, _method("rstrip")),
    "lower": Function(1, 1, _method("lower")),
    "upper": Function(1, 1, _method("upper")),
    "title": Function(1, 1, _method("title")),
    "capitalize": Function(1, 1, _method("capitalize")),
    "startswith": Function(2, 4, _method("startswith")),
    "endswith": Function(2, 4, _method("endswith")),
    "find": Function(2, 4, _method("find")),
    "count": Function(2, 4, _method("count")),
    "eq": Function(2, 2, lambda a, b: _plain(a) == _plain(b), is_total=True),
    "ne": Function(2, 2, lambda a, b: _plain(a) != _plain(b), is_total=True),
    "lt": Function(2, 2, lambda a, b: _plain(a) < _plain(b)),
    "le": Function(2, 2, lambda a, b: _plain(a) <= _plain(b)),
    "gt": Function(2, 2, lambda a, b: _plain(a) > _plain(b)),
    "ge": Function(2, 2, lambda a, b: _plain(a) >= _plain(b)),
    "contains": Function(2, 2, _contains),
    "len": Function(1, 1, len),
    "int": Function(1, 2, int),
    "float": Function(1, 1, float),
    "bool": Function(1, 1, bool, is_total=True),
    "parse_json": Function(1, 1, json.loads),
    "and": Function(1, None, _and, is_total=True),
    "or": Function(1, None, _or, is_total=True),
    "not": Function(1, 1, lambda value: not value, is_total=True),
    "add": Function(2, 2, _add),
    "sub": Function(2, 2, lambda a, b: a - b),
    "mul": Function(2, 2, lambda a, b: a * b),
    "neg": Function(1, 1, lambda value: -value),
    "mod": Function(2, 2, lambda a, b: a % b),
    "div": Function(2, 2, lambda a, b: a / b),
    "floordiv": Function(2, 2, lambda a, b: a // b),
    "pow": Function(2, 2, lambda a, b: a**b),
    "is_none": Function(1, 1, lambda value: value is None, is_total=True),
    "partition": Function(2, 2, _method("partition")),
    "rpartition": Function(2, 2, _method("rpartition")),
    "splitlines": Function(1, 2, _method("splitlines")),
    "rsplit": Function(1, 3, _method("rsplit")),
    "removeprefix": Function(2, 2, _method("removeprefix")),
    "removesuffix": Function(2, 2, _method("removesuffix")),
    "rfind": Function(2, 4, _method("rfind")),
    "casefold": Function(1, 1, _method("casefold")),
    "zfill": Function(2, 2, _method("zfill")),
    **{
        name: Function(1, 1, _method(name))
        for name in ("isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower")
    },
    "attr": Function(2, 2, getattr),
    "tuple": Function(0, None, lambda *items: items, is_total=True),
    "dict": Function(0, None, _dict),
    "range": Function(1, 3, range),
    "captured": Function(1, 1, None, is_total=True),
    "typed": Function(1, 1, None),
    "unordered": Function(2, 2, None),
    "unpack": Function(2, 2, _unpack),
    "unset": Function(1, 1, Unset, is_total=True),
    "part": Function(3, 4, _part),
    "error_of": Function(1, 1, lambda outcome: outcome.error),
    "result_of": Function(1, 1, lambda outcome: outcome.result),
}


def _as_bool(compute: Callable[..., Any]) -> Callable[..., bool]:
    return lambda *args: bool(compute(*args))


for _name in BOOLEAN - STATEFUL:
    _function = FUNCTIONS[_name]
    if _function.compute is not None:
        FUNCTIONS[_name] = replace(_function, compute=_as_bool(_function.compute))

if FUNCTIONS.keys() != EXPR_FUNCTIONS:
    raise TypeError(f"expressions without a rule, or not in the IR: {sorted(FUNCTIONS.keys() ^ EXPR_FUNCTIONS)}")


def evaluate(fn: str, args: Sequence[Any]) -> Any:
    """The value of a pure function on plain values. Raises what Python raises; ValueError for one that reads state."""
    function = FUNCTIONS[fn]
    if function.compute is None:
        raise ValueError(f"{fn!r} reads the state: only an executor can run it")
    return function.compute(*args)
