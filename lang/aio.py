"""Programs in event loops: `await fn.arun(...)`, and programs that are `async def` themselves.

A plain program runs in a carrier and only its end is awaited. An async program runs in the loop it was started in: its
hub lives there, a Driver lets the backend work meanwhile, and no forward ever blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.backend import Backend
from ..core.errors import Aborted, ErrorInfo, ProgramError, SourceLoc
from ..core.events import Event, Failed, Tokens
from ..core.request import GenRequest
from .carrier import Driver
from .executor import Executor
from .hub import Done, Hub
from .stream import Slot


class LoopHub(Hub):
    """A hub inside an event loop: what programs ask for is submitted once per turn of the loop."""

    may_suspend = False  # only `await` does

    def __init__(self, backend: Backend, driver: Driver, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(backend)
        self._driver = driver
        self._loop = loop
        self._is_flush_due = False
        self._is_drain_due = False

    def send(
        self,
        executor: Executor,
        request: GenRequest,
        done: Done,
        progress: Callable[[Tokens], None] | None = None,
    ) -> None:
        super().send(executor, request, done, progress)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        batch, self._outbox = self._outbox, []
        if not batch:
            return
        self._driver.acquire(self, self._driver_failed)
        try:
            self.backend.submit(batch, self._receive)
        except Exception as error:
            self._inbox.extend(Failed(request.id, ErrorInfo.of(error)) for request in batch)
            self._drain()

    def _receive(self, event: Event) -> None:
        super()._receive(event)
        if self._inbox and not self._is_drain_due:
            self._is_drain_due = True
            self._in_loop(self._drain)

    def _in_loop(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call)

    def _drain(self) -> None:
        self._is_drain_due = False
        self._deliver()
        if not self._in_flight:
            self._driver.release(self)

    def _driver_failed(self, error: BaseException) -> None:
        def fail() -> None:
            self._fail_all(error)
            self._drain()

        self._in_loop(fail)

    def block(self, slot: Slot, where: SourceLoc | None) -> None:
        raise ProgramError(
            "an async program must not wait for a value: write `await s.get(name)`, or `await s.wait()` first",
            where=where,
        )

    async def wait_for(self, slot: Slot) -> None:
        """Wait until the slot is done."""
        if slot.is_done:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        slot.watch(lambda: None if future.done() else future.set_result(None))
        await future

    async def run_body(self, executor: Executor, body: Awaitable[Any]) -> None:
        """Run an async program to its end; then the executor says how it ended."""
        result: Any = None
        try:
            result = await body
        except Exception as error:
            executor.crash(error)
            executor.finish(error)
            return
        except BaseException:  # the task was cancelled
            executor.crash(Aborted(f"the program {executor.title!r} was cancelled"))
            self._release_if_idle()
            raise
        finally:
            self._release_if_idle()
        await self.wait_for(executor.rest())
        executor.finish(None, result)

    def _release_if_idle(self) -> None:
        if not self._in_flight:
            self._driver.release(self)
