"""Where the user wrote something: the innermost line outside of this package, cheaply."""

from __future__ import annotations

import sys
from types import CodeType

from ..core.errors import SourceLoc

_PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
_OURS = frozenset(
    f"{_PACKAGE}.{name}" if name else _PACKAGE for name in ("", "lang", "compiler", "compiler.tracing", "core")
)
_MAX_KNOWN = 16384
# By (code object, line): holding the code keeps its id from being used again.
_known: dict[tuple[int, int], tuple[CodeType, SourceLoc]] = {}


def caller() -> SourceLoc | None:
    """The place of the call that led into this package; None where there is no Python frame outside."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__package__") in _OURS or frame.f_globals.get("__name__") == "contextlib":
        following = frame.f_back
        if following is None:
            return None
        frame = following
    code, line = frame.f_code, frame.f_lineno
    key = (id(code), line)
    found = _known.get(key)
    if found is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        found = _known[key] = (code, SourceLoc(code.co_filename, line, code.co_name))
    return found[1]
