"""Frozen values made at the speed of plain ones, for the few that every generation makes.

The `__init__` of a frozen dataclass sets each field through `object.__setattr__`, at three times the price of an
assignment. Here a plain class of the same slots is filled by assignments and then becomes the frozen one, which Python
allows between classes of one layout. Nothing is checked or converted: for values that are in their stored form already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def maker(cls: type[T], only: Sequence[str] = ()) -> Callable[..., T]:
    """`cls(...)` for a frozen dataclass with slots, without `__post_init__`; a field's factory is no default here.

    With `only`, these fields are the parameters, in this order, and all others have their defaults.
    """
    defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}  # type: ignore[arg-type]
    names = _names(cls)
    if only:
        if missing := [name for name in (*only, *names) if name not in names or name not in {*only, *defaults}]:
            raise TypeError(f"{cls.__name__} cannot be made without {missing[0]!r}, or has no such field")
        constants = {f"default_{name}": defaults[name] for name in names if name not in only}
        return _function(
            cls, ", ".join(only), {name: name if name in only else f"default_{name}" for name in names}, constants
        )
    first = [name for name in names if name not in defaults]
    parameters = [*first, *(f"{name}=defaults[{name!r}]" for name in names if name in defaults)]
    return _function(cls, ", ".join(parameters), {name: name for name in names}, {"defaults": defaults})


def copier(cls: type[T], changed: str) -> Callable[[T, Any], T]:
    """`replace(value, changed=...)` for a frozen dataclass with slots, without `__post_init__`."""
    names = _names(cls)
    if changed not in names:
        raise TypeError(f"{cls.__name__} has no field {changed!r}")
    values = {name: changed if name == changed else f"value.{name}" for name in names}
    return _function(cls, f"value, {changed}", values, {})


def _names(cls: type[Any]) -> list[str]:
    if "__dict__" in dir(cls):
        raise TypeError(f"{cls.__name__} must be a dataclass with slots")
    return [field.name for field in fields(cls)]


def _function(cls: type[T], parameters: str, values: dict[str, str], known: dict[str, Any]) -> Callable[..., T]:
    """A function of these parameters that makes a `cls` of these expressions (written out, as dataclasses do it)."""
    # Both of object's: one of a frozen base would have each assignment made by a call of Python's.
    members = {
        "__slots__": cls.__dict__["__slots__"],
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
    }
    draft = type(f"{cls.__name__}Draft", cls.__bases__, members)
    lines = [f"    made.{name} = {value}" for name, value in values.items()]
    body = "\n".join([f"def make({parameters}):", "    made = new(draft)", *lines, "    made.__class__ = cls"])
    scope: dict[str, Any] = {**known, "new": object.__new__, "draft": draft, "cls": cls}
    exec(body + "\n    return made", scope)
    made: Callable[..., T] = scope["make"]
    return made
