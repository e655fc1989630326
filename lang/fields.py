"""What stands behind a type: aliases, new types, markers and type variables taken off, and the fields of classes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import types as python_types
import typing
from typing import Any, Union

_MARKERS = ("Required", "NotRequired", "ReadOnly", "Final", "ClassVar")


def plain(kind: Any) -> Any:
    """A type without what only names or marks it: `NewType`, `type X = ...`, `Final[T]`, `Required[T]`, type variables.

    A type variable that nothing is put in for stands for its bound, for any of what it is limited to, or for anything.
    """
    while True:
        origin = typing.get_origin(kind)
        if origin is not None and getattr(origin, "__name__", getattr(origin, "_name", "")) in _MARKERS:
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):  # NewType
            kind = kind.__supertype__
        elif _is_alias(kind):
            kind = kind.__value__
        elif _is_alias(origin):  # of a generic alias
            kind = substituted(origin.__value__, dict(zip(origin.__type_params__, typing.get_args(kind), strict=True)))
        elif isinstance(kind, typing.TypeVar):
            limits = kind.__constraints__
            kind = functools.reduce(operator.or_, limits) if limits else kind.__bound__ or Any
        else:
            return kind


def _is_alias(kind: Any) -> bool:
    return type(kind).__name__ == "TypeAliasType"  # typing's from Python 3.12 on, or typing_extensions'


def substituted(kind: Any, arguments: dict[Any, Any]) -> Any:
    """A type with type variables replaced."""
    if isinstance(kind, typing.TypeVar):
        return arguments.get(kind, kind)
    parameters = getattr(kind, "__parameters__", ())
    if isinstance(kind, type) or not parameters:
        return kind
    if isinstance(kind, python_types.UnionType):
        return functools.reduce(operator.or_, (substituted(part, arguments) for part in typing.get_args(kind)))
    return kind[tuple(arguments.get(parameter, parameter) for parameter in parameters)]


def class_of(kind: Any) -> type | None:
    """The class with fields that `kind` is, or that it is an instance of, as `Box[int]` is of Box; None for others."""
    found = kind if isinstance(kind, type) and typing.get_origin(kind) is None else typing.get_origin(kind)
    if not isinstance(found, type):
        return None
    is_named_tuple = issubclass(found, tuple) and hasattr(found, "_fields")
    return found if dataclasses.is_dataclass(found) or _is_typed_dict(found) or is_named_tuple else None


def _is_typed_dict(kind: type) -> bool:
    return issubclass(kind, dict) and hasattr(kind, "__required_keys__")  # typing's, or typing_extensions'


def fields_of(kind: Any) -> dict[str, tuple[Any, bool]] | None:
    """(type, is required) by name, of a dataclass, TypedDict or NamedTuple; None for another type.

    Raises NameError for an annotation that names what is not there.
    """
    owner = class_of(kind)
    if owner is None:
        return None
    hints = _hints(owner, typing.get_args(kind))
    if dataclasses.is_dataclass(owner):
        missing = dataclasses.MISSING
        return {
            field.name: (_init_type(hints[field.name]), field.default is missing and field.default_factory is missing)
            for field in owner.__dataclass_fields__.values()
            if field.init and not _is_class_variable(hints[field.name])
        }
    if _is_typed_dict(owner):
        required: frozenset[str] = getattr(owner, "__required_keys__", frozenset(hints))
        return {name: (plain(hint), _marked(hint, name in required)) for name, hint in hints.items()}
    defaults = getattr(owner, "_field_defaults", {})
    names: tuple[str, ...] = owner._fields  # type: ignore[attr-defined]
    return {name: (hints.get(name, Any), name not in defaults) for name in names}


def _is_class_variable(hint: Any) -> bool:
    return hint is typing.ClassVar or typing.get_origin(hint) is typing.ClassVar


def _init_type(hint: Any) -> Any:
    return hint.type if isinstance(hint, dataclasses.InitVar) else hint


def _marked(hint: Any, otherwise: bool) -> bool:
    """Whether a key is required: what its annotation says, which Python overlooks where annotations are strings."""
    while (origin := typing.get_origin(hint)) is not None:
        name = getattr(origin, "__name__", getattr(origin, "_name", ""))
        if name in ("Required", "NotRequired"):
            return name == "Required"
        if name not in _MARKERS and origin is not typing.Annotated:
            break
        hint = typing.get_args(hint)[0]
    return otherwise


def _hints(owner: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The annotations of a class and those it comes from, with what is put in for their type variables."""
    hints = typing.get_type_hints(owner, include_extras=True)
    given: dict[type, dict[Any, Any]] = {}
    todo = [(owner, dict(zip(getattr(owner, "__parameters__", ()), arguments, strict=False)))]
    for cls, values in todo:
        given.setdefault(cls, values)
        for base in getattr(cls, "__orig_bases__", ()):
            origin = typing.get_origin(base)
            if isinstance(origin, type) and origin is not typing.Generic:
                parts = [substituted(part, values) for part in typing.get_args(base)]
                todo.append((origin, dict(zip(getattr(origin, "__parameters__", ()), parts, strict=False))))
    order = [cls for cls in (*given, *owner.__mro__) if cls in given]
    for name, hint in hints.items():
        home = next((cls for cls in order if name in inspect.get_annotations(cls)), owner)
        hints[name] = substituted(hint, given.get(home, {}))
    return hints


def is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, python_types.UnionType)
