"""The laws of the engine on real models, exactly: deterministic mode gives equal ids and equal bits of log-probs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_checkpoint

from dslc.core.events import Event, Finished
from dslc.core.request import GenRequest, ScoreTrie, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

torch.set_num_threads(1)

VARIANTS: dict[str, dict[str, Any]] = {
    "cache off": {"disable_radix_cache": True},
    "chunk 1": {"chunked_prefill_size": 1},
    "chunk 7": {"chunked_prefill_size": 7},
    "pages of 16": {"page_size": 16},
    "two at a time": {"max_running_requests": 2},
    "a pool that must evict and retract": {"max_total_tokens": 140, "schedule_conservativeness": 0.01},
    "no mixed chunks": {"chunked_prefill_size": 16, "enable_mixed_chunk": False},
}


def make_engine(family: str, **options: Any) -> Engine:
    given = {"max_running_requests": 16, "max_total_tokens": 4096, "random_seed": 7, "deterministic": True, **options}
    engine = Engine(model_path=str(tiny_checkpoint(family)), device="cpu", **given)
    engine.check_when_idle = True
    return engine


def random_requests(seed: int, num: int = 12) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts that share beginnings, with all kinds of sampling."""
    rng = random.Random(seed)
    stems = [[rng.randrange(4, 512) for _ in range(rng.randrange(1, 70))] for _ in range(3)]
    prompts, params = [], []
    for number in range(num):
        stem = rng.choice(stems)
        prompts.append(
            stem[: rng.randrange(1, len(stem) + 1)] + [rng.randrange(4, 512) for _ in range(rng.randrange(20))]
        )
        params.append(
            {
                "max_new_tokens": rng.choice([1, 8, 30]),
                "temperature": rng.choice([0.0, 0.8, 1.2]),
                "top_p": rng.choice([1.0, 0.9]),
                "top_k": rng.choice([-1, 40]),
                "frequency_penalty": rng.choice([0.0, 0.7]),
                "repetition_penalty": rng.choice([1.0, 1.2]),
                "ignore_eos": True,
                "seed": number,
            }
        )
    return prompts, params


def outputs(engine: Engine, prompts: Any, params: Any) -> list[Any]:
    results: Any = engine.generate(
        input_ids=prompts, sampling_params=params, return_logprob=True, logprob_start_len=0, top_logprobs_num=2
    )
    kept = ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs")
    return [(result["output_ids"], [result["meta_info"][name] for name in kept]) for result in results]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_alone_batched_cached_chunked_paged_preempted_give_the_same_bits(family: str) -> None:
    prompts, params = random_requests(1)
    with make_engine(family, disable_radix_cache=True) as engine:
        alone = [outputs(engine, [prompt], [p])[0] for prompt, p in zip(prompts, params, strict=True)]
    for name, options in {"plain": {}, **VARIANTS}.items():
        with make_engine(family, **options) as engine:
            assert outputs(engine, prompts, params) == alone, name
            if "retract" in name:
                assert engine.counters().preemptions > 0
            else:
                assert outputs(engine, prompts, params) == alone, f"{name}, again on a warm cache"


def test_the_overlapped_order_gives_the_same_bits() -> None:
    prompts, params = random_requests(2)
    with make_engine("llama") as engine:
        expected = outputs(engine, prompts, params)
    with make_engine("llama") as engine:
        engine.overlap = True
        assert outputs(engine, prompts, params) == expected


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_score_has_the_bits_of_the_sequence_read_as_a_prompt(family: str) -> None:
    rng = random.Random(3)
    prompt = [rng.randrange(4, 512) for _ in range(40)]
    choices = ((5, 6, 7), (5, 6, 9, 10), (8,), (5, 11))
    with make_engine(family) as engine:
        last: list[Event] = []
        request = GenRequest(
            id="s",
            segments=(Segment(ids=tuple(prompt)),),
            sampling=SamplingParams(max_new_tokens=0),
            score=ScoreTrie(choices),
        )
        engine.submit([request], last.append)
        assert engine.wait(lambda: bool(last) and isinstance(last[-1], Finished), timeout=60)
        assert isinstance(last[-1], Finished)
        for choice, scores in zip(choices, last[-1].scores, strict=True):
            read = outputs(engine, [[*prompt, *choice, 4]], {"max_new_tokens": 0})[0]
            expected = tuple(value for value, _, _ in read[1][0][len(prompt) : len(prompt) + len(choice)])
            assert scores == expected
