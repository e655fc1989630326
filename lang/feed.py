"""What a running program has produced, for readers in other threads and event loops.

The program's thread appends; nothing is ever taken away, so a reader loses nothing however late it begins or slowly it
reads. Readers wait on a condition, or are woken in their event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ..core.errors import UndefinedVariable

Chunk = tuple[str, dict[str, Any]]


class Channel:
    """The pieces of one text, and how it ended."""

    __slots__ = ("chunks", "error", "is_done", "value")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.is_done = False
        self.value: Any = None
        self.error: BaseException | None = None


class Feed:
    """The text of a program's own stream and the pieces of its variables, as they come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._text = Channel()
        self._variables: dict[str, Channel] = {}

    # -- written by the program's thread

    def add_text(self, text: str) -> None:
        """More text of the stream."""
        self._text.chunks.append((text, {}))
        self._tell()

    def begin(self, var: str) -> Channel:
        """A generation of this variable has begun. Readers of an earlier one of the same name stay with theirs."""
        channel = self._variables[var] = Channel()
        self._tell()
        return channel

    def add_chunk(self, channel: Channel, text: str, meta: dict[str, Any]) -> None:
        """More text of a variable, with what is known about it."""
        channel.chunks.append((text, meta))
        self._tell()

    def set_value(self, var: str, value: Any) -> None:
        """The variable has its value."""
        self._end(self._open(var), value, None)

    def fail(self, var: str, error: BaseException) -> None:
        """The variable will have no value."""
        self._end(self._open(var), None, error)

    def end(self, error: BaseException | None) -> None:
        """The program has ended."""
        self._end(self._text, None, error)

    def _open(self, var: str) -> Channel:
        """The channel that is being written, or a new one where the variable is set anew."""
        channel = self._variables.get(var)
        if channel is None or channel.is_done:
            channel = self._variables[var] = Channel()
        return channel

    def _end(self, channel: Channel, value: Any, error: BaseException | None) -> None:
        channel.value = value
        channel.error = error
        channel.is_done = True
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for waker in wakers:
            waker()

    # -- read by anyone

    @property
    def is_ended(self) -> bool:
        """Whether the program has ended."""
        return self._text.is_done

    def value(self, var: str) -> Any:
        """Wait for a variable. Raises its error, or UndefinedVariable when the program ends without it."""
        self._wait(lambda: self._is_known(var))
        channel = self._find(var)
        self._wait(lambda: channel.is_done)
        if channel.error is not None:
            raise channel.error
        return channel.value

    async def async_value(self, var: str) -> Any:
        """`value` for an event loop."""
        await self._async_wait(lambda: self._is_known(var))
        channel = self._find(var)
        await self._async_wait(lambda: channel.is_done)
        if channel.error is not None:
            raise channel.error
        return channel.value

    def wait_for_end(self) -> None:
        """Wait until the program has ended."""
        self._wait(lambda: self.is_ended)

    async def async_wait_for_end(self) -> None:
        """Wait, in an event loop, until the program has ended."""
        await self._async_wait(lambda: self.is_ended)

    def chunks(self, var: str | None, abandon: Callable[[], None]) -> Iterator[Chunk]:
        """The pieces of a variable, or of the whole text; `abandon` is called when the reader leaves before the end."""
        channel: Channel | None = None
        try:
            self._wait(lambda: self._is_known(var))
            channel = self._find(var)
            position = _Position(channel)
            while not position.is_at_end:
                self._wait(position.has_more)
                yield from position.take()
            yield from position.rest(var)
        finally:
            if channel is not None and not channel.is_done:
                abandon()

    async def async_chunks(self, var: str | None, abandon: Callable[[], None]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop."""
        channel: Channel | None = None
        try:
            await self._async_wait(lambda: self._is_known(var))
            channel = self._find(var)
            position = _Position(channel)
            while not position.is_at_end:
                await self._async_wait(position.has_more)
                for chunk in position.take():
                    yield chunk
            for chunk in position.rest(var):
                yield chunk
        finally:
            if channel is not None and not channel.is_done:
                abandon()

    def _is_known(self, var: str | None) -> bool:
        return var is None or var in self._variables or self.is_ended

    def _find(self, var: str | None) -> Channel:
        if var is None:
            return self._text
        channel = self._variables.get(var)
        if channel is None:
            if self._text.error is not None:
                raise self._text.error
            raise UndefinedVariable(f"{var!r} was never set: the program has ended")
        return channel

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(ready)

    async def _async_wait(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            woken = asyncio.Event()

            def wake(woken: asyncio.Event = woken) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(woken.set)

            with self._changed:
                if ready():
                    return
                self._wakers.append(wake)
            await woken.wait()


class _Position:
    """How far one reader has come in a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._count = 0

    def has_more(self) -> bool:
        return len(self._channel.chunks) > self._count or self._channel.is_done

    def take(self) -> list[Chunk]:
        chunks = self._channel.chunks[self._count :]
        self._count += len(chunks)
        return chunks

    @property
    def is_at_end(self) -> bool:
        return self._channel.is_done and self._count >= len(self._channel.chunks)

    def rest(self, var: str | None) -> list[Chunk]:
        """After all pieces: raises what went wrong; a variable that came without pieces is one."""
        if self._channel.error is not None:
            raise self._channel.error
        return [] if self._count or var is None else [(str(self._channel.value), {})]
