"""Latency of one static batch, prefill and decode apart: `python benchmarks/one_batch.py [--model 5m] [--batch 1 8]`.

SGLang's `bench_one_batch` in role. For each batch size and each pair of input and output lengths, prompts of random
ids that share nothing are computed in one forward, then decoded together, greedily. Printed: milliseconds of the
prefill and its tokens a second, the median decode step and its tokens a second, what of a step is not the model's
(scheduling, sampling, events), and the whole. `--model` is a model folder, or 5m or 100m: random weights in that shape.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import transformers
from random_checkpoint import SHAPES, model_of

from dslc.core.config import EngineConfig
from dslc.core.events import Event, Failed
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.model_runner import ModelRunner


class TimedRunner:
    """A model runner that notes how long each forward takes."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, fb: Any) -> torch.Tensor:
        begin = time.perf_counter()
        logits = self._runner.forward(fb)
        self._runner.platform.synchronize()
        self.seconds += time.perf_counter() - begin
        return logits


def run_batch(engine: Engine, batch: int, input_len: int, output_len: int, seed: int) -> dict[str, float]:
    """One batch from an empty cache: seconds by phase."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, engine.runner.vocab_size, (batch, input_len), generator=rng).tolist()
    params = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True)

    def sink(event: Event) -> None:
        if isinstance(event, Failed):
            failed.append(event)

    failed: list[Failed] = []
    engine.flush_cache()
    requests = [
        GenRequest(id=f"{seed}-{n}", segments=(Segment(ids=tuple(prompt)),), sampling=params)
        for n, prompt in enumerate(ids)
    ]
    engine.submit(requests, sink)
    steps, forwards = [], []
    while True:
        engine.runner.seconds = 0.0
        begin = time.perf_counter()
        more = engine.step()
        steps.append(time.perf_counter() - begin)
        forwards.append(engine.runner.seconds)
        if not more:
            break
    if failed:
        raise failed[0].error.exception()
    decodes = steps[1:]
    return {
        "prefill": steps[0],
        "decode": statistics.median(decodes) if decodes else 0.0,
        "host": statistics.median([s - f for s, f in zip(decodes, forwards[1:], strict=True)]) if decodes else 0.0,
        "total": sum(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="5m", help=f"a model folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--output-len", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=3, help="each batch so often, the best round counts")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    most = max(args.batch) * (max(args.input_len) + max(args.output_len))
    config = EngineConfig.of(
        model_path=model_of(args.model), dtype=args.dtype, device=args.device, deterministic=args.deterministic,
        attention_backend=args.attention_backend, max_running_requests=max(args.batch), max_total_tokens=most,
        max_prefill_tokens=most, chunked_prefill_size=-1, disable_overlap_schedule=True, schedule_conservativeness=2.0,
    )  # fmt: skip
    runner = TimedRunner(ModelRunner(config))
    with Engine.of_parts(config, runner) as engine:
        print(
            f"{args.model}, {runner.dtype}, {runner.device}, {args.threads} threads, torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )
        print("batch   in  out   prefill ms      tok/s   decode ms      tok/s   host ms   total ms   all tok/s")
        for batch in args.batch:
            for input_len in args.input_len:
                for output_len in args.output_len:
                    rounds = [run_batch(engine, batch, input_len, output_len, seed) for seed in range(args.rounds + 1)]
                    best = {name: min(found[name] for found in rounds[1:]) for name in rounds[0]}
                    tokens = batch * (input_len + output_len)
                    print(
                        f"{batch:5} {input_len:4} {output_len:4} {1e3 * best['prefill']:12.2f} "
                        f"{batch * input_len / best['prefill']:10,.0f} {1e3 * best['decode']:11.3f} "
                        f"{batch / best['decode'] if best['decode'] else 0:10,.0f} {1e3 * best['host']:9.3f} "
                        f"{1e3 * best['total']:10.1f} {tokens / best['total']:11,.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
