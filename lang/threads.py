"""Threads of ours: daemons, so that code of the user's that hangs in one does not keep the process, but ended before
the interpreter ends. A daemon that wakes up while the interpreter is being taken down is killed in the middle of C++
frames (torch, greenlet), and the process aborts with it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable

PATIENCE_S = 2.0  # how long the end of the process waits for threads that user code keeps

_ending = threading.Event()
_running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start(target: Callable[[], object], name: str) -> None:
    """Run `target` in a thread. It should look at `is_ending()` where it might go on for long."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    _running.add(thread)


def is_ending() -> bool:
    """Whether the process is about to end, so that nobody waits for results any more."""
    return _ending.is_set()


@atexit.register
def _end() -> None:
    _ending.set()
    until = time.monotonic() + PATIENCE_S
    while (left := until - time.monotonic()) > 0 and (
        thread := next(filter(threading.Thread.is_alive, _running), None)
    ):
        thread.join(left)


os.register_at_fork(after_in_child=_running.clear)  # a fork has none of them
