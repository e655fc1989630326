"""Symbolic values: what a traced program holds in place of arguments and generated text.

A Symbol stands for one `Ref`. Python's operators on it record an `Expr`; its truth value is a decision that the tracer
explores both ways. What Python forces to be plain (an f-string, `len`, `int`, `", ".join`) is handled by the hooks of
the rewritten copy (`rewrite`); reached without them it is a break, never a placeholder inside text.
"""

from __future__ import annotations

import operator
from typing import Any, NoReturn, Protocol

from ..ir import Operand, Ref


class Recorder(Protocol):
    """What a Symbol needs of the tracer that made it."""

    def expr(self, fn: str, *args: Any) -> Symbol:
        """Record a pure computation on plain values and symbols."""

    def operate(self, function: Any, *args: Any) -> Symbol:
        """Record an operator that has no Expr."""

    def decide(self, symbol: Symbol) -> bool:
        """The truth value of a symbol on the path being explored."""

    def break_here(self, reason: str) -> NoReturn:
        """End the path: only the Python body can go on."""


class Symbol:
    """A value that is not known yet. Unhashable; compares by recording `eq`."""

    __slots__ = ("recorder", "ref")

    def __init__(self, recorder: Recorder, ref: Ref) -> None:
        self.recorder = recorder
        self.ref = ref

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self.recorder.decide(self)

    def __eq__(self, other: object) -> Any:
        return self.recorder.expr("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return self.recorder.expr("ne", self, other)

    def __lt__(self, other: Any) -> Any:
        return self.recorder.expr("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return self.recorder.expr("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return self.recorder.expr("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return self.recorder.expr("ge", self, other)

    def __add__(self, other: Any) -> Any:
        if getattr(type(other), "__dslc_traceable__", False):
            return NotImplemented  # `value + gen(...)`: the language's own expressions join themselves
        return self.recorder.expr("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.recorder.expr("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.recorder.expr("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.recorder.expr("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.recorder.expr("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.recorder.expr("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.recorder.expr("div", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self.recorder.expr("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self.recorder.expr("floordiv", other, self)

    def __pow__(self, other: Any) -> Any:
        return self.recorder.expr("pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self.recorder.expr("pow", other, self)

    def __neg__(self) -> Any:
        return self.recorder.expr("neg", self)

    def __pos__(self) -> Any:
        return self.recorder.operate(operator.pos, self)

    def __invert__(self) -> Any:
        return self.recorder.operate(operator.invert, self)

    def __mod__(self, other: Any) -> Any:
        return self.recorder.expr("mod", self, other)

    def __or__(self, other: Any) -> Any:
        return self.recorder.operate(operator.or_, self, other)

    def __ror__(self, other: Any) -> Any:
        return self.recorder.operate(operator.or_, other, self)

    def __and__(self, other: Any) -> Any:
        return self.recorder.operate(operator.and_, self, other)

    def __rand__(self, other: Any) -> Any:
        return self.recorder.operate(operator.and_, other, self)

    def __xor__(self, other: Any) -> Any:
        return self.recorder.operate(operator.xor, self, other)

    def __rxor__(self, other: Any) -> Any:
        return self.recorder.operate(operator.xor, other, self)

    def __lshift__(self, other: Any) -> Any:
        return self.recorder.operate(operator.lshift, self, other)

    def __rlshift__(self, other: Any) -> Any:
        return self.recorder.operate(operator.lshift, other, self)

    def __rshift__(self, other: Any) -> Any:
        return self.recorder.operate(operator.rshift, self, other)

    def __rrshift__(self, other: Any) -> Any:
        return self.recorder.operate(operator.rshift, other, self)

    def __matmul__(self, other: Any) -> Any:
        return self.recorder.operate(operator.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.recorder.operate(operator.matmul, other, self)

    def __contains__(self, item: object) -> bool:
        return bool(self.recorder.expr("contains", self, item))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self.recorder.expr("slice", self, key.start, key.stop, key.step)
        return self.recorder.expr("index", self, key)

    def strip(self, chars: Any = None) -> Any:
        return self.recorder.expr("strip", self, chars)

    def lstrip(self, chars: Any = None) -> Any:
        return self.recorder.expr("lstrip", self, chars)

    def rstrip(self, chars: Any = None) -> Any:
        return self.recorder.expr("rstrip", self, chars)

    def lower(self) -> Any:
        return self.recorder.expr("lower", self)

    def upper(self) -> Any:
        return self.recorder.expr("upper", self)

    def title(self) -> Any:
        return self.recorder.expr("title", self)

    def capitalize(self) -> Any:
        return self.recorder.expr("capitalize", self)

    def startswith(self, prefix: Any) -> Any:
        return self.recorder.expr("startswith", self, prefix)

    def endswith(self, suffix: Any) -> Any:
        return self.recorder.expr("endswith", self, suffix)

    def find(self, part: Any) -> Any:
        return self.recorder.expr("find", self, part)

    def count(self, part: Any) -> Any:
        return self.recorder.expr("count", self, part)

    def replace(self, old: Any, new: Any) -> Any:
        return self.recorder.expr("replace", self, old, new)

    def split(self, separator: Any = None, maxsplit: int = -1) -> Any:
        return self.recorder.expr("split", self, separator, maxsplit)

    def join(self, parts: Any) -> Any:
        return self.recorder.expr("join", self, tuple(parts) if isinstance(parts, (list, tuple)) else parts)

    def partition(self, separator: Any) -> Any:
        return self.recorder.expr("partition", self, separator)

    def rpartition(self, separator: Any) -> Any:
        return self.recorder.expr("rpartition", self, separator)

    def splitlines(self) -> Any:
        return self.recorder.expr("splitlines", self)

    def rsplit(self, separator: Any = None, maxsplit: int = -1) -> Any:
        return self.recorder.expr("rsplit", self, separator, maxsplit)

    def removeprefix(self, prefix: Any) -> Any:
        return self.recorder.expr("removeprefix", self, prefix)

    def removesuffix(self, suffix: Any) -> Any:
        return self.recorder.expr("removesuffix", self, suffix)

    def rfind(self, part: Any) -> Any:
        return self.recorder.expr("rfind", self, part)

    def casefold(self) -> Any:
        return self.recorder.expr("casefold", self)

    def zfill(self, width: Any) -> Any:
        return self.recorder.expr("zfill", self, width)

    def isdigit(self) -> Any:
        return self.recorder.expr("isdigit", self)

    def isalpha(self) -> Any:
        return self.recorder.expr("isalpha", self)

    def isalnum(self) -> Any:
        return self.recorder.expr("isalnum", self)

    def isspace(self) -> Any:
        return self.recorder.expr("isspace", self)

    def isupper(self) -> Any:
        return self.recorder.expr("isupper", self)

    def islower(self) -> Any:
        return self.recorder.expr("islower", self)

    def __str__(self) -> str:
        self.recorder.break_here("str() of a value that is not known yet")

    def __format__(self, spec: str) -> str:
        self.recorder.break_here("formatting of a value that is not known yet")

    def __iter__(self) -> Any:
        self.recorder.break_here("iteration over a value that is not known yet")

    def __len__(self) -> int:
        self.recorder.break_here("len() of a value that is not known yet")

    def __int__(self) -> int:
        self.recorder.break_here("int() of a value that is not known yet")

    def __float__(self) -> float:
        self.recorder.break_here("float() of a value that is not known yet")

    def __index__(self) -> int:
        self.recorder.break_here("use as an index of a value that is not known yet")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self.recorder.break_here(f"attribute {name!r} of a value that is not known yet")

    def __repr__(self) -> str:
        return f"<symbol %{self.ref.id}>"


# Methods of a symbol that are Exprs; others of a value that is not known yet are called when the program runs.
METHODS = frozenset(name for name in vars(Symbol) if not name.startswith("_")) - {"recorder", "ref"}


def operand(value: Any) -> Operand:
    """A plain value or a Symbol as an operand of an op; lists become tuples. Raises TypeError for anything else."""
    if type(value) is str:
        return value
    if isinstance(value, Symbol):
        return value.ref
    if isinstance(value, (list, tuple)):
        return tuple(operand(item) for item in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot stand in a program's IR")
