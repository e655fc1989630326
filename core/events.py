"""What happens to a request, as typed values in order. Counters, progress bars, traces and metrics only read these.

Every request ends with exactly one `Finished` or `Failed`, and no event of it follows. Times are seconds of
`time.monotonic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .errors import ErrorInfo


@dataclass(frozen=True, slots=True)
class FinishReason:
    """Why an output ended. `matched` is the stop string, or the stop or end-of-text token id, that ended it."""

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None

    def as_dict(self) -> dict[str, Any]:
        """SGLang's `meta_info["finish_reason"]`."""
        return {"type": self.type, "matched": self.matched}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-prob of one token; `top` holds the most likely (id, log-prob) pairs, `chosen` those of the ids asked for."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    chosen: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """One finished choice of a request. `token_ids` are all sampled and forced ids, a trimmed end included.

    `text` is the kept text (a matched stop trimmed unless `no_stop_trim`). `kept_ids` are the leading ids whose text
    lies wholly inside `text`, `kept_tail` the rest of `text` after them: detokenise(kept_ids) + kept_tail == text
    (with the request's `healed` text before it).
    `is_complete` says whether the text met its constraint where it ended (None: there was none).
    `forced_runs` are the (first, how many) of `token_ids` that were not sampled. `num_text_tokens` counts the tokens of
    an output whose ids are not known, as of a provider's API; `token_texts` are their texts, where they were asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    kept_ids: tuple[int, ...]
    kept_tail: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    forced_runs: tuple[tuple[int, int], ...] = ()
    is_complete: bool | None = None
    num_text_tokens: int = 0
    token_texts: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Sampled and forced tokens."""
        return len(self.token_ids) or self.num_text_tokens

    @property
    def num_forced_tokens(self) -> int:
        return sum(count for _, count in self.forced_runs)


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """The request was accepted and waits."""

    time: float


@dataclass(frozen=True, slots=True)
class Prefilled(Event):
    """The prompt is in the KV cache. prompt = cached + computed; computed counts what was put through the model."""

    num_prompt_tokens: int
    num_cached_tokens: int
    time: float


@dataclass(frozen=True, slots=True)
class Tokens(Event):
    """0..k new tokens of choice `index` (only with `stream`). `text` is safe to show: it never changes later."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Forced(Event):
    """These tokens of choice `index`, from its token `start` on, were not sampled: the constraint left nothing else."""

    index: int
    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preempted(Event):
    """The request gave its memory back and will be computed again from `num_tokens` tokens."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The whole result.

    `seed` is the one used (drawn by the engine if the request had none). For a scoring request `outputs` is empty and
    `scores[i][j]` is the log-prob of token j of sequence i. `shared_with` names the equal request whose result this is,
    where this one was not made. `notes` are what a remote backend says besides, for the meta info: how often the
    request was sent, the provider's name of it, ...
    """

    outputs: tuple[Output, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    seed: int
    queued_at: float
    first_token_at: float
    finished_at: float
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    num_preemptions: int = 0
    shared_with: str | None = None
    notes: tuple[tuple[str, str | int | float | bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The request ended without a result."""

    error: ErrorInfo
