"""One CPU core beside what a user would pick instead: `python benchmarks/cpu.py [--model 5m 100m] [--rows decode ...]`.

Random-weight Llama checkpoints, bfloat16 weights everywhere, all processes on one core, one thread each. Engines take
turns, each in a process of its own (`cpu_engines.py`); a time is the least over the rounds. A peer that cannot be
imported is named as skipped; one with other dependencies may stand in another Python (`--peer-python`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from random_checkpoint import SHAPES, model_of

HERE = Path(__file__).parent
OWN = {"dslc": ("dslc", {}), "dslc, torch only": ("dslc", {"DSLC_NATIVE": "0"})}
PEERS = ("transformers", "llama.cpp", "llama.cpp, flash")


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
            raise RuntimeError(answer["error"])
        return float(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def best(engines: dict[str, Process], rounds: int, verb: str, *arguments: Any) -> dict[str, float]:
    """The least seconds of each engine over rounds in which they take turns, after one that does not count."""
    for engine in engines.values():
        engine.ask(verb, *arguments)
    least = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):
        for name, engine in engines.items():
            least[name] = min(least[name], engine.ask(verb, *arguments))
    return least


def decode_table(engines: dict[str, Process], rounds: int, batches: list[int], contexts: list[int]) -> None:
    print(f"\n| decode: batch, context | {' | '.join(engines)} | ratio to the best peer |")
    print("|---" * (len(engines) + 2) + "|")
    for context in contexts:
        for batch in batches:
            steps = 32 if batch < 8 else 16
            found = best(engines, rounds, "decode", batch, context, steps)
            rates = {name: batch / seconds for name, seconds in found.items()}
            peers = [rate for name, rate in rates.items() if name not in OWN]
            ratios = [f"{rate / max(peers):.2f}" for name, rate in rates.items() if name in OWN] if peers else ["-"]
            row = " | ".join(f"{rate:,.0f}" for rate in rates.values())
            print(f"| {batch}, {context} | {row} | {' / '.join(ratios)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["5m", "100m"], choices=list(SHAPES))
    parser.add_argument("--rows", nargs="+", default=["decode"], choices=["decode"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 576])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peer-python", default=sys.executable, help="the Python in which the peers are installed")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    for name in args.model:
        folder = model_of(name)
        engines = {
            label: Process(sys.executable, engine, folder, environment) for label, (engine, environment) in OWN.items()
        }
        engines.update({peer: Process(args.peer_python, peer, folder, {}) for peer in PEERS})
        print(
            f"\n{name}: " + "; ".join(f"{label}: {e.version or f'skipped, {e.error}'}" for label, e in engines.items())
        )
        engines = {label: engine for label, engine in engines.items() if engine.version}
        if "decode" in args.rows:
            decode_table(engines, args.rounds, args.batch, args.context)
        for engine in engines.values():
            engine.close()


if __name__ == "__main__":
    main()
