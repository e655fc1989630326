"""What the compiler is measured against: backends that leave out, one by one, what the system adds.

`in_program_order` has the interpreter await each generation before the next op. `SeparateChoices` scores a `select` as
the field does: the prompt once, then each choice as a request of its own that computes prompt log-probs over prompt +
choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dslc.compiler.ir import Gen, Select
from dslc.core.events import Failed, Finished
from dslc.core.request import LogprobWish, Segment
from dslc.core.sampling import SamplingParams
from dslc.lang.executor import Executor


@contextlib.contextmanager
def in_program_order() -> Iterator[None]:
    """Interpreted programs await every generation and choice before they take their next op, branches included."""
    append_gen, emit = Executor.append_gen, Executor.emit

    def awaiting_gen(self: Any, number: int, expr: Any) -> None:
        append_gen(self, number, expr)
        self.sync(number, expr.where)

    def awaiting_emit(self: Any, op: Any, *rest: Any) -> None:
        emit(self, op, *rest)
        if isinstance(op, (Gen, Select)):
            self.sync(op.stream, op.where)

    Executor.append_gen, Executor.emit = awaiting_gen, awaiting_emit
    try:
        yield
    finally:
        Executor.append_gen, Executor.emit = append_gen, emit


NOTHING = SamplingParams(max_new_tokens=0, temperature=0.0)


@dataclass
class _Scoring:
    request: Any
    sink: Any
    num_prompt: int
    scores: list[Any]
    left: int = 0
    started: float = 0.0


class SeparateChoices:
    """A backend around an engine: everything as it is, but for scoring requests."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._next: list[_Scoring] = []  # the prompt is computed: the choices are due

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, requests: Any, sink: Any) -> None:
        for request in requests:
            if request.score is None:
                self.inner.submit([request], sink)
            else:
                self._prefill(request, sink)

    def _prefill(self, request: Any, sink: Any) -> None:
        num_prompt = sum(len(segment.ids) for segment in request.segments)
        work = _Scoring(request, sink, num_prompt, [None] * len(request.score.sequences))

        def hear(event: Any) -> None:
            if isinstance(event, Failed):
                sink(replace(event, request_id=request.id))
            elif isinstance(event, Finished):
                work.started = event.queued_at
                self._next.append(work)

        first = replace(request, id=f"{request.id}-prompt", score=None, sampling=NOTHING)
        self.inner.submit([first], hear)

    def _score(self, work: _Scoring) -> None:
        work.left = len(work.scores)
        for number, ids in enumerate(work.request.score.sequences):
            self.inner.submit(
                [
                    replace(
                        work.request,
                        id=f"{work.request.id}-choice-{number}",
                        segments=(*work.request.segments, Segment(ids=ids)),
                        score=None,
                        sampling=NOTHING,
                        logprobs=LogprobWish(prompt_start=work.num_prompt),
                    )
                ],
                self._hearer(work, number),
            )

    def _hearer(self, work: _Scoring, number: int) -> Any:
        def hear(event: Any) -> None:
            if isinstance(event, Failed):
                work.sink(replace(event, request_id=work.request.id))
            elif isinstance(event, Finished):
                work.scores[number] = tuple(entry.logprob for entry in event.prompt_logprobs)
                work.left -= 1
                if not work.left:
                    done = replace(
                        event,
                        request_id=work.request.id,
                        outputs=(),
                        scores=tuple(work.scores),
                        num_prompt_tokens=work.num_prompt,
                        queued_at=work.started,
                        prompt_logprobs=(),
                    )
                    work.sink(done)

        return hear

    def wait(self, ready: Any, timeout: float | None = None) -> bool:
        while not ready():
            due, self._next = self._next, []
            for work in due:
                self._score(work)
            if not self.inner.wait(lambda: ready() or bool(self._next), timeout):
                return False
        return True
