"""An engine around a model that computes nothing, for benchmarks: everything is real but logits and draws."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from dslc.core.config import EngineConfig
from dslc.core.events import Event
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.core.text.tokenizer import Tokenizer
from dslc.runtime.batch import ForwardBatch
from dslc.runtime.engine import Engine
from dslc.runtime.memory.request_table import ReqToTokenPool

VOCAB = 32_000
DRAWN = 300  # the id that every request draws all the time
NUMBERS = itertools.count()
PHASES = ("schedule", "batch", "resolve")


class NoModel:
    """A runner whose logits are constant."""

    def __init__(self, num_rows: int, num_tokens: int, vocab_size: int = VOCAB) -> None:
        self.device = torch.device("cpu")
        self.vocab_size = vocab_size
        self.context_length = 4096
        self.num_tokens = num_tokens
        self.req_to_token = ReqToTokenPool(num_rows, self.context_length)
        self._logits = torch.zeros(1, vocab_size)

    def forward(self, fb: ForwardBatch) -> torch.Tensor:
        return self._logits.expand(len(fb.logits_rows), self.vocab_size)


def make_engine(
    num_running: int, *, num_tokens: int = 1 << 20, tokenizer: Tokenizer | None = None, **options: Any
) -> Engine:
    config = EngineConfig.of(max_running_requests=num_running, random_seed=0, **options)
    vocab_size = VOCAB if tokenizer is None else tokenizer.vocab_size
    engine = Engine.of_parts(config, NoModel(num_running, num_tokens, vocab_size), tokenizer)
    engine.worker.sampler.sample = lambda logits, *rest: torch.full((logits.shape[0],), DRAWN)  # type: ignore[method-assign]
    return engine


def prompts(num: int, length: int, seed: int = 0, vocab_size: int = VOCAB) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in rng.integers(0, vocab_size, (num, length)).tolist()]


def submit(
    engine: Engine, ids: list[tuple[int, ...]], max_new: int, *, spread: int = 0, stream: bool = False,
    stop: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Outputs of max_new to max_new + spread tokens."""

    def sink(event: Event) -> None:
        pass

    requests = []
    for prompt in ids:
        number = next(NUMBERS)
        length = max_new + 37 * number % (spread + 1)
        params = SamplingParams(max_new_tokens=length, ignore_eos=True, seed=1, stop=stop)
        requests.append(
            GenRequest(
                id=f"r{number}", segments=(Segment(ids=prompt),), sampling=params, stream=stream,
                priority=number % 3, routing_key=f"user{number % 7}",
            )
        )  # fmt: skip
    engine.submit(requests, sink)


class Phases:
    """Seconds of the last step by phase: `schedule` (messages, admission, memory), `batch` (tensors, sampling
    parameters), `resolve` (what the tokens mean, and the events)."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        for phase, owner, names in (
            ("schedule", engine.scheduler, ("receive", "next_batch")),
            ("batch", engine, ("_launch",)),
            ("resolve", engine, ("_resolve", "_dispatch")),
        ):
            for name in names:
                setattr(owner, name, self._timed(phase, getattr(owner, name)))

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args, **options)
            self.seconds[phase] += time.perf_counter() - begin
            return result

        return timed

    def take(self) -> tuple[float, ...]:
        taken = tuple(self.seconds.values())
        self.seconds.update(dict.fromkeys(PHASES, 0.0))
        return taken


def timed_steps(
    engine: Engine, num_steps: int, between: Callable[[], None] = lambda: None, phases: Phases | None = None
) -> list[tuple[float, ...]]:
    """Seconds of each step, then of each of its phases; `between` runs before each, untimed."""
    times = []
    for _ in range(num_steps):
        between()
        begin = time.perf_counter()
        engine.step()
        took = time.perf_counter() - begin
        times.append((took, *(phases.take() if phases else ())))
    return times


def fresh_prompts(length: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Prompts that share nothing, for ever."""
    for number in itertools.count(seed):
        yield from prompts(256, length, number)


def run_all_prefilled(engine: Engine, num_running: int) -> None:
    while len(engine.scheduler.decoding) < num_running:
        engine.step()
