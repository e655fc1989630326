"""Values and streams of a region under other numbers: for the rounds of a loop, and for paths that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..core.errors import SourceLoc
from .ir import Ref


def renumbered(value: Any, refs: Mapping[int, int], streams: Mapping[int, int]) -> Any:
    """An op, region or operand with its value and stream numbers replaced (numbers not listed stay)."""
    if isinstance(value, Ref):
        return Ref(refs.get(value.id, value.id))
    if isinstance(value, tuple):
        return tuple(renumbered(item, refs, streams) for item in value)
    if not hasattr(value, "__dataclass_fields__") or isinstance(value, SourceLoc):
        return value
    changes: dict[str, Any] = {}
    for f in fields(value):
        old = getattr(value, f.name)
        if f.name == "stream" or f.name == "target":
            changes[f.name] = streams.get(old, old)
        elif f.name == "streams":
            changes[f.name] = tuple(streams.get(s, s) for s in old)
        elif f.name not in ("where", "sampling_params"):
            new = renumbered(old, refs, streams)
            if new is not old:
                changes[f.name] = new
    return replace(value, **changes) if changes else value
