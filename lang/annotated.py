"""`Annotated[T, ...]`: bounds as annotated-types and pydantic write them. Neither is imported: their names are read."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

_NUMBERS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum",
            "multiple_of": "multipleOf"}  # fmt: skip
_DIGITS = ("max_digits", "decimal_places")
OF_NUMBERS = (*_NUMBERS, *_DIGITS)
_LENGTHS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_MAX_DIGITS = 40


def bounds(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of every bound; notes of other kinds are passed over."""
    for note in metadata:
        inner = getattr(note, "metadata", None)  # pydantic's Field(...)
        if isinstance(inner, (list, tuple)):
            yield from bounds(inner)
            continue
        for name in (*OF_NUMBERS, "min_length", "max_length", "pattern"):
            value = getattr(note, name, None)
            if value is not None and not isinstance(note, (str, type, re.Pattern)):
                yield name, value.pattern if isinstance(value, re.Pattern) else value


def with_bounds(schema: dict[str, Any], metadata: Iterable[Any]) -> dict[str, Any]:
    """The schema with the bounds. Raises TypeError for one that means nothing for its type."""
    return with_named_bounds(schema, [*bounds(metadata)])


def with_named_bounds(schema: dict[str, Any], found: list[tuple[str, Any]]) -> dict[str, Any]:
    """The same with bounds as (name, value). Of a union those parts are bounded for which the bound means something."""
    if "anyOf" in schema:
        out = dict(schema)
        for name, value in found:
            parts = [_bounded(part, name, value) for part in out["anyOf"]]
            if all(part is None for part in parts):
                raise TypeError(f"the bound {name}={value!r} means nothing for any type of the union")
            out["anyOf"] = [old if new is None else new for new, old in zip(parts, out["anyOf"], strict=True)]
        return out
    for name, value in found:
        new = _bounded(schema, name, value)
        if new is None:
            raise TypeError(f"the bound {name}={value!r} means nothing for {schema.get('type') or 'this type'}")
        schema = new
    return _with_digits(schema)


def _bounded(schema: dict[str, Any], name: str, value: Any) -> dict[str, Any] | None:
    """The schema with one bound more; None where it means nothing."""
    kind = schema.get("type")
    if name in _DIGITS and kind == "number":
        return {**schema, name: value}  # both count together: see `_with_digits`
    if name in _NUMBERS and kind in ("integer", "number") and _is_number(value):
        added = {_NUMBERS[name]: _as_json(value)}
    elif name == "pattern" and kind == "string":
        added = {"pattern": value}
    elif name in ("min_length", "max_length") and kind in _LENGTHS:
        added = {_LENGTHS[kind][name == "max_length"]: value}
    else:
        return None
    if added.keys() & schema.keys():  # said twice: both hold
        return {**schema, "allOf": [*schema.get("allOf", ()), added]}
    return {**schema, **added}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _as_json(value: Any) -> int | float:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value  # type: ignore[no-any-return]


def _with_digits(schema: dict[str, Any]) -> dict[str, Any]:
    """`max_digits` and `decimal_places` in terms of JSON Schema."""
    digits: int | None = schema.get("max_digits")
    places: int | None = schema.get("decimal_places")
    if digits is None and places is None:
        return schema
    out = {key: value for key, value in schema.items() if key not in _DIGITS}
    if (digits or 0) > _MAX_DIGITS or (places or 0) > _MAX_DIGITS:
        raise TypeError(f"more than {_MAX_DIGITS} digits of a number cannot be constrained")
    if digits is None:
        forms = [{"multipleOf": _power(-(places or 0))}]
    else:
        forms = [
            {"multipleOf": _power(-n), "exclusiveMinimum": -_power(digits - n), "exclusiveMaximum": _power(digits - n)}
            for n in ([places] if places is not None else range(digits + 1))
        ]
    return {**out, "allOf": [*out.get("allOf", ()), forms[0] if len(forms) == 1 else {"anyOf": forms}]}


def _power(exponent: int) -> int | float:
    return 10**exponent if exponent >= 0 else float(f"1e{exponent}")


def checked(value: Any, metadata: Iterable[Any], path: str) -> Any:
    """The value, if it is within the bounds. Raises ValueError with its path."""
    for name, bound in bounds(metadata):
        if value is not None and not _HOLDS[name](value, bound):
            raise ValueError(f"{path}: {value!r} is not within {name}={bound!r}")
    return value


def _is_multiple(value: Any, bound: Any) -> bool:
    return Decimal(str(value)) % Decimal(str(bound)) == 0  # 1.23 % 0.01 is not 0 in floats


def _num_digits(value: Any) -> tuple[int, int]:
    """(all digits, those behind the point) as pydantic counts them."""
    _, digits, exponent = Decimal(str(value)).as_tuple()
    assert isinstance(exponent, int)
    if exponent >= 0:
        return len(digits) + exponent, 0
    return max(len(digits), -exponent), -exponent


_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "multiple_of": _is_multiple,
    "max_digits": lambda value, bound: _num_digits(value)[0] <= bound,
    "decimal_places": lambda value, bound: _num_digits(value)[1] <= bound,
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, bound: re.search(bound, value) is not None,
}
