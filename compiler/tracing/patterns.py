"""What a pattern of a `match` asks of a value that is not known yet: called when the program runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_sequence(value: Any, least: int, is_exact: bool) -> bool:
    """Whether a sequence pattern with that many parts, or at least so many, can fit."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        return False
    return len(value) == least if is_exact else len(value) >= least


def is_mapping(value: Any) -> bool:
    """Whether a mapping pattern can fit."""
    return isinstance(value, Mapping)


def rest_of(value: Any, keys: Sequence[Any]) -> dict[Any, Any]:
    """What `**rest` of a mapping pattern holds."""
    return {key: item for key, item in value.items() if key not in keys}
