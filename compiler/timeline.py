"""`dslc run --timeline FILE`: a run as one HTML page, without network: a line for each request, by program instance.

Grey: queued. Blue: prompt being computed, darker for the share that came from the cache. Green: tokens, a mark each; a
mark is taller where one step gave several. Yellow: forced by a constraint. Red: preempted. The uppermost line is the
forwards with their rows.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.events import Failed, Finished
from .fields import defined
from .ir import Gen, Select, walk

if TYPE_CHECKING:
    from .plan import Plan
    from .watch import RunTrace, Span

MAX_LINES = 2000  # requests on a page; a browser shows no more in good time

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888 }
* { box-sizing: border-box } body { margin: 0; font: 12px/1.4 ui-monospace, monospace }
header { padding: .6rem 1rem; border-bottom: 1px solid var(--line); position: sticky; top: 0; background: Canvas }
h1 { font-size: 1.1rem; margin: 0 } #facts { min-height: 1.4em; color: var(--dim) }
.run { display: grid; grid-template-columns: 18rem 1fr; padding: 0 1rem }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-right: 1em }
.lane { position: relative; height: 1.4em; border-bottom: 1px solid var(--line) }
.lane i { position: absolute; top: 20%; height: 60%; min-width: 1px }
.instance { font-weight: bold; padding-top: .6em } .queued { background: #8885 } .prefill { background: #48c }
.cached { background: #136 } .decode { background: #2a75 } .scored { background: #27a }
.lane .token { top: 30%; height: 40%; width: 1px; background: #173 } .lane .several { top: 5%; height: 90% }
.lane .forced { top: 70%; height: 30%; width: 4px; background: #da2 }
.lane .preempted { top: 0; height: 100%; width: 3px; background: #c33 }
.failed { background: #c33 } .replayed { background: #a6a } .finished { border-right: 2px solid #173 }
.key i { display: inline-block; width: 1.2em; height: .8em; margin: 0 .4em 0 1.2em; vertical-align: middle }
.axis .lane { color: var(--dim) } .axis span { position: absolute }
.forwards { height: 4em } .lane.forwards i { top: auto; bottom: 0; background: #c82; height: calc(var(--rows) * 100%) }
"""
_SCRIPT = """
const facts = document.getElementById("facts"), told = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll("[data-request]").forEach(line => line.addEventListener("mouseenter", () => {
  facts.textContent = told.requests[line.dataset.request].facts;
}));
document.body.dataset.lines = document.querySelectorAll("[data-request]").length;
"""


def print_timeline(trace: RunTrace, plan: Plan | None = None) -> str:
    """The page of a run; `plan` gives the ops their names. At most MAX_LINES requests, and it says what is left out."""
    spans = sorted(trace.spans, key=_place)
    names = op_names(plan)
    shown = spans[:MAX_LINES]
    scale = _Scale(trace)
    counted = trace.counted
    title = plan.program.title if plan is not None else "run"
    summary = (
        f"{len(spans)} requests in {scale.seconds:.3f} s; {counted.prompt_tokens} prompt tokens = "
        f"{counted.cached_tokens} cached + {counted.prefilled_tokens} computed; {counted.generated_tokens} generated, "
        f"{counted.forced_tokens} forced; {counted.rows} rows in {counted.forwards} forwards"
    )
    if len(shown) < len(spans):
        summary += f"; the first {len(shown)} requests are shown"
    told = {"requests": [_data(span, names, trace) for span in shown], "counted": _counted(trace)}
    data = json.dumps(told).replace("<", "\\u003c")
    return "\n".join(
        [
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<header><h1>{html.escape(title)}</h1>{html.escape(summary)}<div class=key>{_key(spans)}</div>"
            "<div id=facts>Point at a request to see its numbers.</div></header>",
            _axis(scale),
            *_forwards(trace, scale),
            *_lines(shown, names, scale),
            f'<script type="application/json" id="data">{data}</script>',
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )


_KEY = {  # the colours of _STYLE
    "queued": ("#8885", "waits"), "cached": ("#136", "prompt, from the cache"), "prefill": ("#48c", "prompt, computed"),
    "decode": ("#2a75", "generates"), "scored": ("#27a", "scores choices"), "token": ("#173", "a token"),
    "forced": ("#da2", "forced tokens"), "preempted": ("#c33", "preempted"), "replayed": ("#a6a", "replayed"),
    "failed": ("#c33", "failed"),
}  # fmt: skip


def _key(spans: Sequence[Span]) -> str:
    """What the colours mean, those that the page may hold."""
    rare = {"preempted": any(s.preempted for s in spans), "replayed": any(s.is_replayed for s in spans)}
    rare["failed"] = any(isinstance(s.ended, Failed) for s in spans)
    shown = [_KEY[kind] for kind in _KEY if rare.get(kind, True)]
    return "".join(f'<i style="background:{color}"></i>{text}' for color, text in shown)


def _axis(scale: _Scale) -> str:
    """Seconds since the first request, at every fifth of the run."""
    marks = "".join(f'<span style="left:{20 * i}%">{scale.seconds * i / 5:.3g} s</span>' for i in range(5))
    return f'<div class="run axis"><div class="name">time</div><div class="lane">{marks}</div></div>'


class _Scale:
    """Times of a run as percentages of its length."""

    def __init__(self, trace: RunTrace) -> None:
        times = [span.submitted_at for span in trace.spans] or [trace.started_at]
        ends = [span.ended_at for span in trace.spans if span.ended_at] or [trace.ended_at]
        self.start = min(times)
        self.seconds = max(max(ends) - self.start, 1e-9)

    def bar(self, kind: str, start: float, end: float, more: str = "") -> str:
        left, width = self.of(start), max(0.0, self.of(end) - self.of(start))
        return f'<i class="{kind}" style="left:{left:.4f}%;width:{width:.4f}%{more}"></i>'

    def mark(self, kind: str, at: float) -> str:
        return f'<i class="{kind}" style="left:{self.of(at):.4f}%"></i>'

    def of(self, at: float) -> float:
        return min(100.0, max(0.0, 100 * (at - self.start) / self.seconds))


def _place(span: Span) -> tuple[Any, ...]:
    origin = span.request.origin
    return (origin.program, origin.instance, span.submitted_at) if origin is not None else ("", 0, span.submitted_at)


def op_names(plan: Plan | None) -> dict[tuple[str, int], str]:
    """(program, value) -> the op in the author's words."""
    if plan is None:
        return {}
    names: dict[tuple[str, int], str] = {}
    for op in walk(plan.program.body):
        out = defined(op)
        if isinstance(op, (Gen, Select)) and out is not None:
            line = f" line {op.where.line}" if op.where is not None else ""
            names[plan.program.title, out.id] = f"{op.name} {op.var or ''}{line}".strip()
    return names


def _name(span: Span, names: dict[tuple[str, int], str]) -> str:
    origin = span.request.origin
    kind = "select" if span.request.score is not None else "gen"
    if origin is None:
        return kind
    stream = f" on {origin.stream}" if origin.stream != "0" else ""
    return names.get((origin.program, origin.op), f"{kind} %{origin.op}") + stream


def _forwards(trace: RunTrace, scale: _Scale) -> Iterator[str]:
    most = max((forward.num_rows for forward in trace.forwards), default=0)
    if not most:
        return
    bars = "".join(
        scale.bar("forward", forward.started_at, forward.ended_at, f";--rows:{forward.num_rows / most:.4f}")
        for forward in trace.forwards
    )
    yield f'<div class="run"><div class="name">forwards, at most {most} rows</div>'
    yield f'<div class="lane forwards">{bars}</div></div>'


def _lines(spans: list[Span], names: dict[tuple[str, int], str], scale: _Scale) -> Iterator[str]:
    before: object = None
    for number, span in enumerate(spans):
        origin = span.request.origin
        instance = (origin.program, origin.instance) if origin is not None else ("", 0)
        if instance != before:
            yield f'<div class="run instance"><div class="name">{html.escape(instance[0])} {instance[1]}</div></div>'
            before = instance
        yield f'<div class="run" data-request="{number}"><div class="name">{html.escape(_name(span, names))}</div>'
        yield f'<div class="lane">{"".join(_bars(span, scale))}</div></div>'


def _bars(span: Span, scale: _Scale) -> Iterator[str]:
    end = span.ended_at or scale.start + scale.seconds
    if span.is_replayed:
        yield scale.bar("replayed finished", span.submitted_at, end)
        return
    if isinstance(span.ended, Failed):
        yield scale.bar("failed", span.submitted_at, end)
    prefilled = span.prefilled_at or end
    begun = min(span.prefill_from(), prefilled)
    yield scale.bar("queued", span.submitted_at, begun)
    cached = span.num_cached / span.num_prompt if span.num_prompt else 0.0
    yield scale.bar("cached", begun, begun + (prefilled - begun) * cached)
    yield scale.bar("prefill", begun + (prefilled - begun) * cached, prefilled)
    if isinstance(span.ended, Finished):
        kind = "scored" if span.request.score is not None else "decode"
        yield scale.bar(f"{kind} finished", prefilled, end)
    for at, _, count in span.tokens:
        yield scale.mark("token several" if count > 1 else "token", at)
    for at, _, _ in span.forced:
        yield scale.mark("forced", at)
    for at, _ in span.preempted:
        yield scale.mark("preempted", at)


def _data(span: Span, names: dict[tuple[str, int], str], trace: RunTrace) -> dict[str, Any]:
    """What the page says of a request; times in seconds since the run began."""
    ended = span.ended
    state = "replayed" if span.is_replayed else "finished" if isinstance(ended, Finished) else "failed"
    if ended is None:
        state = "running"
    facts = [_name(span, names), f"prompt {span.num_prompt} tokens = {span.num_cached} cached + {span.num_computed}"]
    facts.append(f"{span.num_generated} generated, {span.num_forced} forced")
    if span.preempted:
        facts.append(f"preempted {len(span.preempted)} times")
    if isinstance(ended, Failed):
        facts.append(f"failed: {ended.error.message}")
    times = {"submitted": span.submitted_at, "queued": span.queued_at, "prefilled": span.prefilled_at}
    times["ended"] = span.ended_at
    return {
        "id": span.request.id,
        "state": state,
        "prompt_tokens": span.num_prompt,
        "cached_tokens": span.num_cached,
        "generated_tokens": span.num_generated,
        "forced_tokens": span.num_forced,
        "preemptions": len(span.preempted),
        "times": {name: round(at - trace.started_at, 6) for name, at in times.items() if at},
        "facts": "; ".join(facts),
    }


def _counted(trace: RunTrace) -> dict[str, int]:
    return {name: getattr(trace.counted, name) for name in trace.counted.__dataclass_fields__}
