"""`dslc run --trace`: the tree of `--explain` with what was measured of each gen and select.

A forward that computes rows of several requests is shared among them by rows, and so is its time: the shares of all
ops add up to the engine's own counts (`Shares.of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..core.events import Failed
from .explain import Explanation, explain
from .watch import Forward, RunTrace, Span

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer
    from .plan import Plan

OpKey = tuple[str, int]  # program, number of the value that the op gives


@dataclass(slots=True)
class Shares:
    """What some requests took of the forwards: rows, how many forwards they were in, and their share of these."""

    rows: int = 0
    num_forwards: int = 0
    forwards: Fraction = Fraction(0)
    seconds: float = 0.0

    @classmethod
    def of(cls, spans: Sequence[Span], forwards: Sequence[Forward]) -> Shares:
        """The shares of these requests; those of all requests of a run add up to its forwards."""
        ids = {span.request.id for span in spans}
        found = cls()
        for forward in forwards:
            rows = sum(count for name, count in forward.rows.items() if name in ids)
            if rows:
                part = Fraction(rows, forward.num_rows)
                found.rows += rows
                found.num_forwards += 1
                found.forwards += part
                found.seconds += forward.seconds * float(part)
        return found


def by_op(trace: RunTrace) -> dict[OpKey, list[Span]]:
    """The requests of a run by the op that they come from, in the order of their first."""
    groups: dict[OpKey, list[Span]] = {}
    for span in trace.spans:
        origin = span.request.origin
        groups.setdefault((origin.program, origin.op) if origin is not None else ("", -1), []).append(span)
    return groups


def print_trace(trace: RunTrace, plan: Plan | None = None, tokenizer: Tokenizer | None = None) -> str:
    """The tree: for each gen and select of the plan what was measured (`=`), gained (`+`) and not (`-`).

    Requests of other programs, or of a body that ran without a plan, come after it. The last lines are the engine's
    counters; what the requests do not add up to is said.
    """
    groups = by_op(trace)
    lines = [_title(trace)]
    if plan is not None:
        outs = [facts.out for facts in plan.facts]
        for out, item in zip(outs, explain(plan, tokenizer), strict=True):
            spans = groups.pop((plan.program.title, out.id), [])
            lines += _item(item, spans, trace)
    for (program, number), spans in groups.items():
        streams = ", ".join(dict.fromkeys(s.request.origin.stream for s in spans if s.request.origin is not None))
        kind = "select" if spans[0].request.score is not None else "gen"
        lines.append(f"{program or 'requests'}: {kind} %{number} on stream {streams}")
        lines += [f"  = {text}" for text in _measured(spans, trace)]
    return "\n".join([*lines, *_totals(trace)]) + "\n"


def _title(trace: RunTrace) -> str:
    instances = {(o.program, o.instance) for span in trace.spans if (o := span.request.origin) is not None}
    return (
        f"{len(instances)} instances, {len(trace.spans)} requests, {trace.counted.forwards} forwards, "
        f"{_time(trace.ended_at - trace.started_at)}"
    )


def _item(item: Explanation, spans: Sequence[Span], trace: RunTrace) -> Iterator[str]:
    yield f"{item.where + ': ' if item.where else ''}{item.title}"
    yield from (f"  = {text}" for text in (_measured(spans, trace) if spans else ["not reached"]))
    yield from (f"  + {gain}" for gain in item.gains)
    yield from (f"  - {limit}" for limit in item.limits)


def _measured(spans: Sequence[Span], trace: RunTrace) -> Iterator[str]:
    ran = [span for span in spans if not span.is_replayed]
    replayed = f", {len(spans) - len(ran)} of them replayed" if len(ran) < len(spans) else ""
    failed = sum(isinstance(span.ended, Failed) for span in spans)
    yield f"{len(spans)} requests{replayed}" + (f", {failed} failed" if failed else "")
    if not ran:
        return
    prompt, cached = sum(s.num_prompt for s in ran), sum(s.num_cached for s in ran)
    yield f"prompt: {prompt} tokens = {cached} cached + {prompt - cached} computed"
    generated, forced = sum(s.num_generated for s in ran), sum(s.num_forced for s in ran)
    if generated:
        yield f"generated: {generated} tokens, {forced} of them forced"
    if trace.forwards:
        share = Shares.of(ran, trace.forwards)
        yield (
            f"model: {share.rows} rows in {share.num_forwards} forwards, "
            f"a share of {float(share.forwards):.2f} forwards and {_time(share.seconds)}"
        )
    ended = [span for span in ran if span.queued_at and span.ended_at]
    if ended:
        waits = [max(0.0, (s.first_token_at or s.ended_at) - s.queued_at) for s in ended]
        times = [s.ended_at - s.queued_at for s in ended]
        yield f"time: {_spread(waits)} to its first result, {_spread(times)} in all"
    preempted = sum(len(span.preempted) for span in ran)
    if preempted:
        yield f"preempted {preempted} times"


def _totals(trace: RunTrace) -> Iterator[str]:
    counted = trace.counted
    yield (
        f"total: {counted.requests} requests; prompt {counted.prompt_tokens} tokens = {counted.cached_tokens} cached + "
        f"{counted.prefilled_tokens} computed; {counted.generated_tokens} generated, {counted.forced_tokens} forced, "
        f"{counted.scored_tokens} scored"
    )
    yield (
        f"total: {counted.rows} rows in {counted.forwards} forwards; {counted.recomputed_tokens} tokens recomputed, "
        f"{counted.preemptions} preemptions; {counted.masks} masks, "
        f"{counted.constraints_compiled} constraints compiled"
    )
    replayed = sum(span.is_replayed for span in trace.spans)
    if replayed:
        yield f"total: {replayed} results replayed, nothing computed for them"
    for name, (mine, theirs) in trace.differences().items():
        yield f"note: the requests above have {mine} {name}, the engine counted {theirs}"


def _spread(values: Sequence[float]) -> str:
    low, high = _time(min(values)), _time(max(values))
    return low if low == high else f"{low} .. {high}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
