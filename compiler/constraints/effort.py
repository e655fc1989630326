"""How much work a compilation in this process may be, and how it takes turns with other threads.

Work is counted in steps, not in time, so that the same constraint takes the same way on any machine: one step is about
two microseconds of making automata in Python.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

_SHORT_TURN_S = 0.0002


class TakesLong(Exception):
    """A compilation has gone beyond the steps it was given. `locked`: in Python; else in what is compiled, without the
    interpreter's lock."""

    def __init__(self, locked: bool = True) -> None:
        super().__init__()
        self.locked = locked


class _Left(threading.local):
    steps: int | None = None


_left = _Left()


def spend(steps: int, *, locked: bool = True) -> None:
    """Count some steps of work. Raises TakesLong where a limit is set, and passed."""
    left = _left.steps
    if left is not None:
        if left < steps:
            raise TakesLong(locked)
        _left.steps = left - steps


def left() -> int | None:
    """The steps that this thread's compilation may still take; None: any number."""
    return _left.steps


@contextlib.contextmanager
def at_most(steps: int | None) -> Iterator[None]:
    """Within, this thread's compilations may take so many steps (None: any number)."""
    outer, _left.steps = _left.steps, steps
    try:
        yield
    finally:
        _left.steps = outer


class _Turns:
    """Who compiles now, and how long turns were before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.usual_s = 0.0


_turns = _Turns()


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Within, a thread that wants to go on waits 0.2 ms for this one and not 5.

    A forward lets the interpreter's lock go several times, and each time must get it back from a thread that compiles.
    """
    with _turns.lock:
        _turns.count += 1
        if _turns.count == 1:
            _turns.usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_SHORT_TURN_S, _turns.usual_s))
    try:
        yield
    finally:
        with _turns.lock:
            _turns.count -= 1
            if not _turns.count:
                sys.setswitchinterval(_turns.usual_s)
