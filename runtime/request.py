"""A request while it runs: its prompt, its choices, and what each choice holds of the KV cache.

A `GenRequest` (frozen, from outside) becomes one `Request` with `sampling.n` `Sequence`s. Only the `Scheduler` changes
them; the launch side reads lengths and rows, the output side token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .memory.prefix_cache import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compiler.constraints.interface import MaskRow, Matcher
    from ..core.events import Event, FinishReason, Output, TokenLogprob
    from ..core.request import GenRequest
    from .media.picture import Placed, RopePositions
    from .memory.manager import Lease
    from .memory.prefix_cache import Node, Probe
    from .output import OutputText
    from .scoring import TrieWork

IdArray = npt.NDArray[np.int32]
NO_STOPS: frozenset[int] = frozenset()


class Stage(Enum):
    """Where a sequence stands.

    WAITING: queued; never run, or retracted. PREFILL: leased, more than its last token is still to be computed (a
    scoring request stays here). DECODE: all tokens but the last are computed, or being computed. DONE: released.
    """

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Request:
    """One submitted request. Made by `intake.admit`, changed by the scheduler, dropped at its last event.

    Times are seconds of `time.monotonic`. `arrival` numbers the requests in the order in which the scheduler received
    them; `seed` is the one in use, drawn by the engine if the request had none.
    """

    source: GenRequest
    prompt_ids: IdArray
    seed: int
    sink: Callable[[Event], None]
    namespace: Namespace
    queued_at: float = 0.0
    deadline: float | None = None
    arrival: int = -1
    sequences: list[Sequence] = field(default_factory=list)
    outputs: list[Output | None] = field(default_factory=list)
    num_cached_tokens: int = -1  # of the prompt, when it was first admitted
    first_token_at: float = 0.0
    num_preemptions: int = 0
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)  # by prompt position
    trie: TrieWork | None = None
    media: tuple[Placed, ...] = ()  # pictures of the prompt, in order; their ids are above the vocabulary
    rope: RopePositions | None = None  # where positions follow the grids of pictures
    is_prefilled: bool = False  # its Prefilled event is out
    is_over: bool = False  # its Finished or Failed event is out

    @property
    def id(self) -> str:
        return self.source.id

    @property
    def next_prompt_logprob(self) -> int:
        """The first prompt position whose log-prob is wanted and missing; the prompt's length if there is none."""
        wish, num_prompt = self.source.logprobs, len(self.prompt_ids)
        if wish is None or wish.prompt_start < 0:
            return num_prompt
        return min(max(wish.prompt_start, 1) + len(self.prompt_logprobs), num_prompt)


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request: a token stream, with a lease on a row and pages of the KV cache while it runs.

    Positions [0, kv_len) have KV slots, computed or being computed; [0, kv_ready) are computed for sure (their forward
    was resolved) and may enter the prefix cache. `in_flight` counts launched samples, or scoring passes, that the host
    has not read yet.
    """

    request: Request
    index: int
    prompt_len: int
    priority: int = 0
    arrival: int = -1  # of its request
    queued_step: int = 0  # the scheduler's step in which it was queued first
    stop_ids: frozenset[int] = NO_STOPS  # ids that end it
    max_output: int = 0  # new tokens at most: the request's wish, the context, the pool
    stage: Stage = Stage.WAITING
    output_ids: list[int] = field(default_factory=list)
    lease: Lease | None = None
    row: int = -1  # of the lease
    kv_len: int = 0
    kv_ready: int = 0
    in_flight: int = 0
    probe: Probe | None = None  # how much of its tokens was cached when the scheduler last looked
    has_waited: bool = False  # it was admitted because others had overtaken it long enough: it gives way to nobody
    has_run: bool = False  # it was admitted before: what is computed now counts as recomputed
    matcher: Matcher | None = None
    mask: MaskRow | None = None  # the tokens allowed next
    text: OutputText | None = None  # if text is needed before the end: streaming, stop strings
    per_token: bool = False  # whether each new token needs more than being appended
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_streamed: int = 0  # output ids already sent in Tokens events
    jump_forward: bool | str = False  # how forced text is taken, see SamplingParams
    finish_valid: bool = False  # whether its text has to be whole when its tokens run out
    forced_runs: list[tuple[int, int]] = field(default_factory=list)  # (first, how many) of its output ids
    ending: FinishReason | None = None  # it ends so, once the log-probs of its last forced tokens are there
    finish: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, those in flight included."""
        return self.prompt_len + len(self.output_ids) + self.in_flight

    def ids(self, start: int = 0, stop: int | None = None) -> IdArray:
        """[stop - start] token ids of these positions; those in flight are not known yet."""
        prompt, p = self.request.prompt_ids, self.prompt_len
        stop = p + len(self.output_ids) if stop is None else stop
        if stop <= p:
            return prompt[start:stop]
        output = np.array(self.output_ids[max(0, start - p) : stop - p], dtype=np.int32)
        return np.concatenate([prompt[start:], output]) if start < p else output

    @property
    def needs_host(self) -> bool:
        """Whether the host must have read its last token before the next can be drawn: for a mask, or a processor."""
        return self.matcher is not None or self.request.source.logit_processor is not None

    @property
    def max_cached(self) -> int:
        """How many leading tokens may come from the cache: the last, and those whose logits are wanted, must run."""
        return min(self.prompt_len + len(self.output_ids), self.next_logprob) - 1

    @property
    def next_logprob(self) -> int:
        """Position of the first known token whose log-prob is wanted and missing; beyond all of them if there is none.

        The first choice has the prompt's. An output's are missing for forced tokens until their rows have run.
        """
        if self.request.source.logprobs is None:
            return self.num_tokens
        wanted = self.request.next_prompt_logprob if self.index == 0 else self.prompt_len
        return wanted if wanted < self.prompt_len else self.prompt_len + len(self.logprobs)

    # With arrival and priority, what a scheduling policy asks of a waiting sequence (`policies.Waiting`).

    @property
    def num_cached(self) -> int:
        return self.probe.num_tokens if self.probe else 0

    @property
    def node(self) -> Node | None:
        return self.probe.node if self.probe else None

    @property
    def expected_len(self) -> int:
        hints = self.request.source.hints
        return min(hints.expected_len, self.max_output) if hints and hints.expected_len else self.max_output

    @property
    def routing_key(self) -> str:
        return self.request.source.routing_key

    def __repr__(self) -> str:
        return f"<{self.request.id}/{self.index} {self.stage.value} {self.kv_len}/{self.num_tokens}>"
