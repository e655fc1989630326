"""Types that JSON writes as a string or number of a certain form: dates and times, Decimal, UUID."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

# A year from 1 on, no leap seconds, at most microseconds: what Python's types can hold.
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_CLOCK = r"[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][0-2][0-9]:[0-5][0-9])"
_DURATION = re.compile(r"P(?:(\d+)W|(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?)")
_DURATION_PATTERN = "^P([0-9]{1,5}W|([0-9]{1,6}D)?(T([0-9]{1,6}H)?([0-9]{1,6}M)?([0-9]{1,6}S)?)?)$"

# Keys of a dict[int, T], and a date and time without an offset.
INT_KEY = "^(0|-?[1-9][0-9]{0,17})$"
NAIVE = {
    "type": "string",
    "pattern": f"^{_YEAR}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$",
}

SCHEMAS: dict[Any, dict[str, Any]] = {
    datetime.datetime: {
        "type": "string",
        "format": "date-time",
        "pattern": f"^{_YEAR}-[0-9]{{2}}-[0-9]{{2}}T{_CLOCK}$",
    },
    datetime.date: {"type": "string", "format": "date", "pattern": f"^{_YEAR}-"},
    datetime.time: {"type": "string", "format": "time", "pattern": f"^{_CLOCK}$"},
    datetime.timedelta: {"type": "string", "format": "duration", "pattern": _DURATION_PATTERN},
    Decimal: {"type": "number"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}


def build(kind: Any, data: Any, path: str) -> Any:
    """The value of one of the types in `SCHEMAS`. Raises ValueError with the path of what does not fit."""
    if kind is Decimal:
        if isinstance(data, bool) or not isinstance(data, (int, float, Decimal)):
            raise ValueError(f"{path}: {data!r} is not a number")
        return Decimal(str(data))
    if not isinstance(data, str):
        raise ValueError(f"{path}: {data!r} is not a string")
    try:
        return _FROM_TEXT[kind](data)
    except ValueError as error:
        raise ValueError(f"{path}: {data!r} is no {kind.__name__} ({error})") from None


def _python_form(text: str) -> str:
    """Six digits of a second, and an offset in digits: what `fromisoformat` reads in every Python."""
    text = re.sub(r"\.(\d+)", lambda m: "." + m[1][:6].ljust(6, "0"), text)
    return text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text


def _timedelta(text: str) -> datetime.timedelta:
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError("known are weeks, or days, hours, minutes and seconds")
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return datetime.timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime.datetime: lambda text: datetime.datetime.fromisoformat(_python_form(text)),
    datetime.date: datetime.date.fromisoformat,
    datetime.time: lambda text: datetime.time.fromisoformat(_python_form(text)),
    datetime.timedelta: _timedelta,
    uuid.UUID: uuid.UUID,
}


def without_decimals(data: Any) -> Any:
    """JSON data as `json.loads` gives it by default: decimals as floats."""
    if isinstance(data, Decimal):
        return float(data)
    if isinstance(data, list):
        return [without_decimals(item) for item in data]
    if isinstance(data, dict):
        return {key: without_decimals(item) for key, item in data.items()}
    return data
