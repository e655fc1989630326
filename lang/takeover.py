"""What happens when code of the user's keeps the thread of a hub: calls are made elsewhere, programs begun elsewhere.

A compiled program calls functions of the user's one by one, so such a call can be made by another thread while its
program is suspended like one that waits for a generation (`Hands`). A body that runs cannot be moved; while it keeps
its thread, carriers begin the programs of its batch that nobody has begun yet (`Batch`). Quick code never leaves its
thread: neither has a thread unless something was kept for longer than HOLD_S.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from ..core.errors import Aborted
from . import threads

if TYPE_CHECKING:
    from .carrier import CarrierHub, Carriers
    from .hub import Hub, Task

HOLD_S = 0.005  # user code that keeps a thread for longer may block; other processes can make that of quick code too
LONG_HOLD_S = 0.1  # and what keeps it for longer does
LOOK_S = 0.005  # how often somebody looks


class Hands:
    """Threads that make calls for suspended programs: there while a call is being made, at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._num = 0

    def make(self, call: Callable[[], None]) -> None:
        """Have a call made that raises nothing; after those that wait, when as many as may be are being made."""
        with self._lock:
            self._waiting.append(call)
            if self._num >= self._limit:
                return
            self._num += 1
        threads.start(self._run, "dslc-call")

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._num -= 1
                    return
                call = self._waiting.popleft()
            call()


class Batch:
    """The programs of a batch that are not begun yet, for whichever hub has its thread free to begin them."""

    def __init__(
        self, make: Callable[[Hub, int], Task], order: Sequence[int], limit: int, carriers: Carriers, context: Context
    ) -> None:
        self._make = make
        self._left = deque(order)
        self._limit = limit  # of threads that run bodies, the caller's included
        self._carriers = carriers
        self._context = context
        self._takers: list[Hub] = []
        self._elsewhere: dict[Task, CarrierHub] = {}
        self._ended: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def run(self, hub: Hub) -> Iterator[Task]:
        """Run all in the caller's hub, and where that is kept in others too; yields each as it ends."""
        self._takers.append(hub)
        if self._limit > 1 and len(self._left) > 1:
            threads.start(self._watch, "dslc-watch")
        try:
            for task in hub.run(self._begun_by(hub)):
                yield task
                while not self._ended.empty():
                    yield self._came_back()
            while self._elsewhere:
                yield self._came_back()
        finally:
            self._leave()

    def _begun_by(self, hub: Hub) -> Iterator[Task]:
        while (number := self._following()) is not None:
            yield self._make(hub, number)

    def _begun_elsewhere(self, hub: CarrierHub) -> Iterator[Task]:
        while True:
            with self._lock:  # a program is either left or known to be elsewhere
                number = self._following()
                if number is None:
                    return
                task = self._make(hub, number)
                task.context = self._context
                task.on_end = self._ended.put
                self._elsewhere[task] = hub
            yield task

    def _following(self) -> int | None:
        try:
            return self._left.popleft()
        except IndexError:
            return None

    def _came_back(self) -> Task:
        task = self._ended.get()
        del self._elsewhere[task]
        return task

    def _watch(self) -> None:
        """While programs are left: when all who could begin them are kept, one more carrier may."""
        while self._left and len(self._takers) < self._limit:
            time.sleep(LOOK_S)
            now = time.perf_counter()
            since = [hub.held_since for hub in self._takers]
            if all(began is not None and now - began > HOLD_S for began in since):
                self._take_over()

    def _take_over(self) -> None:
        with self._lock:
            if self._left:
                self._takers.append(self._carriers.take_over(self._begun_elsewhere, self._takers[0]))

    def _leave(self) -> None:
        """The caller wants no more: what is elsewhere is cancelled, and its end awaited."""
        with self._lock:
            self._left.clear()
        if not self._elsewhere:
            return
        error = Aborted("the batch was left before its end")
        for task, hub in list(self._elsewhere.items()):
            hub.post(partial(hub.cancel, task, error))
        while self._elsewhere:
            self._came_back()
