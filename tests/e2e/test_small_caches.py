"""With a cache of a quarter of the working set, a batch computes hardly more than Belady's rule in the best order."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dslc
from dslc.compiler.account import Job
from dslc.compiler.hints import DONE, NEXT_TURN
from dslc.runtime.memory.eviction import eviction_policy
from dslc.runtime.memory.radix import RadixCache

sys.path.insert(0, str(Path(dslc.__file__).parent / "benchmarks"))
import belady
from workloads import workloads


@pytest.mark.slow  # minutes: each recording runs a workload twice
@pytest.mark.parametrize("name", ["chat, short answers", "document QA", "ReAct agent", "tree of thought"])
def test_a_quarter_of_the_working_set(name):
    torch.set_num_threads(1)
    (load,) = [load for load in workloads(24) if load.name == name]
    jobs, whole = belady.record(load)
    runs = [ids for job in jobs for ids in belady.run_of(job)]
    size = belady.Trie(runs).num_tokens
    pool = max(size // 4, max(map(len, runs)) + 65)
    assert pool < size
    _, used = belady.record(load, max_total_tokens=pool)
    assert used.evicted_tokens > whole.evicted_tokens == 0
    best = min(belady.replay(jobs, pool, order) for order in ("fcfs", "lpm", "dfs"))
    assert used.prefilled_tokens + used.recomputed_tokens <= 1.05 * best


def test_what_a_program_was_promised_ends_with_it():
    cache = RadixCache(policy=eviction_policy("next_use"))
    for ids in ([1, 2], [3, 4]):  # the first turns of two programs
        cache.insert(ids, np.array(ids), next_use=NEXT_TURN)
    cache.match([1, 2, 5], next_use=DONE)
    cache.insert([1, 2, 5], np.array([1, 2, 5]), next_use=DONE)  # the last turn of the first
    for other in ([6], [7]):
        cache.match(other)
    assert {node.key_ids: node.next_use >= 0 for node in map(_Seen, cache.nodes())} == {
        (1, 2): False, (5,): False, (3, 4): True,
    }  # fmt: skip
    assert sorted(cache.evict(3)) == [1, 2, 5] and cache.probe([3, 4]).num_tokens == 2


class _Seen:
    def __init__(self, node):
        self.key_ids = tuple(np.frombuffer(node.key, np.int32).tolist())
        self.next_use = node.next_use


def test_the_replay_on_cases_by_hand():
    a, b = (1, 2, 3, 4), (5, 6, 7, 8)
    jobs = [Job(a), Job(b), Job((*a, 9)), Job((*b, 9))]
    assert belady.replay(jobs, 100, "fcfs") == 4 + 4 + 1 + 1
    assert belady.replay(jobs, 5, "dfs") == belady.replay(jobs, 5, "lpm") == 4 + 1 + 4 + 1
    assert belady.replay(jobs, 5, "fcfs") == 4 + 4 + 1 + 5 - 1  # token by token: one of b is kept, all of a
    chain = [Job(a, ((7, 8),)), Job((*a, 7, 8, 9), ((1,),), after=(0,))]
    assert belady.replay(chain, 100, "fcfs") == 4 + 2  # the last sampled token, and what follows it
