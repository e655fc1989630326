"""What a path through a program leaves behind: ops, the openings and closings of regions, decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ...core.errors import SourceLoc
from ..ir import AnyOp, Loop, Ref, Role, Scope


class NotInline(BaseException):
    """What was followed as a plain computation is none: it branches, has effects, or cannot be followed."""


class TraceStop(BaseException):
    """Ends a path. Not an Exception, so that the user's own `except` clauses do not catch it."""


@dataclass(slots=True)
class Enter:
    """A region opened here."""

    op: Role | Scope


@dataclass(slots=True)
class Leave:
    """The innermost region closed here."""

    op: Role | Scope


@dataclass(frozen=True, slots=True)
class Decision:
    """The path went the way `taken` on the truth of `ref`. Refs and streams from these numbers on came later."""

    ref: Ref
    taken: bool
    first_ref: int
    first_stream: int
    where: SourceLoc | None = field(default=None, compare=False)
    loop: Loop | None = None  # not a branch: true goes once through the body of this loop, false goes on behind it


PathEvent: TypeAlias = "AnyOp | Enter | Leave | Decision"
