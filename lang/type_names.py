"""Python types under names, for saved plans: `module:qualname`, found again only among what a loader has registered."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import ProgramError
from .types import TypeSpec, type_spec

# Types of the standard library that gens may have, which every process knows.
_KNOWN: dict[str, Any] = {
    f"{kind.__module__}:{kind.__qualname__}": kind
    for kind in (
        str, int, float, bool, type(None), decimal.Decimal, datetime.datetime, datetime.date, datetime.time,
        datetime.timedelta, uuid.UUID,
    )
}  # fmt: skip


def type_names(specs: Mapping[str, Iterable[TypeSpec | None]]) -> tuple[tuple[str, str], ...]:
    """(variable, name of its type), sorted; one that has several types, or a type without a name, has none to save."""
    found: list[tuple[str, str]] = []
    for var, kinds in specs.items():
        types = [spec.type if spec is not None else None for spec in kinds]
        if len(types) > 1:
            found.append((var, "<several types>"))
        elif types != [None]:
            found.append((var, type_name(types[0])))
    return tuple(sorted(found))


def type_name(kind: Any) -> str:
    """`module:qualname` of a class; of anything else a name with `<`, which no plan is saved with."""
    if isinstance(kind, type) and not hasattr(kind, "__origin__"):
        return f"{kind.__module__}:{kind.__qualname__}"
    return f"<{kind}>"


def specs_of(names: Iterable[tuple[str, str]], objects: Mapping[str, Any]) -> dict[str, TypeSpec]:
    """How the text of each variable becomes a value. Only the standard library's types and `objects` are found.

    Raises ProgramError naming the type that is not there, or is none.
    """
    return {var: _spec(var, name, objects) for var, name in names}


def _spec(var: str, name: str, objects: Mapping[str, Any]) -> TypeSpec:
    module, _, path = name.partition(":")
    outer, *inner = path.split(".")
    found: Any = _KNOWN.get(name, objects.get(name, objects.get(f"{module}:{outer}")))
    if name not in _KNOWN and name not in objects:
        for part in inner:
            found = getattr(found, part, None)
    if not isinstance(found, type):
        raise ProgramError(
            f"the plan gives {var!r} the type {name}, which this process has not registered: load the plan with its "
            "program (on the command line, with --tools)"
        )
    return type_spec(found)
