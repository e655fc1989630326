"""Programs against their baselines: `python benchmarks/programs.py [--quick] [--pairs 9] [--rows 64] [--model big]`.

Each workload of `workloads.py` runs in four ways, on one engine model:

- `dslc`: compiled, every engine feature on;
- `no compiler`: the interpreter on the same engine, every engine feature on;
- `op by op`: the interpreter, each generation of a program awaited before its next op, in the order of the program;
  radix cache on, each choice of a `select` scored as a sequence of its own after its prompt, masks but no forced text;
- `branches together`: the same, but the branches of a fork run beside each other;
- `bare`: as that with no cache and one request at a time;
- `transformers` (with `--transformers`): `generate` of transformers once per generation, no cache between calls.

Latency: one program after the other. Throughput: all rows as one batch. Greedy but where a gen has a temperature of its
own; one seed, so all ways draw the same tokens up to float32 sums in another order (the share of equal texts is shown).
Counters first; then wall time, as the median of the ratios of interleaved pairs with its 95 % interval (order
statistics). A ratio above 1 says that `dslc` is faster. `--clock cpu` takes processor time instead, which other work on
the machine disturbs less; with one thread it is the wall time of a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import dslc
from dslc.compiler.account import evaluate
from dslc.compiler.recording import Recording

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "runtime" / "builtin" / "dslc_tiny"
sys.path.insert(0, str(ROOT / "benchmarks"))

from baselines import SeparateChoices, in_program_order  # noqa: E402
from workloads import Workload, json_extraction, json_free, text_rows, workloads  # noqa: E402

WAYS = ("dslc", "no compiler", "op by op", "branches together", "bare")
SLOW = ("bare", "transformers")  # run once, in batches only
QUICK = ("few-shot choice", "JSON extraction", "branch-solve-merge judge", "document QA")
COUNTS = ("requests", "prompt_tokens", "prefilled_tokens", "generated_tokens", "forced_tokens", "forwards", "rows")


@dataclass
class Way:
    """One way to run a program: a backend and the options of the run."""

    name: str
    engine: Any
    backend: Any
    options: dict[str, Any] = field(default_factory=dict)
    in_order: bool = False


@dataclass
class Measured:
    """What one way gave for one workload and mode."""

    seconds: list[float] = field(default_factory=list)
    used: Any = None
    texts: list[str] = field(default_factory=list)


def big_model(folder: Path) -> Path:
    """A random Llama of about 100 M parameters with the built-in tokenizer, as a checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    known = json.loads((BUILTIN / "config.json").read_text("utf-8"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=known["vocab_size"],
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=11,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=known["eos_token_id"],
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in BUILTIN.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(path, folder / path.name)
    return folder


def ways(model: str, names: tuple[str, ...]) -> list[Way]:
    """The ways of that name; each has an engine of its own, so that no cache is shared."""
    options = {"model_path": model, "dtype": "float32"}
    made = []
    for name in names:
        if name == "transformers":
            from transformers_backend import TransformersBackend

            theirs = TransformersBackend(model)
            made.append(Way(name, theirs, theirs, {"compiled": False}))
            continue
        less: dict[str, Any] = {} if name in ("dslc", "no compiler") else {"jump_forward": False}
        if name == "bare":
            less |= {"disable_radix_cache": True, "max_running_requests": 1}
        engine = dslc.Engine(**options, **less)
        if name == "dslc":
            made.append(Way(name, engine, engine))
        elif name == "no compiler":
            made.append(Way(name, engine, engine, {"compiled": False}))
        else:
            made.append(Way(name, engine, SeparateChoices(engine), {"compiled": False}, in_order=name == "op by op"))
    return made


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def run_once(way: Way, load: Workload, one_by_one: bool, clock: str) -> tuple[float, Any, list[str]]:
    if way.name != "transformers":
        way.engine.flush_cache()
    options = {"temperature": 0, "seed": 0, **load.options, **way.options, "backend": way.backend}
    before, started = way.engine.counters(), CLOCKS[clock]()
    with in_program_order() if way.in_order else contextlib.nullcontext():
        if one_by_one:
            states = [load.program.run(**row, **options) for row in load.rows]
        else:
            states = load.program.run_batch(load.rows, on_error="raise", **options)
    seconds = CLOCKS[clock]() - started
    return seconds, way.engine.counters() - before, [state.text() for state in states]


def measure(
    load: Workload, made: list[Way], pairs: int, one_by_one: bool, slow_pairs: int, clock: str
) -> dict[str, Measured]:
    """All ways in turn, `pairs` times; a first round warms caches of constraints and plans and counts nothing."""
    found = {way.name: Measured() for way in made}
    for way in made:
        run_once(way, Workload(load.name, load.program, load.rows[:1], load.options), one_by_one, clock)
    for turn in range(pairs):
        for way in made if turn % 2 == 0 else reversed(made):
            if way.name in SLOW and turn >= slow_pairs:
                continue
            seconds, used, texts = run_once(way, load, one_by_one, clock)
            one = found[way.name]
            one.seconds.append(seconds)
            one.used, one.texts = used, texts
    return found


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold it in 95 % of all samples (all of them for fewer than six)."""
    ordered = sorted(ratios)
    num = len(ordered)
    skip = 0
    while skip + 1 < num / 2 and 2 * sum(math.comb(num, k) for k in range(skip + 1)) / 2**num <= 0.05:
        skip += 1
    low = max(skip - 1, 0)
    return statistics.median(ordered), ordered[low], ordered[num - 1 - low]


def report(load: Workload, mode: str, found: dict[str, Measured], record: list[dict[str, Any]]) -> None:
    """One line for each way; ratios of `dslc`'s time to it pair by pair."""
    base = found["dslc"]
    for name, one in found.items():
        pairs = list(zip(one.seconds, base.seconds, strict=False))
        middle, low, high = interval([theirs / mine for theirs, mine in pairs])
        counts = [getattr(one.used, count) for count in COUNTS]
        same = sum(a == b for a, b in zip(one.texts, base.texts, strict=True))
        ratio = "" if name == "dslc" else f"{middle:.2f} ({low:.2f}-{high:.2f})"
        cells = [load.name, mode, name, f"{statistics.median(one.seconds):.3f}", ratio, *counts]
        print("| " + " | ".join(map(str, [*cells, f"{same}/{len(base.texts)}"])) + " |", flush=True)
        record.append({"workload": load.name, "mode": mode, "way": name, "ratio": middle, "low": low, "high": high,
                       "seconds": one.seconds, "counts": dict(zip(COUNTS, counts, strict=True))})  # fmt: skip


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def summary(record: list[dict[str, Any]]) -> None:
    """The bars, and whether they are met; the compiler's own gain."""
    print()
    bars = (
        ("op by op", "latency", 1.5), ("op by op", "throughput", 1.25), ("branches together", "latency", None),
        ("branches together", "throughput", None), ("bare", "throughput", 5.0),
    )  # fmt: skip
    for way, mode, bar in bars:
        ratios = [row["ratio"] for row in record if (row["way"], row["mode"]) == (way, mode)]
        if ratios:
            found = geometric_mean(ratios)
            verdict = "" if bar is None else f" (bar {bar}: {'met' if found >= bar else 'MISSED'})"
            print(f"against {way!r}, {mode}: {found:.2f}x geometric mean of {len(ratios)}{verdict}")
    for mode in ("latency", "throughput"):
        rows = [row for row in record if row["mode"] == mode]
        mine = {row["workload"]: row for row in rows if row["way"] == "dslc"}
        theirs = [row for row in rows if row["way"] == "no compiler"]
        if not theirs:
            continue
        gain = geometric_mean([row["ratio"] for row in theirs])
        print(f"the compiler's own gain, {mode}: {gain:.2f}x time", end="")
        for count in ("prefilled_tokens", "rows", "forwards"):
            shares = [(mine[r["workload"]]["counts"][count] or 1) / (r["counts"][count] or 1) for r in theirs]
            print(f", {geometric_mean(shares):.3f}x {count}", end="")
        print()
        for row in theirs:
            counts, other = mine[row["workload"]]["counts"], row["counts"]
            for count in ("prefilled_tokens", "rows"):
                if counts[count] > other[count]:
                    print(f"MISSED: {row['workload']}, {mode}: {counts[count]} {count}, {other[count]} without")
            if row["ratio"] < 0.95:
                print(f"MISSED: {row['workload']}, {mode}: {row['ratio']:.2f}x of the time without the compiler")


def json_steps(way: Way, num_rows: int) -> None:
    """Model steps per output token of JSON, one program after the other: five bounded fields, and two free strings."""
    for name, program in (("five bounded fields", json_extraction), ("two free strings", json_free)):
        way.engine.flush_cache()
        before = way.engine.counters()
        for row in text_rows(num_rows):
            program.run(**row, backend=way.backend, temperature=0, seed=0)
        used = way.engine.counters() - before
        print(f"JSON of {name}: {used.forwards} forwards for {used.generated_tokens} tokens, "
              f"{used.forwards / used.generated_tokens:.2f} a token")  # fmt: skip


def check_account(load: Workload, way: Way) -> None:
    """The account of this workload against the engine's counters."""
    way.engine.flush_cache()
    recording, before = Recording(way.engine), way.engine.counters()
    load.program.run_batch(load.rows, backend=recording, temperature=0, seed=0, on_error="raise")
    differences = evaluate(recording.jobs(), recording.limits).differences(way.engine.counters() - before)
    print(f"account of {load.name!r}: {differences or 'equal to the counters'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"few rows, three pairs, only {', '.join(QUICK)}")
    parser.add_argument("--only", action="append", default=[], help="a workload by name; may be repeated")
    parser.add_argument("--mode", choices=("latency", "throughput", "both"), default="both")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=64, help="programs of a batch")
    parser.add_argument("--latency-rows", type=int, default=8, help="programs run one after the other")
    parser.add_argument("--model", default="built-in", help="built-in, big (100 M random weights), or a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: processor time of the process")
    parser.add_argument("--no-bare", action="store_true", help="leave out the way without cache and batching")
    parser.add_argument("--way", action="append", default=[], choices=WAYS[1:], help="only `dslc` and this; repeatable")
    parser.add_argument("--transformers", action="store_true", help="transformers' generate as a further way")
    parser.add_argument("--account", action="store_true", help="compare the account with the counters too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.rows, options.latency_rows = 3, 16, 3
        options.only = options.only or list(QUICK)
    torch.set_num_threads(options.threads)
    known = [load.name for load in workloads(1)]
    for name in options.only:
        if name not in known:
            parser.error(f"there is no workload {name!r}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        model = {"built-in": str(BUILTIN)}.get(options.model, options.model)
        if options.model == "big":
            model = str(big_model(Path(folder)))
        run_all(options, model)


def run_all(options: argparse.Namespace, model: str) -> None:
    names = ("dslc", *options.way) if options.way else WAYS[:-1] if options.no_bare else WAYS
    made = ways(model, names + ("transformers",) * options.transformers)
    print(f"python {platform.python_version()}, torch {torch.__version__}, dslc {dslc.__version__}, "
          f"{torch.get_num_threads()} threads, {options.clock} clock, {options.pairs} pairs, {options.rows} rows, "
          f"model {options.model}, {made[0].engine.worker.device}, {time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    columns = ("workload", "mode", "way", "seconds", "ratio", *(name.replace("_", " ") for name in COUNTS), "equal")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    record: list[dict[str, Any]] = []
    for mode in ("latency", "throughput"):
        if options.mode not in (mode, "both"):
            continue
        for load in workloads(options.rows):
            if options.only and load.name not in options.only:
                continue
            one_by_one = mode == "latency"
            rows = load.rows[: options.latency_rows] if one_by_one else load.rows
            load = Workload(load.name, load.program, rows, load.options)
            chosen = [way for way in made if not (one_by_one and way.name in SLOW)]
            report(load, mode, measure(load, chosen, options.pairs, one_by_one, 1, options.clock), record)
    summary(record)
    if not options.only or "JSON extraction" in options.only:
        json_steps(made[0], options.latency_rows)
    if options.account:
        for load in workloads(options.rows):
            if not options.only or load.name in options.only:
                check_account(load, made[0])
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))
    for way in made:
        way.engine.close()


if __name__ == "__main__":
    main()
