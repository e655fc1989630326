"""What is part of the language, and what of it the `try` statements of a program may meet."""

from __future__ import annotations

import types
from typing import Any

from ...core.errors import DslcError
from .hooks import is_traceable
from .symbols import Symbol


def stand_in(kind: type[BaseException], error: Symbol) -> BaseException:
    """An exception that the copy's handlers for `kind` catch, in place of the one that the run will meet."""
    made: Any = type(kind.__name__, (kind,), {"__init__": lambda self: None, "__dslc_error__": error})
    stand_in: BaseException = made.__new__(made)
    return stand_in


def may_catch_failures(kind: type[BaseException]) -> bool:
    """Whether a handler for `kind` may catch what a generation fails with."""
    if getattr(kind, "is_of_a_tool", False):
        return False
    todo: list[type[BaseException]] = [DslcError]
    while todo:
        error = todo.pop()
        if getattr(error, "is_of_a_tool", False):
            continue
        if issubclass(error, kind) or issubclass(kind, error):
            return True
        todo += error.__subclasses__()
    return False


def is_language(value: Any) -> bool:
    """Whether this is part of a program: a state, a branch, an expression, or something of dslc itself."""
    return is_traceable(value) or (
        isinstance(value, types.ModuleType) and value.__name__.split(".")[0] == __name__.split(".")[0]
    )


def holds_language(value: Any, depth: int = 4) -> bool:
    """Whether a state, an expression or the like is in there."""
    if is_language(value):
        return True
    if depth and isinstance(value, (list, tuple, set)):
        return any(holds_language(item, depth - 1) for item in value)
    return bool(depth) and isinstance(value, dict) and any(holds_language(v, depth - 1) for v in value.values())
