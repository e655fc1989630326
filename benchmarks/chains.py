"""What is left to gain in one program: `python benchmarks/chains.py [--only NAME]`. Counts only, built-in model.

A program cannot take fewer forwards than the longest chain of its results, each of which needs the one before. Nor can
it take fewer rows than the nodes of the trie of all its prompts and outputs, which are computed once, and the rows that
score choices. Beside both stands what a compiled run took.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import dslc
from dslc.compiler.account import Job
from dslc.compiler.recording import Recording
from dslc.core.backend import Counters

sys.path.insert(0, str(Path(__file__).resolve().parent))

from belady import Trie, run_of
from workloads import Workload, workloads


def forwards_of(job: Job) -> int:
    """The forwards that a request takes by itself, with its prompt in one."""
    if job.is_forced:
        return 0
    if job.score is not None or not job.outputs:
        return 1
    spans = job.spans or [()] * len(job.outputs)
    return max(1, *[len(span) if span else len(output) for span, output in zip(spans, job.outputs, strict=True)])


def longest_chain(jobs: list[Job]) -> int:
    """Forwards of the longest chain of requests, each of which waits for the results of the one before."""
    ends: list[int] = []
    for job in jobs:
        ends.append(forwards_of(job) + max([ends[number] for number in job.after], default=0))
    return max(ends, default=0)


def distinct_rows(jobs: list[Job]) -> int:
    """Nodes of the trie of all prompts and outputs, but for the last token of each output, which nobody computes."""
    return Trie([ids for job in jobs for ids in run_of(job)]).num_tokens


def run_one(load: Workload) -> tuple[list[Job], Counters]:
    """The requests of one program, and what the engine counted."""
    with dslc.Engine(dtype="float32") as engine:
        recording, before = Recording(engine), engine.counters()
        options = {"temperature": 0, "seed": 0, "on_error": "raise"}
        load.program.run_batch(load.rows[:1], num_threads=1, backend=recording, **options)
        return recording.jobs(), engine.counters() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| workload | forwards | longest chain | rows | distinct rows | rows that score choices |")
    print("|---|---|---|---|---|---|")
    for load in workloads(1):
        if options.only and load.name not in options.only:
            continue
        jobs, used = run_one(load)
        cells = [load.name, used.forwards, longest_chain(jobs), used.rows, distinct_rows(jobs), used.scored_tokens]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
