"""Programs against their baselines, in one run: `python benchmarks/programs.py [--repeat N] [--rows N]`.

Each program runs over the same batch on the built-in model

- `dslc`: compiled, all programs in flight, cache on;
- `cache off`: the same engine without its radix cache;
- `batch 1`: the same engine with one running request at a time;
- `transformers`: `generate` once per generation, no cache between calls.

Greedy, float32, `--threads` threads (default 1). Wall time is the median over the repeats, runs interleaved; counts
are of one repeat. All outputs are compared with those of the first row: float32 sums in another order may turn a near
tie, so the share of equal texts is printed rather than assumed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

import dslc

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import demo  # noqa: E402
import few_shot_qa  # noqa: E402
import multi_turn_chat  # noqa: E402
import tip_suggestion  # noqa: E402
from transformers_backend import TransformersBackend  # noqa: E402

NAMES = ["Emma", "Noah", "Mia", "Paul", "Lena", "Ben", "Anna", "Felix"]
CAPITALS = ["Germany", "Spain", "Italy", "Japan", "Norway", "Egypt", "Peru", "Poland"]
TOPICS = ["staying healthy", "saving money", "learning a language", "sleeping well"]


def workloads():
    tickets = json.loads((ROOT / "examples" / "data" / "tickets.json").read_text("utf-8"))
    return {
        "triage (demo)": (demo.triage, [{"ticket": t["ticket"]} for t in tickets]),
        "few-shot QA": (
            few_shot_qa.few_shot_qa,
            [{"question": f"What is the capital of {c}?"} for c in CAPITALS],
        ),
        "multi-turn chat": (multi_turn_chat.multi_turn_chat, [{"name": n} for n in NAMES]),
        "tip suggestion": (tip_suggestion.tip_suggestion, [{"topic": t} for t in TOPICS]),
    }


def backends():
    model = str(ROOT / "runtime" / "builtin" / "dslc_tiny")
    options = {"model_path": model, "dtype": "float32"}
    return {
        "dslc": dslc.Engine(**options),
        "cache off": dslc.Engine(**options, disable_radix_cache=True),
        "batch 1": dslc.Engine(**options, max_running_requests=1),
        "transformers": TransformersBackend(model),
    }


def run_once(program, batch, backend):
    if hasattr(backend, "flush_cache"):
        backend.flush_cache()
    before, started = backend.counters(), time.perf_counter()
    states = program.run_batch(batch, backend=backend, temperature=0, seed=0, on_error="raise")
    seconds = time.perf_counter() - started
    return seconds, backend.counters() - before, [state.text() for state in states]


def measure(program, batch, engines, repeat):
    rows = {name: {"seconds": []} for name in engines}
    for backend in engines.values():
        run_once(program, batch[:1], backend)  # compile constraints, warm up
    for _ in range(repeat):
        for name, backend in engines.items():
            seconds, used, texts = run_once(program, batch, backend)
            rows[name]["seconds"].append(seconds)
            rows[name]["used"], rows[name]["texts"] = used, texts
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="sets of arguments per program")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engines = backends()
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}\n")
    print("| program | run | seconds | ratio | prompt tokens | computed | generated | forwards | rows | equal texts |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    record = []
    for title, (program, rows_of_arguments) in workloads().items():
        batch = rows_of_arguments[: options.rows]
        rows = measure(program, batch, engines, options.repeat)
        base = statistics.median(rows["dslc"]["seconds"])
        for name, row in rows.items():
            seconds, used = statistics.median(row["seconds"]), row["used"]
            same = sum(a == b for a, b in zip(row["texts"], rows["dslc"]["texts"], strict=True))
            counts = [used.prompt_tokens, used.prefilled_tokens, used.generated_tokens, used.forwards, used.rows]
            cells = [title, name, f"{seconds:.2f}", f"{seconds / base:.1f}x", *counts, f"{same}/{len(batch)}"]
            print("| " + " | ".join(map(str, cells)) + " |")
            record.append({"program": title, "run": name, "seconds": row["seconds"], "equal": same})
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))
    for backend in engines.values():
        backend.close()


if __name__ == "__main__":
    main()
