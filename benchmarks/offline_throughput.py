"""Throughput of many requests given at once: `python benchmarks/offline_throughput.py [--model 5m] [--num-prompts 64]`.

SGLang's `bench_offline_throughput` in role: no server, no client, `Engine.generate` on a list. Prompts are random ids,
input and output lengths drawn evenly from [range-ratio x length, length] with a seed; with `--shared-prefix` all begin
with the same ids. Printed: requests, input and output tokens a second, prompt tokens from the cache, forwards, and how
long the median request took. `--model` is a model folder, or 5m or 100m: random weights in that shape.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers
from random_checkpoint import SHAPES, model_of

from dslc.core.config import EngineConfig
from dslc.runtime.engine import Engine
from dslc.runtime.model_runner import ModelRunner


def workload(args: argparse.Namespace, vocab_size: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts, and sampling parameters of each."""
    rng = np.random.default_rng(args.seed)

    def lengths(longest: int) -> list[int]:
        least = max(1, int(longest * args.range_ratio))
        return [int(n) for n in rng.integers(least, longest + 1, args.num_prompts)]

    shared = rng.integers(3, vocab_size, args.shared_prefix).tolist()
    prompts = [shared + rng.integers(3, vocab_size, n).tolist() for n in lengths(args.input_len)]
    params = [
        {"max_new_tokens": n, "temperature": args.temperature, "ignore_eos": True, "seed": i}
        for i, n in enumerate(lengths(args.output_len))
    ]
    return prompts, params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="5m", help=f"a model folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--range-ratio", type=float, default=0.5, help="shortest length as a share of the longest")
    parser.add_argument("--shared-prefix", type=int, default=0, help="ids that all prompts begin with")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-running-requests", type=int, default=32)
    parser.add_argument("--schedule-policy", default="lpm")
    parser.add_argument("--disable-radix-cache", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = EngineConfig.of(
        model_path=model_of(args.model), dtype=args.dtype, device=args.device, deterministic=args.deterministic,
        max_running_requests=args.max_running_requests, schedule_policy=args.schedule_policy,
        disable_radix_cache=args.disable_radix_cache, random_seed=args.seed,
    )  # fmt: skip
    runner = ModelRunner(config)
    with Engine.of_parts(config, runner) as engine:
        prompts, params = workload(args, runner.vocab_size)
        engine.generate(input_ids=prompts[0][:8], sampling_params={"max_new_tokens": 4, "ignore_eos": True})  # warm
        engine.flush_cache()
        before = engine.counters()
        begin = time.perf_counter()
        results: Any = engine.generate(input_ids=prompts, sampling_params=params)
        took = time.perf_counter() - begin
        used = engine.counters() - before
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{args.model}, {runner.dtype}, {runner.device}, {args.threads} threads, {versions}")
    for name, value in (
        ("requests", f"{len(results)}"),
        ("seconds", f"{took:.3f}"),
        ("requests/s", f"{len(results) / took:,.1f}"),
        ("input tokens", f"{used.prompt_tokens:,}, of which cached {used.cached_tokens:,}"),
        ("input tokens/s", f"{used.prompt_tokens / took:,.0f}"),
        ("output tokens", f"{used.generated_tokens:,}"),
        ("output tokens/s", f"{used.generated_tokens / took:,.0f}"),
        ("all tokens/s", f"{(used.prompt_tokens + used.generated_tokens) / took:,.0f}"),
        ("forwards", f"{used.forwards:,}, {used.rows / used.forwards:.1f} rows each"),
        ("median request, s", f"{statistics.median(r['meta_info']['e2e_latency'] for r in results):.3f}"),
    ):
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
