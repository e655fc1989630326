"""Python types as constraints on generated text, and generated text as values of them: `gen("p", type=Person)`.

Known are str (no constraint), int, float, bool, None, Decimal, datetime, date, time, timedelta, UUID, Literal, enums,
list, set, tuple, dict, deque and the abstract collections, unions, dataclasses, TypedDicts, NamedTuples and pydantic's
types, generic or not, nested as one likes, under new names (`NewType`, `type X = ...`) or their own; and `Annotated`
with bounds in annotated-types' or pydantic's names (`Ge(1)`, `Field(max_length=3)`, ...). Keys of a dict are str, or
what JSON can write in a string: int, a Literal or enum of texts, a date, a UUID. A parsed value is checked on the way:
what does not fit raises ValueError with its path.
"""

from __future__ import annotations

import collections
import collections.abc as abstract
import enum
import json
import re
import types as python_types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from ..core.constraint import ConstraintKind
from . import annotated, pydantic_types, scalars
from .checks import DTYPE_REGEX
from .fields import class_of, fields_of, is_union, plain

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
    return (
        isinstance(value, (type, python_types.UnionType))
        or typing.get_origin(value) is not None
        or plain(value) is not value
    )


def type_spec(kind: Any) -> TypeSpec:
    """What `kind` asks of a generation. Raises TypeError for a type that is not known."""
    try:
        hash(kind)
    except TypeError:  # Annotated with a note that cannot be hashed
        return _made_spec(kind, "")
    return _type_spec(kind, repr(kind))


@lru_cache(maxsize=512)
def _type_spec(kind: Any, name: str) -> TypeSpec:
    """`name` tells types apart that Python holds equal: the parts of a union are tried in their order."""
    return _made_spec(kind, name)


def _made_spec(kind: Any, name: str) -> TypeSpec:
    kind = plain(kind)
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
    """(JSON value, Python value) of a Literal's or an enum's members; None for another type. Raises TypeError."""
    if typing.get_origin(kind) is Literal:
        members = [*typing.get_args(kind)]
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        members = [*kind]
    else:
        return None
    if not members:
        raise TypeError(f"{kind!r} has no members: there is nothing to generate")
    return [(_as_json(member.value if isinstance(member, enum.Enum) else member, kind), member) for member in members]


def _as_json(value: Any, kind: Any) -> Any:
    """A member's value as JSON reads it back. Raises TypeError for one that JSON cannot write."""
    try:
        return value if isinstance(value, str) else json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise TypeError(
            f"{kind!r}: JSON has no {value!r}; members are texts, numbers, booleans, None, or lists of those"
        ) from None


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

    kind = plain(kind)
    simple = _SIMPLE.get(kind) if isinstance(kind, type) or kind is Any or kind is None else None
    if simple is not None:
        return dict(simple)
    if isinstance(kind, type) and kind in scalars.SCHEMAS:
        return dict(scalars.SCHEMAS[kind])
    if pydantic_types.is_pydantic(kind):
        return _pydantic_schema(kind, definitions)
    choices = _choices(kind)
    if choices is not None:
        return {"enum": [value for value, _ in choices]}
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return annotated.with_bounds(inner(args[0]), args[1:])
    if is_union(kind):
        return {"anyOf": [inner(part) for part in args]}
    owner = class_of(kind)
    if owner is not None:
        name = named.get(kind)
        if name is None:
            name = named[kind] = (
                owner.__name__ if owner.__name__ not in definitions else f"{owner.__name__}{len(named)}"
            )
            definitions[name] = {}
            fields = fields_of(kind) or {}
            definitions[name] = {
                "type": "object",
                "properties": {key: inner(part) for key, (part, _) in fields.items()},
                "required": [key for key, (_, is_required) in fields.items() if is_required],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}
    if (origin or kind) in _ARRAYS:
        return {"type": "array", "items": inner(args[0] if args else Any)}
    if origin is tuple or kind is tuple:
        return {"type": "array", "items": {}} if kind in (tuple, typing.Tuple) else _tuple_schema(args, inner)  # noqa: UP006
    if (origin or kind) in _OBJECTS:
        schema = {"type": "object", "additionalProperties": inner(args[1] if args else Any)}
        return schema if not args else {**schema, **_key_schema(kind, args[0], inner)}
    raise TypeError(
        f"{kind!r} is not a type that can be generated; known are str, int, float, bool, None, Decimal, datetime, "
        "date, time, timedelta, UUID, Literal, enums, list, tuple, dict[str, T], unions, dataclasses, TypedDicts, "
        "NamedTuples and pydantic models"
    )


# What makes the value of a collection from a list or dict.
_ARRAYS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list, set: set, frozenset: frozenset, collections.deque: collections.deque, abstract.Sequence: list,
    abstract.MutableSequence: list, abstract.Collection: list, abstract.Iterable: list, abstract.Set: set,
    abstract.MutableSet: set,
}  # fmt: skip
_OBJECTS: dict[Any, Callable[[dict[Any, Any]], Any]] = {
    dict: dict, abstract.Mapping: dict, abstract.MutableMapping: dict, collections.OrderedDict: collections.OrderedDict,
    collections.defaultdict: lambda data: collections.defaultdict(None, data),
}  # fmt: skip


def _key_schema(kind: Any, key: Any, inner: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """`propertyNames` of a dict. Raises TypeError for keys that JSON cannot write in a string."""
    key = plain(key)
    if key is str or key is Any:
        return {}
    if key is int:
        return {"propertyNames": {"pattern": scalars.INT_KEY}}
    schema = inner(key)
    if schema.get("type") == "string" or all(isinstance(value, str) for value in schema.get("enum", [0])):
        return {"propertyNames": schema}
    raise TypeError(f"the keys of {kind!r} must be str, int, or what JSON writes as a string: it has no others")


_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    type(None): {"type": "null"}, None: {"type": "null"}, Any: {}, object: {},
}  # fmt: skip


def _tuple_schema(args: tuple[Any, ...], inner: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    if len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": inner(args[0])}
    items = [inner(part) for part in args if part != ()]
    if not items:
        return {"type": "array", "maxItems": 0}
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}


def _pydantic_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = pydantic_types.json_schema(kind)
    definitions.update(schema.pop("$defs", {}))
    if "$ref" not in schema and schema.get("type") == "object":
        definitions[kind.__name__] = schema
        schema = {"$ref": f"#/$defs/{kind.__name__}"}
    return schema


# -- from JSON


def build(kind: Any, data: Any, path: str = "$") -> Any:
    """The value of type `kind` that JSON data stands for. Raises ValueError with the path of what does not fit."""
    kind = plain(kind)
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
    if pydantic_types.is_pydantic(kind):
        try:
            return pydantic_types.value(kind, data)
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
    if is_union(kind):
        return _build_union(args, data, path)
    fields = fields_of(kind)
    if fields is not None:
        return _build_object(kind, fields, data, path)
    make_array, make_object = _ARRAYS.get(origin or kind), _OBJECTS.get(origin or kind)
    if make_array is not None:
        _expect(data, isinstance(data, list), "an array", path)
        return make_array([build(args[0] if args else Any, item, f"{path}[{i}]") for i, item in enumerate(data)])
    if origin is tuple or kind is tuple:
        _expect(data, isinstance(data, list), "an array", path)
        parts = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else [a for a in args if a != ()]
        parts = [Any] * len(data) if kind in (tuple, typing.Tuple) else parts  # noqa: UP006
        _expect(data, len(parts) == len(data), f"an array of {len(parts)}", path)
        return tuple(build(p, item, f"{path}[{i}]") for i, (p, item) in enumerate(zip(parts, data, strict=True)))
    if make_object is not None:
        _expect(data, isinstance(data, dict), "an object", path)
        key_type, value_type = args or (str, Any)
        return make_object(
            {_key(key_type, key, path): build(value_type, value, f"{path}.{key}") for key, value in data.items()}
        )
    raise TypeError(f"{kind!r} is not a type that can be generated")


def _key(kind: Any, key: str, path: str) -> Any:
    if plain(kind) is int:
        return int(_expect(key, re.fullmatch("-?[0-9]{1,18}", key) is not None, "an integer", path))
    return build(kind, key, path)


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
    owner = class_of(kind)
    assert owner is not None
    if unknown := data.keys() - fields.keys():
        raise ValueError(f"{path}: {sorted(unknown)[0]!r} is no field of {owner.__name__}")
    missing = [name for name, (_, is_required) in fields.items() if is_required and name not in data]
    if missing:
        raise ValueError(f"{path}: {missing[0]!r} is missing")
    return owner(**{name: build(fields[name][0], value, f"{path}.{name}") for name, value in data.items()})


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float, Decimal)) and not isinstance(data, bool)


def _expect(data: Any, holds: bool, what: str, path: str) -> Any:
    if not holds:
        raise ValueError(f"{path}: {data!r} is not {what}")
    return data
