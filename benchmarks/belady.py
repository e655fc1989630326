"""How near the cache comes to the best possible: `python benchmarks/belady.py [--rows 64] [--share 0.25]`.

Each workload runs once with a cache that fits, which gives its requests and its working set (the nodes of the trie of
all prompts and outputs). Then it runs with a pool of a share of that. The tokens that this run computes are divided by
those of a replay: the same requests one after the other, with the same capacity, evicting by Belady's rule (the leaf
whose next use is farthest away goes first, token by token), in the best of three orders: as they came (FCFS), longest
cached prefix first (LPM), and depth first through the trie (DFS). Requests keep their order within a program.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import dslc
from dslc.compiler.account import Job
from dslc.compiler.recording import Recording

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workloads import Workload, workloads

NEVER = 1 << 60


@dataclass(eq=False)
class Edge:
    """A stretch of the static trie; the first `cached` of its tokens are in the cache."""

    ids: tuple[int, ...]
    parent: Edge | None = None
    children: dict[int, Edge] = field(default_factory=dict)
    cached: int = 0
    uses: list[int] = field(default_factory=list)  # positions in the order, farthest first

    def next_use(self, now: int) -> int:
        while self.uses and self.uses[-1] <= now:
            self.uses.pop()
        return self.uses[-1] if self.uses else NEVER


class Trie:
    """The trie of all prompts and outputs, cut so that every prompt and every path ends at an edge's end."""

    def __init__(self, paths: list[tuple[int, ...]]) -> None:
        self.root = Edge(())
        for path in paths:
            self.path(path)

    def path(self, ids: tuple[int, ...]) -> list[Edge]:
        """The edges of a sequence, made or cut as need be."""
        at, here, edges = 0, self.root, []
        while at < len(ids):
            child = here.children.get(ids[at])
            if child is None:
                child = here.children[ids[at]] = Edge(ids[at:], here)
            same = next((i for i, (a, b) in enumerate(zip(child.ids, ids[at:], strict=False)) if a != b),
                        min(len(child.ids), len(ids) - at))  # fmt: skip
            if same < len(child.ids):
                upper = Edge(child.ids[:same], here, {child.ids[same]: child})
                here.children[ids[at]] = upper
                child.ids, child.parent = child.ids[same:], upper
                child = upper
            edges.append(child)
            at += same
            here = child
        return edges

    @property
    def num_tokens(self) -> int:
        todo, total = [self.root], 0
        while todo:
            edge = todo.pop()
            total += len(edge.ids)
            todo += edge.children.values()
        return total


def run_of(job: Job) -> list[tuple[int, ...]]:
    """What a job leaves in the cache: its prompt, and each output but its last token."""
    return [(*job.prompt, *output[:-1]) for output in job.outputs] or [job.prompt]


def replay(jobs: list[Job], capacity: int, order: str) -> int:
    """Tokens computed by these jobs one after the other with Belady's eviction."""
    trie = Trie([ids for job in jobs for ids in (job.prompt, *run_of(job))])
    prompts = [trie.path(job.prompt) for job in jobs]
    runs = [list(dict.fromkeys(e for ids in run_of(job) for e in trie.path(ids))) for job in jobs]
    places = _order(jobs, prompts, trie) if order == "dfs" else list(range(len(jobs)))
    if order == "lpm":
        return _replay_lpm(jobs, prompts, runs, capacity)
    for position, number in reversed(list(enumerate(places))):
        for edge in dict.fromkeys((*prompts[number], *runs[number])):
            edge.uses.append(position)
    computed = held = 0
    touched: dict[Edge, None] = {}
    for position, number in enumerate(places):
        more, grown = _compute(jobs[number], prompts[number], runs[number])
        computed, held = computed + more + max(0, len(jobs[number].outputs) - 1), held + grown
        touched.update(dict.fromkeys(runs[number]))
        held -= _evict(touched, held - capacity, lambda edge, now=position: edge.next_use(now))
    return computed


def _compute(job: Job, prompt: list[Edge], run: list[Edge]) -> tuple[int, int]:
    """(prompt tokens computed, tokens newly held)."""
    missing = sum(len(edge.ids) - edge.cached for edge in prompt)
    grown = sum(len(edge.ids) - edge.cached for edge in dict.fromkeys((*prompt, *run)))
    for edge in (*prompt, *run):
        edge.cached = len(edge.ids)
    return max(missing, 1), grown


def _evict(touched: dict[Edge, None], excess: int, next_use: Any) -> int:
    """Drop `excess` tokens, farthest leaf first; returns how many went."""
    gone = 0
    while gone < excess:
        leaves = [e for e in touched if e.cached and not any(child.cached for child in e.children.values())]
        edge = max(leaves, key=next_use)
        less = min(edge.cached, excess - gone)
        edge.cached -= less
        gone += less
        if not edge.cached:
            del touched[edge]
    return gone


def _order(jobs: list[Job], prompts: list[list[Edge]], trie: Trie) -> list[int]:
    """Depth first: jobs by the path of their prompt, children in the order in which they first came."""
    rank: dict[Edge, int] = {}
    for path in prompts:
        for edge in path:
            rank.setdefault(edge, len(rank))
    keys = [tuple(rank[edge] for edge in path) for path in prompts]
    waiting = sorted(range(len(jobs)), key=lambda i: (keys[i], i))
    done: set[int] = set()
    order: list[int] = []
    while waiting:  # a job may need another's result that stands later
        for place, number in enumerate(waiting):
            if done.issuperset(jobs[number].after):
                order.append(number)
                done.add(number)
                del waiting[place]
                break
        else:
            raise ValueError("jobs wait for each other")
    return order


def _replay_lpm(jobs: list[Job], prompts: list[list[Edge]], runs: list[list[Edge]], capacity: int) -> int:
    """The order follows from the cache, and it from the order: the next use is that of the jobs still to come."""
    left, done = list(range(len(jobs))), set()
    computed = held = 0
    touched: dict[Edge, None] = {}
    users: dict[Edge, set[int]] = {}
    for number in left:
        for edge in (*prompts[number], *runs[number]):
            users.setdefault(edge, set()).add(number)
    while left:
        ready = [i for i in left if done.issuperset(jobs[i].after)]
        number = max(ready, key=lambda i: (sum(edge.cached for edge in prompts[i]), -i))
        left.remove(number)
        done.add(number)
        more, grown = _compute(jobs[number], prompts[number], runs[number])
        computed, held = computed + more + max(0, len(jobs[number].outputs) - 1), held + grown
        touched.update(dict.fromkeys(runs[number]))
        for edge in (*prompts[number], *runs[number]):
            users[edge].discard(number)
        held -= _evict(touched, held - capacity, lambda edge: min(users[edge], default=NEVER))
    return computed


def record(load: Workload, **options: Any) -> tuple[list[Job], Any]:
    """The requests of a run, and what it counted. One thread: on a busy machine a tool that is descheduled would count
    as one that blocks, and the order of the programs would follow from the clock."""
    with dslc.Engine(dtype="float32", **options) as engine:
        recording, before = Recording(engine), engine.counters()
        load.program.run_batch(load.rows, num_threads=1, backend=recording, temperature=0, seed=0, on_error="raise")
        return recording.jobs(), engine.counters() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.25, help="of the working set")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--eviction", default="next_use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| workload | working set | pool | computed | evicted | retracted | FCFS | LPM | DFS | ratio to the best |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for load in workloads(options.rows):
        if options.only and load.name not in options.only:
            continue
        jobs, _ = record(load)
        size = Trie([ids for job in jobs for ids in run_of(job)]).num_tokens
        longest = max(len(ids) + 1 for job in jobs for ids in run_of(job))
        pool = max(int(size * options.share), longest + 64)
        _, used = record(load, max_total_tokens=pool, radix_eviction_policy=options.eviction)
        computed = used.prefilled_tokens + used.recomputed_tokens
        replays = [replay(jobs, pool, order) for order in ("fcfs", "lpm", "dfs")]
        best = min(replays)
        cells = [
            load.name,
            size,
            pool,
            computed,
            used.evicted_tokens,
            used.preemptions,
            *replays,
            f"{computed / best:.3f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
