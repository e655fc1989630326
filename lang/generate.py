"""Generations: from a Gen that a stream has got to, to a request, and from its result back into the stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..compiler.ir import Gen
from ..core.errors import DeadlineExceeded, ProgramError, RequestError
from ..core.events import Failed, Finished, Tokens
from ..core.quick import maker
from ..core.request import GenRequest, LogprobWish, Origin, Segment
from . import meta
from .ahead import Ahead
from .reasoning_format import REASONING_SUFFIX, ReasoningFormat, Splitter
from .steps import check_text, close_run, placed, warn_of_specials
from .stream import Slot, Step, Stream
from .turns import turns

if TYPE_CHECKING:
    from ..core.constraint import Constraint
    from ..core.sampling import SamplingParams
    from ..core.text.tokenizer import Tokenizer
    from .executor import Executor
    from .feed import Feed
    from .gens import GenExpr


new_request = maker(GenRequest)
_new_plain = maker(GenRequest, ("id", "segments", "sampling", "origin", "hints"))
new_origin = maker(Origin)


def generate(executor: Executor, stream: Stream, step: Step) -> None:
    """Send the request of a gen; the stream waits for its result."""
    op: Gen | GenExpr[Any] = step.op
    is_op = op.__class__ is Gen
    number: int = op.out.id if is_op else step.extra  # type: ignore[union-attr]
    stream.num_requests += 1
    options = executor.options
    sampling = options.merged(op.sampling, seed_of(executor, stream))
    is_plain = executor.is_plain and op.constraint is None and op.logprobs is None and sampling.n == 1
    if is_plain and (is_op or op.reasoning is None) and sampling.token_healing is None:  # type: ignore[union-attr]
        hub = executor.hub
        segments = prompt(executor, stream) if stream.run or not stream.segments else stream.settled()
        origin = new_origin(executor.title, number, executor.instance, stream.path)
        hints = executor.hints_of(number) if hub.sends_hints else None
        stream.busy, stream.request_id = step.slot, hub.new_id()
        plain = _new_plain(stream.request_id, segments, sampling, origin, hints)
        hub.send(executor, plain, partial(_ended_plainly, executor, stream, step))
        return
    is_told = executor.feed is not None and stream is executor.root
    if options.token_budget is not None:
        sampling, is_capped = _capped(executor, sampling, options.token_budget)
    if executor.num_spec_tokens is not None and _may_speculate(executor, op, sampling):
        _speculate(executor, stream, step, sampling, number)
        return
    able = executor.backend.capabilities
    healed, reasoning, constraint = "", None, None
    if op.constraint is not None or sampling.token_healing:
        healed = _give_back(executor, stream, op, sampling.token_healing)
        reasoning, constraint = _markers(executor, op), _constraint(executor, op)
    request = new_request(
        executor.hub.new_id(),
        prompt(executor, stream),
        sampling=sampling,
        healed=healed,
        reasoning=reasoning,
        constraint=constraint,
        logprobs=_logprobs(executor, op) if op.logprobs is not None or options.logprobs is not None else None,
        stream=is_told and able.streaming,
        timeout_s=seconds_left(executor) if options.is_bounded else None,
        origin=new_origin(executor.title, number, executor.instance, stream.path),
        messages=turns(executor, stream) if able.chat else (),
    )
    told: Telling | None = None
    if is_told:
        assert executor.feed is not None
        told = Telling(executor.feed, request, op.var, executor.tokenizer, _reasoning(op))
    finished = partial(_generated, executor, stream, step, request, told)
    if options.token_budget is not None:
        finished = partial(_within_budget, executor, options.token_budget, is_capped, finished)
    send(executor, stream, request, step, finished, told.add if told is not None else None)


def seed_of(executor: Executor, stream: Stream) -> int:
    """The seed of the stream's last request, where neither the gen nor the run gives one."""
    number, seeds = stream.num_requests, stream.seeds
    if seeds[0] != number >> 3:
        seeds = stream.seeds = executor.options.seeds_of(executor.instance, stream.path, number >> 3)
    return seeds[(number & 7) + 1] >> 1


def _may_speculate(executor: Executor, op: Gen | GenExpr[Any], sampling: SamplingParams) -> bool:
    """Whether a gen may take its text from a call that writes on, or make such a call."""
    is_plain = op.constraint is None and op.logprobs is None and executor.options.logprobs is None
    return is_plain and _reasoning(op) is None and executor.feed is None and sampling.n == 1


def _speculate(executor: Executor, stream: Stream, step: Step, sampling: SamplingParams, number: int) -> None:
    """Take the text of a gen from what the last call wrote, or make a call that writes on for the next gens too."""
    assert executor.num_spec_tokens is not None
    request = new_request(
        executor.hub.new_id(),
        (),
        sampling=replace(sampling, stop=(), max_new_tokens=max(sampling.max_new_tokens, executor.num_spec_tokens)),
        token_texts=True,
        timeout_s=seconds_left(executor),
        origin=origin(executor, stream, number),
    )
    known = stream.ahead.take(stream, sampling) if stream.ahead is not None else None
    if known is not None:
        _generated(executor, stream, step, request, None, known)
        return
    stream.ahead = None
    messages = turns(executor, stream) if executor.backend.capabilities.chat else ()
    request = replace(request, segments=prompt(executor, stream), messages=messages)

    def written(event: Finished) -> None:
        stream.ahead = Ahead.of(event, stream, sampling)
        own = stream.ahead.take(stream, sampling)
        if own is not None:
            _generated(executor, stream, step, request, None, own)
            return
        stream.ahead = None  # where its text ends cannot be told from this call: it gets one of its own
        again = replace(request, id=executor.hub.new_id(), sampling=sampling, token_texts=False)
        send(executor, stream, again, step, partial(_generated, executor, stream, step, again, None))

    send(executor, stream, request, step, written)


def _give_back(executor: Executor, stream: Stream, op: Gen | GenExpr[Any], wish: bool | None) -> str:
    """The plain text at the end of the prompt whose tokens later text could change, taken out of the stream: the
    output spells it again. Empty where nothing is healed."""
    tokenizer = executor.tokenizer
    if wish and op.constraint is None:
        raise RequestError("is for constrained text", field="token_healing")
    if op.constraint is None or wish is False or tokenizer is None or not stream.run or _reasoning(op) is not None:
        return ""
    if not executor.backend.capabilities.healing:
        if wish:
            raise RequestError(f"the backend {executor.backend.capabilities.name!r} heals none", field="token_healing")
        return ""
    stream.begin(tokenizer, stream.open_role is not None)
    warn_of_specials(executor, stream)
    pending, where = stream.pending, stream.run[0][1]
    cut = stream.free_from(tokenizer)
    if not cut and not stream.segments:
        return ""
    stream.run = [(pending[:cut], where)] if cut else []
    return pending[cut:]


def _markers(executor: Executor, op: Gen | GenExpr[Any]) -> tuple[str, str] | None:
    """Between which markers a constrained output is free."""
    form = _reasoning(op)
    if form is None:
        return None
    if not executor.backend.capabilities.reasoning:
        name = executor.backend.capabilities.name
        raise RequestError(f"the backend {name!r} cannot constrain what comes after reasoning", field="expr")
    return "" if form.is_open else form.begin, form.end


def prompt(executor: Executor, stream: Stream) -> tuple[Segment, ...]:
    """The stream as segments of a request; the run that is pending ends here."""
    if not stream.segments:
        stream.begin(executor.tokenizer, stream.open_role is not None)
    if stream.run:
        close_run(executor, stream)
    return stream.settled()


def origin(executor: Executor, stream: Stream, number: int) -> Origin:
    """Where a request comes from. `number` is that of the value it gives (in the plan, if one is walked)."""
    return new_origin(executor.title, number, executor.instance, stream.path)


def _constraint(executor: Executor, op: Gen | GenExpr[Any]) -> Constraint:
    assert op.constraint is not None
    able = executor.backend.capabilities
    if op.constraint.kind not in able.constraints:
        raise RequestError(f"the backend {able.name!r} cannot enforce it", field=op.constraint.kind)
    return op.constraint.resolve(check_text(op.constraint.source, op.where))


def _logprobs(executor: Executor, op: Gen | GenExpr[Any]) -> LogprobWish | None:
    wish = op.logprobs or executor.options.logprobs
    if wish is not None and not executor.backend.capabilities.logprobs:
        raise RequestError(f"the backend {executor.backend.capabilities.name!r} gives none", field="return_logprob")
    return wish


def _capped(executor: Executor, sampling: SamplingParams, budget: int) -> tuple[SamplingParams, bool]:
    """The options with no more tokens than are left of the run's budget, and whether that is fewer than were asked."""
    left = (budget - executor.num_generated_tokens) // max(1, sampling.n)
    if left >= sampling.max_new_tokens:
        return sampling, False
    left = max(left, 1)
    return replace(sampling, max_new_tokens=left, min_new_tokens=min(left, sampling.min_new_tokens)), True


def _within_budget(
    executor: Executor, budget: int, is_capped: bool, finished: Callable[[Finished], None], event: Finished
) -> None:
    """Take the result, unless the run's budget cut it (nobody asked for a text that ends there), or branches that ran
    beside it have used the budget up."""
    is_cut = is_capped and any(output.finish_reason.type == "length" for output in event.outputs)
    if is_cut or executor.num_generated_tokens + sum([output.num_tokens for output in event.outputs]) > budget:
        raise _budget_error(executor)
    finished(event)


def _budget_error(executor: Executor) -> ProgramError:
    return ProgramError(f"the token budget of {executor.options.token_budget} is used up")


def seconds_left(executor: Executor) -> float | None:
    options = executor.options
    if options.token_budget is not None and executor.num_generated_tokens >= options.token_budget:
        raise _budget_error(executor)
    if options.deadline is None:
        return None
    left = options.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the timeout of this run has passed")
    return left


class Telling:
    """Passes the pieces of one generation on to readers outside."""

    def __init__(
        self,
        feed: Feed,
        request: GenRequest,
        var: str | None,
        tokenizer: Tokenizer | None,
        reasoning: ReasoningFormat | None,
    ) -> None:
        self._feed = feed
        self._request = request
        self._tokenizer = tokenizer
        self._splitter = Splitter(reasoning) if reasoning is not None else None
        self._num_tokens = 0
        self._num_reasoning = 0
        self.num_chars = 0
        self._channel = feed.begin(var) if var is not None else None
        is_apart = var is not None and reasoning is not None
        self._beside = feed.begin(f"{var}{REASONING_SUFFIX}") if is_apart else None

    def add(self, event: Tokens) -> None:
        """The next piece of the first choice (the others are told of when they are whole)."""
        if event.index != 0:
            return
        self._num_tokens += len(event.token_ids)
        thought, text = self._splitter.feed(event.text) if self._splitter is not None else ("", event.text)
        self.num_chars += len(text)
        self._num_reasoning += len(thought)
        if text:
            self._feed.add_text(text)
        if self._channel is not None:
            info = meta.of_tokens(self._request, event, self._num_tokens, self._tokenizer)
            self._feed.add_chunk(self._channel, text, info)
        if self._beside is not None and thought:
            self._feed.add_chunk(self._beside, thought, {})

    def end(self, event: Finished, thought: str, text: str) -> None:
        """What the pieces have not told yet of the first choice."""
        if self._channel is not None:
            info = meta.of_output(self._request, event, event.outputs[0], self._tokenizer, self._num_tokens)
            self._feed.add_chunk(self._channel, text[self.num_chars :], info)
        if self._beside is not None and len(thought) > self._num_reasoning:
            self._feed.add_chunk(self._beside, thought[self._num_reasoning :], {})


def _reasoning(op: Gen | GenExpr[Any]) -> ReasoningFormat | None:
    return None if isinstance(op, Gen) else op.reasoning


def _generated(
    executor: Executor, stream: Stream, step: Step, request: GenRequest, told: Telling | None, event: Finished
) -> None:
    slot = step.slot
    assert slot is not None
    first = event.outputs[0]
    reasoning = _reasoning(step.op)
    for output in event.outputs:
        executor.num_generated_tokens += output.num_tokens
    texts = [output.text for output in event.outputs]
    thoughts = [""] * len(texts)
    if reasoning is not None:
        thoughts, texts = map(list, zip(*map(reasoning.split, texts), strict=True))
    num_told = told.num_chars if told is not None else 0
    if executor.tokenizer is not None and reasoning is None:
        stream.append_generated(first.kept_ids, first.kept_tail, first.text, num_told, request.healed)
    else:
        stream.append_generated((), texts[0], texts[0], num_told)
    stream.mark(texts[0], slot)
    if told is not None:
        told.end(event, thoughts[0], texts[0])
    tokenizer = executor.tokenizer
    infos: list[Any] = [
        meta.OutputMeta(request.id, request.logprobs, event, output, tokenizer) for output in event.outputs
    ]
    is_one = request.sampling.n == 1
    if slot.beside is not None:
        slot.beside.set(thoughts[0] if is_one else thoughts)
    slot.set(texts[0] if is_one else texts, infos[0] if is_one else infos)


def send(
    executor: Executor,
    stream: Stream,
    request: GenRequest,
    step: Step,
    finished: Callable[[Finished], None],
    progress: Callable[[Tokens], None] | None = None,
) -> None:
    """Hand a request to the hub; the stream waits for its result, then `finished(event)` takes it."""
    slot = step.slot
    assert slot is not None
    stream.busy = slot
    stream.request_id = request.id
    executor.hub.send(executor, request, partial(ended, executor, stream, slot, step, finished), progress)


def _ended_plainly(executor: Executor, stream: Stream, step: Step, event: Finished | Failed) -> None:
    """The last event of a gen that asks for one text and nothing besides."""
    slot = step.slot
    assert slot is not None
    if isinstance(event, Failed) or stream.busy is not slot:
        ended(executor, stream, slot, step, None, event)
        return
    stream.busy = None
    stream.request_id = ""
    try:
        output = event.outputs[0]
        text = output.text
        executor.num_generated_tokens += len(output.token_ids) or output.num_text_tokens
        if executor.tokenizer is not None:
            stream.append_generated(output.kept_ids, output.kept_tail, text)
        else:
            stream.append_generated((), text, text)
        slot.start, slot.before = stream.text_len - len(text), stream.last_mark
        stream.last_mark = slot
        slot.set(text, meta.OutputMeta(event.request_id, None, event, output, executor.tokenizer))
    except Exception as error:
        executor.fail_stream(stream, placed(error, step.where), slot)
        return
    if stream.queue and stream.busy is None:
        executor.advance(stream)


def ended(executor: Executor, stream: Stream, slot: Slot, step: Step, finished: Any, event: Finished | Failed) -> None:
    """The last event of a request: `finished` takes a result, an error fails the stream."""
    if stream.busy is not slot:
        return  # the stream has failed meanwhile
    stream.request_id = ""
    if isinstance(event, Failed):
        error = event.error.exception().at(step.where)
        tail = stream.text_from(max(0, stream.text_len - 60))
        error.message += f" (in the program {executor.title!r}, after the prompt ending in {tail!r})"
        executor.fail_stream(stream, error, slot)
        return
    stream.busy = None
    try:
        finished(event)
    except Exception as error:
        executor.fail_stream(stream, placed(error, step.where), slot)
        return
    if stream.busy is None and stream.queue:
        executor.advance(stream)
