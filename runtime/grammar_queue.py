"""Requests whose constraint takes a while to compile, or that have pictures: they wait here, and neither their caller
nor the loop does.

A request comes to the scheduler as a message like any other, only later: when it is prepared. So a trace
replays, and other requests go on. One that is cancelled while it waits is told at once; what its constraint compiles to
is kept for the next.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..core.errors import DeadlineExceeded, EngineClosed, ErrorInfo, RequestError
from ..core.events import Event, Failed

NUM_THREADS = 2  # as many processes compile at once (`compiler.constraints.worker`)

Tell = Callable[[Event], None]


class _Waiting(NamedTuple):
    tell: Tell
    deadline: float


class GrammarQueue:
    """Thread-safe. `prepare` and `tell` are called by the queue's threads; `tell` also by whoever ends a request.

    `next_deadline` (monotonic seconds) is not after the first one of those that wait: when `expire` has work.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._lock = threading.RLock()  # a batch that is collected aborts its requests, in whatever thread that happens
        self._threads: ThreadPoolExecutor | None = None
        self._is_closed = False
        self.next_deadline = math.inf

    def __len__(self) -> int:
        """Requests that wait."""
        with self._lock:
            return len(self._waiting)

    def put(
        self, request_id: str, prepare: Callable[[], Callable[[], None]], tell: Tell, deadline: float | None = None
    ) -> None:
        """Have `prepare` called in another thread, and what it returns unless the request is cancelled until then.

        What these raise is told as the request's failure. Raises EngineClosed; RequestError for an id that waits here.
        """
        with self._lock:
            if self._is_closed:
                raise EngineClosed("the engine is closed")
            if request_id in self._waiting:
                raise RequestError(f"a request {request_id!r} is running", field="id")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(NUM_THREADS, "dslc-grammar")
            waiting = self._waiting[request_id] = _Waiting(tell, math.inf if deadline is None else deadline)
            self.next_deadline = min(self.next_deadline, waiting.deadline)
            self._threads.submit(self._run, request_id, prepare, waiting)

    def _run(self, request_id: str, prepare: Callable[[], Callable[[], None]], waiting: _Waiting) -> None:
        with self._lock:
            if self._waiting.get(request_id) is not waiting:
                return  # cancelled before its turn
        try:
            submit = prepare()
            with self._lock:
                if self._waiting.get(request_id) is waiting:
                    submit()
                    del self._waiting[request_id]
        except Exception as error:
            self._fail(request_id, waiting, ErrorInfo.of(error))

    def _fail(self, request_id: str, waiting: _Waiting, error: ErrorInfo) -> None:
        with self._lock:
            if self._waiting.get(request_id) is not waiting:
                return
            del self._waiting[request_id]
        waiting.tell(Failed(request_id, error))

    def fail(self, request_id: str, error: ErrorInfo) -> bool:
        """Tell a request that waits that it has failed; False if it does not wait here."""
        with self._lock:
            waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return False
        waiting.tell(Failed(request_id, error))
        return True

    def expire(self, now: float) -> None:
        """Fail those whose deadline has passed while they were being prepared."""
        with self._lock:
            late = [(name, waiting) for name, waiting in self._waiting.items() if waiting.deadline <= now]
            self.next_deadline = min((w.deadline for w in self._waiting.values() if w.deadline > now), default=math.inf)
        error = ErrorInfo.of(
            DeadlineExceeded(
                "the deadline passed before the request's constraint was compiled and its pictures processed"
            )
        )
        for request_id, waiting in late:
            self._fail(request_id, waiting, error)

    def close(self, error: ErrorInfo) -> None:
        """Fail all that wait, and refuse what comes. What is being prepared is not waited for."""
        with self._lock:
            self._is_closed = True
            waiting, threads = list(self._waiting), self._threads
        for request_id in waiting:
            self.fail(request_id, error)
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
