"""Choices: from a Select that a stream has got to, to one scoring request, and the choice back into the stream.

Every choice is the canonical tokens of (healed tail + choice) after the same fixed ids: text that is not settled yet
may be tokenised together with the choice. What all choices share of the tail counts as prompt, so a score does not
depend on where the tokenizer could tell that ids are settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..compiler.ir import Ref, Select
from ..core.errors import RequestError
from ..core.events import Finished
from ..core.request import GenRequest, ScoreTrie, Segment
from . import meta
from .checks import check_choices
from .choices import ChoicesDecision, choices_method
from .generate import origin, request_id, seconds_left, send
from .steps import check_text, warn_of_specials
from .stream import Step, Stream

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer
    from .executor import Executor

Scores = Sequence[Sequence[float]]


def select(executor: Executor, stream: Stream, step: Step) -> None:
    """Send the scoring request of a select; the stream waits for its result."""
    op: Select = step.op
    tokenizer = executor.tokenizer
    able = executor.backend.capabilities
    if not able.scoring or tokenizer is None:
        raise RequestError(f"the backend {able.name!r} cannot score choices", field="choices")
    choices = _choices(op)
    method = choices_method(op.method)
    stream.begin(tokenizer, stream.open_role is not None)
    stream.num_requests += 1
    warn_of_specials(executor, stream)
    fixed, sequences = _tokens(executor, tokenizer, stream, op, choices)
    if not fixed:
        raise RequestError("there must be some text before a select", field="choices")
    request = _request(executor, stream, op, fixed, sequences)

    def decide(event: Finished, alone: Scores | None) -> None:
        decision = method(choices=choices, logprobs=event.scores, token_ids=sequences, unconditional=alone)
        chosen = _draw(executor, stream, op, choices, decision)
        stream.append_text(chosen)
        assert step.slot is not None
        step.slot.set(chosen, partial(meta.of_choices, request, event, choices, sequences, decision, alone))

    def scored(event: Finished) -> None:
        if method.needs_unconditional:
            _score_alone(executor, stream, step, sequences, partial(decide, event))
        else:
            decide(event, None)

    send(executor, stream, request, step, scored)


def _choices(op: Select) -> tuple[str, ...]:
    if not isinstance(op.choices, tuple):
        raise RequestError(f"must be a list of strings, not {op.choices!r}", field="choices")
    choices = tuple(check_text(choice, op.where) for choice in op.choices)
    check_choices(choices, op.where)
    return choices


def _tokens(
    executor: Executor, tokenizer: Tokenizer, stream: Stream, op: Select, choices: tuple[str, ...]
) -> tuple[tuple[Segment, ...], tuple[tuple[int, ...], ...]]:
    """The fixed prompt, and the ids of each choice after it. The run stays pending: the choice will be part of it."""
    pending = stream.pending
    cut = tokenizer.safe_cut(pending)
    settled, tail = tuple(tokenizer.encode(pending[:cut])), pending[cut:]
    sequences: tuple[tuple[int, ...], ...] = ()
    if executor.plan is not None:
        facts = executor.plan.select(Ref(executor.origin.get(op.out.id, op.out.id)))
        if facts.tail == tail:
            sequences = facts.sequences
    sequences = sequences or tuple(tuple(tokenizer.encode(tail + choice)) for choice in choices)
    shared = _shared(tokenizer, tail, sequences)
    settled += sequences[0][:shared]
    fixed = (*stream.segments, Segment(ids=settled)) if settled else tuple(stream.segments)
    return fixed, tuple(ids[shared:] for ids in sequences)


def _shared(tokenizer: Tokenizer, tail: str, sequences: Sequence[Sequence[int]]) -> int:
    """How many leading ids all sequences share that lie wholly inside the tail."""
    count = 0
    if tail:
        first = sequences[0]
        limit = min(map(len, sequences)) - 1
        while count < limit and all(ids[count] == first[count] for ids in sequences):
            count += 1
        while count and not tail.startswith(tokenizer.decode(first[:count], skip_special_tokens=False)):
            count -= 1
    return count


def _request(
    executor: Executor, stream: Stream, op: Select, fixed: tuple[Segment, ...], sequences: tuple[tuple[int, ...], ...]
) -> GenRequest:
    return GenRequest(
        id=request_id(executor, stream),
        segments=fixed,
        score=ScoreTrie(sequences),
        timeout_s=seconds_left(executor),
        origin=origin(executor, stream, op.out.id),
    )


def _score_alone(
    executor: Executor,
    stream: Stream,
    step: Step,
    sequences: tuple[tuple[int, ...], ...],
    then: Callable[[Scores], None],
) -> None:
    """Score the choices after nothing but the beginning of a text (BOS, or end-of-text where there is no BOS)."""
    tokenizer = executor.tokenizer
    assert tokenizer is not None
    start = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
    if start is None:
        raise RequestError(
            "this method needs a BOS or end-of-text token to score choices without a prompt", field="choices_method"
        )
    request = _request(executor, stream, step.op, (Segment(ids=(start,)),), sequences)
    send(executor, stream, request, step, lambda event: then(event.scores))


def _draw(executor: Executor, stream: Stream, op: Select, choices: Sequence[str], decision: ChoicesDecision) -> str:
    """The decision; above temperature 0 a draw from softmax(score / temperature) with the stream's seed."""
    temperature: Any = op.temperature
    if temperature < 1e-6:
        return decision.decision
    best = max(decision.scores)
    weights = [math.exp((score - best) / temperature) for score in decision.scores]
    seed = executor.options.seed_of(executor.instance, stream.path, stream.num_requests)
    point = seed / 2.0**63 * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        point -= weight
        if point < 0:
            return choice
    return choices[-1]
