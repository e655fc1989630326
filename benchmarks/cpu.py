"""One CPU core beside what a user would pick instead: `python benchmarks/cpu.py [--model 5m 100m] [--rows decode ...]`.

Random-weight Llama checkpoints with bfloat16 weights, all processes on one core, one thread each. Engines take turns,
each in a process of its own (`cpu_engines.py`); a time is the least over the rounds, of the processor's clock unless
`--clock wall` says otherwise: on a machine with other work the wall's says more about that work. A peer that cannot be
imported is named as skipped; peers (llama-cpp-python, gguf, guidance, outlines) may be installed for another Python
(`--peer-python`).

Rows: `decode` (tokens/s, scheduling and sampling included), `shared` (64 requests of 512 shared and 32 own prompt
tokens, 32 new ones), `json` (programs that write an object of five fields), `deterministic`, `start`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from random_checkpoint import model_of

HERE = Path(__file__).parent
ROWS = ("decode", "shared", "json", "deterministic", "start")
DSLC, TORCH = "dslc", "dslc, torch only"
OWN: dict[str, tuple[str, dict[str, str]]] = {DSLC: ("dslc", {}), TORCH: ("dslc", {"DSLC_NATIVE": "0"})}
BARS = {  # of dslc, of torch only: at least so many times the peer's rate, at most so much of its time
    "single": (2.0, 1.7), "batch-5m": (1.25, 1.0), "batch-100m": (1.1, 1.0), "shared": (0.65, 0.65),
    "json-1": (0.9, 0.9), "json-32": (3.0, 3.0), "deterministic": (1.5, 1.5),
}  # fmt: skip
FIRST_TOKEN = """
import time
clock = time.{clock}
begin = clock()
from dslc.runtime.engine import Engine
engine = Engine(**{options})
engine.generate({prompt}, sampling_params={{"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}})
print(clock() - begin)
"""


class Process:
    """An engine in another process. `version` says what it is; None if it cannot be had, `error` why."""

    def __init__(self, python: str, engine: str, folder: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "cpu_engines.py"), engine, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        first = self._read()
        self.version = first if isinstance(first, str) else None
        self.error = None if isinstance(first, str) else first["error"]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self._process.wait()}"}

    def ask(self, verb: str, *arguments: Any) -> float:
        """What the engine answers; raises RuntimeError if it fails."""
        assert self._process.stdin is not None
        print(json.dumps([verb, *arguments]), file=self._process.stdin, flush=True)
        answer = self._read()
        if isinstance(answer, dict):
            raise RuntimeError(f"{verb}{arguments}: {answer['error']}")
        return float(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """Engines of one checkpoint, started when first wanted; those that are missing are named once."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        self._running: dict[tuple[str, str], Process] = {}

    def engines(self, *names: str, folder: str = "") -> dict[str, Process]:
        folder = model_of(folder or self.model)
        for name in names:
            if (name, folder) not in self._running:
                engine, environment = OWN.get(name, (name, OWN[TORCH][1] if name.endswith("torch only") else {}))
                python = sys.executable if name.startswith("dslc") else self.args.peer_python
                started = self._running[name, folder] = Process(python, engine, folder, environment)
                print(f"- {name}: {started.version or f'skipped, {started.error}'}", flush=True)
        return {name: self._running[name, folder] for name in names if self._running[name, folder].version}

    def least(self, engines: dict[str, Process], verb: str, *arguments: Any) -> dict[str, float]:
        """The least seconds of each engine over rounds in which they take turns, after one that does not count."""
        for engine in engines.values():
            engine.ask(verb, *arguments)
        found = dict.fromkeys(engines, float("inf"))
        for _ in range(self.args.rounds):
            for name, engine in engines.items():
                found[name] = min(found[name], engine.ask(verb, *arguments))
        return found

    def close(self) -> None:
        for engine in self._running.values():
            engine.close()


def verdict(ratios: list[float], bar: str, most: bool = False) -> str:
    """Ratios of dslc and of torch only beside their bars; `most` where the bar is from above."""
    told = []
    for ratio, limit in zip(ratios, BARS[bar], strict=False):
        met = ratio <= limit if most else ratio >= limit
        told.append(f"{ratio:.2f}" + ("" if met else f" (missed: {limit})"))
    return " / ".join(told)


def table(head: str, columns: list[str], last: str) -> None:
    print(f"\n| {head} | {' | '.join(columns)} | {last} |\n" + "|---" * (len(columns) + 2) + "|", flush=True)


def decode(bench: Bench) -> None:
    engines = bench.engines(DSLC, TORCH, "transformers", "llama.cpp", "llama.cpp, flash")
    table("tokens/s: batch, context", list(engines), "to transformers, to llama.cpp")
    for context in bench.args.context:
        for batch in bench.args.batch:
            found = bench.least(engines, "decode", batch, context, 32 if batch < 8 else 16)
            rates = {name: batch / seconds for name, seconds in found.items()}
            own = [rates[name] for name in OWN]
            llama = max((rate for name, rate in rates.items() if name.startswith("llama")), default=0.0)
            peers = {"transformers": rates.get("transformers", 0.0), "llama.cpp": llama}
            counts = "transformers" if batch == 1 or bench.model == "5m" else "llama.cpp"
            told = []
            for name, rate in peers.items():
                ratios = [mine / rate for mine in own] if rate else []
                if ratios and name == counts and batch in (1, 32):
                    told.append(verdict(ratios, "single" if batch == 1 else f"batch-{bench.model}"))
                else:
                    told.append(" / ".join(f"{ratio:.2f}" for ratio in ratios) or "-")
            row = " | ".join(f"{rate:,.0f}" for rate in rates.values())
            print(f"| {batch}, {context} | {row} | {', '.join(told)} |", flush=True)


def shared(bench: Bench) -> None:
    engines = bench.engines(DSLC, TORCH, "llama.cpp")
    found = bench.least(engines, "shared")
    peer = found.get("llama.cpp")
    table("64 requests, 512 tokens shared", list(found), "of llama.cpp's time")
    told = verdict([found[name] / peer for name in OWN], "shared", most=True) if peer else "-"
    print(f"| seconds | {' | '.join(f'{seconds:.2f}' for seconds in found.values())} | {told} |", flush=True)


def objects(bench: Bench) -> None:
    for count, peer in ((1, "guidance + llama.cpp"), (32, "outlines")):
        engines = bench.engines(DSLC, TORCH, peer, folder=f"{bench.model}-text")
        found = bench.least(engines, "json", count)
        ratios = [found[name] / found[peer] for name in OWN] if peer in found else []
        if count == 1:
            told = verdict(ratios, "json-1", most=True) or "-"
            table("one JSON program", list(found), "of guidance's time")
            print(f"| ms | {' | '.join(f'{1e3 * seconds:.1f}' for seconds in found.values())} | {told} |", flush=True)
        else:
            told = verdict([1 / ratio for ratio in ratios], "json-32") or "-"
            table("32 JSON programs", list(found), "to outlines")
            print(f"| a second | {' | '.join(f'{count / s:.1f}' for s in found.values())} | {told} |", flush=True)


def deterministic(bench: Bench) -> None:
    engines = bench.engines(DSLC, "dslc deterministic", TORCH, "dslc deterministic, torch only")
    table("deterministic mode", list(engines), "of the fast mode's time")
    for batch, context in ((1, 64), (32, 64), (32, 576)):
        found = bench.least(engines, "decode", batch, context, 16)
        fast, slow, torch_fast, torch_slow = found.values()
        ratios = [slow / fast, torch_slow / torch_fast]
        told = verdict(ratios, "deterministic", most=True)
        row = " | ".join(f"{1e3 * seconds:.2f}" for seconds in found.values())
        print(f"| ms a step: {batch}, {context} | {row} | {told} |", flush=True)


def start(args: argparse.Namespace) -> None:
    """From the first import to the first token, in a new process; what is built once is built already."""
    print("\n| start-up, seconds | to the first token | bar |\n|---|---|---|")
    for name, options, prompt, bar in (
        ("the built-in model", {}, "'Once upon a time'", 1.5),
        ("100m", {"model_path": model_of("100m-text"), "dtype": "bfloat16"}, "'Once upon a time'", 3.0),
    ):
        clock = "perf_counter" if args.clock == "wall" else "process_time"
        code = FIRST_TOKEN.format(options=options, prompt=prompt, clock=clock)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        done = [
            subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="/").stdout
            for _ in range(args.rounds + 1)
        ]
        took = [float(printed) for printed in done]
        least = min(took[1:])
        print(f"| {name} | {least:.2f} | {bar}{'' if least < bar else ' (missed)'} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["5m", "100m"], choices=["5m", "100m"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 576])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peer-python", default=sys.executable, help="the Python in which the peers are installed")
    parser.add_argument("--clock", default="cpu", choices=["cpu", "wall"])
    args = parser.parse_args()
    os.environ["CPU_BENCHMARK_CLOCK"] = args.clock
    os.sched_setaffinity(0, {args.core})
    runs = {"decode": decode, "shared": shared, "json": objects, "deterministic": deterministic}
    for name in args.model:
        print(f"\n{name}")
        bench = Bench(name, args)
        for row in args.rows:
            if row in runs:
                runs[row](bench)
        bench.close()
    if "start" in args.rows:
        start(args)


if __name__ == "__main__":
    main()
