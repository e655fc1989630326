"""Values of JSON texts that are still being written: `state.partial_iter("report")`."""

from __future__ import annotations

import json
from typing import Any

MISSING: Any = object()


def partial_json(text: str) -> Any:
    """The value of the beginning of a JSON text: what is there is as it will stay, only more may come.

    Strings, arrays and objects may be cut; numbers, names and keys that may go on are left out. MISSING if there is
    nothing yet. Raises ValueError for what no JSON text begins with.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    value, at = _value(text, _skip(text, 0))
    if at is not None and _skip(text, at) < len(text):
        raise ValueError(f"no JSON text begins like this: {text[:80]!r}")
    return value


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _value(text: str, at: int) -> tuple[Any, int | None]:
    """The value that begins at `at`, and where it ends (None: the text ends before)."""
    if at >= len(text):
        return MISSING, None
    if text[at] == "{":
        return _object(text, at + 1)
    if text[at] == "[":
        return _array(text, at + 1)
    if text[at] == '"':
        return _string(text, at + 1)
    end = at
    while end < len(text) and text[end] not in ",]} \t\r\n":
        end += 1
    if end == len(text):
        return MISSING, None  # a number or a name that may go on
    return json.loads(text[at:end]), end


def _string(text: str, at: int) -> tuple[str, int | None]:
    end = at
    while end < len(text) and text[end] != '"':
        end += 2 if text[end] == "\\" else 1
    if end < len(text):
        return json.loads(text[at - 1 : end + 1]), end + 1
    body = text[at:]
    for cut in range(min(12, len(body)) + 1):  # an escape may be cut: "\\ud83d\\ude4" is eleven characters
        try:
            found: str = json.loads(f'"{body[: len(body) - cut]}"')
        except ValueError:
            continue
        if not (found and 0xD800 <= ord(found[-1]) < 0xDC00):  # half of a surrogate pair
            return found, None
    return "", None


def _array(text: str, at: int) -> tuple[list[Any], int | None]:
    items: list[Any] = []
    at = _skip(text, at)
    if at < len(text) and text[at] == "]":
        return items, at + 1
    while True:
        value, end = _value(text, _skip(text, at))
        if value is not MISSING:
            items.append(value)
        if end is None:
            return items, None
        at = _skip(text, end)
        if at >= len(text):
            return items, None
        if text[at] == "]":
            return items, at + 1
        if text[at] != ",":
            raise ValueError(f"expected , or ] at character {at}")
        at += 1


def _object(text: str, at: int) -> tuple[dict[str, Any], int | None]:
    found: dict[str, Any] = {}
    at = _skip(text, at)
    if at < len(text) and text[at] == "}":
        return found, at + 1
    while True:
        at = _skip(text, at)
        if at >= len(text):
            return found, None
        if text[at] != '"':
            raise ValueError(f"expected a key at character {at}")
        key, end = _string(text, at + 1)
        at = len(text) if end is None else _skip(text, end)
        if at >= len(text):
            return found, None
        if text[at] != ":":
            raise ValueError(f"expected : at character {at}")
        value, end = _value(text, _skip(text, at + 1))
        if value is not MISSING:
            found[key] = value
        at = len(text) if end is None else _skip(text, end)
        if at >= len(text):
            return found, None
        if text[at] == "}":
            return found, at + 1
        if text[at] != ",":
            raise ValueError(f"expected , or }} at character {at}")
        at += 1
