"""Structured answers: JSON schemas as providers take them, and a choice among texts as such a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .faults import Fault

KEY = "choice"


def choice_schema(choices: Sequence[str]) -> dict[str, Any]:
    """The schema of an object whose one value is one of the choices."""
    return {
        "type": "object",
        "properties": {KEY: {"type": "string", "enum": list(choices)}},
        "required": [KEY],
        "additionalProperties": False,
    }


def choice_of(text: str | Mapping[str, Any], choices: Sequence[str]) -> str:
    """The choice in an answer to `choice_schema`. Raises Fault for an answer that is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
        choice = found[KEY]
    except (ValueError, KeyError, TypeError):
        choice = None
    if choice not in choices:
        raise Fault("answer", f"one of {list(choices)} was asked for, and it gave {text!r}", is_transient=False)
    return str(choice)


def response_format(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """OpenAI's `response_format` for a schema. `strict` is asked for where the schema is of the form that it needs."""
    schema = object_at_root(schema)
    described = {"name": name, "schema": schema, "strict": is_strict(schema)}
    return {"type": "json_schema", "json_schema": described}


def object_at_root(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema whose root is only a reference into its own `$defs`, with what is meant in its place: providers want an
    object there."""
    target = schema.get("$ref")
    if not isinstance(target, str) or not target.startswith("#/$defs/") or set(schema) - {"$ref", "$defs", "$schema"}:
        return schema
    meant = schema["$defs"].get(target.removeprefix("#/$defs/"))
    return {**meant, "$defs": schema["$defs"]} if isinstance(meant, Mapping) else schema


def is_strict(schema: Any) -> bool:
    """Whether every object in a schema is closed and names all its properties as required, as strict mode wants."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(names):
            return False
    return all(is_strict(value) for key, value in schema.items() if key not in ("enum", "const", "default", "examples"))
