"""Distinct items: values as canonical texts, and whether enough of them are left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from .numbers import spelling_of
from .shape import Shape

MAX_ENUMERATED = 4096

Values = frozenset[str]


def canonical(value: Any) -> str:
    """A text that is equal for equal JSON values, and only for those."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return spelling_of(value)
    return json.dumps(value)


def canonical_of_text(text: bytes) -> str:
    """The canonical text of a JSON text."""
    return canonical(json.loads(text, parse_float=Decimal))


def values_of(shape: Shape, at_most: int) -> Values | None:
    """All values of a shape, if they are scalars and no more than `at_most`; None otherwise."""
    if shape.arrays or shape.objects or shape.numbers.count is None or shape.strings.count is None:
        return None
    if shape.numbers.count + shape.strings.count + 3 > min(at_most, MAX_ENUMERATED) + 3:
        return None
    values = {canonical(text) for text in shape.strings.texts()} | set(shape.numbers.texts())
    values |= {
        name for name, there in (("null", shape.null), ("false", shape.bools & 1), ("true", shape.bools & 2)) if there
    }
    return frozenset(values) if len(values) <= at_most else None


def can_fill(slots: Sequence[Values | None], used: Values) -> bool:
    """Whether every slot can have a value of its own that is not in `used`; None stands for values enough."""
    owner: dict[str, int] = {}

    def place(slot: int, tried: set[str]) -> bool:
        for value in slots[slot] or ():
            if value in used or value in tried:
                continue
            tried.add(value)
            if value not in owner or place(owner[value], tried):
                owner[value] = slot
                return True
        return False

    return all(place(i, set()) for i, values in enumerate(slots) if values is not None)


def spoilers(slots: Sequence[Values | None], used: Values) -> Values:
    """The values that must not be taken now, because the slots to come could not be filled any more."""
    limited: Iterable[str] = frozenset().union(*(values for values in slots if values is not None)) - used
    return frozenset(value for value in limited if not can_fill(slots, used | {value}))
