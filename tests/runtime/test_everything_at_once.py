"""All that requests can ask for and all that can happen to them, in one engine of random options: each as if alone.

The model is the stand-in, whose logits are a function of the tokens in the KV slots alone, so "as if" is bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.standin import StandIn
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.constraint import Constraint
from dslc.core.errors import RequestError
from dslc.core.events import Event, Failed, Finished, Tokens
from dslc.core.request import GenRequest, Hints, LogprobWish, ScoreTrie, Segment
from dslc.core.sampling import SamplingParams
from dslc.core.text.load import load_tokenizer
from dslc.runtime.engine import Engine
from dslc.runtime.memory.eviction import EVICTION_POLICIES
from dslc.runtime.sampling.processors import register_logit_processor, unregister_logit_processor
from dslc.runtime.scheduling.policies import SCHEDULE_POLICIES

torch.set_num_threads(1)

REGEXES = [
    r"[a-z]{3,8}", r"(yes|no|maybe)", r"-?\d+(\.\d+)?", r"\d{4}-\d{2}-\d{2}", r"(ab|cd)*e",
    r'\{"name": "[a-z]{1,6}", "age": \d{1,3}\}', r"Answer: (the quick brown fox|the lazy dog)[.!]",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(tiny_checkpoint("llama"))


@pytest.fixture(autouse=True)
def processor() -> Iterator[None]:
    def lower(logits: torch.Tensor, rows: Any) -> None:
        for row, found in zip(logits, rows, strict=True):
            every = found.params["every"]
            row[(len(found.output_ids) + len(found.prompt_ids)) % every :: every] -= 3.0

    register_logit_processor("lower", lower)
    yield
    unregister_logit_processor("lower")


def make_engine(tokenizer: Any, *, overlap: bool = False, num_tokens: int = 512, **options: Any) -> Engine:
    given = {"max_running_requests": 16, "random_seed": 1, "enable_custom_logit_processor": True, **options}
    config = EngineConfig.of(**given)
    model = StandIn(
        vocab_size=tokenizer.vocab_size, num_rows=config.max_running_requests, page_size=config.page_size,
        num_tokens=num_tokens, context_length=200,
    )  # fmt: skip
    return Engine.of_parts(config, model, tokenizer, overlap=overlap, check_when_idle=True)


def random_options(rng: random.Random) -> dict[str, Any]:
    page = rng.choice([1, 1, 4, 16])
    options: dict[str, Any] = {
        "page_size": page,
        "num_tokens": -(-rng.choice([208, 208, 240, 400, 2048]) // page) * page,
        "overlap": rng.random() < 0.5,
        "chunked_prefill_size": rng.choice([-1, 1, 3, 8, 64, 8192]),
        "max_prefill_tokens": rng.choice([20, 100, 16384]),
        "max_running_requests": rng.choice([1, 2, 5, 16]),
        "disable_radix_cache": rng.random() < 0.15,
        "enable_mixed_chunk": rng.random() < 0.8,
        "schedule_policy": rng.choice(list(SCHEDULE_POLICIES)),
        "schedule_conservativeness": rng.choice([0.01, 0.3, 1.0, 2.0]),
        "radix_eviction_policy": rng.choice(list(EVICTION_POLICIES)),
        "stream_interval": rng.choice([1, 1, 4]),
        "enable_priority_scheduling": rng.random() < 0.3,
    }
    return options


def random_sampling(rng: random.Random, vocab: int, is_bound: bool) -> SamplingParams:
    most = rng.choice([0, 1, 2, 30, rng.randrange(1, 40)])
    options: dict[str, Any] = {"min_new_tokens": min(most, rng.choice([0, 0, 0, 3]))}
    if is_bound:
        options |= {"jump_forward": rng.choice([None, True, False, "step"]), "finish_valid": rng.random() < 0.3}
    elif rng.random() < 0.3:
        options |= rng.choice(
            [{"stop": ("e", "th")}, {"stop_regex": (r"[0-9]{2}",)}, {"no_stop_trim": True, "stop": "a"}]
        )
    if rng.random() < 0.2:
        options["stop_token_ids"] = tuple(rng.sample(range(vocab), 3))
    if rng.random() < 0.15:
        options["logit_bias"] = {rng.randrange(vocab): rng.choice([-100.0, 5.0, 100.0]) for _ in range(3)}
    return SamplingParams(
        max_new_tokens=most,
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=rng.choice([-1, 5]),
        top_p=rng.choice([1.0, 0.8]),
        min_p=rng.choice([0.0, 0.05]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        n=rng.choice([1, 1, 1, 3]),
        seed=rng.randrange(2**40),
        ignore_eos=rng.random() < 0.1,
        custom_params={"every": rng.randrange(2, 5)} if rng.random() < 0.12 else "",  # type: ignore[arg-type]
        **options,
    )


def random_requests(rng: random.Random, vocab: int) -> list[GenRequest]:
    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randrange(low, high))]

    stems = [ids(1, 70) for _ in range(3)]
    requests = []
    for number in range(rng.randrange(4, 16)):
        stem = rng.choice(stems)
        prompt = stem + ids(0, 30) if rng.random() < 0.6 else stem[: rng.randrange(1, len(stem) + 1)]
        segments: tuple[Segment, ...] = (Segment(ids=tuple(prompt)),)
        if rng.random() < 0.3:
            segments += (Segment(text=rng.choice(["Hello wor", "x", "Answer:", " the"])),)
        options: dict[str, Any] = {"cache_salt": rng.choice(["", "", "s"]), "priority": rng.randrange(3)}
        if rng.random() < 0.35:
            given = tuple(rng.sample(range(vocab), rng.choice([0, 2])))
            options["logprobs"] = LogprobWish(rng.choice([-1, -1, 0, 1, 5, 1000]), rng.choice([0, 1, 3]), given)
        if rng.random() < 0.12:
            base = ids(1, 6)
            options["score"] = ScoreTrie(tuple(tuple(base[: rng.randrange(6)] + ids(1, 5)) for _ in range(3)))
            options["sampling"] = SamplingParams(seed=1)
        else:
            is_bound = rng.random() < 0.35
            options["constraint"] = Constraint("regex", rng.choice(REGEXES)) if is_bound else None
            sampling = options["sampling"] = random_sampling(rng, vocab, is_bound)
            options["logit_processor"] = "lower" if sampling.custom_params else None
            options["stream"] = rng.random() < 0.3
            options["hints"] = rng.choice([None, Hints(expected_len=5, next_use=rng.choice([-1, 0, 3, 10**6]))])
            options["routing_key"] = rng.choice(["", "a", "b"])
        requests.append(GenRequest(id=f"r{number}", segments=segments, **options))
    return requests


def told(event: Event) -> Any:
    """What a last event says, times and cache hits left out."""
    if isinstance(event, Failed):
        return event.error
    assert isinstance(event, Finished)
    return event.outputs, event.num_prompt_tokens, event.seed, event.prompt_logprobs, event.scores


def alone(tokenizer: Any, request: GenRequest) -> Any:
    last: list[Event] = []
    with make_engine(tokenizer) as engine:
        engine.submit([request], lambda event: last.append(event) if isinstance(event, (Finished, Failed)) else None)
        assert engine.wait(lambda: bool(last), timeout=20)
    return told(last[0])


def disturb(rng: random.Random, engine: Engine, requests: list[GenRequest], pins: list[Any]) -> str:
    """Something from outside, now and then; the id of a request that was aborted."""
    what = rng.random()
    if what < 0.01:
        engine.abort([request_id := rng.choice(requests).id])
        return request_id
    if what < 0.04 and len(pins) < 3:
        request = rng.choice(requests)
        try:
            pins.append(engine.pin(request.segments[0].ids, request.cache_salt))
        except RequestError as error:
            assert "more pinned tokens" in str(error)
    elif what < 0.09 and pins:
        engine.unpin(pins.pop(rng.randrange(len(pins))))
    elif what < 0.10:
        engine.flush_cache()
    elif what < 0.12:
        assert engine.get_server_info()["num_running_reqs"] <= engine.config.max_running_requests
    return ""


def play(tokenizer: Any, seed: int) -> None:
    rng = random.Random(seed)
    engine = make_engine(tokenizer, **random_options(rng))
    requests = random_requests(rng, tokenizer.vocab_size)
    if rng.random() < 0.25:  # forwards of several requests fail now and then, and are taken apart
        engine.runner.fail = lambda fb: len(fb.req_rows) > 1 and rng.random() < 0.1  # type: ignore[attr-defined]
    if rng.random() < 0.15:
        engine.scheduler.aging.bound_tokens = rng.choice([1, 50, 300])
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    todo, pins, aborted = list(requests), [], set()

    def is_over(name: str) -> bool:
        return bool(events[name]) and isinstance(events[name][-1], (Finished, Failed))

    for step in range(20_000):
        if todo and rng.random() < 0.3:
            batch = [todo.pop(0) for _ in range(rng.randrange(1, len(todo) + 1))]
            engine.submit(batch, lambda event: events[event.request_id].append(event))
        elif not todo:
            aborted.add(disturb(rng, engine, requests, pins))
            if all(map(is_over, events)):
                break
        engine.step()
        if step % 8 == 0:
            engine.check_integrity()
        if step % 400 == 399:  # a request that needs more than pins leave would wait for ever
            while pins:
                engine.unpin(pins.pop())
    while pins:
        engine.unpin(pins.pop())
    while engine.step():
        pass
    engine.check_integrity()
    counters, memory = engine.counters(), engine.scheduler.memory
    assert counters.prompt_tokens == counters.cached_tokens + counters.prefilled_tokens
    engine.flush_cache()
    assert memory.allocator.num_free_pages == memory.allocator.num_pages and memory.cache.pinned_tokens == 0
    for request in requests:
        check(tokenizer, request, events[request.id], request.id in aborted)
    engine.close()


def check(tokenizer: Any, request: GenRequest, events: list[Event], is_aborted: bool) -> None:
    last = events[-1]
    assert [isinstance(event, (Finished, Failed)) for event in events].index(True) == len(events) - 1
    if isinstance(last, Failed) and (is_aborted or "tokens are pinned" in last.error.message):
        return
    assert told(last) == alone(tokenizer, request), request
    if not request.stream or isinstance(last, Failed):
        return
    for output in last.outputs:  # type: ignore[attr-defined]
        pieces = [event for event in events if isinstance(event, Tokens) and event.index == output.index]
        assert "".join(piece.text for piece in pieces) == output.text
        assert tuple(i for piece in pieces for i in piece.token_ids) == output.token_ids
        assert tuple(i for piece in pieces for i in piece.logprobs) == output.logprobs


@pytest.mark.parametrize("first", [0, 8, 16])
def test_each_request_is_served_as_if_it_were_alone(tokenizer: Any, first: int) -> None:
    for seed in range(first, first + 8):
        play(tokenizer, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 500, 50))
def test_each_of_many_is_served_as_if_it_were_alone(tokenizer: Any, first: int) -> None:
    for seed in range(first, first + 50):
        play(tokenizer, seed)
