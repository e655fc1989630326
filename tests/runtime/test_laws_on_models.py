"""The laws over random mixes of requests: windows and soft caps, mixtures of experts, a cache of latents among them.

Each mix is served in two waves: prompts that share beginnings, with n choices and all kinds of sampling; then forks,
which go on from what the first wave computed and generated. Deterministic mode must give what each request gives alone,
uncached: the same ids and the same bits of log-probs. Fast mode must stay within TAU of transformers' logits, teacher
forced, and greedy ids may part from the likeliest only where that leads by less than 2 TAU.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.tiny_models import reference_model, tiny_checkpoint

from dslc.runtime.engine import Engine
from dslc.runtime.native_step import library

torch.set_num_threads(1)
TAU = 1e-4
NATIVE = ["llama", "mistral", "qwen3"]  # what the C++ forward knows
IN_TORCH = ["gemma2", "qwen3_moe", "gpt_oss", "deepseek_v3"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"disable_radix_cache": True},
    {"chunked_prefill_size": 9},
    {"page_size": 16, "schedule_policy": "dfs-weight"},
    {"max_running_requests": 3, "schedule_policy": "hrrn"},
    {"max_total_tokens": 200, "schedule_conservativeness": 0.01},
    {"chunked_prefill_size": 21, "enable_mixed_chunk": False, "page_size": 4},
]
WITH_LOGPROBS: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 0}


def make_engine(family: str, way: str, **options: Any) -> Engine:
    """`way` is the arithmetic: "native" (C++), or "torch"."""
    given = {"max_running_requests": 16, "max_total_tokens": 4096, "random_seed": 7, **options}
    if way == "torch":
        given["attention_backend"] = "torch_deterministic" if options.get("deterministic") else "torch_native"
    engine = Engine(model_path=str(tiny_checkpoint(family)), device="cpu", **given)
    if way == "native" and engine.runner.native is None:
        engine.close()
        pytest.skip(f"the C++ forward cannot be had here: {library()}")
    engine.check_when_idle = True
    return engine


def first_wave(rng: random.Random) -> tuple[list[list[int]], list[dict[str, Any]]]:
    stems = [[rng.randrange(4, 512) for _ in range(rng.randrange(1, 60))] for _ in range(2)]
    prompts, params = [], []
    for number in range(6):
        stem = rng.choice(stems)
        own = [rng.randrange(4, 512) for _ in range(rng.randrange(1, 20))]
        prompts.append(stem[: rng.randrange(len(stem) + 1)] + own)
        params.append(
            {
                "max_new_tokens": rng.randrange(1, 16),
                "temperature": rng.choice([0.0, 0.0, 0.9]),
                "top_p": rng.choice([1.0, 0.9]),
                "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
                "n": rng.choice([1, 1, 3]),
                "ignore_eos": True,
                "seed": number,
            }
        )
    return prompts, params


def second_wave(rng: random.Random, prompts: list[list[int]], results: list[Any]) -> list[list[int]]:
    """Two forks of each first choice: its prompt and output, and then something else."""
    forks = []
    for prompt, choices in zip(prompts, results, strict=True):
        whole = prompt + choices[0][0]
        forks += [[*whole, rng.randrange(4, 512)], [*whole[: rng.randrange(1, len(whole) + 1)], 9, 8]]
    return forks


def served(engine: Engine, prompts: list[list[int]], params: Any) -> list[list[tuple[list[int], Any, Any]]]:
    """For each prompt, for each choice: (ids, log-probs of the prompt, of the output)."""
    counts = [p.get("n", 1) for p in params] if isinstance(params, list) else [1] * len(prompts)
    results: Any = engine.generate(input_ids=prompts, sampling_params=params, **WITH_LOGPROBS)
    flat = [
        (r["output_ids"], r["meta_info"]["input_token_logprobs"], r["meta_info"]["output_token_logprobs"])
        for r in results
    ]
    grouped = []
    for count in counts:
        grouped.append(flat[:count])
        del flat[:count]
    return grouped


GREEDY = {"max_new_tokens": 5, "temperature": 0.0, "ignore_eos": True}


@pytest.mark.parametrize(
    "family, seed, way",
    [(family, *case) for family in NATIVE for case in ((0, "torch"), (1, "torch"), (1, "native"), (2, "native"))]
    + [(family, 0, "torch") for family in IN_TORCH],
)
def test_deterministic_mode_gives_every_request_what_it_gives_alone(family: str, seed: int, way: str) -> None:
    rng = random.Random(seed)
    prompts, params = first_wave(rng)
    with make_engine(family, way, deterministic=True, disable_radix_cache=True) as engine:
        alone = [served(engine, [prompt], [p])[0] for prompt, p in zip(prompts, params, strict=True)]
        forks = second_wave(rng, prompts, alone)
        forks_alone = [served(engine, [fork], GREEDY)[0] for fork in forks]
    for options in rng.sample(SETTINGS, 4):
        with make_engine(family, way, deterministic=True, **options) as engine:
            assert served(engine, prompts, params) == alone, options
            assert served(engine, forks, GREEDY) == forks_alone, options
            if options.get("max_total_tokens") == 200:
                assert engine.counters().evicted_tokens > 0


@pytest.mark.parametrize(
    "family, way",
    [(family, way) for family in NATIVE for way in ("torch", "native")] + [(family, "torch") for family in IN_TORCH],
)
def test_fast_mode_stays_within_tau_of_transformers(family: str, way: str) -> None:
    model = reference_model(tiny_checkpoint(family))
    num_ids = num_cut = 0
    worst = 0.0
    for seed, options in enumerate(SETTINGS):
        rng = random.Random(100 + seed)
        prompts, params = first_wave(rng)
        with make_engine(family, way, **options) as engine:
            results = served(engine, prompts, params)
            forks = second_wave(rng, prompts, results)
            fork_results = served(engine, forks, GREEDY)
        work = [
            (p, q["temperature"] == 0 and q["repetition_penalty"] == 1, r)
            for p, q, r in zip(prompts, params, results, strict=True)
        ]
        work += [(fork, True, result) for fork, result in zip(forks, fork_results, strict=True)]
        for prompt, is_greedy, choices in work:
            for ids, of_prompt, of_output in choices:
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt + ids])).logits[0].float()
                reference = torch.log_softmax(logits, dim=-1)
                for position, (value, token, _) in enumerate([*of_prompt, *of_output]):
                    if value is not None:
                        worst = max(worst, abs(value - float(reference[position - 1, token])))
                if is_greedy:
                    behind = [
                        float(logits[len(prompt) + i - 1].max() - logits[len(prompt) + i - 1, token])
                        for i, token in enumerate(ids)
                    ]
                    parted = next((i for i, gap in enumerate(behind) if gap > 0), len(ids))
                    assert parted == len(ids) or behind[parted] < 2 * TAU
                    num_ids, num_cut = num_ids + len(ids), num_cut + len(ids) - parted
    print(f"{family}: log-probs within {worst:.1e} of transformers; {num_cut} of {num_ids} greedy ids after a near-tie")
    assert worst < 2 * TAU  # a log-prob moves by at most twice what the logits move by
    assert num_cut <= 0.05 * num_ids and num_ids > 300
