"""Values and streams of a region under other numbers: for the rounds of a loop, and for paths that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..core.errors import SourceLoc
from .ir import Ref

_NAMES: dict[type, tuple[str, ...]] = {SourceLoc: ()}


def field_names(kind: type) -> tuple[str, ...]:
    """The fields of an op (or of what it holds) that may name values or streams; of other types, none."""
    found = _NAMES.get(kind)
    if found is None:
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else []
        found = _NAMES[kind] = tuple(name for name in names if name not in ("where", "sampling_params"))
    return found


def renumbered(value: Any, refs: Mapping[int, int], streams: Mapping[int, int]) -> Any:
    """An op, region or operand with its value and stream numbers replaced (numbers not listed stay)."""
    kind = type(value)
    if kind is Ref:
        return Ref(refs[value.id]) if value.id in refs else value
    if kind is tuple:
        return tuple([renumbered(item, refs, streams) for item in value])
    changes: dict[str, Any] = {}
    for name in field_names(kind):
        old = getattr(value, name)
        if name == "stream" or name == "target":
            new = streams.get(old, old)
        elif name == "streams":
            new = tuple(streams.get(s, s) for s in old)
        elif type(old) in _LEAVES:
            continue
        else:
            new = renumbered(old, refs, streams)
        if new is not old and new != old:
            changes[name] = new
    return replace(value, **changes) if changes else value


_LEAVES = frozenset({str, int, float, bool, type(None)})
