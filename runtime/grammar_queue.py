"""Requests whose constraint takes a while to compile: they wait here, and neither their caller nor the loop does.

A request comes to the scheduler as a message like any other, only later: when its constraint is compiled. So a trace
replays, and other requests go on. One that is cancelled while it waits is told at once; what its constraint compiles to
is kept for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..core.errors import ErrorInfo
from ..core.events import Event, Failed

NUM_THREADS = 2  # as many processes compile at once (`compiler.constraints.worker`)


class GrammarQueue:
    """Thread-safe. `admit()` and `tell` are called by the queue's threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[Event], None]] = {}
        self._lock = threading.RLock()  # a batch that is collected aborts its requests, in whatever thread that happens
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        with self._lock:
            return len(self._waiting)

    def put(self, request_id: str, prepare: Callable[[], Callable[[], None]], tell: Callable[[Event], None]) -> None:
        """Have `prepare` called in another thread, and what it returns unless the request is cancelled until then.

        What `prepare` raises is told as the request's failure.
        """
        with self._lock:
            self._waiting[request_id] = tell
            if self._threads is None:
                self._threads = ThreadPoolExecutor(NUM_THREADS, "dslc-grammar")
            threads = self._threads
        threads.submit(self._run, request_id, prepare, tell)

    def _run(self, request_id: str, prepare: Callable[[], Callable[[], None]], tell: Callable[[Event], None]) -> None:
        with self._lock:
            if self._waiting.get(request_id) is not tell:
                return  # cancelled before its turn
        try:
            submit = prepare()
        except Exception as error:
            self.fail(request_id, ErrorInfo.of(error))
            return
        with self._lock:
            if self._waiting.get(request_id) is tell:
                del self._waiting[request_id]
                submit()

    def fail(self, request_id: str, error: ErrorInfo) -> bool:
        """Tell a request that waits that it has failed; False if it does not wait here."""
        with self._lock:
            tell = self._waiting.pop(request_id, None)
        if tell is None:
            return False
        tell(Failed(request_id, error))
        return True

    def close(self, error: ErrorInfo) -> None:
        """Fail all that wait. What is being compiled is not waited for."""
        with self._lock:
            waiting, threads = list(self._waiting), self._threads
        for request_id in waiting:
            self.fail(request_id, error)
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
