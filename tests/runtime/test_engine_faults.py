"""Bad input, aborts, deadlines, injected faults: one request fails by name, no other changes, no page is lost."""

from __future__ import annotations

import math
import random
import threading
from typing import Any

import pytest
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.errors import (
    Aborted,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EngineClosed,
    EngineError,
    QueueFull,
    RequestError,
)
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, LogprobWish, MediaRef, ScoreTrie, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.memory.allocator import MemoryAccountError


def make_engine(*, overlap: bool = False, standin: dict[str, Any] | None = None, **options: Any) -> Engine:
    config = EngineConfig.of(**{"max_running_requests": 16, "random_seed": 1, **options})
    model = StandIn(num_rows=config.max_running_requests, page_size=config.page_size, **(standin or {}))
    return Engine.of_parts(config, model, overlap=overlap, check_when_idle=True)


def request(name: str, ids: tuple[int, ...] = (1, 2, 3), **options: Any) -> GenRequest:
    sampling = SamplingParams(**{"temperature": 0.0, "max_new_tokens": 8, "seed": 1, **options.pop("params", {})})
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=sampling, **options)


class Collected:
    """Events by request, and whether all of some requests are over."""

    def __init__(self) -> None:
        self.last: dict[str, Event] = {}
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, (Finished, Failed)):
            assert event.request_id not in self.last
            self.last[event.request_id] = event

    def error(self, name: str) -> Exception:
        event = self.last[name]
        assert isinstance(event, Failed), event
        return event.error.exception()

    def ids(self, name: str) -> list[int]:
        event = self.last[name]
        assert isinstance(event, Finished), event
        return list(event.outputs[0].token_ids)


def serve(engine: Engine, requests: list[GenRequest]) -> Collected:
    seen = Collected()
    engine.submit(requests, seen)
    assert engine.wait(lambda: len(seen.last) == len(requests), timeout=30)
    return seen


GOOD = request("good", (9, 8, 7))

BAD = [
    (request("b", params={"max_new_tokens": -1}), RequestError, "max_new_tokens"),
    (request("b", params={"max_new_tokens": 10**12}), RequestError, "max_new_tokens"),
    (request("b", params={"temperature": math.nan}), RequestError, "temperature"),
    (request("b", params={"top_p": math.inf}), RequestError, "top_p"),
    (request("b", params={"n": 5_000_000}), RequestError, "n"),
    (request("b", params={"stop_token_ids": (64,)}), RequestError, "stop_token_ids"),
    (request("b", params={"logit_bias": {64: 1.0}}), RequestError, "logit_bias"),
    (request("b", params={"stop": ("x",) * 10_000}), RequestError, "stop"),
    (request("b", params={"stop": ("x",)}), RequestError, "stop"),  # no tokenizer here
    (request("b", (1, 64)), RequestError, "segments"),
    (request("b", (1, -1)), RequestError, "segments"),
    (request("b", (1, 2.0)), RequestError, "segments"),  # type: ignore[arg-type]
    (request("b", ()), RequestError, "segments"),
    (request("b", logprobs=LogprobWish(top=10**9)), RequestError, "logprobs.top"),
    (request("b", logprobs=LogprobWish(top=-1)), RequestError, "logprobs.top"),
    (request("b", logprobs=LogprobWish(top=True)), RequestError, "logprobs.top"),
    (request("b", logprobs=LogprobWish(token_ids=(65,))), RequestError, "logprobs.token_ids"),
    (request("b", logprobs=LogprobWish(token_ids=(1,) * 5000)), RequestError, "logprobs.token_ids"),
    (request("b", logprobs=LogprobWish(prompt_start=-2)), RequestError, "logprobs.prompt_start"),
    (request("b", score=ScoreTrie(())), RequestError, "score"),
    (request("b", score=ScoreTrie(((1,), ()))), RequestError, "score"),
    (request("b", score=ScoreTrie(((64,),))), RequestError, "score"),
    (request("b", score=ScoreTrie(((1,) * 300,))), ContextOverflow, "score"),
    (request("b", timeout_s=0.0), RequestError, "timeout_s"),
    (request("b", timeout_s=math.nan), RequestError, "timeout_s"),
    (request("b", adapter="nobody"), RequestError, "adapter"),
    (request("b", tuple(range(60)) * 5), ContextOverflow, "segments"),
    (GenRequest(id="b", segments=(Segment(media=MediaRef("image", "0" * 64)),)), RequestError, "segments"),
    (GenRequest(id="b", segments=(Segment(text="no tokenizer"),)), RequestError, "segments"),
]


@pytest.mark.parametrize("bad, kind, field", BAD, ids=[f"{i}-{field}" for i, (_, _, field) in enumerate(BAD)])
def test_bad_input_is_refused_by_the_field_s_name(bad: GenRequest, kind: type[RequestError], field: str) -> None:
    engine = make_engine()
    with engine:
        seen = serve(engine, [bad, GOOD])
        error = seen.error("b")
        assert type(error) is kind and isinstance(error, RequestError) and error.field.startswith(field)
        assert seen.ids("good") == draw_alone(engine.runner, (9, 8, 7), GOOD.sampling, 1)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("max_new_tokens", [128, 1])
def test_prompts_at_the_limit_of_the_context(max_new_tokens: int) -> None:
    """limit - 1 and limit are served, limit + 1 is refused; the last sampled token needs no position."""
    engine = make_engine(standin={"context_length": 32})
    params = {"max_new_tokens": max_new_tokens}
    with engine:
        seen = serve(engine, [request(f"{n}", tuple(range(n)), params=params) for n in (31, 32, 33)])
        assert len(seen.ids("31")) == min(2, max_new_tokens)
        assert len(seen.ids("32")) == 1
        assert isinstance(seen.error("33"), ContextOverflow)


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_request_larger_than_the_pool_is_refused_and_one_that_fills_it_is_served(page_size: int) -> None:
    engine = make_engine(standin={"num_tokens": 40}, page_size=page_size)
    with engine:
        filler = request("fills", tuple(range(40)), params={"max_new_tokens": 5})
        grows = request("grows", tuple(range(10)), params={"max_new_tokens": 500})
        seen = serve(engine, [request("larger", tuple(range(41))), filler, grows])
        assert isinstance(seen.error("larger"), ContextOverflow)
        assert len(seen.ids("fills")) == 1 and len(seen.ids("grows")) == 31


def test_no_new_tokens_computes_the_prompt_for_the_cache() -> None:
    engine = make_engine()
    with engine:
        seen = serve(engine, [request("warm", tuple(range(20)), params={"max_new_tokens": 0})])
        assert seen.ids("warm") == []
        seen = serve(engine, [request("next", tuple(range(21)))])
        last = seen.last["next"]
        assert isinstance(last, Finished) and last.num_cached_tokens == 20


def test_a_duplicate_id_is_refused_while_the_first_runs() -> None:
    engine = make_engine()
    with engine:
        first, second = Collected(), Collected()
        engine.submit([request("same")], first)
        engine.submit([request("same")], second)
        assert engine.wait(lambda: bool(first.last and second.last), timeout=10)
        assert len(first.ids("same")) == 8 and isinstance(second.error("same"), RequestError)


def test_queue_limit_counts_what_waits() -> None:
    engine = make_engine(max_running_requests=1, max_queued_requests=2)
    with engine:
        seen = serve(engine, [request(f"r{i}", (i, 1)) for i in range(5)])
        refused = [name for name, event in seen.last.items() if isinstance(event, Failed)]
        assert refused == ["r2", "r3", "r4"] and isinstance(seen.error("r2"), QueueFull)


def test_deadlines_end_waiting_and_running_requests() -> None:
    clock: list[float] = []

    def slow(fb: Any) -> bool:
        clock.append(0)
        threading.Event().wait(0.01)
        return False

    engine = make_engine(max_running_requests=1, standin={"fail": slow})
    long = {"max_new_tokens": 200}
    with engine:
        seen = serve(
            engine,
            [request("runs", params=long, timeout_s=0.05), request("waits", params=long, timeout_s=0.02), GOOD],
        )
        assert isinstance(seen.error("runs"), DeadlineExceeded) and isinstance(seen.error("waits"), DeadlineExceeded)
        assert len(seen.ids("good")) == 8


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("page_size", [1, 4])
def test_a_thousand_rounds_of_random_aborts_lose_no_page(overlap: bool, page_size: int) -> None:
    """Aborted while queued, in mid-prefill, decoding, retracted, finished, twice: free + cached = all pages."""
    rng = random.Random(page_size + overlap)
    options = {"chunked_prefill_size": 8, "page_size": page_size, "schedule_conservativeness": 0.05}
    engine = make_engine(overlap=overlap, standin={"num_tokens": 192}, max_running_requests=6, **options)
    seen = Collected()
    alive: list[str] = []
    submitted = 0
    with engine:
        for _ in range(250):
            fresh = []
            for _ in range(rng.randrange(3)):
                ids = tuple(rng.randrange(4) for _ in range(rng.randrange(1, 50)))
                params = {"max_new_tokens": rng.randrange(1, 30), "n": rng.choice([1, 1, 2])}
                fresh.append(request(f"r{submitted}", ids, params=params))
                alive.append(f"r{submitted}")
                submitted += 1
            engine.submit(fresh, seen)
            for _ in range(rng.randrange(4)):
                with engine._drive:
                    engine.step()
            if alive and rng.random() < 0.6:
                chosen = rng.sample(alive, min(len(alive), rng.randrange(1, 3)))
                engine.abort([*chosen, *chosen, "unknown"])
            engine.check_integrity()
        assert engine.wait(lambda: len(seen.last) == submitted, timeout=60)
        assert not engine.scheduler.has_work
        while engine.step():
            pass
        memory = engine.scheduler.memory
        assert memory.allocator.num_free_tokens + memory.cache.evictable_tokens == 192
        kinds = {event.error.kind for event in seen.last.values() if isinstance(event, Failed)}
        assert kinds == {"Aborted"}
        assert engine.counters().preemptions > 0


def test_abort_frees_at_once_when_nobody_drives() -> None:
    engine = make_engine()
    seen = Collected()
    with engine:
        engine.submit([request("r", tuple(range(50)), params={"max_new_tokens": 100})], seen)
        with engine._drive:
            for _ in range(5):
                engine.step()
        assert engine.scheduler.memory.num_leases == 1
        engine.abort(["r"])
        assert engine.scheduler.memory.num_leases == 0 and isinstance(seen.error("r"), Aborted)


def test_b_after_a_stopped_or_aborted_with_the_same_prefix_equals_its_cold_run() -> None:
    engine = make_engine()
    prefix = tuple(range(30))
    with engine:
        first = serve(engine, [request("a", prefix, params={"max_new_tokens": 20})])
        longer = (*prefix, *first.ids("a")[:7], 5)
        engine.submit([request("gone", (*longer, 6, 6), params={"max_new_tokens": 50})], first)
        with engine._drive:
            for _ in range(9):
                engine.step()
        engine.abort(["gone"])
        b = request("b", (*longer, 6, 6, 6), params={"max_new_tokens": 12})
        seen = serve(engine, [b])
        last = seen.last["b"]
        assert isinstance(last, Finished) and last.num_cached_tokens >= len(prefix) + 7
        assert seen.ids("b") == draw_alone(engine.runner, (*longer, 6, 6, 6), b.sampling, 1)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("at_decode", [False, True])
def test_a_forward_that_fails_for_one_request_fails_that_request_alone(overlap: bool, at_decode: bool) -> None:
    """The batch is run again one by one; whoever fails alone is the culprit."""
    engine = make_engine(overlap=overlap)
    model: Any = engine.runner
    poison = 63

    def fails(fb: Any) -> bool:
        rows = fb.req_rows.tolist()
        for row, end in zip(rows, fb.seq_lens_cpu, strict=True):
            first = model._tokens[engine.runner.req_to_token.host[row, 0]]
            if fb.prefix_lens_cpu[rows.index(row)] == 0:
                first = fb.input_ids[sum(fb.extend_lens_cpu[: rows.index(row)])]
            if first == poison and (end > 6) == at_decode:
                return True
        return False

    model.fail = fails
    names = {f"r{i}": (i, 5, 6) for i in range(6)}
    with engine:
        seen = serve(engine, [request(k, v) for k, v in names.items()] + [request("bad", (poison, 1, 2))])
        assert isinstance(seen.error("bad"), EngineError) and "injected fault" in str(seen.error("bad"))
        for name, ids in names.items():
            assert seen.ids(name) == draw_alone(model, ids, GOOD.sampling, 1)[0]
        assert len(serve(engine, [GOOD]).ids("good")) == 8


@pytest.mark.parametrize("overlap", [False, True])
def test_forwards_that_fail_at_random_change_no_output(overlap: bool) -> None:
    """A fault that does not come back: everything is run again, nothing is lost."""
    rng = random.Random(1)
    engine = make_engine(
        overlap=overlap,
        chunked_prefill_size=6,
        standin={"fail": lambda fb: len(fb.req_rows) > 1 and rng.random() < 0.3, "num_tokens": 150},
    )
    names = {f"r{i}": tuple(rng.randrange(8) for _ in range(rng.randrange(1, 20))) for i in range(12)}
    params = {"temperature": 1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.2, "max_new_tokens": 15}
    requests = {name: request(name, ids, params=params) for name, ids in names.items()}
    with engine:
        seen = serve(engine, list(requests.values()))
        for name, ids in names.items():
            assert seen.ids(name) == draw_alone(engine.runner, ids, requests[name].sampling, 1)[0]  # type: ignore[arg-type]


def test_a_sampler_that_fails_is_undone_like_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    sample = engine.worker.sampler.sample
    calls = []

    def flaky(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 5):
            raise RuntimeError("injected fault")
        return sample(*args, **kwargs)

    monkeypatch.setattr(engine.worker.sampler, "sample", flaky)
    with engine:
        seen = serve(engine, [request("a", (1, 2)), request("b", (3, 4))])
        for name, ids in (("a", (1, 2)), ("b", (3, 4))):
            assert seen.ids(name) == draw_alone(engine.runner, ids, GOOD.sampling, 1)[0]  # type: ignore[arg-type]


def test_an_exception_over_one_request_s_tokens_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    accept = engine.scheduler.resolver._accept

    def faulty(scheduler: Any, seq: Any, *args: Any) -> None:
        if seq.request.id == "bad" and len(seq.output_ids) == 3:
            raise ValueError("injected fault")
        accept(scheduler, seq, *args)

    monkeypatch.setattr(engine.scheduler.resolver, "_accept", faulty)
    wish = LogprobWish()
    with engine:
        seen = serve(engine, [request("bad", (1, 2), logprobs=wish), request("a", (1, 2), logprobs=wish), GOOD])
        assert "injected fault" in str(seen.error("bad"))
        assert seen.ids("a") == draw_alone(engine.runner, (1, 2), GOOD.sampling, 1)[0]  # type: ignore[arg-type]
        assert len(seen.ids("good")) == 8


def test_a_fault_in_the_scheduler_itself_ends_everything_in_flight_and_leaves_a_working_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    with engine:
        with monkeypatch.context() as patch:
            calls = []

            def broken(decodes: Any, extends: Any) -> Any:
                calls.append(1)
                if len(calls) == 4:
                    raise IndexError("injected fault")
                return lease(decodes, extends)

            lease = engine.scheduler._lease
            patch.setattr(engine.scheduler, "_lease", broken)
            seen = serve(engine, [request("a"), request("b", (4, 5))])
            assert "injected fault" in str(seen.error("a")) and "injected fault" in str(seen.error("b"))
        engine.check_integrity()
        assert serve(engine, [GOOD]).ids("good")


def test_memory_that_does_not_add_up_after_a_fault_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is lost: the check says so, and after a fault in the loop nothing is left that could be wrong."""
    with make_engine(page_size=4) as engine:
        serve(engine, [GOOD])
        handle = engine.pin((9, 8, 7, *serve(engine, [GOOD]).ids("good")))
        assert handle.num_tokens > 0
        engine.scheduler.memory.allocator.alloc(1)
        with pytest.raises(MemoryAccountError, match="of 1024"):
            engine.check_integrity()
        with monkeypatch.context() as patch:
            patch.setattr(engine.scheduler, "_lease", lambda *given: 1 / 0)
            engine.check_when_idle = False
            assert "division by zero" in str(serve(engine, [request("a")]).error("a"))
        engine.check_integrity()
        assert engine.get_server_info()["free_tokens"] == 4096
        with pytest.raises(RequestError, match="not held"):
            engine.unpin(handle)
        assert serve(engine, [GOOD]).ids("good") == draw_alone(engine.runner, (9, 8, 7), GOOD.sampling, 1)[0]  # type: ignore[arg-type]


def test_a_sink_that_raises_costs_its_request_only() -> None:
    engine = make_engine()
    seen = Collected()

    def bad_sink(event: Event) -> None:
        raise KeyError("injected fault")

    with engine:
        engine.submit([request("bad", params={"max_new_tokens": 100})], bad_sink)
        engine.submit([GOOD], seen)
        assert engine.wait(lambda: bool(seen.last), timeout=10)
        assert len(seen.ids("good")) == 8
        while engine.step():
            pass
        assert engine.scheduler.memory.num_leases == 0


def test_closing_fails_what_is_in_flight() -> None:
    engine = make_engine()
    seen = Collected()
    engine.submit([request("a", params={"max_new_tokens": 100}), request("b")], seen)
    with engine._drive:
        engine.step()
    engine.close()
    engine.close()
    assert isinstance(seen.error("a"), EngineClosed) and isinstance(seen.error("b"), EngineClosed)
    with pytest.raises(EngineClosed):
        engine.submit([GOOD], seen)
    engine.scheduler.check_integrity()


def test_pinned_prefixes_survive_and_are_bounded() -> None:
    engine = make_engine(standin={"num_tokens": 100})
    with engine:
        serve(engine, [request("a", tuple(range(30)))])
        handle = engine.pin(tuple(range(30)))
        assert handle.num_tokens == 30
        for i in range(5):
            serve(engine, [request(f"f{i}", (40 + i, *range(50)))])
        last = serve(engine, [request("again", (*range(30), 63))]).last["again"]
        assert isinstance(last, Finished) and last.num_cached_tokens == 30
        serve(engine, [request("more", (50, *range(29)), params={"max_new_tokens": 1})])
        with pytest.raises(RequestError):
            engine.pin((50, *range(29)))
        engine.unpin(handle)
        with pytest.raises(RequestError):
            engine.unpin(handle)


@pytest.mark.parametrize("salts", [("", "x"), ("x", "y"), ("x", "x")])
def test_salts_separate_caches(salts: tuple[str, str]) -> None:
    engine = make_engine()
    with engine:
        results = [
            serve(engine, [request(f"r{i}", tuple(range(20)), cache_salt=salt)]).last[f"r{i}"]
            for i, salt in enumerate(salts)
        ]
    assert results[1].num_cached_tokens == (19 if salts[0] == salts[1] else 0)  # type: ignore[attr-defined]


def test_unknown_options_and_values_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="max_running_requests"):
        EngineConfig.of(max_running_request=3)
    for option in ({"schedule_policy": "best"}, {"radix_eviction_policy": "best"}, {"grammar_backend": "best"}):
        with pytest.raises(ConfigError, match="best"):
            make_engine(**option)
