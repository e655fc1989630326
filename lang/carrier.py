"""Threads that run programs for callers who do not: streams, event loops, and batches whose bodies block.

A Carrier is a thread with a hub. A Driver is the thread that lets a backend work while carriers and event loops wait.
Both are there only while they have something to do.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import greenlet

from ..core.backend import Backend
from ..core.errors import Aborted
from ..core.events import Event
from . import threads
from .common import CommonGens
from .hub import Hub, InFlight, Task
from .takeover import Hands

LINGER_S = 0.05  # how long an idle carrier waits for more work
MAX_CALLS = 64  # of the user's that are made at one time for the programs of one carrier


class Driver:
    """Lets one backend work, in a thread of its own, while anybody needs it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = weakref.ref(backend)
        self._lock = threading.Lock()
        self._users: dict[int, Callable[[BaseException], None]] = {}
        self._is_running = False

    def acquire(self, user: object, on_error: Callable[[BaseException], None]) -> None:
        """`user` has requests in flight; `on_error` hears, in the driver's thread, when the backend cannot go on."""
        with self._lock:
            self._users[id(user)] = on_error
            if self._is_running:
                return
            self._is_running = True
        threads.start(self._run, "dslc-driver")

    def release(self, user: object) -> None:
        """`user` has nothing in flight any more."""
        with self._lock:
            self._users.pop(id(user), None)

    def _run(self) -> None:
        idle = False
        while True:
            with self._lock:
                if threads.is_ending():
                    break
                if not self._users and idle:
                    self._is_running = False
                    return
                idle = not self._users
            backend = self._backend()
            if backend is None:
                return
            try:
                backend.wait(self._is_unused, timeout=LINGER_S)
            except Exception as error:
                self._tell_all(error)
        self._tell_all(Aborted("the process ends"))

    def _tell_all(self, error: BaseException) -> None:
        with self._lock:
            users, self._users = self._users, {}
        for on_error in users.values():
            on_error(error)

    def _is_unused(self) -> bool:
        return not self._users or threads.is_ending()


class CarrierHub(Hub):
    """A hub in a thread of its own: takes tasks and calls from other threads; the Driver lets the backend work."""

    def __init__(self, backend: Backend, driver: Driver) -> None:
        super().__init__(backend)
        self._open()
        self._driver = driver
        self.hands = Hands(MAX_CALLS)
        self._changed = threading.Condition()
        self._incoming: deque[Task] = deque()
        self._is_closed = False
        self.num_tasks = 0  # not ended yet; changed under the condition

    def add(self, task: Task) -> bool:
        """Take a task, from any thread. False if this hub has closed."""
        with self._changed:
            if self._is_closed:
                return False
            self.num_tasks += 1
            self._incoming.append(task)
            self._changed.notify()
            return True

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` made in the hub's thread."""
        with self._changed:
            super().post(call)
            self._changed.notify()

    def begin_from(self, tasks: Iterator[Task], like: Hub) -> None:
        """Before serving: begin these tasks too, under the decisions of the hub that had them."""
        self._unstarted = tasks
        self.common = CommonGens() if like.common is not None else None
        self.pressure = like.pressure
        self.sends_hints = like.sends_hints
        self.hands = like.hands
        self.is_wary = True

    def serve(self) -> None:
        """Run what comes, until nothing has come for a while."""
        self._main = greenlet.getcurrent()
        try:
            self._serve()
        except BaseException as error:  # a fault of ours, or of the backend: nobody may wait for ever
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        with self._changed:
            self._is_closed = True
        for task in [*self._tasks.values(), *self._incoming]:
            if not task.is_ended:
                task.executor.crash(error)
                self._finish(task)
                self._tell(task)

    def _serve(self) -> None:
        while True:
            self._run_calls()
            if self._inbox:
                self._deliver()  # also what comes for requests that were given up: it would be news for ever
            if self._progress():
                while self._ended:
                    self._tell(self._ended.popleft())
                continue
            with self._changed:
                if not self._changed.wait_for(self._has_news, LINGER_S):
                    self._is_closed = True
                    return

    def _next_task(self) -> Task | None:
        if self._nested:
            return self._nested.popleft()
        if self._incoming:
            return self._incoming.popleft()
        task = next(self._unstarted, None)
        if task is not None:
            with self._changed:
                self.num_tasks += 1
        return task

    def _has_news(self) -> bool:
        return bool(self._incoming or self._inbox) or not self._calls.empty()

    def _tell(self, task: Task) -> None:
        with self._changed:
            self.num_tasks -= 1
        if task.on_end is not None:
            task.on_end(task)

    def _receive(self, event: Event) -> None:
        with self._changed:
            super()._receive(event)
            self._changed.notify()

    def _wait(self) -> None:
        if self._in_flight:
            self._driver.acquire(self, self._driver_failed)
        with self._changed:
            self._changed.wait_for(self._has_news)
        self._run_calls()

    def _driver_failed(self, error: BaseException) -> None:
        self.post(lambda: self._fail_all(error))

    def _forget(self, request_id: str) -> InFlight | None:
        known = super()._forget(request_id)
        if not self._in_flight:
            self._driver.release(self)
        return known


class Carriers:
    """The carriers of one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = weakref.ref(backend)
        self.driver = Driver(backend)
        self._lock = threading.Lock()
        self._hubs: list[CarrierHub] = []

    def take_over(self, tasks: Callable[[CarrierHub], Iterator[Task]], like: Hub) -> CarrierHub:
        """A new carrier for what is left of a batch that runs in the hub `like`."""
        hub = CarrierHub(self._backend() or _gone(), self.driver)
        hub.begin_from(tasks(hub), like)
        threads.start(hub.serve, "dslc-carrier")
        return hub

    def start(self, make: Callable[[CarrierHub], Task], limit: int = 1) -> tuple[CarrierHub, Task]:
        """Run a task on the least busy carrier; on a new one while all are busy and there are fewer than `limit`."""
        with self._lock:
            self._hubs = [hub for hub in self._hubs if not hub._is_closed]
            ranked = sorted(self._hubs, key=lambda hub: hub.num_tasks)
            if ranked and (ranked[0].num_tasks == 0 or len(ranked) >= limit):
                task = make(ranked[0])
                if ranked[0].add(task):
                    return ranked[0], task
            hub = CarrierHub(self._backend() or _gone(), self.driver)
            task = make(hub)
            hub.add(task)
            self._hubs.append(hub)
        threads.start(hub.serve, "dslc-carrier")
        return hub, task


def _gone() -> Any:
    raise Aborted("the backend is gone")


_ALL: weakref.WeakKeyDictionary[Any, Carriers] = weakref.WeakKeyDictionary()
_ALL_LOCK = threading.Lock()


def carriers_of(backend: Backend) -> Carriers:
    """The carriers of a backend, made on first use."""
    with _ALL_LOCK:
        found = _ALL.get(backend)
        if found is None:
            found = _ALL[backend] = Carriers(backend)
        return found
