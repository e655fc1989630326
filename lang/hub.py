"""The hub: all programs of a run, suspended and resumed in one thread.

Each program instance is a task with a greenlet for its body. It runs until it needs a value that is not there; then the
next one runs. When none can, everything that they asked for is submitted together, and the calling thread lets the
backend work until some result is in. There is no thread per program, and nothing waits for what can never come.

A single program run from outside needs no greenlet: its caller is suspended anyway, so it drives the hub itself.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import greenlet

from ..core.backend import Backend
from ..core.errors import Aborted, EngineError, ErrorInfo, ProgramError, SourceLoc
from ..core.events import Event, Failed, Finished, Tokens
from ..core.quick import copier
from ..core.request import GenRequest
from .common import CommonGens
from .pressure import Pressure
from .stream import Slot
from .takeover import HOLD_S, Hands

if TYPE_CHECKING:
    from .executor import Executor

_with_hints = copier(GenRequest, "hints")
_NAMES = itertools.count(1)
_PROCESS = [f"run{os.getpid():x}"]  # a request's name differs from those of other processes
os.register_at_fork(after_in_child=lambda: _PROCESS.__setitem__(0, f"run{os.getpid():x}"))
_WARNED: set[Any] = set()
_NO_TASKS: Iterator[Any] = iter(())
_HERE = threading.local()  # .hub: the hub whose program runs in this thread
Done = Callable[["Finished | Failed"], None]
MAX_STARTED = 16384  # programs of a batch whose bodies are begun and not ended at one time
_MISSING: Any = object()


class Task:
    """One program instance in a hub: its executor and its body. `is_ended` when both are done."""

    __slots__ = (
        "body", "context", "error", "executor", "greenlet", "held_s", "is_direct", "is_ended", "is_nested", "on_end",
        "result", "stuck", "waits_for",
    )  # fmt: skip

    def __init__(
        self, executor: Executor, body: Callable[[], Any], on_end: Callable[[Task], None] | None = None
    ) -> None:
        self.executor = executor
        self.body = body
        self.context: contextvars.Context | None = None  # the caller's, where another thread begins the body
        self.on_end = on_end  # called in the hub's thread, where nobody iterates over `Hub.run`
        self.is_nested = False  # begun by another task of the same hub
        self.is_direct = False  # its body needs no greenlet: it waits for nothing, and calls nothing of the user's
        self.greenlet: Any = None
        self.held_s = 0.0  # for how long code of the user's has kept its thread, at most
        self.waits_for: Slot | None = None
        self.stuck: BaseException | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_ended = False


# A request that has no last event yet: whose it is, who hears of its end, who of its tokens.
InFlight = tuple["Executor", Done, "Callable[[Tokens], None] | None"]
_WANTED = frozenset({Finished, Failed, Tokens})


def _end(body: Any, here: Any) -> None:
    """End a suspended body and come back to `here`. Of another thread: its own ends it when it lets go of it."""
    try:
        body.parent = here
    except ValueError:
        return
    body.throw(greenlet.GreenletExit)


class Hub:
    """Runs tasks to their end against one backend, in one thread."""

    may_suspend = True  # `block` suspends whoever reads what is not there yet
    # What every hub begins with.
    common: CommonGens | None = None  # where equal requests in flight are made once
    pressure: Pressure | None = None  # where not all programs of a batch may be in flight
    sends_hints = False  # requests say which KV their plan needs again
    by_path = False  # of those sent together, the ones go first after which most is still to come
    num_requests = 0
    _name = ""  # of this hub; made with its first request
    is_wary = False  # code of the user's that was thought to be quick has kept a thread
    held_since: float | None = None  # when the body that runs was resumed
    hands: Hands | None = None  # who makes calls that may block; None: the hub's own thread
    # What only hubs of tasks need; see `_open`.
    _calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # never filled
    _tasks: dict[Executor, Task] = MappingProxyType({})  # type: ignore[assignment]
    _unstarted: Iterator[Task] = _NO_TASKS
    _num_started = 0
    _num_away = 0  # calls that are being made elsewhere
    _current: Task | None = None
    _main: Any = None  # the greenlet that drives

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.tokenizer = backend.tokenizer if backend.capabilities.token_ids else None
        self._outbox: list[GenRequest] = []
        self._in_flight: dict[str, InFlight] = {}
        self._inbox: deque[Event] = deque()

    def new_id(self) -> str:
        """A name for a request that no other of this process has."""
        self.num_requests += 1
        name = self._name
        if not name:
            name = self._name = f"{_PROCESS[0]}-{next(_NAMES)}"
        return f"{name}-{self.num_requests}"

    def _open(self) -> None:
        """Before the first task: a hub that its caller drives for a single program needs none of these."""
        self._nested: deque[Task] = deque()
        self._ready: deque[Task] = deque()  # suspended, and what they wait for is there
        self._ended: deque[Task] = deque()
        self._suspended: set[Task] = set()
        self._tasks = {}
        self._calls = queue.SimpleQueue()

    # -- what executors ask

    def send(
        self,
        executor: Executor,
        request: GenRequest,
        done: Done,
        progress: Callable[[Tokens], None] | None = None,
    ) -> None:
        """Submit a request with the next batch; `done` gets its last event, `progress` its tokens, in this thread."""
        if self.sends_hints and request.hints is None and request.origin is not None:
            hints = executor.hints_of(request.origin.op)
            if hints is not None:
                request = _with_hints(request, hints)
        if self.common is None or not self.common.joins(request):
            self._outbox.append(request)
        self._in_flight[request.id] = (executor, done, progress)
        executor.num_in_flight += 1

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests that nobody waits for any more, and end them."""
        known = [i for i in request_ids if i in self._in_flight]
        for request_id in known:
            self._forget(request_id)
        if self.common is not None:
            known = self.common.to_abort(known)
        unsent = {request.id for request in self._outbox}
        if unsent:
            gone = unsent.intersection(known)
            self._outbox = [request for request in self._outbox if request.id not in gone]
        if sent := [i for i in known if i not in unsent]:
            self.backend.abort(sent)

    def block(self, slot: Slot, where: SourceLoc | None) -> None:
        """Suspend the program that runs until the slot is done; called from outside of one, work until then.

        Raises ProgramError if that can never be.
        """
        task = self._current
        if task is None or greenlet.getcurrent() is not task.greenlet:
            self._drive(slot, where)
            return
        task.waits_for = slot
        self._suspended.add(task)

        def resume() -> None:
            if task.waits_for is slot:
                task.waits_for = None
                self._ready.append(task)

        slot.watch(resume)
        self._main.switch()
        if task.stuck is not None:
            error, task.stuck = task.stuck, None
            raise error.at(where) if isinstance(error, ProgramError) else error

    def call(self, function: Callable[[], Any], may_block: bool, where: SourceLoc | None) -> Any:
        """What a function of the user's returns. One that may keep the thread is called in another one meanwhile.

        It sees the program's context variables, and what it sets of them stays set.
        """
        task, hands = self._current, self.hands
        if hands is None or not (may_block or self.is_wary):
            return function()
        if task is None or greenlet.getcurrent() is not task.greenlet:
            return function()
        slot = Slot()
        context = contextvars.copy_context()

        def away() -> None:
            began = time.perf_counter()
            value, error = None, None
            try:
                value = context.run(function)
            except BaseException as raised:
                error = raised
            spent = time.perf_counter() - began
            self.post(lambda: back(value, error, spent))

        def back(value: Any, error: BaseException | None, spent: float) -> None:
            self._num_away -= 1
            task.held_s = max(task.held_s, spent)
            if error is not None:
                slot.fail(error)
            else:
                slot.set(value)

        self._num_away += 1
        hands.make(away)
        self.block(slot, where)
        for variable, value in context.items():
            if variable.get(_MISSING) is not value:
                variable.set(value)
        if slot.error is not None:
            raise slot.error
        return slot.value

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` made in the hub's thread."""
        self._calls.put(call)

    def _run_calls(self) -> None:
        while not self._calls.empty():
            self._calls.get()()

    async def wait_for(self, slot: Slot) -> None:
        """`block` for async programs, which only a hub in an event loop can run."""
        if not slot.is_done:
            raise ProgramError("this program is not async: read the value with `s[name]`")

    def warn(self, message: str, key: Any) -> None:
        """A warning for the user, once per key."""
        if key not in _WARNED:
            _WARNED.add(key)
            warnings.warn(message, stacklevel=4)

    # -- running

    @classmethod
    def here(cls, backend: Backend) -> Hub | None:
        """The hub of the program that calls, if it has one with this backend: a program may run others."""
        hub: Hub | None = getattr(_HERE, "hub", None)
        if hub is None or hub.backend is not backend or hub._current is None:
            return None
        return hub if greenlet.getcurrent() is hub._current.greenlet else None

    def run_here(self, executor: Executor, body: Callable[[], Any]) -> None:
        """Run one program in the caller's own greenlet; when this returns it has ended."""
        result, failure = None, None
        try:
            result = body()
        except Exception as error:
            failure = error
            executor.crash(error)
        except BaseException:
            executor.crash(Aborted(f"the program {executor.title!r} was interrupted"))
            raise
        if executor.num_in_flight:
            self.block(executor.rest(), None)
        executor.finish(failure, result)

    def run_nested(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """`run` for a program of this hub: it is suspended while they run beside the others."""
        ended: deque[Task] = deque()
        news = Slot()

        def tell(task: Task) -> None:
            ended.append(task)
            news.set(None)

        running: dict[Task, None] = {}
        for task in tasks:
            task.is_nested = True
            task.on_end = tell
            running[task] = None
            self._nested.append(task)
        try:
            while running:
                if not ended:
                    news = Slot()
                    self.block(news, None)
                task = ended.popleft()
                del running[task]
                yield task
        finally:
            for task in running:
                self.cancel(task, Aborted("the batch was left before its end"))

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Run all tasks; yields each as it ends.

        On leaving early (a closed iterator, an interrupt) everything in flight is aborted.
        """
        self._open()
        self._unstarted = iter(tasks)
        try:
            while True:
                self._main = greenlet.getcurrent()
                while self._ended:
                    yield self._ended.popleft()
                    self._main = greenlet.getcurrent()
                if not self._progress() and not self._ended:
                    return
        finally:
            self._close()

    def _progress(self) -> bool:
        """Let programs run until one has ended or all wait; then exchange. False when there is nothing left to do."""
        while not self._ended:
            if self._ready:
                task = self._ready.popleft()
                self._suspended.discard(task)
                if task.greenlet is not None:
                    self._switch(task)
            elif self._may_start() and (following := self._next_task()) is not None:
                self._start(following)
            elif self._in_flight or self._num_away:
                self._exchange()
                return True
            elif self._suspended:
                self._wake_stuck()
            else:
                return False
        return True

    def _may_start(self) -> bool:
        if self._nested or self.pressure is None or not self._in_flight:
            return bool(self._nested) or self._num_started < MAX_STARTED
        return self.pressure.allows_more()

    def _next_task(self) -> Task | None:
        return self._nested.popleft() if self._nested else next(self._unstarted, None)

    def _start(self, task: Task) -> None:
        self._num_started += 1
        if self.pressure is not None:
            self.pressure.begun()
        self._tasks[task.executor] = task
        if task.is_direct:
            task.greenlet = self._main  # until it has handed over all, results do not end it
            try:
                self._body_of(task)
            finally:
                task.greenlet = None
            self._body_ended(task)
            return
        task.greenlet = greenlet.greenlet(lambda: self._body_of(task), self._main)
        task.greenlet.gr_context = task.context.copy() if task.context is not None else contextvars.copy_context()
        self._switch(task)

    def _body_of(self, task: Task) -> None:
        try:
            if task.error is None:
                task.result = task.body()
        except Exception as error:
            task.error = error

    def _switch(self, task: Task) -> None:
        outer, _HERE.hub = getattr(_HERE, "hub", None), self
        before, self._current = self._current, task
        began = self.held_since = time.perf_counter()
        body = task.greenlet
        try:
            body.switch()
        finally:
            self.held_since = None
            _HERE.hub = outer
            self._current = before
            spent = time.perf_counter() - began
            if spent > HOLD_S:
                task.held_s = max(task.held_s, spent)
                self.is_wary = True
        if body.dead:
            task.greenlet = None
            self._body_ended(task)

    def _body_ended(self, task: Task) -> None:
        if task.error is not None:
            task.executor.crash(task.error)
        self._settle(task)

    def _settle(self, task: Task) -> None:
        """A task has ended when its body has, and nothing of it is in flight."""
        if task.greenlet is None and not task.executor.num_in_flight and not task.is_ended:
            self._finish(task)
            self._num_started -= 1
            if self.pressure is not None:
                self.pressure.ended(task.executor)
            del self._tasks[task.executor]
            if task.is_nested and task.on_end is not None:
                task.on_end(task)
            else:
                self._ended.append(task)

    def _finish(self, task: Task) -> None:
        task.executor.finish(task.error, task.result)
        task.is_ended = True

    def cancel(self, task: Task, error: BaseException) -> None:
        """End a task that is not wanted any more, in this hub's thread."""
        if task.is_ended:
            return
        task.executor.crash(error)
        if task.executor in self._tasks:
            self._settle(task)
        else:
            task.error = error  # not begun yet

    # -- requests and results

    def _exchange(self) -> None:
        """Submit what was asked for, let the backend work until something ends, and pass the results on."""
        if self._outbox:
            batch, self._outbox = self._outbox, []
            if self.by_path and len(batch) > 1:
                batch.sort(key=self._path_from, reverse=True)
            try:
                self.backend.submit(batch, self._receive)
            except Exception as error:
                self._inbox.extend(Failed(request.id, ErrorInfo.of(error)) for request in batch)
        if not self._inbox:
            self._wait()
        self._deliver()

    def _path_from(self, request: GenRequest) -> float:
        """Tokens that are to be generated from this request on, along the longest path."""
        known = self._in_flight.get(request.id)
        return known[0].path_from(request.origin.op) if known is not None and request.origin is not None else 0.0

    def _deliver(self) -> None:
        """Pass on what has come in."""
        inbox = self._inbox
        while inbox:
            event = inbox.popleft()
            if type(event) is Tokens:
                known = self._in_flight.get(event.request_id)
                if known is not None and known[2] is not None:
                    known[2](event)
                continue
            if self.common is not None and isinstance(event, (Finished, Failed)):
                inbox.extendleft(reversed(self.common.results(event)))
            known = self._forget(event.request_id)
            if known is None:
                continue
            executor, done, _ = known
            if self.pressure is not None and isinstance(event, Finished):
                self.pressure.computed(executor, event)
            done(event)  # type: ignore[arg-type]
            if not executor.num_in_flight and (task := self._tasks.get(executor)) is not None:
                self._settle(task)

    def _receive(self, event: Event) -> None:
        """The sink of all requests: called from whatever thread drives the backend."""
        if type(event) in _WANTED:
            self._inbox.append(event)

    def _wait(self) -> None:
        """Let the backend work until some result is in, or a call is back.

        A backend that cannot go on fails what is in flight.
        """
        if not self._in_flight:
            self._calls.get()()
            return
        why: Exception | None = None
        is_alone = not self._num_away
        try:
            self.backend.wait(self._has_result, None if is_alone else HOLD_S)
        except Exception as error:
            why = error
        self._run_calls()
        if self._inbox or (why is None and not is_alone):
            return
        self._fail_all(why or EngineError(f"the backend {self.backend.capabilities.name!r} gave no result"))

    def _fail_all(self, error: BaseException) -> None:
        self._inbox.extend(Failed(request_id, ErrorInfo.of(error)) for request_id in self._in_flight)

    def _has_result(self) -> bool:
        return bool(self._inbox) or not self._calls.empty()

    def _forget(self, request_id: str) -> InFlight | None:
        known = self._in_flight.pop(request_id, None)
        if known is not None:
            known[0].num_in_flight -= 1
        return known

    def _drive(self, slot: Slot, where: SourceLoc | None) -> None:
        """Somebody outside of the programs waits: work until the slot is done."""
        while not slot.is_done:
            if not self._in_flight and not self._num_away:
                raise ProgramError("this value can never be known: nothing that is still to come sets it", where=where)
            self._exchange()

    def _wake_stuck(self) -> None:
        """Nothing is in flight, and still programs wait: for values that no op will ever produce."""
        for task in list(self._suspended):
            self._suspended.discard(task)
            task.waits_for = None
            task.stuck = ProgramError("this value can never be known: nothing that is still to come sets it")
            self._ready.append(task)

    def _close(self) -> None:
        """Abort what is in flight and end the greenlets that are still suspended.

        An abandoned iterator closes when it is collected: in the body of another hub's program, or in another thread.
        """
        self.abort(list(self._in_flight))
        self._main = greenlet.getcurrent()
        for task in list(self._tasks.values()):
            if task.greenlet is not None and not task.greenlet.dead:
                _end(task.greenlet, self._main)
            task.greenlet = None
        self._tasks.clear()
        self._suspended.clear()
        self._ready.clear()
        self._nested.clear()
        self._unstarted = iter(())
