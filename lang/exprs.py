"""What `user(...)`, `image(...)` and their like return: small values that a state turns into ops (see also `gens`).

Everything that can be wrong about them is refused when they are built, with the user's line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ..compiler.tracing.symbols import Symbol
from ..core.errors import ProgramError, SourceLoc
from .locate import caller

if TYPE_CHECKING:
    from .state import ProgramState

F = TypeVar("F", bound=Callable[..., Any])


def traceable(function: F) -> F:
    """Mark a function as part of the language: it runs in a traced copy."""
    function.__dslc_traceable__ = True  # type: ignore[attr-defined]
    return function


def not_text(value: object) -> str:
    """Why a value cannot be appended, and what to do."""
    if value is None:
        return "None cannot be appended to a program: does what gave it return a value?"
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name} cannot be appended to a program; convert it to a str first"


class Expression:
    """Something a state can append. `a + b` appends a, then b."""

    __dslc_traceable__ = True
    __slots__ = ()

    def append_to(self, state: ProgramState) -> None:
        """Hand this expression's ops to the state's sink."""
        raise TypeError(f"{type(self).__name__} has no rule for appending")

    def __add__(self, other: Any) -> ExprList:
        return ExprList(_parts(self) + _parts(other))

    def __radd__(self, other: Any) -> ExprList:
        return ExprList(_parts(other) + _parts(self))

    def __format__(self, spec: str) -> str:
        raise ProgramError(
            f"{self!r} has no text that an f-string could hold: append it beside the text, as in "
            '`s += "Name: " + gen("name")`',
            where=caller(),
        )


def _parts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, ExprList):
        return value.parts
    if isinstance(value, (str, Symbol, Expression)):
        return (value,)
    raise ProgramError(not_text(value), where=caller())


class ExprList(Expression):
    """Several things to append, in order."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def append_to(self, state: ProgramState) -> None:
        where: SourceLoc | None = None
        for part in self.parts:
            if part.__class__ is str:
                where = where or caller()
                state.append_text(part, where)
            else:
                state.append(part)


class SpecialExpr(Expression):
    """Template text in which special tokens are parsed."""

    __slots__ = ("text", "where")

    def __init__(self, text: str, where: SourceLoc | None) -> None:
        self.text = text
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_special(self.text, self.where)


class MediaExpr(Expression):
    """A picture or a video."""

    __slots__ = ("kind", "options", "source", "where")

    def __init__(self, kind: Any, source: Any, options: tuple[tuple[str, Any], ...], where: SourceLoc | None) -> None:
        self.kind = kind
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.options = options
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_media(self)


class RoleExpr(Expression):
    """A whole chat turn with its content."""

    __slots__ = ("content", "role", "where")

    def __init__(self, role: str, content: Any, where: SourceLoc | None) -> None:
        self.role = role
        self.content = content
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_turn(self.role, self.content, self.where)


class RoleEdgeExpr(Expression):
    """The beginning or the end of a chat turn, as `user_begin()` and `user_end()` write it."""

    __slots__ = ("is_begin", "role", "where")

    def __init__(self, role: str, is_begin: bool, where: SourceLoc | None) -> None:
        self.role = role
        self.is_begin = is_begin
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        if self.is_begin:
            state.begin_role(self.role, self.where)
        else:
            state.end_role(self.role, self.where)


@traceable
def image(expr: Any) -> Expression:
    """Append a picture: a path, bytes, a URL (where `media_limits` allows it), a PIL image or an array of uint8."""
    return MediaExpr("image", expr, (), caller())


@traceable
def video(path: Any, num_frames: int, fps: float | None = None) -> Expression:
    """Append a video of which `num_frames` frames are used, evenly spread: a film (mp4, webm, ...), a GIF, an animated
    WebP, an .npy, a folder of pictures, or a list of frames. `fps`: frames a second of the source, where it does not
    say itself; models that know the time use it."""
    options: tuple[tuple[str, Any], ...] = (("num_frames", num_frames),)
    return MediaExpr("video", path, options if fps is None else (*options, ("fps", fps)), caller())


@traceable
def special(text: str) -> Expression:
    """Append text in which special tokens are parsed (plain `s += text` never does)."""
    return SpecialExpr(text, caller())


@traceable
def system(expr: Any = None) -> Expression:
    """A chat turn of the system: `s += system(content)`."""
    return RoleExpr("system", expr, caller())


@traceable
def user(expr: Any = None) -> Expression:
    """A chat turn of the user: `s += user(content)`."""
    return RoleExpr("user", expr, caller())


@traceable
def assistant(expr: Any = None) -> Expression:
    """A chat turn of the assistant: `s += assistant(content)`."""
    return RoleExpr("assistant", expr, caller())


@traceable
def tool_result(expr: Any = None) -> Expression:
    """A chat turn of the tool: `s += tool_result(content)`."""
    return RoleExpr("tool", expr, caller())


@traceable
def system_begin() -> Expression:
    """The beginning of a chat turn of the system."""
    return RoleEdgeExpr("system", True, caller())


@traceable
def system_end() -> Expression:
    """The end of a chat turn of the system."""
    return RoleEdgeExpr("system", False, caller())


@traceable
def user_begin() -> Expression:
    """The beginning of a chat turn of the user."""
    return RoleEdgeExpr("user", True, caller())


@traceable
def user_end() -> Expression:
    """The end of a chat turn of the user."""
    return RoleEdgeExpr("user", False, caller())


@traceable
def assistant_begin() -> Expression:
    """The beginning of a chat turn of the assistant."""
    return RoleEdgeExpr("assistant", True, caller())


@traceable
def assistant_end() -> Expression:
    """The end of a chat turn of the assistant."""
    return RoleEdgeExpr("assistant", False, caller())


def flatten(value: Iterable[Any]) -> tuple[Any, ...]:
    """The parts of a list or tuple of things to append."""
    return tuple(part for item in value for part in _parts(item))
