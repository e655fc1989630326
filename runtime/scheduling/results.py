"""What the tokens of a finished launch mean: text, stops, log-probs, masks for the next launch, finished requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...core.backend import Counters
from ...core.errors import ConstraintError, EngineError, ErrorInfo
from ...core.events import Finished, FinishReason, Forced, Prefilled, TokenLogprob, Tokens
from ..output import make_output, trims_last_id
from ..request import Stage
from .forced import end_instead, take_forced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...compiler.constraints.interface import MaskRow
    from ...core.events import Event
    from ...core.text.tokenizer import Tokenizer
    from ..request import Request, Sequence
    from .batch import Batch, Extend
    from .scheduler import Scheduler

LOOK_AHEAD = 64  # contexts of constraints made ready during one forward: about a millisecond


class Tally:
    """`core.backend.Counters`, counting."""

    __slots__ = tuple(Counters.__dataclass_fields__)

    requests: int
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    recomputed_tokens: int
    generated_tokens: int
    forced_tokens: int
    scored_tokens: int
    forwards: int
    rows: int
    masks: int
    constraints_compiled: int
    evicted_tokens: int
    preemptions: int

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def snapshot(self) -> Counters:
        """The totals as a value."""
        return Counters(**{name: getattr(self, name) for name in self.__slots__})


@dataclass(slots=True)
class Results:
    """One host read of a launch. `ids[i]` is the token of batch.sampled[i], -1 if none could be drawn.

    `logprobs` by index into batch.sampled; `prompt_logprobs` and `edges` (one log-prob per edge of the trie part) by
    index into batch.extends.
    """

    ids: list[int]
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    prompt_logprobs: dict[int, dict[int, TokenLogprob]] = field(default_factory=dict)
    edges: dict[int, list[float]] = field(default_factory=dict)


class Resolver:
    """The scheduler's second half. An exception over one request's tokens fails that request alone."""

    def __init__(self, tokenizer: Tokenizer | None, stream_interval: int = 1) -> None:
        self.tokenizer = tokenizer
        self.stream_interval = stream_interval
        self.tally = Tally()
        self.outbox: list[tuple[Request, Event]] = []

    def resolve(self, scheduler: Scheduler, batch: Batch, results: Results, now: float) -> None:
        """Take in the results of a batch, in its order."""
        done = Stage.DONE
        ids = results.ids
        attention: list[tuple[int, Sequence, int]] = []  # those that need more than being appended
        num_tokens = 0
        for i, seq in enumerate(batch.decodes):
            if seq.stage is done:
                continue  # it ended while this token was in flight
            token = ids[i]
            seq.in_flight -= 1
            seq.kv_ready += 1
            output = seq.output_ids
            if token >= 0:
                output.append(token)
                num_tokens += 1
            if seq.per_token or token < 0 or token in seq.stop_ids or len(output) >= seq.max_output:
                attention.append((i, seq, token))
        self.tally.generated_tokens += num_tokens
        for i, seq, token in attention:
            self._guarded(scheduler, seq, self._accept, token, results.logprobs.get(i), now)
        at = len(batch.decodes)
        for number, extend in enumerate(batch.extends):
            if extend.seq.stage is not done:
                self._guarded(scheduler, extend.seq, self._computed, extend, number, at, results, now)
            at += extend.samples

    def _guarded(self, scheduler: Scheduler, seq: Sequence, step: Callable[..., None], *args: object) -> None:
        try:
            step(scheduler, seq, *args)
        except Exception as error:
            scheduler.fail(seq.request, ErrorInfo.of(error), keep=False)

    def _computed(
        self, scheduler: Scheduler, seq: Sequence, extend: Extend, number: int, at: int, results: Results, now: float
    ) -> None:
        """A run of tokens has its KV: share it, and go on to what its logits gave."""
        request = seq.request
        seq.kv_ready = max(seq.kv_ready, extend.end)
        seq.in_flight -= extend.is_last
        for position, logprob in results.prompt_logprobs.get(number, {}).items():
            if position < seq.prompt_len:
                request.prompt_logprobs[position] = logprob
            else:
                seq.logprobs.append(logprob)
        if extend.trie is not None:
            scheduler.truncate(seq, extend.end)
        scheduler.share(seq)
        if not extend.is_last:
            return
        scheduler.prefilled(seq)
        if not request.is_prefilled:
            request.is_prefilled = True
            cached = max(request.num_cached_tokens, 0)
            scheduler.outbox.append((request, Prefilled(request.id, len(request.prompt_ids), cached, now)))
        if extend.samples:
            token = results.ids[at]
            if token >= 0:
                seq.output_ids.append(token)
                self.tally.generated_tokens += 1
            self._accept(scheduler, seq, token, results.logprobs.get(at), now)
        elif extend.trie is not None:
            self._scored(scheduler, seq, extend, results.edges[number], now)
        elif seq.ending is not None:
            self._finish(scheduler, seq, seq.ending, now)
        else:  # no output was asked for
            self._finish(scheduler, seq, FinishReason("length"), now)

    def _scored(self, scheduler: Scheduler, seq: Sequence, extend: Extend, logprobs: list[float], now: float) -> None:
        request, trie = seq.request, extend.trie
        work = request.trie
        assert work is not None and trie is not None
        for edge, logprob in zip(trie.edges, logprobs, strict=True):
            work.found[edge.node] = logprob
        work.num_done += 1
        self.tally.scored_tokens += len(trie.token_ids)
        request.first_token_at = request.first_token_at or now
        if work.num_done == len(work.parts):
            scheduler.close(seq)
            self._finish_request(scheduler, request, now)

    def _accept(
        self, scheduler: Scheduler, seq: Sequence, token: int, logprob: TokenLogprob | None, now: float
    ) -> None:
        """One new token of a sequence: already appended, unless it is -1."""
        request = seq.request
        request.first_token_at = request.first_token_at or now
        if token < 0:
            if seq.matcher is None:
                raise EngineError("no token can be drawn: all are barred, or the logits are not numbers")
            if not seq.matcher.is_accepting:
                raise dead_end(seq)
            self._finish(scheduler, seq, FinishReason("stop"), now)
            return
        if logprob is not None:
            seq.logprobs.append(logprob)
        if seq.matcher is not None:
            seq.matcher.advance(token)
            if seq.finish_valid and token not in seq.stop_ids and self._has_turned_back(scheduler, seq, now):
                return
        finish = None
        if token in seq.stop_ids:
            finish = FinishReason("stop", token)
        if seq.text is not None:
            seq.finish = finish
            if finish is None or not trims_last_id(seq):
                seq.text.push(token)
            if seq.text.match is not None:
                finish = FinishReason("stop", seq.text.match.stop)
        if finish is None and len(seq.output_ids) >= seq.max_output:
            finish = FinishReason("stop" if _is_whole(seq) else "length")
        if finish is not None:
            self._finish(scheduler, seq, finish, now)
            return
        if seq.matcher is not None and not self._constrain(scheduler, seq, now):
            return
        self._stream_if_due(scheduler, seq)

    def begin(self, scheduler: Scheduler, request: Request, now: float) -> None:
        """What a constraint forces and allows at the beginning of a request's choices."""
        for seq in request.sequences:
            if seq.matcher is not None and seq.stage is not Stage.DONE:
                self._guarded(scheduler, seq, self._begin, now)

    def _begin(self, scheduler: Scheduler, seq: Sequence, now: float) -> None:
        if self._constrain(scheduler, seq, now):
            self._stream_if_due(scheduler, seq)

    def _constrain(self, scheduler: Scheduler, seq: Sequence, now: float) -> bool:
        """Take what its constraint forces, then fill the mask of the next draw. False: there is none, it has ended."""
        if seq.jump_forward and seq.max_output > 0:
            taken, finish = take_forced(seq)
            self._took(scheduler, seq, taken)
            if finish is not None:
                self._end(scheduler, seq, finish, now)
                return False
            if taken:
                scheduler.jump(seq)
        self.fill_mask(seq)
        return True

    def _has_turned_back(self, scheduler: Scheduler, seq: Sequence, now: float) -> bool:
        """Whether the newest token had to give way to the shortest end, because too few tokens would have been left."""
        ended = end_instead(seq)
        if ended is None:
            return False
        self.tally.generated_tokens -= 1
        self._took(scheduler, seq, ended[0])
        self._end(scheduler, seq, ended[1], now)
        return True

    def _took(self, scheduler: Scheduler, seq: Sequence, taken: tuple[int, ...]) -> None:
        if taken:
            self.tally.generated_tokens += len(taken)
            self.tally.forced_tokens += len(taken)
            start = len(seq.output_ids) - len(taken)
            scheduler.outbox.append((seq.request, Forced(seq.request.id, seq.index, start, taken)))

    def _end(self, scheduler: Scheduler, seq: Sequence, reason: FinishReason, now: float) -> None:
        """Finish, if need be after the forward that gives the log-probs of its last forced tokens."""
        if seq.next_logprob < seq.num_tokens:
            seq.ending = reason
            if seq.next_logprob > seq.kv_len:
                scheduler.jump(seq)
            elif seq.stage is Stage.DECODE:  # the row that gave the token it gave up has to run again
                scheduler.retract(seq)
            return
        request = seq.request
        request.first_token_at = request.first_token_at or now
        self._finish(scheduler, seq, reason, now)

    def _stream_if_due(self, scheduler: Scheduler, seq: Sequence) -> None:
        """Tell of the new tokens; those whose log-probs are wanted and still to be computed are told of with them."""
        if not seq.request.source.stream or len(seq.output_ids) - seq.num_streamed < self.stream_interval:
            return
        if seq.next_logprob >= seq.num_tokens:
            self._stream(scheduler, seq)

    def fill_mask(self, seq: Sequence) -> None:
        """The tokens that the constraint allows next, with end-of-text barred where the request ignores it."""
        assert seq.matcher is not None and seq.mask is not None
        seq.matcher.fill_mask(seq.mask)
        self.tally.masks += 1
        if seq.request.source.sampling.ignore_eos and self.tokenizer is not None:
            bar(seq.mask, [token_id for token_id in self.tokenizer.eos_ids if token_id not in seq.stop_ids])

    def look_ahead(self, scheduler: Scheduler, batch: Batch, now: float) -> None:
        """Make ready what the next masks of a batch may need, while the model runs. Changes no decision."""
        left = LOOK_AHEAD

        def look(scheduler: Scheduler, seq: Sequence, now: float) -> None:
            nonlocal left
            assert seq.matcher is not None
            left -= seq.matcher.look_ahead(left)

        for seq in batch.seqs:
            if seq.matcher is not None and left > 0:
                self._guarded(scheduler, seq, look, now)

    def _stream(self, scheduler: Scheduler, seq: Sequence) -> None:
        start, seq.num_streamed = seq.num_streamed, len(seq.output_ids)
        text = seq.text.take() if seq.text is not None else ""
        ids = tuple(seq.output_ids[start:])
        event = Tokens(seq.request.id, seq.index, ids, text, tuple(seq.logprobs[start:]))
        scheduler.outbox.append((seq.request, event))

    def _finish(self, scheduler: Scheduler, seq: Sequence, reason: FinishReason, now: float) -> None:
        """A sequence has ended by its own rules; with the last of them, the request has."""
        request = seq.request
        seq.finish = reason
        output = make_output(seq, self.tokenizer)
        request.outputs[seq.index] = output
        if request.source.stream:
            self._stream(scheduler, seq)
        scheduler.close(seq)
        if all(output is not None for output in request.outputs):
            self._finish_request(scheduler, request, now)

    def _finish_request(self, scheduler: Scheduler, request: Request, now: float) -> None:
        wish = request.source.logprobs
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        if wish is not None and wish.prompt_start >= 0:
            found = request.prompt_logprobs
            first = [TokenLogprob(int(request.prompt_ids[0]), None)] if wish.prompt_start == 0 else []
            prompt_logprobs = (*first, *(found[position] for position in sorted(found)))
        event = Finished(
            request.id,
            outputs=tuple(output for output in request.outputs if output is not None),
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=max(request.num_cached_tokens, 0),
            seed=request.seed,
            queued_at=request.queued_at,
            first_token_at=request.first_token_at or now,
            finished_at=now,
            prompt_logprobs=prompt_logprobs,
            scores=request.trie.scores if request.trie is not None else (),
            num_preemptions=request.num_preemptions,
        )
        scheduler.finish_request(request, event)


def _is_whole(seq: Sequence) -> bool:
    """Whether a sequence at its limit need not say so: nothing else can come, or a whole text is all that was asked."""
    if seq.matcher is None:
        return False
    return (bool(seq.jump_forward) and seq.matcher.must_stop) or (seq.finish_valid and seq.matcher.is_accepting)


def bar(mask: MaskRow, token_ids: Iterable[int]) -> None:
    """Take ids out of a packed mask row, in place."""
    words = mask.view(np.uint32)
    for token_id in token_ids:
        words[token_id // 32] &= np.uint32(0xFFFFFFFF ^ 1 << token_id % 32)


def dead_end(seq: Sequence) -> ConstraintError:
    """The text so far cannot be completed under the constraint by any token."""
    constraint = seq.request.source.constraint
    assert constraint is not None
    source = constraint.source if len(constraint.source) <= 80 else constraint.source[:77] + "..."
    return ConstraintError(
        f"{source!r}: after {len(seq.output_ids)} tokens no token of the vocabulary can follow, and the text is not "
        "complete",
        field=constraint.kind,
    )
