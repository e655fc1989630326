"""Laws of the engine over random request mixes, on a stand-in model whose logits expose every wrong slot."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.events import Event, Failed, Finished, Preempted, Prefilled, Queued
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.trace import StepTrace


def make_engine(*, overlap: bool = False, standin: dict[str, Any] | None = None, **options: Any) -> Engine:
    given = EngineConfig.of(**{"max_running_requests": 16, "random_seed": 1, **options})
    model = StandIn(num_rows=given.max_running_requests, page_size=given.page_size, **(standin or {}))
    return Engine.of_parts(given, model, overlap=overlap, check_when_idle=True)


def random_requests(rng: random.Random, num: int, max_prompt: int = 60, max_new: int = 24) -> list[GenRequest]:
    """Prompts that share beginnings at random, some of them equal, with all kinds of sampling."""
    stems = [[rng.randrange(64) for _ in range(rng.randrange(1, max_prompt // 2))] for _ in range(3)]
    requests = []
    for i in range(num):
        stem = rng.choice(stems)
        prompt = stem[: rng.randrange(1, len(stem) + 1)]
        if rng.random() < 0.7:
            prompt = stem + [rng.randrange(64) for _ in range(rng.randrange(max_prompt // 2))]
        params = SamplingParams(
            max_new_tokens=rng.choice([0, 1, 2, max_new, rng.randrange(1, max_new)]),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([-1, 5]),
            top_p=rng.choice([1.0, 0.8]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            stop_token_ids=tuple(rng.sample(range(64), rng.choice([0, 3, 8]))),
            n=rng.choice([1, 1, 1, 3]),
            seed=rng.randrange(2**40),
        )
        if params.max_new_tokens > 2 and rng.random() < 0.3:
            params = SamplingParams(
                **{f: getattr(params, f) for f in params.__dataclass_fields__ if f != "min_new_tokens"},
                min_new_tokens=2,
            )
        requests.append(GenRequest(id=f"r{i}", segments=(Segment(ids=tuple(prompt)),), sampling=params))
    return requests


def run(engine: Engine, requests: list[GenRequest]) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    done: set[str] = set()

    def sink(event: Event) -> None:
        assert event.request_id not in done, "an event after the last one"
        events[event.request_id].append(event)
        if isinstance(event, (Finished, Failed)):
            done.add(event.request_id)

    engine.submit(requests, sink)
    assert engine.wait(lambda: len(done) == len(requests), timeout=60)
    return events


def expected(model: StandIn, request: GenRequest) -> list[tuple[list[int], str]]:
    params = request.sampling
    assert params.seed is not None
    return [draw_alone(model, request.segments[0].ids, params, params.seed, choice) for choice in range(params.n)]


def outputs_of(events: list[Event]) -> list[tuple[list[int], str]]:
    last = events[-1]
    assert isinstance(last, Finished), last
    return [(list(output.token_ids), output.finish_reason.type) for output in last.outputs]


VARIANTS = {
    "plain": {},
    "overlap": {"overlap": True},
    "cache off": {"disable_radix_cache": True},
    "chunk 1": {"chunked_prefill_size": 1},
    "chunk 7": {"chunked_prefill_size": 7, "overlap": True},
    "whole": {"chunked_prefill_size": -1, "max_prefill_tokens": 40},
    "not mixed": {"enable_mixed_chunk": False, "chunked_prefill_size": 5},
    "pages of 4": {"page_size": 4, "chunked_prefill_size": 6},
    "pages of 16, overlap": {"page_size": 16, "overlap": True},
    "small pool": {"standin": {"num_tokens": 96}},
    "small pool, overlap, pages of 4": {"standin": {"num_tokens": 112}, "page_size": 4, "overlap": True},
    "small pool, cache off, optimistic": {
        "standin": {"num_tokens": 96}, "disable_radix_cache": True, "schedule_conservativeness": 0.01,
    },
    "few rows": {"max_running_requests": 2},
    "small pool, chunk 3, optimistic, overlap": {
        "standin": {"num_tokens": 90}, "chunked_prefill_size": 3, "schedule_conservativeness": 0.01, "overlap": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_any_mix_gives_what_the_naive_loop_gives(variant: str, seed: int) -> None:
    """batched = single, cached = uncached, chunked = whole, preempted = uninterrupted, forked = copied."""
    engine = make_engine(**VARIANTS[variant])
    requests = random_requests(random.Random(seed), 14)
    with engine:
        events = run(engine, requests)
        for request in requests:
            assert outputs_of(events[request.id]) == expected(engine.runner, request), request  # type: ignore[arg-type]
        # a second time, against a warm cache
        again = run(engine, requests)
        assert {k: outputs_of(v) for k, v in again.items()} == {k: outputs_of(v) for k, v in events.items()}


def test_retraction_happens_and_changes_nothing() -> None:
    """A pool for about 3 of 8 requests."""
    engine = make_engine(standin={"num_tokens": 100}, schedule_conservativeness=0.01)
    params = SamplingParams(max_new_tokens=28, temperature=1.0, seed=5)
    requests = [GenRequest(id=f"r{i}", segments=(Segment(ids=(i, 7, 9)),), sampling=params) for i in range(8)]
    with engine:
        events = run(engine, requests)
        for request in requests:
            assert outputs_of(events[request.id]) == expected(engine.runner, request)  # type: ignore[arg-type]
        counters = engine.counters()
        assert counters.preemptions > 0 and counters.recomputed_tokens > 0
        preempted = [event for all_events in events.values() for event in all_events if isinstance(event, Preempted)]
        assert len(preempted) == counters.preemptions
        finished = [all_events[-1] for all_events in events.values()]
        assert sum(event.num_preemptions for event in finished) == counters.preemptions  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dfs-weight", "lof", "spf", "random", "priority"])
def test_every_policy_serves_every_mix(policy: str) -> None:
    engine = make_engine(schedule_policy=policy, max_running_requests=4, standin={"num_tokens": 160})
    requests = random_requests(random.Random(7), 12)
    with engine:
        events = run(engine, requests)
        for request in requests:
            assert outputs_of(events[request.id]) == expected(engine.runner, request)  # type: ignore[arg-type]


def trie_nodes(prompts: list[tuple[int, ...]]) -> int:
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})


@pytest.mark.parametrize("chunk", [8192, 16, 3])
@pytest.mark.parametrize("policy", ["lpm", "fcfs", "dfs-weight"])
def test_shared_prefixes_are_computed_exactly_once(chunk: int, policy: str) -> None:
    """64 requests at once: the nodes of the trie of their prompts, and 1 for each found wholly cached."""
    rng = random.Random(3)
    shared = tuple(rng.randrange(64) for _ in range(40))
    prompts = []
    for _ in range(60):
        middle = shared + tuple([rng.randrange(3)] * rng.randrange(1, 4))
        prompts.append(middle + tuple(rng.randrange(64) for _ in range(rng.randrange(0, 9))))
    prompts += [prompts[0], prompts[0], shared, shared[:10]]
    engine = make_engine(chunked_prefill_size=chunk, schedule_policy=policy, max_running_requests=64)
    params = SamplingParams(max_new_tokens=1, temperature=0.0)
    requests = [GenRequest(id=f"r{i}", segments=(Segment(ids=p),), sampling=params) for i, p in enumerate(prompts)]
    with engine:
        events = run(engine, requests)
        counters = engine.counters()
    assert counters.rows == counters.prefilled_tokens
    assert counters.prompt_tokens == counters.cached_tokens + counters.prefilled_tokens == sum(map(len, prompts))
    whole = [prompt for i, prompt in enumerate(prompts) if is_found_whole(i, prompt, prompts)]
    assert counters.prefilled_tokens == trie_nodes(prompts) + len(whole)
    for request, prompt in zip(requests, prompts, strict=True):
        prefilled = next(event for event in events[request.id] if isinstance(event, Prefilled))
        assert prefilled.num_cached_tokens < len(prompt) == prefilled.num_prompt_tokens


def is_found_whole(index: int, prompt: tuple[int, ...], prompts: list[tuple[int, ...]]) -> bool:
    """Whether somebody else computes all of the prompt: an equal one before it, or a longer one that begins with it."""
    return any(
        other[: len(prompt)] == prompt and (len(other) > len(prompt) or i < index)
        for i, other in enumerate(prompts)
        if i != index
    )


def test_longest_prefix_first_hits_more_than_first_come_where_the_pool_is_small() -> None:
    """Six families of prompts, shuffled; the pool holds the prefixes of two."""
    hits = {}
    for policy in ("fcfs", "lpm"):
        rng = random.Random(5)
        stems = [tuple(rng.choices(range(64), k=60)) for _ in range(6)]
        prompts = [(*stem, i % 64, i // 64 + 1) for i, stem in enumerate(stems * 10)]
        rng.shuffle(prompts)
        engine = make_engine(max_running_requests=2, schedule_policy=policy, standin={"num_tokens": 200})
        params = SamplingParams(max_new_tokens=4, seed=1)
        with engine:
            run(engine, [GenRequest(id=str(p), segments=(Segment(ids=p),), sampling=params) for p in prompts])
            counters = engine.counters()
        assert counters.evicted_tokens > 0 and counters.prompt_tokens == 60 * 62
        hits[policy] = counters.cached_tokens
    assert hits["lpm"] >= 54 * 60 and hits["lpm"] > 1.5 * hits["fcfs"]


def test_parallel_samples_share_the_prompt() -> None:
    """n = 8: the prompt once, and its last token again for each of the other choices."""
    engine = make_engine()
    params = SamplingParams(max_new_tokens=6, n=8, temperature=1.0, seed=11)
    request = GenRequest(id="r", segments=(Segment(ids=tuple(range(30))),), sampling=params)
    with engine:
        events = run(engine, [request])
        assert outputs_of(events["r"]) == expected(engine.runner, request)  # type: ignore[arg-type]
        counters = engine.counters()
        assert (counters.prompt_tokens, counters.prefilled_tokens, counters.recomputed_tokens) == (30, 30, 7)
        assert len({tuple(ids) for ids, _ in outputs_of(events["r"])}) == 8


def test_chunks_keep_to_the_budget_and_decodes_go_on() -> None:
    engine = make_engine(chunked_prefill_size=8)
    model: Any = engine.runner
    params = SamplingParams(max_new_tokens=40, temperature=0.0)
    with engine:
        requests = [
            GenRequest(id="short", segments=(Segment(ids=(1, 2)),), sampling=params),
            GenRequest(
                id="long",
                segments=(
                    Segment(
                        ids=tuple(range(3, 63)),
                    ),
                ),
                sampling=params,
            ),
        ]
        run(engine, requests)
    assert max(max(lens) for lens in model.forwards) <= 8
    mixed = [lens for lens in model.forwards if len(lens) == 2 and max(lens) > 1]
    assert len(mixed) >= 7 and all(min(lens) == 1 for lens in mixed[1:])


def test_events_tell_the_life_of_a_request_in_order() -> None:
    engine = make_engine()
    with engine:
        events = run(engine, [GenRequest(id="r", segments=(Segment(ids=(1, 2, 3)),))])["r"]
    assert [type(event) for event in events] == [Queued, Prefilled, Finished]
    queued, prefilled, finished = events
    assert isinstance(queued, Queued) and isinstance(prefilled, Prefilled) and isinstance(finished, Finished)
    assert queued.time <= prefilled.time <= finished.first_token_at <= finished.finished_at


def test_overlap_discards_at_most_one_token_per_output() -> None:
    params = SamplingParams(max_new_tokens=50, temperature=1.0, stop_token_ids=tuple(range(12)), seed=3)
    requests = [GenRequest(id=f"r{i}", segments=(Segment(ids=(i, i + 1)),), sampling=params) for i in range(10)]
    counts = []
    for overlap in (False, True):
        engine = make_engine(overlap=overlap)
        with engine:
            events = run(engine, requests)
            counts.append((engine.counters().rows, {k: outputs_of(v) for k, v in events.items()}))
    (rows, normal), (rows_overlapped, overlapped) = counts
    assert normal == overlapped
    stopped = sum(reason == "stop" for outputs in normal.values() for _, reason in outputs)
    assert stopped > 3
    assert rows <= rows_overlapped <= rows + stopped


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_a_request_that_must_wait_is_no_use_of_the_cache(policy: str) -> None:
    """It is looked up again and again until it fits: nothing of that counts as a hit, or makes its prefix younger."""
    engine = make_engine(schedule_policy=policy, schedule_conservativeness=2.0, standin={"num_tokens": 64})
    with engine:
        cache = engine.scheduler.memory.cache
        params = SamplingParams(max_new_tokens=30, temperature=0.0, ignore_eos=True)
        short = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
        run(engine, [GenRequest(id="first", segments=(Segment(ids=(1, 2, 3, 4)),), sampling=short)])
        uses = cache.num_uses
        requests = [
            GenRequest(id="long", segments=(Segment(ids=(9,) * 20),), sampling=params),
            GenRequest(id="waits", segments=(Segment(ids=(1, 2, 3, 4, 5)),), sampling=params),
        ]
        engine.trace = StepTrace()
        run(engine, requests)
    begun = [turn.step for turn in engine.trace.turns if "extend -" not in (turn.decision or "extend -")]
    assert len(begun) == 2 and begun[1] > begun[0] + 1  # one had to wait
    assert cache.num_uses == uses + 2
