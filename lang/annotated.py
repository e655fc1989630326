"""`Annotated[T, ...]`: bounds as annotated-types and pydantic write them. Neither is imported: their names are read."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_NUMBERS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum",
            "multiple_of": "multipleOf"}  # fmt: skip
_LENGTHS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}


def bounds(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of every bound; notes of other kinds are passed over."""
    for note in metadata:
        inner = getattr(note, "metadata", None)  # pydantic's Field(...)
        if isinstance(inner, (list, tuple)):
            yield from bounds(inner)
            continue
        for name in (*_NUMBERS, "min_length", "max_length", "pattern"):
            value = getattr(note, name, None)
            if value is not None and not isinstance(note, (str, type, re.Pattern)):
                yield name, value.pattern if isinstance(value, re.Pattern) else value


def with_bounds(schema: dict[str, Any], metadata: Iterable[Any]) -> dict[str, Any]:
    """The schema with the bounds. Raises TypeError for one that means nothing for its type."""
    found = list(bounds(metadata))
    if not found:
        return schema
    kind = schema.get("type")
    added: list[dict[str, Any]] = []
    for name, value in found:
        if name in _NUMBERS and kind in ("integer", "number"):
            added.append({_NUMBERS[name]: value})
        elif name == "pattern" and kind == "string":
            added.append({"pattern": value})
        elif name in ("min_length", "max_length") and kind in _LENGTHS:
            added.append({_LENGTHS[kind][name == "max_length"]: value})
        else:
            raise TypeError(f"the bound {name}={value!r} means nothing for {kind or 'this type'}")
    out = dict(schema)
    for one in added:
        if one.keys() & out.keys():  # said twice: both hold
            out.setdefault("allOf", []).append(one)
        else:
            out.update(one)
    return out


def checked(value: Any, metadata: Iterable[Any], path: str) -> Any:
    """The value, if it is within the bounds. Raises ValueError with its path."""
    for name, bound in bounds(metadata):
        if not _HOLDS[name](value, bound):
            raise ValueError(f"{path}: {value!r} is not within {name}={bound!r}")
    return value


_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "multiple_of": lambda value, bound: value % bound == 0,
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, bound: re.search(bound, value) is not None,
}
