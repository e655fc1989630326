"""Where the user wrote something: the innermost line outside of this package, cheaply."""

from __future__ import annotations

import sys
from types import CodeType, FrameType

from ..core.errors import SourceLoc

_PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
_OURS = frozenset(
    f"{_PACKAGE}.{name}" if name else _PACKAGE for name in ("", "lang", "compiler", "compiler.tracing", "core")
)
_MAX_KNOWN = 16384
# Of calls outside of this package, by (code object, instruction): finding the line of an instruction is slow in a long
# function. Holding the code keeps its id from being used again.
_known: dict[tuple[int, int], tuple[CodeType, SourceLoc]] = {}
_inside: dict[int, CodeType] = {}  # code of this package, by id


def caller() -> SourceLoc | None:
    """The place of the call that led into this package; None where there is no Python frame outside."""
    frame = sys._getframe(1).f_back  # the first is that of who asks, and ours
    while frame is not None:
        found = _known.get((id(frame.f_code), frame.f_lasti))
        if found is not None:
            return found[1]
        if frame.f_globals.get("__package__") not in _OURS and frame.f_globals.get("__name__") != "contextlib":
            return _note(frame)
        _inside[id(frame.f_code)] = frame.f_code
        frame = frame.f_back
        while frame is not None and id(frame.f_code) in _inside:
            frame = frame.f_back
    return None


def _note(frame: FrameType) -> SourceLoc:
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    code = frame.f_code
    place = SourceLoc(code.co_filename, frame.f_lineno, code.co_name)
    _known[id(code), frame.f_lasti] = (code, place)
    return place
