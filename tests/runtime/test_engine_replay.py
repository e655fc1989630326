"""Decisions are a function of messages and step numbers; wide logits; priorities; what a watchdog sees."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from support.standin import StandIn, draw_alone
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.events import Event, Failed, Finished, Preempted, Prefilled
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.trace import StepTrace


def make_engine(*, overlap: bool = False, standin: dict[str, Any] | None = None, **options: Any) -> Engine:
    config = EngineConfig.of(**{"max_running_requests": 8, "random_seed": 1, **options})
    model = StandIn(num_rows=config.max_running_requests, page_size=config.page_size, **(standin or {}))
    return Engine.of_parts(config, model, overlap=overlap, check_when_idle=True)


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "random"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_recorded_trace_replays_exactly(policy: str, overlap: bool) -> None:
    """Submissions, aborts and deadlines at random moments, under memory pressure: slot for slot the same again."""
    options: dict[str, Any] = {
        "overlap": overlap, "standin": {"num_tokens": 128}, "schedule_policy": policy, "chunked_prefill_size": 9,
        "schedule_conservativeness": 0.05,
    }  # fmt: skip
    rng = random.Random(4)
    engine = make_engine(**options)
    engine.trace = StepTrace()
    last: dict[str, Event] = {}

    def sink(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            last[event.request_id] = event

    num = 0
    with engine:
        for _ in range(60):
            for _ in range(rng.randrange(3)):
                ids = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 40)))
                params = SamplingParams(max_new_tokens=rng.randrange(1, 40))
                timeout = 0.002 if rng.random() < 0.1 else None
                segments = (Segment(ids=ids),)
                engine.submit([GenRequest(id=f"{num}", segments=segments, sampling=params, timeout_s=timeout)], sink)
                num += 1
            if rng.random() < 0.3:
                engine.abort([str(rng.randrange(num + 1))])
            with engine._drive:
                for _ in range(rng.randrange(4)):
                    engine.step()
        assert engine.wait(lambda: len(last) == num, timeout=30)
        while engine.step():
            pass
        recorded = engine.trace.turns
        assert engine.counters().preemptions > 0
        assert {event.error.kind for event in last.values() if isinstance(event, Failed)} >= {"Aborted"}
    with make_engine(**options) as second:
        replayed = second.replay(recorded).turns
        assert [turn.decision for turn in replayed if turn.decision] == [t.decision for t in recorded if t.decision]
        assert second.counters() == engine.counters()


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    """Models pad their logits; an id without a token has no text to show."""
    path = tiny_checkpoint("llama", vocab_size=576)
    with Engine(model_path=str(path), device="cpu", max_total_tokens=1024, random_seed=3) as engine:
        assert engine.runner.vocab_size == 576 and engine.tokenizer is not None
        params = {"temperature": 5.0, "max_new_tokens": 100, "ignore_eos": True, "n": 4}
        results: Any = engine.generate("The", params, return_logprob=True, top_logprobs_num=5)
        drawn = [i for result in results for i in result["output_ids"]]
        assert len(drawn) == 400 and max(drawn) < engine.tokenizer.vocab_size == 512
        with pytest.raises(ValueError, match="512"):
            engine.generate(input_ids=[1, 570])


def test_an_urgent_request_overtakes_and_preempts() -> None:
    """All rows are taken by patient ones; one gives way, and its output is as if it had not."""
    order: list[str] = []
    events: list[Event] = []

    def sink(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished):
            order.append(event.request_id)

    def request(name: str, priority: int) -> GenRequest:
        params = SamplingParams(max_new_tokens=30, temperature=1.0, seed=2)
        return GenRequest(id=name, segments=(Segment(ids=(5, 6, 7)),), sampling=params, priority=priority)

    for overlap in (False, True):
        engine = make_engine(
            schedule_policy="priority", max_running_requests=2, standin={"num_tokens": 100}, overlap=overlap
        )
        order.clear()
        events.clear()
        with engine:
            engine.submit([request(f"patient{i}", 0) for i in range(3)], sink)
            with engine._drive:
                for _ in range(8):
                    engine.step()
            engine.submit([request("urgent", 5)], sink)
            assert engine.wait(lambda: len(order) == 4, timeout=20)
            assert order[:2] == ["patient0", "urgent"]  # patient1 gave its row to it
            assert sum(isinstance(event, Preempted) for event in events) == 1
            params = request("", 0).sampling
            for event in events:
                if isinstance(event, Finished):
                    ids = list(event.outputs[0].token_ids)
                    assert ids == draw_alone(engine.runner, (5, 6, 7), params, 2)[0]  # type: ignore[arg-type]


def test_equal_priorities_never_preempt() -> None:
    engine = make_engine(schedule_policy="priority", max_running_requests=1)
    events: list[Event] = []
    params = SamplingParams(max_new_tokens=5, temperature=0.0)
    requests = [GenRequest(id=f"{i}", segments=(Segment(ids=(i,)),), sampling=params, priority=3) for i in range(4)]
    with engine:
        engine.submit(requests, events.append)
        assert engine.wait(lambda: sum(isinstance(e, Finished) for e in events) == 4, timeout=20)
    assert not any(isinstance(event, Preempted) for event in events)
    assert [event.request_id for event in events if isinstance(event, Prefilled)] == ["0", "1", "2", "3"]


def test_a_stalled_forward_shows_while_it_lasts() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(fb: Any) -> bool:
        entered.set()
        leave.wait(10)
        return False

    engine = make_engine(standin={"fail": hang})
    done: list[Event] = []
    with engine:
        assert engine.stalled_s == 0.0
        engine.start()
        params = SamplingParams(max_new_tokens=1)
        engine.submit([GenRequest(id="r", segments=(Segment(ids=(1,)),), sampling=params)], done.append)
        assert entered.wait(10)
        before = engine.stalled_s
        assert 0 < before < engine.stalled_s
        leave.set()
        assert engine.wait(lambda: any(isinstance(event, Finished) for event in done), timeout=10)


def bits(result: dict[str, Any]) -> tuple[Any, ...]:
    meta = result["meta_info"]
    return result["output_ids"], meta["output_token_logprobs"], meta["input_token_logprobs"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_deterministic_mode_is_equal_bit_for_bit(family: str) -> None:
    """Alone, in a batch of 16, from a warm cache, chunked, in other pages, retracted: ids and log-probs the same."""
    torch.set_num_threads(1)
    rng = random.Random(11)
    stem = [rng.randrange(4, 512) for _ in range(30)]
    prompts = [stem[: rng.randrange(31)] + [rng.randrange(4, 512) for _ in range(1 + i)] for i in range(16)]
    params = [
        {"temperature": i % 3 / 2, "max_new_tokens": 10, "ignore_eos": True, "seed": i, "top_p": 0.9} for i in range(16)
    ]

    def run(one_by_one: bool = False, rounds: int = 1, **options: Any) -> list[tuple[Any, ...]]:
        given = {"max_total_tokens": 2048, "max_running_requests": 16, **options}
        with Engine(model_path=str(tiny_checkpoint(family)), device="cpu", deterministic=True, **given) as engine:
            for _ in range(rounds):
                if one_by_one:
                    results: Any = [
                        engine.generate(input_ids=p, sampling_params=s, return_logprob=True, logprob_start_len=0)
                        for p, s in zip(prompts, params, strict=True)
                    ]
                else:
                    results = engine.generate(
                        input_ids=prompts, sampling_params=params, return_logprob=True, logprob_start_len=0
                    )
            if "max_total_tokens" in options:
                assert engine.counters().preemptions > 0
        return [bits(result) for result in results]

    wanted = run(one_by_one=True, disable_radix_cache=True)
    assert run() == wanted
    assert run(rounds=2, chunked_prefill_size=7) == wanted
    assert run(page_size=16, rounds=2) == wanted
    assert run(max_total_tokens=140, schedule_conservativeness=0.01) == wanted


@pytest.mark.parametrize("bound", [150, 10**9])
def test_a_cold_request_is_overtaken_within_the_bound(bound: int) -> None:
    """Hot prompts keep coming, two for every one served; longest-prefix-first alone would never reach the cold one."""
    engine = make_engine(schedule_policy="lpm", max_running_requests=1)
    engine.scheduler.aging.bound_tokens = bound
    hot = tuple(range(40))
    params = SamplingParams(max_new_tokens=4, temperature=0.0)
    finished: list[str] = []

    def sink(event: Event) -> None:
        if isinstance(event, Finished):
            finished.append(event.request_id)

    def request(name: str, ids: tuple[int, ...]) -> GenRequest:
        return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params)

    with engine:
        engine.submit([request("warm", hot)], sink)
        assert engine.wait(lambda: bool(finished), timeout=10)
        engine.submit([request("hot0", (*hot, 0)), request("cold", (63, 62, 61))], sink)
        for number in range(1, 60):
            engine.submit([request(f"hot{number}", (*hot, number))], sink)
            served = len(finished)
            assert engine.wait(lambda served=served: len(finished) > served, timeout=10)  # type: ignore[misc]
        # each hot one admitted after it counts for the 1 or 2 tokens it computes and the 4 it may make
        if bound == 150:
            assert finished.index("cold") <= 1 + 1 + -(-bound // 5) + 1
        else:
            assert "cold" not in finished
        assert engine.wait(lambda: len(finished) == 62, timeout=20)
