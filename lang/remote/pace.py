"""How fast requests go out: a limit on how many are open, one on how many begin in a minute, and pauses."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Pace:
    """Touched in the loop's thread only. Order of `begin` is order of going out."""

    def __init__(self, max_concurrency: int, requests_per_minute: int | None) -> None:
        self._open = asyncio.Semaphore(max_concurrency)
        self._per_minute = requests_per_minute
        self._begun: deque[float] = deque()
        self._paused_until = 0.0

    async def __aenter__(self) -> None:
        await self._open.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._open.release()

    def pause(self, seconds: float) -> None:
        """A server asked to wait: nothing begins until then."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def begin(self) -> None:
        """Return when the next try may be sent, which counts as sent."""
        while (seconds := self._seconds_to_wait(time.monotonic())) > 0:
            await asyncio.sleep(seconds)
        if self._per_minute is not None:
            self._begun.append(time.monotonic())

    def _seconds_to_wait(self, now: float) -> float:
        wait = self._paused_until - now
        if self._per_minute is not None:
            while self._begun and now - self._begun[0] >= 60.0:
                self._begun.popleft()
            if len(self._begun) >= self._per_minute:
                wait = max(wait, self._begun[0] + 60.0 - now)
        return wait
