"""The hub: all programs of a run, suspended and resumed in one thread.

Each program instance is a greenlet. It runs until it needs a value that is not there; then the next one runs. When
none can, everything that they asked for is submitted together, and the calling thread lets the backend work until some
result is in. There is no thread per program, and nothing waits for what can never come.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import greenlet

from ..core.backend import Backend
from ..core.errors import ProgramError, SourceLoc
from ..core.events import Event, Failed, Finished
from ..core.request import GenRequest

if TYPE_CHECKING:
    from .executor import Executor

_NAMES = itertools.count(1)
_WARNED: set[Any] = set()
Done = Callable[["Finished | Failed"], None]


class Task:
    """One program instance in a hub: its executor, the greenlet of its body, and what it waits for."""

    __slots__ = ("body", "error", "executor", "greenlet", "is_finished", "ready", "result", "what", "where")

    def __init__(self, executor: Executor, body: Callable[[], Any]) -> None:
        self.executor = executor
        self.body = body
        self.greenlet: Any = None
        self.ready: Callable[[], bool] | None = None
        self.what = ""
        self.where: SourceLoc | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_finished = False


class Hub:
    """Runs tasks to their end against one backend. Used once, by one thread."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = f"run{os.getpid():x}-{next(_NAMES)}"
        self._outbox: list[GenRequest] = []
        self._in_flight: dict[str, Done] = {}
        self._inbox: deque[Event] = deque()
        self._tasks: dict[int, Task] = {}  # by id of the executor
        self._waiting: list[Task] = []

    # -- what executors ask

    def send(self, request: GenRequest, done: Done) -> None:
        """Submit a request with the next batch; `done` gets its last event, in this hub's thread."""
        self._outbox.append(request)
        self._in_flight[request.id] = done

    def abort(self, request_ids: Iterable[str]) -> None:
        """End requests that nobody waits for any more."""
        ids = set(request_ids)
        self._outbox = [request for request in self._outbox if request.id not in ids]
        if ids:
            self.backend.abort(sorted(ids))

    def wait_for(self, executor: Executor, ready: Callable[[], bool], what: str, where: SourceLoc | None) -> None:
        """Suspend the program until `ready()`. Raises ProgramError if that can never be.

        Called after the program has ended, or from outside of it, it returns at once when ready.
        """
        task = self._tasks.get(id(executor))
        while not ready():
            if task is None or task.is_finished or greenlet.getcurrent() is not task.greenlet:
                self._drive(ready, what, where)
                return
            task.ready, task.what, task.where = ready, what, where
            task.greenlet.parent.switch()
            if task.error is not None:
                error, task.error = task.error, None
                raise error

    def _drive(self, ready: Callable[[], bool], what: str, where: SourceLoc | None) -> None:
        """Somebody outside of the programs waits (a state used after its run): work until `ready()`."""
        while not ready():
            if not self._in_flight:
                raise ProgramError(f"{what}: nothing that is still to come sets it", where=where)
            self._exchange()

    def warn(self, message: str, key: Any) -> None:
        """A warning for the user, once per key."""
        if key not in _WARNED:
            _WARNED.add(key)
            warnings.warn(message, stacklevel=4)

    # -- running

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Run all tasks; yields each as it ends (its `error` is what the body raised).

        On leaving early (a closed iterator, an interrupt) everything in flight is aborted.
        """
        try:
            for task in tasks:
                self._tasks[id(task.executor)] = task
                self._start(task)
                if task.greenlet.dead:
                    task.ready = None
                self._waiting.append(task)
            yield from self._loop()
        finally:
            self._close()

    def _start(self, task: Task) -> None:
        def body() -> None:
            try:
                task.result = task.body()
            except Exception as error:
                task.error = error

        task.greenlet = greenlet.greenlet(body)
        task.greenlet.gr_context = contextvars.copy_context()
        task.greenlet.switch()

    def _loop(self) -> Iterator[Task]:
        while True:
            progress = True
            while progress:
                progress = False
                waiting, self._waiting = self._waiting, []
                for task in waiting:
                    if not task.greenlet.dead and task.ready is not None and task.ready():
                        task.ready = None
                        task.greenlet.switch()
                        progress = True
                    if task.greenlet.dead and (task.error is not None or task.executor.is_idle):
                        self._finish(task)
                        yield task
                        progress = True
                    else:
                        self._waiting.append(task)
            if not self._waiting:
                return
            if not self._in_flight:
                self._break_deadlock()
                continue
            self._exchange()

    def _finish(self, task: Task) -> None:
        task.is_finished = True
        task.executor.finish(task.error)
        task.executor.ret_value = task.result

    def _exchange(self) -> None:
        """Submit what was asked for, let the backend work until something ends, and pass the results on."""
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self.backend.submit(batch, self._inbox.append)
        self.backend.wait(self._has_result)
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, (Finished, Failed)):
                done = self._in_flight.pop(event.request_id, None)
                if done is not None:
                    done(event)

    def _has_result(self) -> bool:
        return any(isinstance(event, (Finished, Failed)) for event in self._inbox)

    def _break_deadlock(self) -> None:
        """Nothing is in flight, and still programs wait: for values that no op will ever produce."""
        for task in self._waiting:
            if task.greenlet.dead:
                stuck = [stream for stream in task.executor.streams.values() if not stream.is_idle]
                for stream in stuck:
                    stream.fail(ProgramError(f"stream {stream.path} of {task.executor.title!r} can never go on"))
            else:
                task.error = ProgramError(f"{task.what}: nothing that is still to come sets it", where=task.where)
                task.ready = None
                task.greenlet.switch()

    def _close(self) -> None:
        """Abort what is in flight and end the greenlets that are still suspended."""
        if self._in_flight:
            self.abort(list(self._in_flight))
            self._in_flight.clear()
        for task in self._tasks.values():
            if task.greenlet is not None and not task.greenlet.dead:
                task.greenlet.throw(greenlet.GreenletExit)
            task.is_finished = True
        self._tasks.clear()
        self._waiting.clear()
