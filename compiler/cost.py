"""The cost model: what a run takes on this machine, and which of several plans for it is the cheapest.

    seconds = per_forward * forwards + per_row * rows + per_context * (sum over rows of the tokens each attends to)

`calibrate(backend)` fits the three by a short run; without it the defaults keep their proportions of a small model on a
CPU. What is chosen is how and in which order things are computed, never what: no output depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import RequestError
from ..core.events import Event, Failed, Finished
from ..core.request import GenRequest, Segment
from ..core.sampling import SamplingParams
from .account import Usage, common_ids, evaluate, key_of
from .recording import Recording

if TYPE_CHECKING:
    from ..core.backend import Backend

_Choice = TypeVar("_Choice")
CHARS_PER_TOKEN = 4
READ_S = 5e-7  # to tokenise a character of a prompt and to put it into a trie
CALIBRATION = ((1, 16, 1), (1, 256, 1), (1, 24, 16), (16, 24, 12), (4, 128, 4), (32, 8, 8), (2, 400, 2))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds for each forward, each row put through it, and each token that a row attends to."""

    per_forward_s: float = 1e-3
    per_row_s: float = 5e-5
    per_context_s: float = 2e-8

    def seconds(self, usage: Usage) -> float:
        """What a run with this account takes."""
        return (
            self.per_forward_s * usage.forwards + self.per_row_s * usage.rows + self.per_context_s * usage.context_rows
        )

    def pays_to_read(self, num_chars: int) -> bool:
        """Whether looking at texts of so many characters beforehand can pay: whether computing all their tokens takes
        longer than tokenising and comparing them."""
        return self.per_row_s * num_chars / CHARS_PER_TOKEN > READ_S * num_chars

    def cheapest(self, choices: Sequence[tuple[_Choice, float, float]]) -> _Choice:
        """Of (choice, tokens it computes, seconds to arrange it) the one that takes least; the first of equals."""
        return min(choices, key=lambda item: self.per_row_s * item[1] + item[2])[0]


def fit(samples: Sequence[tuple[Usage, float]]) -> CostModel:
    """The least-squares fit of (account, seconds) pairs, relative errors counting alike; no coefficient is negative.

    Raises ValueError for fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"three samples at least, not {len(samples)}")
    rows = [((u.forwards / s, u.rows / s, u.context_rows / s), 1.0) for u, s in samples if s > 0]
    columns = [0, 1, 2]
    while True:
        found = _solve(rows, columns)
        worst = min(columns, key=lambda column: found[column])
        if found[worst] >= 0 or len(columns) == 1:
            return CostModel(*(max(found.get(column, 0.0), 0.0) for column in range(3)))
        columns.remove(worst)


def _solve(rows: Sequence[tuple[tuple[float, ...], float]], columns: Sequence[int]) -> dict[int, float]:
    """The normal equations of these columns, by elimination with scaled columns."""
    scale = {c: max(abs(x[c]) for x, _ in rows) or 1.0 for c in columns}
    matrix = [
        [sum(x[a] * x[b] for x, _ in rows) / scale[a] / scale[b] for b in columns]
        + [sum(x[a] * y for x, y in rows) / scale[a]]
        for a in columns
    ]
    num = len(columns)
    for i in range(num):
        matrix[i][i] += 1e-12  # columns that do not vary
        for j in range(num):
            if j != i:
                factor = matrix[j][i] / matrix[i][i]
                matrix[j] = [x - factor * y for x, y in zip(matrix[j], matrix[i], strict=True)]
    return {c: matrix[i][num] / matrix[i][i] / scale[c] for i, c in enumerate(columns)}


def calibrate(backend: Backend, clock: Callable[[], float] = time.perf_counter) -> CostModel:
    """A model of this backend, from a run of about a second: a few shapes of prefill and decoding, each timed twice.

    Raises RequestError if the backend has no tokenizer; what it raises for a request that fails.
    """
    tokenizer = backend.tokenizer
    if tokenizer is None:
        raise RequestError("calibration needs a tokenizer", field="backend")
    ids = [i for i, token in enumerate(tokenizer.vocabulary.token_bytes) if token] or [0]
    samples: list[tuple[Usage, float]] = []
    at = 0
    for turn in range(2):
        for num, prompt, output in CALIBRATION:
            recording = Recording(backend)
            prompts = []
            for k in range(num):
                at += 1
                prompts.append(tuple(ids[(at * 7919 + k * 31 + j * (at % 13 + 1)) % len(ids)] for j in range(prompt)))
            started = clock()
            _run(recording, prompts, output, f"calibrate-{turn}-{at}")
            seconds = clock() - started
            if turn:  # the first round warms whatever is made on first use
                samples.append((evaluate(recording.jobs(), recording.limits), seconds))
    return fit(samples)


def _run(backend: Any, prompts: Sequence[tuple[int, ...]], output: int, name: str) -> None:
    ended: list[Event] = []
    sampling = SamplingParams(max_new_tokens=output, temperature=0.0, ignore_eos=True)
    requests = [
        GenRequest(id=f"{name}-{k}", segments=(Segment(ids=ids),), sampling=sampling) for k, ids in enumerate(prompts)
    ]
    backend.submit(requests, lambda event: ended.append(event) if isinstance(event, (Finished, Failed)) else None)
    backend.wait(lambda: len(ended) == len(requests))
    for event in ended:
        if isinstance(event, Failed):
            raise event.error.exception()


def tokens_with(prompts: Sequence[Sequence[int] | str], order: Sequence[int], capacity: float) -> int:
    """About how many tokens these prompts compute, one after the other in this order, if a cache of `capacity` tokens
    drops whole prompts, those that were used longest ago first. A prompt may be a string: a character for a token."""
    kept: list[tuple[bytes, int]] = []  # (prompt, tokens that it adds to those kept)
    held = computed = 0
    for number in order:
        ids = prompts[number]
        key = ids.encode("utf-32-le", "surrogatepass") if isinstance(ids, str) else key_of(ids)
        best, place = 0, -1
        for i, (other, _) in enumerate(kept):
            shared = common_ids(key, other)
            if shared > best:
                best, place = shared, i
        num = len(ids)
        computed += max(num - best, 1 if num else 0)
        if place >= 0:
            kept.append(kept.pop(place))  # what it shares was used just now
        kept.append((key, num - best))
        held += num - best
        while held > capacity and len(kept) > 1:
            held -= kept.pop(0)[1]
    return computed
