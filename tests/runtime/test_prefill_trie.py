"""Prefixes in flight: exact against brute force, and the account of a batch that arrives together."""

import random

import numpy as np
import pytest

from dslc.runtime.memory.prefix_cache import Namespace, slots_of_pages
from dslc.runtime.memory.radix import RadixCache
from dslc.runtime.scheduling.in_flight import PrefillTrie
from dslc.runtime.scheduling.policies import SCHEDULE_POLICIES, Aging, WaitingView, schedule_policy


def common_len(a, b):
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


@pytest.mark.parametrize("page_size", [1, 4])
def test_shared_length_against_brute_force(page_size):
    rng = random.Random(page_size)
    trie = PrefillTrie(page_size)
    in_flight: dict[int, tuple[str, list[int]]] = {}
    for step in range(4000):
        ids = [rng.randrange(2) for _ in range(rng.randint(0, 14))]
        space = rng.choice("ab")
        if rng.random() < 0.5:
            trie.add(step, ids, Namespace(space))
            in_flight[step] = space, ids
        elif in_flight:
            gone = rng.choice(sorted(in_flight))
            del in_flight[gone]
            trie.remove(gone)
        if len(in_flight) > 20:
            for owner in in_flight:
                trie.remove(owner)
            in_flight = {}
            assert not trie._roots
        query = [rng.randrange(2) for _ in range(rng.randint(0, 14))]
        lengths = [common_len(query, other) for where, other in in_flight.values() if where == space]
        expected = max(lengths, default=0) // page_size * page_size
        assert trie.shared_len(np.array(query, dtype=np.int32), Namespace(space)) == expected
        assert len(trie) == len(in_flight) and all(owner in trie for owner in in_flight)


def test_owners_are_counted_once():
    trie = PrefillTrie()
    trie.add("a", [1, 2])
    with pytest.raises(ValueError, match="'a' is in flight already"):
        trie.add("a", [3])
    trie.remove("a")
    trie.remove("a")  # an abort after the prefill is over
    assert len(trie) == 0 and trie.shared_len([1, 2]) == 0


def test_who_is_held_back():
    trie = PrefillTrie()
    trie.add("a", [1, 2, 3, 4])
    assert trie.holds_back([1, 2, 3, 9], 2)
    assert not trie.holds_back([1, 2, 3, 9], 3)  # all that is shared is cached by now
    assert not trie.holds_back([7, 2, 3], 0)
    assert not trie.holds_back([1], 0)  # its only token runs in any case
    assert not trie.holds_back([1, 2, 3, 9], 0, Namespace("salt"))


def run_batch(prompts, policy, *, chunk, rows, seed):
    """Prompts that arrive together, through cache, policy and trie, with prefill in chunks; returns what was computed.

    No model: a "forward" computes each admitted request's next tokens; afterwards, and not before, they are cached.
    """
    cache, trie, aging = RadixCache(), PrefillTrie(), Aging(policy)
    waiting = dict(enumerate(prompts))
    running: dict[int, list] = {}  # number -> [locked node, slots so far]
    computed, wholly_cached, next_slot = 0, 0, 1
    rng = random.Random(seed)
    for _ in range(10_000):
        if not waiting and not running:
            return computed, wholly_cached, cache
        numbers = list(waiting)
        probes = [cache.probe(waiting[n][:-1]) for n in numbers]
        views = [
            WaitingView(n, len(waiting[n]), probe.num_tokens, probe.node, n % 3, rng.randint(1, 9))
            for n, probe in zip(numbers, probes, strict=True)
        ]
        order, num_aged = aging.arrange(views)
        for place, index in enumerate(order):
            number, view = numbers[index], views[index]
            ids = waiting[number]
            if len(running) == rows:
                break
            if trie.holds_back(ids, view.num_cached):
                if place < num_aged:
                    break
                continue
            match = cache.match(ids[:-1])
            assert match.num_tokens == view.num_cached
            wholly_cached += max(cache.probe(ids).num_tokens, trie.shared_len(ids)) == len(ids)
            cache.lock(match.node)
            trie.add(number, ids)
            aging.admitted(number, len(ids) - match.num_tokens)
            running[number] = [match.node, match.slots.tolist()]
            del waiting[number]
        for number, (node, slots) in list(running.items()):
            ids = prompts[number]
            end = min(len(ids), len(slots) + chunk)
            new = list(range(next_slot, next_slot + end - len(slots)))
            next_slot += len(new)
            computed += len(new)
            done = cache.insert(ids[:end], np.array(slots + new))
            cache.lock(done.node)
            cache.unlock(node)
            running[number] = [done.node, slots_of_pages(cache.pages_of(done.node), 1).tolist()]
            if end == len(ids):
                trie.remove(number)
                cache.unlock(done.node)
                del running[number]
    raise AssertionError("the batch does not come to an end")


@pytest.mark.parametrize("name", SCHEDULE_POLICIES)
def test_a_batch_computes_each_node_of_its_trie_once(name):
    """Computed tokens = nodes of the prompts' trie + 1 for each request found wholly cached; whatever the policy, the
    chunks and the number of rows."""
    for seed in range(12):
        rng = random.Random(seed)
        stems = [[rng.randrange(3) for _ in range(rng.randint(1, 30))] for _ in range(4)]
        prompts = []
        for _ in range(40):
            stem = rng.choice(stems)
            tail = [rng.randrange(2) for _ in range(rng.choice([0, 0, 1, 3, 9]))]
            prompts.append((stem[: rng.randint(1, len(stem))] if rng.random() < 0.4 else stem) + tail)
        nodes = {tuple(ids[:end]) for ids in prompts for end in range(1, len(ids) + 1)}
        computed, wholly_cached, cache = run_batch(
            prompts, schedule_policy(name), chunk=rng.choice([1, 7, 1000]), rows=rng.choice([1, 5, 64]), seed=seed
        )
        assert computed == len(nodes) + wholly_cached
        assert cache.evictable_tokens == len(nodes) and cache.protected_tokens == 0
        cache.check_integrity()


def test_identical_prompts_prefill_once():
    prompts = [list(range(50))] * 32
    computed, wholly_cached, _ = run_batch(prompts, schedule_policy("lpm"), chunk=16, rows=32, seed=0)
    assert (computed, wholly_cached) == (50 + 31, 31)
