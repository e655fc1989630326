"""Where programs run: the verbs every backend has, in process or remote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .events import Event
from .request import GenRequest

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

EventSink = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; the executor refuses the rest by name before anything is sent."""

    name: str
    constraints: frozenset[str] = frozenset()  # of ConstraintKind
    scoring: bool = False
    logprobs: bool = False
    streaming: bool = False
    token_ids: bool = False  # takes ids in segments; otherwise text only
    media: frozenset[str] = frozenset()  # "image", "video"
    max_context_len: int | None = None
    healing: bool = False  # takes requests with `healed` text
    reasoning: bool = False  # constrains what comes after `reasoning`
    chat: bool = False  # takes chat turns as `messages`, and writes them out by itself
    choosing: bool = False  # takes `choices` in place of a scoring: the output is one of them
    speculating: bool = False  # one call may serve several gens (`num_api_spec_tokens`)
    kv_tokens: int | None = None  # how many tokens the KV pool holds


@dataclass(frozen=True, slots=True)
class Counters:
    """Exact totals since the backend started; differences of two snapshots measure a run.

    `prompt_tokens` = `cached_tokens` + `prefilled_tokens` summed over requests (a retracted request's second prefill is
    counted in `recomputed_tokens`). `rows` counts token rows put through the model, `forwards` its calls.
    `generated_tokens` counts sampled and forced ones, `forced_tokens` the latter. A prompt whose output is forced from
    beginning to end is not read, and not counted. `constraints_compiled` counts automata built (cache misses), `masks`
    the mask rows filled, `encoded_media` the pictures and videos put through the model's encoder.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    recomputed_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    scored_tokens: int = 0
    forwards: int = 0
    rows: int = 0
    masks: int = 0
    constraints_compiled: int = 0
    evicted_tokens: int = 0
    preemptions: int = 0
    encoded_media: int = 0

    def __sub__(self, other: Counters) -> Counters:
        return Counters(**{name: getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__})


class PinHandle(Protocol):
    """A pinned prefix; give it back to `Backend.unpin` exactly once."""

    @property
    def num_tokens(self) -> int:
        """How many tokens of the prefix are held in the cache."""


class Backend(Protocol):
    """A place where generations run. All methods are thread-safe; none blocks for a forward except `wait`."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where only text can be sent."""

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Queue the requests, in this order.

        Every event of them goes to `sink`, in order, from whatever thread drives the backend; the sink must be quick
        and must not raise or call back. A request that is refused gets a `Failed` event: submit itself raises only
        EngineClosed.
        """

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block until `ready()` (asked after each batch of events) or the timeout in seconds; returns `ready()`.

        The calling thread may be used to do the work meanwhile.
        """

    def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests with `Failed(Aborted)`. Unknown and finished ids are ignored; may be repeated."""

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> PinHandle:
        """Keep the cached part of this prefix from eviction until `unpin`. Computes nothing.

        Raises RequestError when the pins together would exceed the engine's limit.
        """

    def unpin(self, handle: PinHandle) -> None:
        """Release a pin. A second release of the same handle raises RequestError."""

    def counters(self) -> Counters:
        """Totals so far."""

    def close(self) -> None:
        """Fail what is in flight with EngineClosed, free everything. May be called twice."""
