"""A backend around another that remembers what was asked of it, so that the account of the run can be evaluated.

    recording = Recording(engine)
    program.run_batch(rows, backend=recording)
    usage = evaluate(recording.jobs(), recording.limits)   # equals the engine's counters

It adds no request and changes none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ProgramError
from ..core.events import Event, Failed, Finished, Output
from .account import Job, Limits
from .around import Around, prompt_ids

if TYPE_CHECKING:
    from ..core.backend import Backend, EventSink
    from ..core.request import GenRequest


@dataclass(slots=True)
class Entry:
    """One request and how it ended. When it was submitted, `wave` results were in, those of its own program instance
    being `after`, and the engine had made `arrival` forwards."""

    request: GenRequest
    wave: int
    after: tuple[int, ...]
    arrival: int
    ended: Finished | Failed | None = None


class Recording(Around):
    """`core.backend.Backend` around `inner`. Thread-safe; `entries` are in the order of submission.

    Where one thread submits and drives, a request's arrival follows from the results before it. Where several do
    (bodies that block), it is an input of the account like the clock: after how many forwards it came.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.entries: list[Entry] = []
        self._lock = threading.Lock()
        self._num_ended = 0
        self._ended: dict[Any, list[int]] = {}
        self._threads: set[int] = set()
        self._first_forward = inner.counters().forwards

    # what is recorded

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Remember the requests, and hand them on."""
        arrival = self.inner.counters().forwards - self._first_forward
        with self._lock:
            self._threads.add(threading.get_ident())
            numbers: dict[str, tuple[int, Any]] = {}
            for request in requests:
                origin = request.origin
                owner = (origin.program, origin.instance) if origin is not None else None
                numbers[request.id] = len(self.entries), owner
                self.entries.append(Entry(request, self._num_ended, tuple(self._ended.get(owner, ())), arrival))

        def hear(event: Event) -> None:
            if isinstance(event, (Finished, Failed)):
                number, owner = numbers[event.request_id]
                with self._lock:
                    self.entries[number].ended = event
                    self._num_ended += 1
                    self._ended.setdefault(owner, []).append(number)
            sink(event)

        self.inner.submit(requests, hear)

    def jobs(self) -> list[Job]:
        """What was asked and what came of it. Raises ProgramError where a request failed or has not ended."""
        jobs: list[Job] = []
        for entry in self.entries:
            if not isinstance(entry.ended, Finished):
                what = "failed" if entry.ended is not None else "has not ended"
                raise ProgramError(f"the request {entry.request.id} {what}: a run that was cut has no account")
            jobs.append(self._job(entry, entry.ended))
        return jobs

    def _job(self, entry: Entry, ended: Finished) -> Job:
        request = entry.request
        wish, how = request.logprobs, request.sampling.jump_forward
        by_one = (getattr(self._config, "jump_forward", True) if how is None else how) == "step"
        return Job(
            prompt=self.prompt_ids(request),
            outputs=tuple(output.token_ids for output in ended.outputs),
            spans=tuple(spans_of(output, by_one, wish is not None) for output in ended.outputs),
            num_forced_first=num_forced_first(ended.outputs, by_one, wish is not None),
            score=request.score,
            prompt_logprobs_from=wish.prompt_start if wish is not None else -1,
            has_logprobs=wish is not None,
            namespace=f"{request.adapter}/{request.cache_salt}",
            after=entry.after,
            wave=entry.wave,
            arrival=entry.arrival if len(self._threads) > 1 else -1,
        )

    def prompt_ids(self, request: GenRequest) -> tuple[int, ...]:
        """The prompt's ids; neighbouring text is tokenised as one string, as the engine does."""
        return prompt_ids(request, self.tokenizer)

    @property
    def _config(self) -> Any:
        """The configuration of the engine inside; None for another backend."""
        return getattr(self.inner, "config", None)

    @property
    def limits(self) -> Limits:
        """Those of the engine inside; the defaults for another backend."""
        config = self._config
        if config is None:
            return Limits()
        vocab = getattr(getattr(self.inner, "runner", None), "vocab_size", 0)
        return Limits.of(config, vocab)

    def clear(self) -> None:
        """Forget what has been recorded so far."""
        with self._lock:
            self.entries.clear()
            self._num_ended = 0
            self._ended.clear()
            self._threads.clear()
            self._first_forward = self.inner.counters().forwards


def num_forced_first(outputs: Sequence[Output], by_one: bool = False, with_logprobs: bool = False) -> int:
    """How many ids each output of a request had before its first forward: what was forced at the beginning."""
    if not outputs or not outputs[0].forced_runs or outputs[0].forced_runs[0][0]:
        return 0
    count = outputs[0].forced_runs[0][1]
    return 0 if by_one and (with_logprobs or count < len(outputs[0].token_ids)) else count


def spans_of(output: Output, by_one: bool = False, with_logprobs: bool = False) -> tuple[int, ...]:
    """How many ids each forward of an output gave; empty: one each, if there is any.

    A forced run comes with the sampled id before it, but in one forward each (`by_one`) where another draw follows.
    Where log-probs are wanted a run at the end has its forward too.
    """
    if not output.forced_runs:
        return ()
    spans = [1] * len(output.token_ids)
    for start, count in reversed(output.forced_runs):
        ends = start + count == len(output.token_ids)
        if not by_one or (ends and not with_logprobs):
            del spans[start : start + count]
            if start:
                spans[start - 1] += count
        if ends and with_logprobs:
            spans.append(0)
    return tuple(spans)


def by_need(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, each waiting only for the results of its own instance: what another order or limit would cost."""
    return [replace(job, wave=0, arrival=-1) for job in jobs]
