"""What deterministic mode costs: `python benchmarks/deterministic.py [--model FOLDER] [--dtype float32] [--threads 1]`.

The same work with it and without, interleaved, on the built-in model unless another is named: reading a prompt of 512
tokens, and decoding 32 tokens of 1, 8 and 32 sequences. Seconds are the best of a few rounds.
"""

import argparse
import time

import torch

from dslc.runtime.engine import Engine

PROMPT, NEW, ROUNDS = 512, 32, 3
SAMPLING = {"temperature": 0.0, "ignore_eos": True}


def work(engine, num_sequences, prompt_len, num_new, salt):
    """Seconds for sequences that share nothing, so that nothing comes from the cache."""
    rng = torch.Generator().manual_seed(salt)
    ids = torch.randint(0, 256, (num_sequences, prompt_len), generator=rng).tolist()
    engine.flush_cache()
    begin = time.perf_counter()
    engine.generate(input_ids=ids, sampling_params={**SAMPLING, "max_new_tokens": num_new})
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="model folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engines = {
        mode: Engine(model_path=args.model, dtype=args.dtype, device="cpu", deterministic=mode)
        for mode in (False, True)
    }
    print(f"{'work':34} {'fast s':>9} {'deterministic s':>16} {'ratio':>7}")
    for name, num_sequences, prompt_len, num_new in (
        (f"read a prompt of {PROMPT}", 1, PROMPT, 1),
        *((f"{n} x (prompt of 16, {NEW} tokens)", n, 16, NEW) for n in (1, 8, 32)),
    ):
        best = dict.fromkeys(engines, float("inf"))
        for salt in range(ROUNDS):
            for mode, engine in engines.items():
                best[mode] = min(best[mode], work(engine, num_sequences, prompt_len, num_new, salt))
        print(f"{name:34} {best[False]:9.3f} {best[True]:16.3f} {best[True] / best[False]:7.1f}")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
