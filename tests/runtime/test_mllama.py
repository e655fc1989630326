"""Llama 3.2 Vision: rows look across at pictures, however prompts are batched, cached, chunked or forked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_vision import picture, tiny_vision, vision_greedy, vision_logprobs

import dslc
from dslc.core.media import image_ref
from dslc.core.request import GenRequest, LogprobWish, Segment
from dslc.core.sampling import SamplingParams

torch.set_num_threads(1)
NUM = 8
# transformers lets rows before all pictures look at them: what is compared begins with one.
PROMPTS: list[list[Any]] = [
    [picture(0), " What is it?"],
    [picture(1, (64, 20)), "Question: Which animal? Answer:"],
    [picture(2), picture(0, (20, 64)), " differ in"],
    ["The quick brown fox"],
    [picture(3), " and ", picture(4, (70, 70)), picture(3), " and more ", picture(1), "How many?"],
]


@pytest.fixture(scope="module")
def path():
    return tiny_vision("mllama")


def engine_of(path: Any, **options: Any) -> dslc.Engine:
    defaults = {"max_total_tokens": 2048, "max_running_requests": 8, "random_seed": 0}
    engine = dslc.Engine(model_path=str(path), **{**defaults, **options})
    engine.check_when_idle = True
    return engine


def run(engine: dslc.Engine, prompts: list[list[Any]], num: int = NUM, **wishes: Any) -> list[Any]:
    ended: dict[str, Any] = {}
    requests = [
        GenRequest(
            id=str(number),
            segments=tuple(Segment(text=p) if isinstance(p, str) else Segment(media=image_ref(p)) for p in parts),
            sampling=SamplingParams(max_new_tokens=num, temperature=0.0, ignore_eos=True),
            logprobs=LogprobWish(**wishes),
        )
        for number, parts in enumerate(prompts)
    ]

    def sink(event: Any) -> None:
        if hasattr(event, "outputs") or hasattr(event, "error"):
            ended[event.request_id] = event

    engine.submit(requests, sink)
    engine.wait(lambda: len(ended) == len(requests))
    return [ended[request.id] for request in requests]


def ids_of(events: list[Any]) -> list[list[int]]:
    return [list(event.outputs[0].token_ids) for event in events]


def bits_of(events: list[Any]) -> list[Any]:
    return [[(token.token_id, token.logprob) for token in event.outputs[0].logprobs] for event in events]


@pytest.fixture(scope="module")
def wanted(path):
    found = []
    for parts in PROMPTS:
        ids, margin = vision_greedy(path, parts, NUM)
        assert margin > 1e-3, "pick another seed: the reference is undecided"
        found.append(ids)
    return found


@pytest.mark.parametrize("options", [{}, {"chunked_prefill_size": 3}, {"chunked_prefill_size": 7, "page_size": 4}])
def test_batched_cached_and_chunked_prompts_equal_transformers(path, wanted, options):
    with engine_of(path, **options) as engine:
        assert engine.capabilities.media == {"image"}
        assert [ids_of(run(engine, [parts]))[0] for parts in PROMPTS] == wanted
        engine.flush_cache()
        events = run(engine, PROMPTS)
        assert ids_of(events) == wanted and ids_of(run(engine, PROMPTS)) == wanted
        assert engine.counters().encoded_media == 7  # each once, whoever looks at it
        for parts, event in zip(PROMPTS, events, strict=True):
            found = [token.logprob for token in event.outputs[0].logprobs]
            assert found == pytest.approx(vision_logprobs(path, parts, list(event.outputs[0].token_ids)), abs=1e-4)


def test_a_blind_model_would_say_something_else(path, monkeypatch):
    """That the tests here can fail."""
    monkeypatch.setattr("dslc.runtime.media.features.FeatureCache._across", lambda self, batch: iter(()))
    with engine_of(path) as engine:
        events = run(engine, PROMPTS[:1])
    found = [token.logprob for token in events[0].outputs[0].logprobs]
    seeing = vision_logprobs(path, PROMPTS[0], ids_of(events)[0])
    assert max(abs(a - b) for a, b in zip(found, seeing, strict=True)) > 0.05


def test_what_was_dropped_is_encoded_again(path, wanted):
    with engine_of(path) as engine:
        assert engine.worker.features is not None
        engine.worker.features.max_bytes = 1
        assert ids_of(run(engine, PROMPTS)) == wanted
        assert engine.counters().encoded_media == 7  # what runs is kept, beyond the limit
        assert ids_of(run(engine, PROMPTS[:1])) == wanted[:1]
        num = engine.counters().encoded_media
        for _ in range(2):  # each drops the other's picture
            assert ids_of(run(engine, PROMPTS[1:2])) == wanted[1:2]
            assert ids_of(run(engine, PROMPTS[:1])) == wanted[:1]
        assert engine.counters().encoded_media == num + 4


def test_deterministic_engines_give_equal_bits(path):
    found = []
    for options in ({}, {"chunked_prefill_size": 3}, {"disable_radix_cache": True}):
        with engine_of(path, deterministic=True, **options) as engine:
            found.append(bits_of(run(engine, PROMPTS)))
    assert found[0] == found[1] == found[2]


def test_text_before_all_pictures_does_not_see_them(path):
    """So that a prefix keeps its meaning whatever comes after it."""
    text = "The quick brown fox jumps over"
    with engine_of(path) as engine:
        alone = run(engine, [[text]], num=1, prompt_start=0)[0]
        run(engine, [[text, picture(0), " so"]])
        again = run(engine, [[text, picture(0), " so"]])[0]
        assert again.num_cached_tokens == again.num_prompt_tokens - 1
        after = run(engine, [[text]], num=1, prompt_start=0)[0]
        assert [t.logprob for t in after.prompt_logprobs if t is not None] == pytest.approx(
            [t.logprob for t in alone.prompt_logprobs if t is not None], abs=1e-5
        )


def test_branches_and_choices_look_at_the_picture_before_them(path):
    @dslc.function
    def ask(s, first, second):
        s += dslc.image(first)
        s += " Look"
        forks = s.fork(2)
        for number, fork in enumerate(forks):
            if number:
                fork += dslc.image(second)
            fork += " at it:"
            fork += dslc.gen("part", max_tokens=NUM, temperature=0.0, ignore_eos=True)
        forks.join()
        s += dslc.select("it", [" a dog", " a cat", " nothing"])

    first, second = picture(5), picture(6)
    with engine_of(path) as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        for compiled in (True, False):
            state = ask.run(first=first, second=second, backend=engine, compiled=compiled)
            for number, text in enumerate(state["part"]):
                parts = [first, " Look", *([second] if number else []), " at it:"]
                assert text == tokenizer.decode(vision_greedy(path, parts, NUM)[0])
            scores = state.get_meta_info("it")["normalized_prompt_logprobs"]
            for choice, score in zip((" a dog", " a cat", " nothing"), scores, strict=True):
                ids = tokenizer.encode(choice)
                logprobs = vision_logprobs(path, [first, " Look"], ids)
                assert score == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
