"""Constraints that this compiler has found good before, kept on disk: they need not be read again to say so.

Off until `use(folder)`; the shell's commands switch it on. A line of the file is the hash of a constraint and of the
compiler that checked it. What is not in the file is checked; a line that is damaged matches nothing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.constraint import Constraint

MAX_BYTES = 1 << 20  # the file begins anew beyond it
_known: set[bytes] = set()
_file: Path | None = None


def use(folder: Path | None) -> None:
    """Keep what is found good in this folder; None: nowhere."""
    global _file
    _file = folder / "checked" if folder is not None else None
    _known.clear()
    if _file is None:
        return
    try:
        if _file.stat().st_size > MAX_BYTES:
            _file.unlink()
        _known.update(_file.read_bytes().split(b"\n"))
    except OSError:
        return  # nothing is known


def is_good(constraint: Constraint) -> bool:
    """Whether this very constraint was checked before, by this compiler, and was good."""
    return _file is not None and _line(constraint) in _known


def note(constraint: Constraint) -> None:
    """It was checked, and is good."""
    if _file is None:
        return
    line = _line(constraint)
    _known.add(line)
    try:
        _file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, b"\n" + line + b"\n")  # one write: lines of several processes do not mix
        finally:
            os.close(descriptor)
    except OSError:
        return  # a folder that cannot be written keeps nothing


def _line(constraint: Constraint) -> bytes:
    from .plan_cache import compiler_name

    text = f"{compiler_name()}\0{constraint.kind}\0{constraint.options!r}\0{constraint.source}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest().encode()
