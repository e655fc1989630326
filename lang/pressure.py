"""How many programs of a batch are in flight: as many as the KV pool holds between their turns.

The schedule's first guess (`compiler.scheduling.kv_pressure`) is what programs need at most. What those that have ended
really held corrects it.
"""

from __future__ import annotations

import threading

from ..core.events import Finished


class Pressure:
    """Decides whether another program may begin. One for each batch, shared by the hubs that run it."""

    def __init__(self, limit: int, capacity: float) -> None:
        self.limit = limit  # at first; `capacity`: tokens of KV for all programs in flight
        self._capacity = capacity
        self._held: dict[object, int] = {}  # tokens put into the cache so far, of those in flight
        self._lock = threading.Lock()
        self._num_begun = 0
        self._num_ended = 0
        self._ended_tokens = 0

    def allows_more(self) -> bool:
        """Whether one more than those that have begun and not ended may be in flight."""
        return self._num_begun - self._num_ended < self.limit

    def begun(self) -> None:
        """A program has begun."""
        with self._lock:
            self._num_begun += 1

    def computed(self, executor: object, event: Finished) -> None:
        """A request of a program has ended: its prompt and output are in the cache."""
        new = event.num_prompt_tokens - event.num_cached_tokens
        self._held[executor] = self._held.get(executor, 0) + new + sum(len(out.token_ids) for out in event.outputs)

    def ended(self, executor: object) -> None:
        """A program has ended: what it held says what those to come will hold."""
        with self._lock:
            self._num_ended += 1
            self._ended_tokens += self._held.pop(executor, 0)
            each = self._ended_tokens / self._num_ended
            self.limit = max(1, int(self._capacity / max(each, 1.0)))
