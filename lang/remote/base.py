"""What all remote backends have in common: one event loop, tries with back-off, pace, cancellation, counters.

A subclass says what it can do (`capabilities`), and how one request is asked once (`ask`). It raises `Fault`, or lets
its client's exceptions through; everything else is here.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...core.backend import Capabilities, Counters
from ...core.errors import Aborted, ConfigError, DeadlineExceeded, EngineClosed, ErrorInfo, RemoteError
from ...core.events import Failed, Finished, Output, Prefilled, Queued, TokenLogprob, Tokens
from .faults import Backoff, Fault, fault_of, is_ours
from .loop import LoopThread
from .pace import Pace

if TYPE_CHECKING:
    from ...core.backend import EventSink
    from ...core.request import GenRequest
    from ...core.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Reply:
    """What a provider answered to one request. `notes` go into the meta info."""

    outputs: tuple[Output, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    seed: int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)


class Call:
    """One request on its way: its seed, what was shown of its text, how often it was sent.

    `answered` holds, for a backend that makes a call for each of `n` outputs, the replies that are there: a further try
    asks for the others only.
    """

    __slots__ = ("_sink", "answered", "first_at", "num_shown", "num_tries", "request", "seed")

    def __init__(self, request: GenRequest, sink: EventSink) -> None:
        self.request = request
        self._sink = sink
        given = request.sampling.seed
        self.seed = given if given is not None else random.getrandbits(63)
        self.num_tries = 0
        self.answered: dict[int, Reply] = {}
        self.num_shown = 0  # characters that a reader has seen: they cannot be taken back
        self.first_at = 0.0

    def tell(
        self, text: str, ids: tuple[int, ...] = (), index: int = 0, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> None:
        """The next piece of an output, for readers of the stream."""
        self.first_at = self.first_at or time.monotonic()
        if self.request.stream and (text or ids):
            self.num_shown += len(text)
            self._sink(Tokens(self.request.id, index, ids, text, logprobs))


@dataclass(frozen=True)
class Pin:
    """What `pin` returns: a provider's cache is not ours to pin."""

    num_tokens: int = 0


class RemoteBackend:
    """A `core.backend.Backend` whose model is behind a network. Thread-safe; made in any thread.

    `timeout` bounds one try in seconds, `max_retries` how often a request is sent again after a fault that may pass
    (429, 5xx, no connection, no answer in time, an answer cut before anything of it was shown). How often it was sent
    stands in the meta info as `num_tries`.
    """

    provider = "remote"
    key_name = ""  # the environment variable that its client reads the key from

    def __init__(
        self,
        *,
        timeout: float,
        max_retries: int,
        max_concurrency: int,
        requests_per_minute: int | None,
        backoff: Backoff | None = None,
    ) -> None:
        _check_positive("timeout", timeout)
        _check_positive("max_concurrency", max_concurrency)
        if max_retries < 0:
            raise ConfigError(f"must not be negative, not {max_retries}", field="max_retries")
        if requests_per_minute is not None:
            _check_positive("requests_per_minute", requests_per_minute)
        self.timeout = timeout
        self.max_retries = max_retries
        self._backoff = backoff or Backoff()
        self._pace = Pace(max_concurrency, requests_per_minute)
        self._loop = LoopThread(f"dslc-{self.provider}")
        self._news = threading.Condition()
        self._tasks: dict[str, asyncio.Task[tuple[Finished, Reply]]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._counts = dict.fromkeys(("requests", "prompt_tokens", "cached_tokens", "generated_tokens"), 0)
        self._counts["scored_tokens"] = 0
        self._sent = {"num_tries": 0, "num_retries": 0, "num_failed": 0}
        self._is_closed = False
        weakref.finalize(self, _stop, self._loop)

    # -- what a subclass says

    @property
    def capabilities(self) -> Capabilities:
        raise NotImplementedError

    async def ask(self, call: Call) -> Reply:
        """Send the request once and read the answer. Raises RequestError for what this backend cannot do."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Close the client; in the loop's thread."""

    def name_of(self, request: GenRequest) -> str:
        """The request in the words of an error: where it goes, and its id."""
        return f"request {request.id}"

    def advice(self, fault: Fault) -> str:
        """What else an error should say of a fault."""
        return ""

    # -- Backend

    @property
    def tokenizer(self) -> Tokenizer | None:
        return None

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        if self._is_closed:
            raise EngineClosed(f"the backend {self.capabilities.name!r} is closed")
        now = time.monotonic()
        for request in requests:
            sink(Queued(request.id, now))
        self._loop.post(partial(self._begin, list(requests), sink))

    def _begin(self, requests: list[GenRequest], sink: EventSink) -> None:
        for request in requests:
            task = asyncio.ensure_future(self._serve(request, sink))
            self._tasks[request.id] = task
            task.add_done_callback(partial(self._end, request, sink))

    def _end(self, request: GenRequest, sink: EventSink, task: asyncio.Task[tuple[Finished, Reply]]) -> None:
        """A request is over: tell of it, once."""
        del self._tasks[request.id]
        if task.cancelled():
            why: BaseException = Aborted("aborted by its owner")
            if self._is_closed:
                why = EngineClosed(f"the backend {self.capabilities.name!r} was closed")
            sink(Failed(request.id, ErrorInfo.of(why)))
        elif (error := task.exception()) is not None:
            self._sent["num_failed"] += 1
            sink(Failed(request.id, ErrorInfo.of(error)))
        else:
            event, reply = task.result()
            self._count(request, event, reply)
            sink(Prefilled(request.id, event.num_prompt_tokens, event.num_cached_tokens, event.first_token_at))
            sink(event)
        with self._news:
            self._news.notify_all()

    def _count(self, request: GenRequest, event: Finished, reply: Reply) -> None:
        with self._news:
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += event.num_prompt_tokens
            self._counts["cached_tokens"] += event.num_cached_tokens
            self._counts["generated_tokens"] += sum(output.num_tokens for output in event.outputs)
            if request.score is not None:
                self._counts["scored_tokens"] += request.score.num_nodes

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        with self._news:
            self._news.wait_for(lambda: ready() or self._is_closed, timeout)
        return ready()

    def abort(self, request_ids: Sequence[str]) -> None:
        if not self._is_closed:
            self._loop.post(partial(self._cancel, list(request_ids)))

    def _cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            task = self._tasks.get(request_id)
            if task is not None:
                task.cancel()

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> Pin:
        return Pin()

    def unpin(self, handle: Any) -> None:
        """Nothing is held."""

    def counters(self) -> Counters:
        with self._news:
            known = dict(self._counts)
        return Counters(**known, prefilled_tokens=known["prompt_tokens"] - known["cached_tokens"])

    def usage(self) -> dict[str, int]:
        """Totals so far: tokens as the provider counts them, and how often something was sent, again, or failed."""
        with self._news:
            return {**self._counts, **self._sent}

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.run(self._close())
        self._loop.close()
        with self._news:
            self._news.notify_all()

    async def _close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._tasks.values(), *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the callbacks of the tasks
        await self.disconnect()

    shutdown = close

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Carry out something beside the requests; in the loop's thread."""
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # -- one request

    async def _serve(self, request: GenRequest, sink: EventSink) -> tuple[Finished, Reply]:
        queued_at = time.monotonic()
        call = Call(request, sink)
        try:
            reply = await asyncio.wait_for(self._paced(call), request.timeout_s)
        except asyncio.TimeoutError:
            raise self._too_late(call) from None
        now = time.monotonic()
        notes = {**reply.notes, "num_tries": call.num_tries}
        event = Finished(
            request.id,
            reply.outputs,
            reply.num_prompt_tokens,
            reply.num_cached_tokens,
            reply.seed if reply.seed is not None else call.seed,
            queued_at,
            call.first_at or now,
            now,
            reply.prompt_logprobs,
            reply.scores,
            notes=tuple(notes.items()),
        )
        return event, reply

    async def _paced(self, call: Call) -> Reply:
        """The reply, once it is this request's turn."""
        async with self._pace:
            return await self._tried(call)

    async def _tried(self, call: Call) -> Reply:
        """The reply, after as many tries as it takes and may take."""
        while True:
            await self._pace.begin()
            call.num_tries += 1
            self._sent["num_tries"] += 1
            self._sent["num_retries"] += call.num_tries > 1
            try:
                return await asyncio.wait_for(self.ask(call), self.timeout)
            except Exception as error:
                if is_ours(error):
                    raise
                fault = self._fault(error)
                if not fault.is_transient or call.num_shown or call.num_tries > self.max_retries:
                    raise self._error(call, fault) from error
            delay = self._backoff.delay(call.num_tries, fault)
            if fault.retry_after is not None:
                self._pace.pause(delay)
            await asyncio.sleep(delay)

    def _fault(self, error: Exception, limit: float | None = None) -> Fault:
        """What went wrong with a try that was given `limit` seconds (None: `timeout`)."""
        if isinstance(error, asyncio.TimeoutError):
            return Fault("timeout", f"it did not answer within {limit or self.timeout:g} s", is_transient=True)
        return fault_of(error, self.key_name)

    def _too_late(self, call: Call) -> DeadlineExceeded:
        sent = f"after {_tries(call)}" if call.num_tries else "before it could be sent"
        return DeadlineExceeded(
            f"{self.capabilities.name}, {self.name_of(call.request)}: the run's deadline (timeout=) passed {sent}"
        )

    def _error(self, call: Call, fault: Fault) -> RemoteError:
        shown = ""
        if call.num_shown and fault.is_transient:
            shown = f"; {call.num_shown} characters of the text were shown already, so it was not sent again"
        return RemoteError(
            f"{self.capabilities.name}, {self.name_of(call.request)}, after {_tries(call)}: {fault.message}{shown}"
            + self.advice(fault),
            field=fault.kind,
        )


def _tries(call: Call) -> str:
    return "1 try" if call.num_tries == 1 else f"{call.num_tries} tries"


def _stop(loop: LoopThread) -> None:
    """A backend was collected, or the process ends: let its loop go."""
    if not loop.loop.is_closed():
        loop.loop.call_soon_threadsafe(loop.loop.stop)


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not value > 0:
        raise ConfigError(f"must be positive, not {value!r}", field=name)
