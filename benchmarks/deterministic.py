"""What deterministic mode costs: `python benchmarks/deterministic.py [--model 5m] [--dtype float32] [--threads 1]`.

The same work with it and without, interleaved, on the built-in model unless another is named (a folder, or 5m or 100m:
random weights in that shape): reading a prompt of 512 tokens; 32 tokens of 1, 8 and 32 sequences, greedy; of 32 drawn
by top-p; of 32 after 512. Seconds are the best of a few rounds.
"""

import argparse
import time

import torch
from random_checkpoint import SHAPES, model_of

from dslc.core.config import EngineConfig
from dslc.runtime.engine import Engine
from dslc.runtime.model_runner import ModelRunner

PROMPT, NEW, ROUNDS = 512, 32, 3
GREEDY = {"temperature": 0.0, "ignore_eos": True}
DRAWN = {"temperature": 0.8, "top_p": 0.9, "seed": 1, "ignore_eos": True}


def engine_of(**options):
    config = EngineConfig.of(**options)
    return Engine.of_parts(config, ModelRunner(config))


def work(engine, num_sequences, prompt_len, num_new, sampling, salt):
    """Seconds for sequences that share nothing, so that nothing comes from the cache."""
    rng = torch.Generator().manual_seed(salt)
    ids = torch.randint(0, 256, (num_sequences, prompt_len), generator=rng).tolist()
    engine.flush_cache()
    begin = time.perf_counter()
    engine.generate(input_ids=ids, sampling_params={**sampling, "max_new_tokens": num_new})
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help=f"model folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engines = {
        mode: engine_of(
            model_path=args.model and model_of(args.model),
            dtype=args.dtype,
            device="cpu",
            deterministic=mode,
            max_running_requests=32,
            max_total_tokens=32768,
        )
        for mode in (False, True)
    }
    print(f"{'work':34} {'fast s':>9} {'deterministic s':>16} {'ratio':>7}")
    for name, num_sequences, prompt_len, num_new, sampling in (
        (f"read a prompt of {PROMPT}", 1, PROMPT, 1, GREEDY),
        *((f"{n} x (prompt of 16, {NEW} tokens)", n, 16, NEW, GREEDY) for n in (1, 8, 32)),
        (f"32 x (prompt of 16, {NEW} drawn)", 32, 16, NEW, DRAWN),
        (f"32 x (prompt of {PROMPT}, {NEW} tokens)", 32, PROMPT, NEW, GREEDY),
    ):
        best = dict.fromkeys(engines, float("inf"))
        for salt in range(ROUNDS):
            for mode, engine in engines.items():
                best[mode] = min(best[mode], work(engine, num_sequences, prompt_len, num_new, sampling, salt))
        print(f"{name:34} {best[False]:9.3f} {best[True]:16.3f} {best[True] / best[False]:7.1f}")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
