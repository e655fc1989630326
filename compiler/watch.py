"""Watching a run: what the engine's typed events say of each request, and what each forward held.

    watched = Watched(engine)
    program.run_batch(rows, backend=watched)
    print_trace(watched.trace(), plan)       # `dslc run --trace`
    print_timeline(watched.trace(), plan)    # `dslc run --timeline run.html`

It adds no request. With `with_tokens` it asks for the token events of every request, which a run does not do otherwise:
no output depends on that. Times are seconds of `time.monotonic`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..core.backend import Counters
from ..core.events import Event, Failed, Finished, Forced, Preempted, Prefilled, Queued, Tokens
from .around import Around

if TYPE_CHECKING:
    from ..core.backend import Backend, EventSink
    from ..core.request import GenRequest


@dataclass(slots=True)
class Span:
    """One request of a run. A time is 0 where the event has not come.

    `tokens` and `forced` hold (time, choice, how many); what is forced is among the tokens too. `preempted` holds
    (time, tokens to be computed again).
    """

    request: GenRequest
    submitted_at: float
    queued_at: float = 0.0
    prefilled_at: float = 0.0
    ended_at: float = 0.0
    num_prompt: int = 0
    num_cached: int = 0
    tokens: list[tuple[float, int, int]] = field(default_factory=list)
    preempted: list[tuple[float, int]] = field(default_factory=list)
    ended: Finished | Failed | None = None
    forced: list[tuple[float, int, int]] = field(default_factory=list)
    began_at: float = 0.0  # of the first forward that it is in; 0 where forwards are not told
    is_replayed: bool = False  # its result came from a journal: nothing was computed

    @property
    def num_generated(self) -> int:
        """Sampled and forced tokens of all choices."""
        return sum(len(o.token_ids) for o in self.ended.outputs) if isinstance(self.ended, Finished) else 0

    @property
    def num_forced(self) -> int:
        return sum(o.num_forced_tokens for o in self.ended.outputs) if isinstance(self.ended, Finished) else 0

    @property
    def num_computed(self) -> int:
        """Prompt tokens put through the model."""
        return self.num_prompt - self.num_cached

    def prefill_from(self) -> float:
        """When its prompt was begun, as far as it is known; its queueing otherwise."""
        return self.began_at or self.queued_at or self.submitted_at

    @property
    def first_token_at(self) -> float:
        return self.ended.first_token_at if isinstance(self.ended, Finished) else 0.0


@dataclass(slots=True)
class Forward:
    """One forward of the model: rows of each request in it. It lasts until the engine's next turn or event."""

    number: int
    started_at: float
    rows: Mapping[str, int]
    ended_at: float = 0.0

    @property
    def num_rows(self) -> int:
        return sum(self.rows.values())

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended_at - self.started_at)


@dataclass(frozen=True)
class RunTrace:
    """What was measured of a run. `counted`: what the backend's own counters went up by meanwhile.

    `forwards` is empty where the backend does not tell what it puts through its model.
    """

    spans: tuple[Span, ...]
    forwards: tuple[Forward, ...]
    counted: Counters
    started_at: float
    ended_at: float

    def sums(self) -> Counters:
        """The requests' own numbers added up, under the names of the counters that they make up."""
        ran = [span for span in self.spans if not span.is_replayed]
        return Counters(
            requests=sum(span.queued_at > 0 for span in ran),
            prompt_tokens=sum(span.num_prompt for span in ran),
            cached_tokens=sum(span.num_cached for span in ran),
            prefilled_tokens=sum(span.num_computed for span in ran),
            generated_tokens=sum(span.num_generated for span in ran),
            forced_tokens=sum(span.num_forced for span in ran),
            forwards=len(self.forwards),
            rows=sum(forward.num_rows for forward in self.forwards),
            preemptions=sum(len(span.preempted) for span in ran),
        )

    def differences(self) -> dict[str, tuple[int, int]]:
        """Name -> (added up, counted) of each total of `sums` that the engine counted otherwise.

        Empty unless something else used the engine meanwhile, or a request failed half-way.
        """
        sums = self.sums()
        names = [name for name in SUMMED if self.forwards or name not in ("forwards", "rows")]
        pairs = {name: (getattr(sums, name), getattr(self.counted, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


SUMMED = (
    "requests", "prompt_tokens", "cached_tokens", "prefilled_tokens", "generated_tokens", "forced_tokens", "forwards",
    "rows", "preemptions",
)  # fmt: skip


class Watched(Around):
    """A backend around another that notes every event of every request. Thread-safe."""

    def __init__(self, inner: Backend, with_tokens: bool = False) -> None:
        super().__init__(inner)
        self.with_tokens = with_tokens and inner.capabilities.streaming
        self._spans: dict[str, Span] = {}
        self._forwards: list[Forward] = []
        self._lock = threading.Lock()
        self._before = inner.counters()
        self._started_at = time.monotonic()

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Note the requests and hand them on; token events that nobody but the trace asked for end here."""
        now = time.monotonic()
        quiet: set[str] = set()
        asked: list[GenRequest] = []
        with self._lock:
            for request in requests:
                self._spans[request.id] = Span(request, now)
                if self.with_tokens and not request.stream and request.score is None:
                    quiet.add(request.id)
                    request = replace(request, stream=True)
                asked.append(request)

        def hear(event: Event) -> None:
            self._note(event)
            if not (isinstance(event, Tokens) and event.request_id in quiet):
                sink(event)

        self.inner.submit(asked, hear)

    def note_forward(self, rows: Mapping[str, int]) -> None:
        """A forward begins: how many rows it has of which request. Called by whoever sees the engine's launches."""
        now = time.monotonic()
        with self._lock:
            self._end_forward(now)
            self._forwards.append(Forward(len(self._forwards), now, rows))
            for name in rows:
                if (span := self._spans.get(name)) is not None and not span.began_at:
                    span.began_at = now

    def _end_forward(self, now: float) -> None:
        if self._forwards and not self._forwards[-1].ended_at:
            self._forwards[-1].ended_at = now

    def _note(self, event: Event) -> None:
        now = time.monotonic()
        with self._lock:
            span = self._spans[event.request_id]
            if not isinstance(event, Queued):
                self._end_forward(now)
            if isinstance(event, Queued):
                span.queued_at = event.time
            elif isinstance(event, Prefilled):
                span.prefilled_at = event.time
                span.num_prompt, span.num_cached = event.num_prompt_tokens, event.num_cached_tokens
            elif isinstance(event, Tokens):
                span.tokens.append((now, event.index, len(event.token_ids)))
            elif isinstance(event, Forced):
                span.forced.append((now, event.index, len(event.token_ids)))
            elif isinstance(event, Preempted):
                span.preempted.append((now, event.num_tokens))
            elif isinstance(event, Finished):
                span.ended, span.ended_at = event, event.finished_at
                span.is_replayed = not span.queued_at
                if (
                    span.is_replayed
                ):  # a prompt that was never prefilled, as all of its output was forced, has no counts
                    span.num_prompt, span.num_cached = event.num_prompt_tokens, event.num_cached_tokens
            elif isinstance(event, Failed):
                span.ended, span.ended_at = event, now

    def trace(self) -> RunTrace:
        """What has been measured so far."""
        now = time.monotonic()
        with self._lock:
            self._end_forward(now)
            counted = self.inner.counters() - self._before
            return RunTrace(tuple(self._spans.values()), tuple(self._forwards), counted, self._started_at, now)
