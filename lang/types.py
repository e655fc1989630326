"""Python types as constraints on generated text, and generated text as values of them: `gen("p", type=Person)`.

Known are str (no constraint), int, float, bool, None, Decimal, datetime, date, time, timedelta, UUID, Literal, enums,
list, set, tuple, dict[str, T], unions, dataclasses, TypedDicts, NamedTuples and pydantic models, nested as one likes;
and `Annotated` with bounds in annotated-types' or pydantic's names (`Ge(1)`, `Field(max_length=3)`, ...). A parsed
value is checked on the way: what does not fit raises ValueError with its path.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, Union

from ..core.constraint import ConstraintKind
from . import annotated, scalars
from .checks import DTYPE_REGEX

_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """What a type asks of a generation: its constraint (none for str), and how its text becomes a value.

    `function` names the Expr function that does the same, for types that a plan can compute with.
    """

    type: Any
    kind: ConstraintKind | None
    source: str
    parse: Callable[[str], Any]
    function: str | None = None


def is_type(value: Any) -> bool:
    """Whether a value given in second place to gen() is a type rather than a number of tokens."""
    return isinstance(value, type) or typing.get_origin(value) is not None or isinstance(value, python_types.UnionType)


@lru_cache(maxsize=512)
def type_spec(kind: Any) -> TypeSpec:
    """What `kind` asks of a generation. Raises TypeError for a type that is not known."""
    if kind is str:
        return TypeSpec(kind, None, "", str, "str")
    if kind is int or kind is float:
        return TypeSpec(kind, "regex", DTYPE_REGEX[kind], kind, kind.__name__)
    if kind is bool:
        return TypeSpec(kind, "regex", "true|false", _parse_bool)
    choices = _choices(kind)
    if choices is not None and all(isinstance(value, str) for value, _ in choices):
        table = {str(text): value for text, value in choices}
        is_text = all(text is value for text, value in choices)
        return TypeSpec(
            kind,
            "regex",
            "|".join(map(re.escape, table)),
            lambda text: _chosen(table, text),
            "str" if is_text else None,
        )
    schema = schema_of(kind)
    source = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    return TypeSpec(kind, "json_schema", source, lambda text: build(kind, json.loads(text, parse_float=Decimal)))


def _parse_bool(text: str) -> bool:
    return _chosen({"true": True, "false": False}, text)  # type: ignore[no-any-return]


def _chosen(table: Mapping[str, Any], text: str) -> Any:
    if text not in table:
        raise ValueError(f"{text!r} is none of {', '.join(map(repr, table))}")
    return table[text]


def _choices(kind: Any) -> list[tuple[Any, Any]] | None:
    """(JSON value, Python value) of a Literal's or an enum's members; None for another type."""
    if typing.get_origin(kind) is Literal:
        return [(value.value if isinstance(value, enum.Enum) else value, value) for value in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [(member.value, member) for member in kind]
    return None


# -- to a schema


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a type. Recursive types go through `$defs`. Raises TypeError for a type that is not known."""
    definitions: dict[str, Any] = {}
    schema = _schema(kind, definitions, {}, 0)
    return {**schema, "$defs": definitions} if definitions else schema


def _schema(kind: Any, definitions: dict[str, Any], named: dict[Any, str], depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise TypeError(f"{kind!r} is nested more than {_MAX_DEPTH} deep")

    def inner(part: Any) -> dict[str, Any]:
        return _schema(part, definitions, named, depth + 1)

    simple = _SIMPLE.get(kind) if isinstance(kind, type) or kind is Any or kind is None else None
    if simple is not None:
        return dict(simple)
    if isinstance(kind, type) and kind in scalars.SCHEMAS:
        return dict(scalars.SCHEMAS[kind])
    if callable(getattr(kind, "model_json_schema", None)):
        return _pydantic_schema(kind, definitions)
    choices = _choices(kind)
    if choices is not None:
        return {"enum": [value for value, _ in choices]}
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return annotated.with_bounds(inner(args[0]), args[1:])
    if origin in (Union, python_types.UnionType):
        return {"anyOf": [inner(part) for part in args]}
    fields = _fields(kind)
    if fields is not None:
        name = named.get(kind)
        if name is None:
            name = named[kind] = kind.__name__ if kind.__name__ not in definitions else f"{kind.__name__}{len(named)}"
            definitions[name] = {}
            definitions[name] = {
                "type": "object",
                "properties": {key: inner(part) for key, (part, _) in fields.items()},
                "required": [key for key, (_, is_required) in fields.items() if is_required],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}
    if origin in (list, set, frozenset, Sequence) or kind in (list, set, frozenset):
        return {"type": "array", "items": inner(args[0] if args else Any)}
    if origin is tuple or kind is tuple:
        return _tuple_schema(args, inner)
    if origin in (dict, Mapping) or kind is dict:
        if args and args[0] is not str:
            raise TypeError(f"the keys of {kind!r} must be str: JSON has no others")
        return {"type": "object", "additionalProperties": inner(args[1] if args else Any)}
    raise TypeError(
        f"{kind!r} is not a type that can be generated; known are str, int, float, bool, None, Decimal, datetime, "
        "date, time, timedelta, UUID, Literal, enums, list, tuple, dict[str, T], unions, dataclasses, TypedDicts, "
        "NamedTuples and pydantic models"
    )


_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    type(None): {"type": "null"}, None: {"type": "null"}, Any: {}, object: {},
}  # fmt: skip


def _tuple_schema(args: tuple[Any, ...], inner: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    if len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": inner(args[0])}
    if not args:
        return {"type": "array", "items": {}}
    items = [inner(part) for part in args if part != ()]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}


def _pydantic_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = dict(kind.model_json_schema())
    definitions.update(schema.pop("$defs", {}))
    if "$ref" not in schema:
        definitions[kind.__name__] = schema
        schema = {"$ref": f"#/$defs/{kind.__name__}"}
    return schema


def _fields(kind: Any) -> dict[str, tuple[Any, bool]] | None:
    """(type, is required) by name, of a dataclass, TypedDict or NamedTuple; None for another type."""
    if not isinstance(kind, type):
        return None
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {
            f.name: (hints[f.name], f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
            for f in dataclasses.fields(kind)
            if f.init
        }
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        required: frozenset[str] = getattr(kind, "__required_keys__", frozenset(hints))
        return {name: (_without_markers(hint), name in required) for name, hint in hints.items()}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind, include_extras=True)
        defaults = getattr(kind, "_field_defaults", {})
        return {name: (hints.get(name, Any), name not in defaults) for name in kind._fields}
    return None


def _without_markers(hint: Any) -> Any:
    """`Required[T]` and `NotRequired[T]` as T."""
    origin = typing.get_origin(hint)
    while getattr(origin, "__name__", getattr(origin, "_name", "")) in ("Required", "NotRequired", "ReadOnly"):
        hint = typing.get_args(hint)[0]
        origin = typing.get_origin(hint)
    return hint


# -- from JSON


def build(kind: Any, data: Any, path: str = "$") -> Any:
    """The value of type `kind` that JSON data stands for. Raises ValueError with the path of what does not fit."""
    if kind is Any or kind is object:
        return scalars.without_decimals(data)
    if kind is None or kind is type(None):
        return _expect(data, data is None, "null", path)
    if kind is bool:
        return _expect(data, isinstance(data, bool), "a boolean", path)
    if kind is int:
        return int(_expect(data, _is_number(data) and data == int(data), "an integer", path))
    if kind is float:
        return float(_expect(data, _is_number(data), "a number", path))
    if kind is str:
        return _expect(data, isinstance(data, str), "a string", path)
    if callable(getattr(kind, "model_validate", None)):
        try:
            return kind.model_validate(scalars.without_decimals(data))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if isinstance(kind, type) and kind in scalars.SCHEMAS:
        return scalars.build(kind, data, path)
    choices = _choices(kind)
    if choices is not None:
        data = scalars.without_decimals(data)
        for value, member in choices:
            if type(value) is type(data) and value == data:
                return member
        raise ValueError(f"{path}: {data!r} is none of {', '.join(repr(value) for value, _ in choices)}")
    return _build_container(kind, data, path)


def _build_container(kind: Any, data: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return annotated.checked(build(args[0], data, path), args[1:], path)
    if origin in (Union, python_types.UnionType):
        return _build_union(args, data, path)
    fields = _fields(kind)
    if fields is not None:
        return _build_object(kind, fields, data, path)
    if origin in (list, set, frozenset, Sequence) or kind in (list, set, frozenset):
        _expect(data, isinstance(data, list), "an array", path)
        items = [build(args[0] if args else Any, item, f"{path}[{i}]") for i, item in enumerate(data)]
        return items if origin in (list, Sequence) or kind is list else (origin or kind)(items)
    if origin is tuple or kind is tuple:
        _expect(data, isinstance(data, list), "an array", path)
        parts = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args) or [Any] * len(data)
        _expect(data, len(parts) == len(data), f"an array of {len(parts)}", path)
        return tuple(build(p, item, f"{path}[{i}]") for i, (p, item) in enumerate(zip(parts, data, strict=True)))
    if origin in (dict, Mapping) or kind is dict:
        _expect(data, isinstance(data, dict), "an object", path)
        return {key: build(args[1] if args else Any, value, f"{path}.{key}") for key, value in data.items()}
    raise TypeError(f"{kind!r} is not a type that can be generated")


def _build_union(parts: tuple[Any, ...], data: Any, path: str) -> Any:
    problems: list[str] = []
    for part in parts:
        try:
            return build(part, data, path)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _build_object(kind: Any, fields: dict[str, tuple[Any, bool]], data: Any, path: str) -> Any:
    _expect(data, isinstance(data, dict), "an object", path)
    if unknown := data.keys() - fields.keys():
        raise ValueError(f"{path}: {sorted(unknown)[0]!r} is no field of {kind.__name__}")
    missing = [name for name, (_, is_required) in fields.items() if is_required and name not in data]
    if missing:
        raise ValueError(f"{path}: {missing[0]!r} is missing")
    return kind(**{name: build(fields[name][0], value, f"{path}.{name}") for name, value in data.items()})


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float, Decimal)) and not isinstance(data, bool)


def _expect(data: Any, holds: bool, what: str, path: str) -> Any:
    if not holds:
        raise ValueError(f"{path}: {data!r} is not {what}")
    return data
