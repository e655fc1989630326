"""Reading keyword values: of the right kind, or a ConstraintError at the keyword."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from .document import Node, schema_error, shown


def count(node: Node, keyword: str) -> int | None:
    """A non-negative integer; None if the keyword is absent."""
    value = node.get(keyword)
    if keyword not in node.value:
        return None
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if type(value) is not int or value < 0:
        raise schema_error(f"must be a non-negative integer, not {shown(value)}", node.at(keyword))
    return value


def number(node: Node, keyword: str) -> int | Decimal | None:
    """A number; None if the keyword is absent."""
    if keyword not in node.value:
        return None
    value = node.value[keyword]
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise schema_error(f"must be a number, not {shown(value)}", node.at(keyword))
    return value


def mapping(node: Node, keyword: str) -> dict[str, Any]:
    """A JSON object; empty if the keyword is absent."""
    value = node.value.get(keyword, {})
    if not isinstance(value, dict):
        raise schema_error(f"must be an object, not {shown(value)}", node.at(keyword))
    return value


def names(node: Node, *steps: str) -> list[str]:
    """A list of strings, without repeats."""
    value = node.value
    for step in steps:
        value = value.get(step, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise schema_error(f"must be a list of strings, not {shown(value)}", node.at(*steps))
    return list(dict.fromkeys(value))


def schema_list(node: Node, keyword: str) -> int:
    """The length of a list of schemas, at least 1; 0 if the keyword is absent."""
    if keyword not in node.value:
        return 0
    value = node.value[keyword]
    if not isinstance(value, list) or not value:
        raise schema_error(f"must be a non-empty list of schemas, not {shown(value)}", node.at(keyword))
    return len(value)
