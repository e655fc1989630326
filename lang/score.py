"""Choices: from a Select that a stream has got to, to one scoring request, and the choice back into the stream.

Every choice is the canonical tokens of (healed tail + choice) after the same fixed ids: text that is not settled yet
may be tokenised together with the choice. What all choices share of the tail counts as prompt, so a score does not
depend on where the tokenizer could tell that ids are settled.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..compiler.ir import Select
from ..core.errors import RequestError
from ..core.events import Failed, Finished
from ..core.quick import maker
from ..core.request import GenRequest, ScoreTrie, Segment
from ..core.sampling import SamplingParams
from . import meta
from .checks import check_choices
from .choices import ChoicesDecision, ChoicesSamplingMethod, choices_method
from .choosing import choose
from .generate import ended, new_origin, seconds_left, seed_of, send
from .steps import check_text, placed, warn_of_specials
from .stream import Step, Stream, new_segment

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer
    from .executor import Executor
    from .gens import SelectExpr

Scores = Sequence[Sequence[float]]
_NO_SAMPLING = SamplingParams()
_new_score = maker(GenRequest, ("id", "segments", "sampling", "score", "timeout_s", "origin"))


def select(executor: Executor, stream: Stream, step: Step) -> None:
    """Send the scoring request of a select; the stream waits for its result."""
    op: Select | SelectExpr = step.op
    number: int = op.out.id if isinstance(op, Select) else step.extra
    tokenizer = executor.tokenizer
    able = executor.backend.capabilities
    if able.choosing and not able.scoring:
        choose(executor, stream, step, _choices(op), number)
        return
    if not able.scoring or tokenizer is None:
        raise RequestError(f"the backend {able.name!r} cannot score choices", field="choices")
    choices = _choices(op) if isinstance(op, Select) else op.choices  # an expression's were checked when it was written
    method = choices_method(op.method)
    if not stream.segments:
        stream.begin(tokenizer, stream.open_role is not None)
    stream.num_requests += 1
    scored = _scored(executor, tokenizer, stream, number, choices)
    fixed = stream.settled() if scored.shared is None else (*stream.settled(), scored.shared)
    if not fixed:
        raise RequestError("there must be some text before a select", field="choices")
    request = _request(executor, stream, number, fixed, scored.trie)
    if not method.needs_unconditional:
        stream.busy, stream.request_id = step.slot, request.id
        executor.hub.send(executor, request, partial(_scored_once, executor, stream, step, method, scored, choices))
        return

    def compare(event: Finished) -> None:
        def decide(alone: Scores) -> None:
            _decide(executor, stream, step, method, scored, choices, alone, event)

        _score_alone(executor, stream, step, number, scored.trie, decide)

    send(executor, stream, request, step, compare)


def _scored_once(
    executor: Executor,
    stream: Stream,
    step: Step,
    method: ChoicesSamplingMethod,
    scored: _Scored,
    choices: tuple[str, ...],
    event: Finished | Failed,
) -> None:
    """The last event of a select whose method needs one scoring."""
    slot = step.slot
    assert slot is not None
    if isinstance(event, Failed) or stream.busy is not slot:
        ended(executor, stream, slot, step, None, event)
        return
    stream.busy = None
    stream.request_id = ""
    try:
        _decide(executor, stream, step, method, scored, choices, None, event)
    except Exception as error:
        executor.fail_stream(stream, placed(error, step.where), slot)
        return
    if stream.queue and stream.busy is None:
        executor.advance(stream)


def _decide(
    executor: Executor,
    stream: Stream,
    step: Step,
    method: ChoicesSamplingMethod,
    scored: _Scored,
    choices: tuple[str, ...],
    alone: Scores | None,
    event: Finished,
) -> None:
    """The scores are there: take the choice. `alone`: those without the prompt, where the method wants them."""
    slot = step.slot
    assert slot is not None
    sequences = scored.trie.sequences
    decision = method(choices=choices, logprobs=event.scores, token_ids=sequences, unconditional=alone)
    chosen = decision.decision
    if step.op.temperature >= 1e-6:
        chosen = _draw(executor, stream, step.op.temperature, choices, decision)
    stream.append_text(chosen)
    stream.mark(chosen, slot)
    slot.set(chosen, partial(meta.of_choices, event, choices, sequences, decision, alone))


def _choices(op: Select | SelectExpr) -> tuple[str, ...]:
    """The choices of the op, checked."""
    choices: Any = op.choices
    if not isinstance(choices, tuple):
        raise RequestError(f"must be a list of strings, not {choices!r}", field="choices")
    for choice in choices:
        if choice.__class__ is not str or not choice:
            check_text(choice, op.where)
            check_choices(choices, op.where)
    if not choices:
        check_choices(choices, op.where)
    return choices


class _Scored(NamedTuple):
    """Choices after a tail of text that is not settled: the tokens that all share of the tail, and the rest of each."""

    shared: Segment | None
    trie: ScoreTrie


_MAX_KNOWN, _MAX_TAIL = 4096, 64
_known: weakref.WeakKeyDictionary[Any, dict[Any, _Scored]] = weakref.WeakKeyDictionary()
_last: tuple[Callable[[], Any], dict[Any, _Scored]] = (lambda: None, {})  # the tokenizer that asked last, and its own


def _known_of(tokenizer: Tokenizer) -> dict[Any, _Scored]:
    global _last
    whose, known = _last
    if whose() is not tokenizer:
        known = _known.setdefault(tokenizer, {})
        _last = (weakref.ref(tokenizer), known)
    return known


def _scored(executor: Executor, tokenizer: Tokenizer, stream: Stream, number: int, choices: tuple[str, ...]) -> _Scored:
    """The tokens of the choices. What no choice can change of the text before them is settled in the stream."""
    tail = _settle(executor, tokenizer, stream)
    known = _known_of(tokenizer)
    found = known.get((tail, choices))
    if found is None:
        sequences: tuple[tuple[int, ...], ...] = ()
        facts = executor.facts_of(number)
        if facts is not None and facts.tail == tail:
            sequences = facts.sequences
        sequences = sequences or tuple([tuple(tokenizer.encode(tail + choice)) for choice in choices])
        shared = _shared(tokenizer, tail, sequences)
        found = _Scored(
            Segment(ids=sequences[0][:shared]) if shared else None,
            ScoreTrie(tuple([ids[shared:] for ids in sequences])),
        )
        if len(tail) <= _MAX_TAIL:
            if len(known) >= _MAX_KNOWN:
                known.clear()
            known[tail, choices] = found
    return found


def _settle(executor: Executor, tokenizer: Tokenizer, stream: Stream) -> str:
    """Tokenise the stream's text up to the last place where no later text can change earlier ids, all template text
    included; the rest of it."""
    if not stream.run:
        return ""
    warn_of_specials(executor, stream)
    pending = stream.pending
    cut = max(tokenizer.safe_cut(pending), stream.fixed)
    if not cut:
        return pending
    tail = pending[cut:]
    stream.segments.append(new_segment(tuple(tokenizer.encode(pending[:cut]))))
    stream.run, stream.fixed = [(tail, stream.run[0][1])] if tail else [], 0
    return tail


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
    executor: Executor, stream: Stream, number: int, fixed: tuple[Segment, ...], trie: ScoreTrie
) -> GenRequest:
    left = seconds_left(executor) if executor.options.is_bounded else None
    where_from = new_origin(executor.title, number, executor.instance, stream.path)
    return _new_score(executor.hub.new_id(), fixed, _NO_SAMPLING, trie, left, where_from)


def _score_alone(
    executor: Executor,
    stream: Stream,
    step: Step,
    number: int,
    trie: ScoreTrie,
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
    request = _request(executor, stream, number, (Segment(ids=(start,)),), trie)
    send(executor, stream, request, step, lambda event: then(event.scores))


def _draw(
    executor: Executor, stream: Stream, temperature: float, choices: Sequence[str], decision: ChoicesDecision
) -> str:
    """A draw from softmax(score / temperature) with the stream's seed."""
    best = max(decision.scores)
    weights = [math.exp((score - best) / temperature) for score in decision.scores]
    point = seed_of(executor, stream) / 2.0**63 * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        point -= weight
        if point < 0:
            return choice
    return choices[-1]
