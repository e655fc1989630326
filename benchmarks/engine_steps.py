"""What one step of the engine costs the host: `python benchmarks/engine_steps.py [--quick]`. No model is run.

Schedule, batch, launch, resolve and events are real; logits and sampling are constants. Four loads, each at 1, 16,
256 and 1,024 running requests:

- `plain`: requests decode, nothing else happens;
- `streams`: every request streams, without text (what the engine adds for a request that is looked at each token);
- `churn`: as plain, but outputs end after 32 to 96 tokens and others wait: each step finishes and admits about 1/64;
- `shared`: as churn, and all prompts share their first half.

Also: plain steps with a full cache beside them, and the share of throughput that the radix cache costs where nothing
can hit, at 2 ms a step. One thread; medians and 99th percentiles in microseconds.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dslc.core.config import EngineConfig
from dslc.core.events import Event
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.batch import ForwardBatch
from dslc.runtime.engine import Engine
from dslc.runtime.memory.request_table import ReqToTokenPool

VOCAB = 32_000
NUMBERS = itertools.count()


class NoModel:
    """A runner whose logits are constant."""

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        self.device = torch.device("cpu")
        self.vocab_size = VOCAB
        self.context_length = 4096
        self.num_tokens = num_tokens
        self.req_to_token = ReqToTokenPool(num_rows, self.context_length)
        self._logits = torch.zeros(1, VOCAB)

    def forward(self, fb: ForwardBatch) -> torch.Tensor:
        return self._logits.expand(len(fb.logits_rows), VOCAB)


def make_engine(num_running: int, *, num_tokens: int = 1 << 20, **options: Any) -> Engine:
    config = EngineConfig.of(max_running_requests=num_running, random_seed=0, **options)
    engine = Engine.of_parts(config, NoModel(num_running, num_tokens))
    engine.worker.sampler.sample = lambda logits, *rest: torch.full((logits.shape[0],), 7)  # type: ignore[method-assign]
    return engine


def prompts(num: int, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in rng.integers(0, VOCAB, (num, length)).tolist()]


def submit(engine: Engine, ids: list[tuple[int, ...]], max_new: int, *, spread: int = 0, stream: bool = False) -> None:
    """Outputs of max_new to max_new + spread tokens."""

    def sink(event: Event) -> None:
        pass

    requests = []
    for prompt in ids:
        number = next(NUMBERS)
        params = SamplingParams(max_new_tokens=max_new + 37 * number % (spread + 1), ignore_eos=True, seed=1)
        segments = (Segment(ids=prompt),)
        requests.append(GenRequest(id=f"r{number}", segments=segments, sampling=params, stream=stream))
    engine.submit(requests, sink)


def timed_steps(engine: Engine, num_steps: int, between: Callable[[], None] = lambda: None) -> list[float]:
    """Seconds of each step; `between` runs before each, untimed."""
    times = []
    for _ in range(num_steps):
        between()
        begin = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begin)
    return times


def micro(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return 1e6 * statistics.median(ordered), 1e6 * ordered[len(ordered) * 99 // 100]


def run_all_prefilled(engine: Engine, num_running: int) -> None:
    while len(engine.scheduler.decoding) < num_running:
        engine.step()


def bench_load(load: str, num_running: int, num_steps: int, policy: str = "lpm") -> tuple[float, float]:
    engine = make_engine(num_running, schedule_policy=policy)
    with engine:
        if load == "plain" or load == "streams":
            submit(engine, prompts(num_running, 128), 3000, stream=load == "streams")
            run_all_prefilled(engine, num_running)
            timed_steps(engine, 20)
            return micro(timed_steps(engine, num_steps))
        shared = prompts(1, 64)[0] if load == "shared" else ()
        fresh = iter(prompts(num_running * (num_steps + 150) // 32 + 300, 128 - len(shared)))

        def top_up() -> None:
            missing = num_running // 8 + 1 - len(engine.scheduler.waiting)
            submit(engine, [shared + next(fresh) for _ in range(max(missing, 0))], 32, spread=64)

        submit(engine, [shared + next(fresh) for _ in range(num_running)], 1, spread=96)
        timed_steps(engine, 150, top_up)
        return micro(timed_steps(engine, num_steps, top_up))


def bench_full_cache(num_cached: int, num_steps: int) -> tuple[float, float]:
    """Plain steps of 256 with that many tokens in the cache."""
    engine = make_engine(256, num_tokens=num_cached + (1 << 19))
    with engine:
        memory = engine.scheduler.memory
        rng = np.random.default_rng(1)
        for _ in range(num_cached // 1024):
            pages = memory.allocator.alloc(1024)
            assert pages is not None
            memory.cache.insert(rng.integers(0, VOCAB, 1024).astype(np.int32), pages)
        submit(engine, prompts(256, 128), 3000)
        run_all_prefilled(engine, 256)
        timed_steps(engine, 20)
        return micro(timed_steps(engine, num_steps))


def bench_cache_cost(num_requests: int, step_s: float = 0.002) -> float:
    """The share of time that the radix cache adds where no prompt repeats, at 2 ms a forward.

    From processor time, which other load on the machine does not change as it changes wall time.
    """
    ids = prompts(num_requests, 256)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for disabled in (True, False) * 5:
        engine = make_engine(64, disable_radix_cache=disabled, num_tokens=1 << 16)
        with engine:
            submit(engine, ids, 64)
            begin = time.process_time()
            while engine.step():
                pass
            forwards = engine.counters().forwards
            costs[disabled].append(time.process_time() - begin + forwards * step_s)
    return min(costs[False]) / min(costs[True]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    num_steps = 100 if args.quick else 400
    gc.collect()
    gc.freeze()
    print("load      policy      running   median us    p99 us   us per request")
    loads = [("plain", "lpm"), ("streams", "lpm"), ("shared", "lpm")]
    loads += [("churn", policy) for policy in ("fcfs", "lpm", "dfs-weight", "lof")]
    for load, policy in loads:
        for num in (1, 16, 256, 1024):
            median, p99 = bench_load(load, num, num_steps, policy)
            print(f"{load:<9} {policy:<11} {num:7} {median:11.1f} {p99:9.1f} {median / num:16.2f}", flush=True)
    for num_cached in (0, 1 << 18, 1 << 20):
        median, p99 = bench_full_cache(num_cached, num_steps)
        print(f"plain, 256 running, {num_cached:>9,} tokens cached: {median:8.1f} {p99:9.1f}")
    share = bench_cache_cost(128 if args.quick else 512)
    print(f"radix cache where nothing hits, 2 ms a step: {100 * share:+.2f} % time")


if __name__ == "__main__":
    main()
