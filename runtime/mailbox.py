"""Where threads leave messages for whoever drives the engine, and where they wait for it."""

from __future__ import annotations

import heapq
import threading
import time
from typing import TYPE_CHECKING

from ..core.errors import DeadlineExceeded, EngineClosed, ErrorInfo
from .scheduling.messages import Cancel, Submit

if TYPE_CHECKING:
    from .request import Request
    from .scheduling.messages import Message

MIN_SWEEP = 64  # deadlines below which it is not worth looking for those of finished requests


class Mailbox:
    """Messages in order, and deadlines, which become messages when they pass: the scheduler never reads a clock.

    `version` changes with every message and every `notify`. All methods are thread-safe.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self._deadlines: list[tuple[float, int, Request]] = []  # the number breaks ties
        self._num_deadlines = 0
        self._sweep_at = MIN_SWEEP
        self._is_closed = False
        self.version = 0

    @property
    def num_deadlines(self) -> int:
        """Deadlines that are kept, some of them perhaps of requests that are over."""
        return len(self._deadlines)

    def put(self, message: Message, deadline: float | None = None) -> None:
        """Leave a message; `deadline` (monotonic seconds) ends the submitted request if it is not finished by then.

        Raises EngineClosed for a request when nobody will take messages any more.
        """
        with self._changed:
            if self._is_closed:
                if isinstance(message, Submit):
                    raise EngineClosed("the engine is closed")
                return
            self._messages.append(message)
            if deadline is not None and isinstance(message, Submit):
                self._num_deadlines += 1
                if len(self._deadlines) >= self._sweep_at:
                    self._sweep()
                heapq.heappush(self._deadlines, (deadline, self._num_deadlines, message.request))
            self._wake()

    def _sweep(self) -> None:
        """Let go of requests that were over before their deadline: at most as many of them are kept as of others."""
        self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
        heapq.heapify(self._deadlines)
        self._sweep_at = max(MIN_SWEEP, 2 * len(self._deadlines))

    def take(self, now: float) -> list[Message]:
        """All messages since the last call, with those of deadlines that have passed. Only for the driver."""
        if not self._messages and not (self._deadlines and self._deadlines[0][0] <= now):
            return []
        with self._changed:
            messages, self._messages = self._messages, []
            while self._deadlines and self._deadlines[0][0] <= now:
                _, _, request = heapq.heappop(self._deadlines)
                if not request.is_over:
                    late = ErrorInfo.of(DeadlineExceeded("the deadline passed before the request was finished"))
                    messages.append(Cancel(request.id, late))
        return messages

    def close(self) -> None:
        """Nobody takes messages after the next `take`: from now on requests are refused, and other messages lost."""
        with self._changed:
            self._is_closed = True
            self._deadlines = []
            self._wake()

    def notify(self) -> None:
        """Wake everybody who waits: there are events, or the driver has left."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        self.version += 1
        self._changed.notify_all()

    def wait_for_change(self, seen: int, until: float | None, *, drives: bool = False) -> None:
        """Sleep until `version` is no longer `seen`, or the time `until`. One who drives wakes for the next deadline
        too; the others must not, who could do nothing about one that has passed but ask again and again."""
        with self._changed:
            if drives and self._deadlines:
                until = self._deadlines[0][0] if until is None else min(until, self._deadlines[0][0])
            timeout = None if until is None else max(0.0, until - time.monotonic())
            self._changed.wait_for(lambda: self.version != seen, timeout)
