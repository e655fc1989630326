"""Leases: random lives of requests over a small pool, a stand-in for the KV shows whose tokens a slot holds."""

import random

import numpy as np
import pytest

from dslc.core.errors import RequestError
from dslc.runtime.memory.allocator import MemoryAccountError, PageAllocator
from dslc.runtime.memory.eviction import EVICTION_POLICIES, eviction_policy
from dslc.runtime.memory.manager import MemoryManager
from dslc.runtime.memory.prefix_cache import ChunkCache, Namespace
from dslc.runtime.memory.radix import RadixCache
from dslc.runtime.memory.request_table import ReqToTokenPool


def manager_of(page_size=1, num_pages=48, rows=6, context=64, cache=None):
    cache = cache or RadixCache(page_size)
    return MemoryManager(ReqToTokenPool(rows, context), PageAllocator(num_pages, page_size), cache)


class World:
    """Requests over one manager. `content[slot]` names the (namespace, tokens so far) whose KV was computed there."""

    def __init__(self, page_size, cache, seed):
        self.rng = random.Random(seed)
        self.memory = manager_of(page_size, 96 // page_size, cache=cache)
        self.content = [None] * (96 + page_size)
        self.live = []  # [lease, ids, computed length]
        self.texts = [[self.rng.randrange(3) for _ in range(40)] for _ in range(5)]
        self.num_refused = self.num_ended = self.num_deduplicated = 0

    def compute(self, lease, ids, start, end):
        """A forward: KV appears in the slots the table names, and what it attends to must be this text's own."""
        slots = self.memory.table.slots(lease.row, 0, end)
        for position in range(start, end):
            self.content[slots[position]] = (lease.namespace, tuple(ids[: position + 1]))
        for position in range(end):
            assert self.content[slots[position]] == (lease.namespace, tuple(ids[: position + 1]))

    def start(self):
        text = self.rng.choice(self.texts)
        ids = text[: self.rng.randint(1, 40)] + [self.rng.randrange(3) for _ in range(self.rng.randint(0, 5))]
        lease = self.memory.acquire(
            np.array(ids, dtype=np.int32), Namespace(self.rng.choice(["", "", "x"])), next_use=self.rng.randint(-1, 5)
        )
        assert (lease is None) == (len(self.live) == 6)
        if lease is not None:
            assert lease.num_cached == lease.num_shared <= len(ids) - 1
            self.compute(lease, ids, lease.num_cached, lease.num_cached)
            self.live.append([lease, ids, lease.num_cached])

    def step(self):
        """One forward of some requests: a chunk of the prompt, or one new token."""
        chosen = self.rng.sample(self.live, self.rng.randint(1, len(self.live)))
        if self.rng.random() < 0.5:
            chosen = [state for state in chosen if len(state[1]) < 64]
            for state in chosen:
                if state[2] == len(state[1]):
                    state[1].append(self.rng.randrange(3))
        counts = [min(len(ids) - done, self.rng.randint(0, 12)) for _, ids, done in chosen]
        if chosen and all(counts) and self.rng.random() < 0.5:
            counts = [1] * len(chosen)
        size = self.memory.page_size
        needed = sum(-(-(d + n) // size) - -(-d // size) for (_, _, d), n in zip(chosen, counts, strict=True))
        available, evicted = self.memory.available_tokens, self.memory.cache.stats.evicted_tokens
        slots = self.memory.extend([lease for lease, _, _ in chosen], counts)
        if slots is None:
            self.num_refused += 1
            assert needed * size > available
            assert self.memory.cache.stats.evicted_tokens == evicted
            return
        assert needed * size <= available
        expected = [self.memory.table.slots(s[0].row, s[2], s[2] + n) for s, n in zip(chosen, counts, strict=True)]
        assert slots.tolist() == np.concatenate([np.zeros(0, dtype=np.int64), *expected]).tolist()
        for state, count in zip(chosen, counts, strict=True):
            self.compute(*state, state[2] + count)
            state[2] += count

    def share(self):
        lease, ids, done = self.rng.choice(self.live)
        free = self.memory.allocator.num_free_pages
        self.memory.commit(lease, np.array(ids[:done], dtype=np.int32), priority=self.rng.randint(0, 2))
        self.num_deduplicated += self.memory.allocator.num_free_pages > free
        if not isinstance(self.memory.cache, ChunkCache):
            assert lease.num_shared == max(done // self.memory.page_size * self.memory.page_size, lease.num_cached)
        self.compute(lease, ids, done, done)

    def cut(self):
        state = self.rng.choice(self.live)
        lease, ids, done = state
        length = self.rng.randint(lease.num_shared, done)
        self.memory.truncate(lease, length)
        state[1], state[2] = ids[: max(length, 1)], length

    def end(self):
        lease, ids, done = self.live.pop(self.rng.randrange(len(self.live)))
        keep = self.rng.choice([None, done, max(0, done - 1)])
        self.memory.release(lease, None if keep is None else ids[:keep])
        self.num_ended += 1

    def run(self, num_steps):
        for _ in range(num_steps):
            if not self.live or self.rng.random() < 0.2:
                self.start()
            else:
                self.rng.choices([self.step, self.share, self.cut, self.end], weights=[10, 4, 1, 4])[0]()
            self.memory.check_integrity()
        while self.live:
            self.end()
        self.memory.check_integrity()


@pytest.mark.parametrize(
    ("policy", "page_size"), [*((name, 4) for name in EVICTION_POLICIES), ("lru", 1), ("lru", 16), (None, 1), (None, 4)]
)
def test_random_lives_keep_every_page_and_never_mix_texts(policy, page_size):
    """A slot read for a token always holds the KV of exactly that text and namespace, and pages add up at each step;
    growth is refused only if free and evictable pages do not suffice, and then nothing is lost."""
    cache = RadixCache(page_size, eviction_policy(policy)) if policy else ChunkCache(page_size)
    world = World(page_size, cache, seed=page_size)
    world.run(1500)
    memory = world.memory
    assert memory.num_leases == 0 and memory.available_tokens == 96
    assert world.num_ended > 100 and world.num_refused > 10
    num_free = memory.allocator.num_free_tokens
    if policy:
        assert cache.stats.evicted_tokens > 100 and cache.stats.matched_tokens > 100
        assert world.num_deduplicated > 0 or page_size == 16
        assert memory.flush() == 96 - num_free
    assert memory.allocator.num_free_tokens == 96
    memory.check_integrity()


def test_the_last_prompt_token_is_always_computed():
    memory = manager_of()
    first = memory.acquire([1, 2, 3])
    memory.extend([first], [3])
    memory.release(first, [1, 2, 3])
    again = memory.acquire([1, 2, 3])
    assert again.num_cached == 2
    assert memory.acquire([1]).num_cached == 0


def test_nothing_is_matched_before_it_is_committed():
    memory = manager_of()
    first = memory.acquire([1, 2, 3, 4])
    memory.extend([first], [4])
    assert memory.cache.probe([1, 2, 3, 4]).num_tokens == 0
    memory.commit(first, [1, 2])
    assert memory.cache.probe([1, 2, 3, 4]).num_tokens == 2


def test_of_two_that_computed_the_same_one_goes_on_with_the_others_pages():
    memory = manager_of(page_size=2)
    one, two = memory.acquire([1, 2, 3, 4, 5]), memory.acquire([1, 2, 3, 4, 6])
    memory.extend([one, two], [5, 5])
    own = memory.table.slots(two.row, 0, 5).tolist()
    memory.commit(one, [1, 2, 3, 4, 5])
    memory.commit(two, [1, 2, 3, 4, 6])
    theirs = memory.table.slots(one.row, 0, 5).tolist()
    assert memory.table.slots(two.row, 0, 5).tolist() == theirs[:4] + own[4:]
    assert memory.allocator.num_free_pages == 48 - 4  # two shared, and a begun page each
    memory.check_integrity()


def test_failed_work_leaves_nothing_behind():
    memory = manager_of()
    lease = memory.acquire([1, 2, 3])
    memory.extend([lease], [3])
    memory.release(lease)
    assert memory.cache.probe([1, 2, 3]).num_tokens == 0
    assert memory.allocator.num_free_pages == 48 and not memory.table.host.any()
    with pytest.raises(MemoryAccountError, match="released twice"):
        memory.release(lease)


def test_misuse_is_named():
    memory = manager_of(context=8)
    lease = memory.acquire([1, 2, 3])
    memory.extend([lease], [3])
    with pytest.raises(MemoryAccountError, match="slots for 3 tokens, not for the 4"):
        memory.commit(lease, [1, 2, 3, 4])
    with pytest.raises(MemoryAccountError, match="cannot be cut to 4 of 3"):
        memory.truncate(lease, 4)
    memory.commit(lease, [1, 2])
    with pytest.raises(MemoryAccountError, match="cannot be cut to 1"):
        memory.truncate(lease, 1)
    with pytest.raises(MemoryAccountError, match="more than max_context_len 8"):
        memory.extend([lease], [6])
    with pytest.raises(ValueError, match="allocator pages of 2, cache pages of 1"):
        MemoryManager(memory.table, PageAllocator(4, 2), RadixCache(1))


def test_a_refused_extension_past_the_table_takes_no_page():
    memory = manager_of(context=8)
    lease = memory.acquire([1, 2, 3])
    with pytest.raises(MemoryAccountError):
        memory.extend([lease], [9])
    memory.check_integrity()
    memory.release(lease)
    with pytest.raises(MemoryAccountError, match="would hold 9 tokens, more than max_context_len 8"):
        memory.acquire(list(range(9)))
    memory.check_integrity()


def test_the_integrity_check_sees_a_leak_and_a_foreign_slot():
    memory = manager_of()
    lease = memory.acquire([1, 2, 3])
    memory.extend([lease], [3])
    memory.check_integrity()
    slot = memory.table.host[lease.row, 1]
    memory.table.host[lease.row, 1] = 9
    with pytest.raises(MemoryAccountError, match="free \\+ 0 cached"):
        memory.check_integrity()
    memory.table.host[lease.row, 1] = slot
    memory.commit(lease, [1, 2, 3])
    memory.check_integrity()
    memory.table.host[lease.row, 1] = 9
    with pytest.raises(MemoryAccountError, match="does not hold the cache's slots"):
        memory.check_integrity()


def test_a_pinned_document_outlives_pressure():
    memory = manager_of(cache=RadixCache(max_pinned_tokens=20))
    lease = memory.acquire(list(range(20)))
    memory.extend([lease], [20])
    memory.release(lease, list(range(20)))
    pin = memory.cache.pin(list(range(20)))
    other = memory.acquire([99])
    assert memory.extend([other], [29]) is None and memory.extend([other], [28]) is not None
    assert memory.cache.probe(list(range(20))).num_tokens == 20
    with pytest.raises(RequestError):
        memory.commit(other, [99] * 28) or memory.cache.pin([99] * 28)
    memory.cache.unpin(pin)
    assert memory.extend([other], [20]) is not None
    memory.check_integrity()


def test_a_next_use_counts_from_the_admission_and_not_from_the_end():
    """The prefix of `first` is wanted after two more requests: known until then, however late it is inserted."""
    memory = manager_of(cache=RadixCache(policy=eviction_policy("next_use")))
    first = memory.acquire([1, 2, 3], next_use=2)
    memory.extend([first], [3])
    memory.acquire([7])
    memory.release(first, [1, 2, 3], next_use=2)
    (node,) = memory.cache.nodes()
    assert node.next_use == 4 and memory.cache.num_uses == 2
    late = memory.acquire([1, 2, 4, 5], next_use=0)
    memory.extend([late], [2])
    for _ in range(2):
        memory.release(memory.acquire([8]))
    memory.release(late, [1, 2, 4, 5], next_use=0)  # its time is over: nothing is promised any more
    assert {node.next_use for node in memory.cache.nodes()} == {-1}
    memory.check_integrity()
