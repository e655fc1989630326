"""The radix cache against a model that knows no tree: a table from every cached prefix of whole pages to its page."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dslc.core.errors import RequestError
from dslc.runtime.memory.allocator import MemoryAccountError, PageAllocator
from dslc.runtime.memory.eviction import EVICTION_POLICIES, eviction_policy
from dslc.runtime.memory.prefix_cache import ChunkCache, Namespace, slots_of_pages
from dslc.runtime.memory.radix import RadixCache

PREFIX = tuple[str, tuple[int, ...]]  # namespace, tokens


def slots_for(pages, page_size):
    return slots_of_pages(np.asarray(pages, dtype=np.int64), page_size)


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_longest_common_prefix_of_random_sequences(page_size):
    """10,000 sequences: what matches is the longest prefix, in whole pages, any earlier sequence began with."""
    rng = random.Random(page_size)
    cache = RadixCache(page_size)
    known: dict[tuple[int, ...], int] = {}  # prefix of whole pages -> page
    next_page = 1
    history: list[list[int]] = []
    for step in range(10_000):
        if history and rng.random() < 0.7:
            base = rng.choice(history)
            ids = base[: rng.randint(0, len(base))] + [rng.randrange(3) for _ in range(rng.randint(0, 2 * page_size))]
        else:
            ids = [rng.randrange(3) for _ in range(rng.randint(0, 5 * page_size))]
        ends = range(page_size, len(ids) + 1, page_size)
        expected = []
        for end in ends:
            if tuple(ids[:end]) not in known:
                break
            expected.append(known[tuple(ids[:end])])
        probe = cache.probe(np.array(ids, dtype=np.int32))
        match = cache.match(ids if step % 2 else np.array(ids, dtype=np.int64))
        assert match.num_tokens == probe.num_tokens == len(expected) * page_size
        assert match.pages.tolist() == expected
        assert match.slots.tolist() == slots_for(expected, page_size).tolist()
        assert match.node.end == match.num_tokens
        pages = list(range(next_page, next_page + len(ends)))
        next_page += len(ends)
        slots = np.concatenate([slots_for(pages, page_size), np.full(len(ids) % page_size, 7)])
        done = cache.insert(ids, slots)
        assert (done.num_cached, done.end) == (len(expected) * page_size, len(ends) * page_size)
        for end, page in zip(ends, pages, strict=True):
            known.setdefault(tuple(ids[:end]), page)
        history.append(ids)
        if step % 1000 == 0:
            cache.check_integrity()
    cache.check_integrity()
    assert cache.evictable_tokens == len(known) * page_size
    assert sorted(cache.all_pages().tolist()) == sorted(known.values())


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_prefixes_around_page_boundaries(page_size):
    cache = RadixCache(page_size)
    ids = list(range(3 * page_size))
    cache.insert(ids, slots_for([5, 3, 8], page_size))
    for length in (page_size - 1, page_size, page_size + 1, 3 * page_size - 1, 3 * page_size, 3 * page_size + 1):
        query = [*ids, 999][:length]
        expected = min(length, 3 * page_size) // page_size * page_size
        assert cache.match(query).num_tokens == expected
        assert cache.match(query).slots.tolist() == slots_for([5, 3, 8], page_size)[:expected].tolist()
    cache.check_integrity()


def test_namespaces_never_share():
    cache = RadixCache()
    names = [Namespace(), Namespace("a"), Namespace("b"), Namespace("a", "lora"), Namespace("", "a")]
    for number, name in enumerate(names):
        assert cache.match([1, 2, 3], name).num_tokens == 0
        assert cache.insert([1, 2, 3], np.arange(3) + 10 * number + 1, name).num_cached == 0
    for number, name in enumerate(names):
        assert cache.match([1, 2, 3], Namespace(*name)).slots.tolist() == [10 * number + i for i in (1, 2, 3)]
    cache.check_integrity()
    cache.evict(1000)
    assert not cache._roots and not cache._namespace_of  # nothing stays of a salt that was used once
    cache.check_integrity()


def test_match_compares_tokens_and_not_hashes():
    """Ids that a 32-bit cast, or int hashing of -1 and -2, would confuse are refused or told apart."""
    cache = RadixCache()
    cache.insert(np.array([-1, 5], dtype=np.int32), np.array([1, 2]))
    assert hash(-1) == hash(-2)
    assert cache.match(np.array([-2, 5], dtype=np.int32)).num_tokens == 0
    for ids in ([2**32 - 1, 5], np.array([2**32 - 1, 5]), np.array([2**32 - 1], dtype=np.uint32)):
        with pytest.raises(RequestError, match="32 bits"):
            cache.match(ids)


def test_a_held_node_survives_splits():
    cache = RadixCache()
    done = cache.insert([1, 2, 3, 4, 5, 6], np.arange(1, 7))
    cache.lock(done.node)
    cache.match([1, 2, 3, 9])
    cache.match([1, 9])
    assert done.node.end == 6 and cache.pages_of(done.node).tolist() == [1, 2, 3, 4, 5, 6]
    assert cache.pages_of(done.node, 2).tolist() == [3, 4, 5, 6]
    assert cache.evict(100).tolist() == []
    cache.unlock(done.node)
    cache.check_integrity()
    assert sorted(cache.evict(100).tolist()) == [1, 2, 3, 4, 5, 6]


def test_a_node_evicted_between_match_and_lock_is_refused():
    cache = RadixCache()
    node = cache.insert([1, 2], np.array([1, 2])).node
    cache.evict(2)
    with pytest.raises(MemoryAccountError, match="evicted since"):
        cache.lock(node)


def test_a_probe_never_goes_on_from_a_leaf_that_grew():
    """What it remembers is the leaf as it was: its new tokens may be others than those asked for."""
    cache = RadixCache()
    node = cache.insert([1, 2, 3], np.array([1, 2, 3])).node
    cache.lock(node)
    last = cache.probe([1, 2, 3, 9, 9, 9])
    grown = cache.extend(node, [4, 5], np.array([4, 5]))
    assert grown == (3, 5, node) and cache.pages_of(node).tolist() == [1, 2, 3, 4, 5]
    assert not cache.is_current(last)
    assert cache.probe([1, 2, 3, 9, 9, 9], last=last).num_tokens == 3
    assert cache.match([1, 2, 3, 4, 9]).num_tokens == 4
    cache.check_integrity()


def test_a_leaf_that_was_cut_does_not_grow():
    """Cut to [1], held again and lengthened by other tokens: a look-up from before must not take them for its own."""
    cache = RadixCache()
    node = cache.insert([1, 2, 3], np.array([1, 2, 3])).node
    last = cache.probe([1, 2, 3, 9])
    cache.evict(2)
    cache.lock(node)
    assert cache.extend(node, [7], np.array([7])).node is not node
    assert cache.probe([1, 2, 3, 9], last=last).num_tokens == 1
    cache.check_integrity()


def test_how_much_a_lock_would_take_from_what_can_be_evicted():
    cache = RadixCache()
    node = cache.insert([1, 2, 3, 4], np.arange(1, 5)).node
    cache.insert([1, 2, 8, 9], np.array([1, 2, 8, 9]))
    for ids in ([1, 2, 3], [1, 2, 8, 9], [1], [5]):
        probe, before = cache.probe(ids), cache.evictable_tokens
        expected = cache.evictable_part(probe)
        match = cache.match(ids)
        cache.lock(match.node)
        assert before - cache.evictable_tokens == expected == match.num_tokens
        cache.unlock(match.node)
    cache.lock(node)
    assert [cache.evictable_part(cache.probe(ids)) for ids in ([1, 2, 3], [1, 2], [1, 2, 8], [5])] == [0, 0, 1, 0]


def test_unlock_without_lock_is_an_error():
    cache = RadixCache()
    node = cache.insert([1, 2], np.array([1, 2])).node
    with pytest.raises(MemoryAccountError, match="not locked"):
        cache.unlock(node)


def test_eviction_takes_what_is_missing_and_keeps_the_rest():
    cache = RadixCache(4)
    cache.insert(list(range(40)), slots_for(range(1, 11), 4))
    told = []
    cache.on_evict = told.append
    assert cache.evict(9).tolist() == [8, 9, 10]
    assert cache.match(list(range(40))).num_tokens == 28
    assert told == [12] and cache.stats.evicted_tokens == 12
    assert len(cache.evict(10**6)) == 7 and cache.evict(1).tolist() == []
    assert told == [12, 28]


def test_deep_chains_need_no_recursion():
    cache = RadixCache()
    ids: list[int] = []
    for step in range(1500):
        ids.append(step)
        cache.insert(ids, np.arange(1, step + 2))
    node = cache.match(ids).node
    cache.lock(node)
    cache.check_integrity()
    cache.unlock(node)
    assert len(cache.evict(5000)) == 1500


def test_pins_hold_until_unpinned_and_are_limited():
    cache = RadixCache(max_pinned_tokens=5)
    cache.insert([1, 2, 3, 4], np.array([1, 2, 3, 4]))
    cache.insert([1, 2, 7, 8, 9], np.array([0, 0, 7, 8, 9]))
    first = cache.pin([1, 2, 3])
    assert (first.num_tokens, cache.pinned_tokens) == (3, 3)
    second = cache.pin([1, 2, 7, 8])  # two tokens of it are pinned already
    assert (second.num_tokens, cache.pinned_tokens) == (4, 5)
    with pytest.raises(RequestError, match="1 more pinned tokens would make 6; the limit is 5"):
        cache.pin([1, 2, 3, 4])
    assert sorted(cache.evict(100).tolist()) == [4, 9]
    cache.unpin(first)
    assert cache.pinned_tokens == 4 and cache.evict(100).tolist() == [3]
    with pytest.raises(RequestError, match="not held"):
        cache.unpin(first)
    cache.check_integrity()
    cache.unpin(second)
    assert sorted(cache.evict(100).tolist()) == [1, 2, 7, 8] and cache.pinned_tokens == 0


def test_a_pin_of_nothing_cached_holds_nothing():
    cache = RadixCache()
    handle = cache.pin([1, 2, 3])
    assert handle.num_tokens == 0
    cache.unpin(handle)
    cache.check_integrity()


def test_a_probe_goes_on_from_the_last_one_and_sees_what_changed():
    """Equal to a probe from the start after every kind of change, while it changes nothing itself."""
    rng = random.Random(5)
    cache = RadixCache(2)
    allocator = PageAllocator(60, 2)
    texts = [[rng.randrange(2) for _ in range(24)] for _ in range(12)]
    last = [None] * len(texts)
    asked = [cache.probe(text) for text in texts]
    resumed = unchanged = 0
    for _ in range(3000):
        action, text = rng.random(), rng.choice(texts)[: rng.randint(0, 24)]
        if action < 0.3:
            match = cache.match(text)
            cache.lock(match.node)
            pages = allocator.alloc(len(text) // 2 - match.num_tokens // 2)
            if pages is not None:
                slots = np.concatenate([match.slots, slots_for(pages, 2), [0] * (len(text) % 2)])
                assert cache.insert(text, slots).num_cached == match.num_tokens
            cache.unlock(match.node)
        elif action < 0.5:
            allocator.free(cache.evict(rng.randint(1, 20)))
        for number, text in enumerate(texts):
            ids = text[: rng.randint(20, 24)]
            fresh = cache.probe(ids)
            going_on = cache.probe(ids, last=last[number])
            assert going_on.num_tokens == fresh.num_tokens
            resumed += last[number] is not None and last[number].node.end > 0
            last[number] = going_on
            whole = cache.probe(text)
            if cache.is_current(asked[number]):
                unchanged += 1
                assert asked[number] == whole or asked[number].num_tokens == whole.num_tokens == 0
            asked[number] = whole
            assert cache.is_current(whole) or whole.num_tokens == 0
        cache.check_integrity()
    assert resumed > 1000 and unchanged > 1000


def test_a_probe_of_a_namespace_that_went_and_came_again_is_not_current():
    cache = RadixCache()
    cache.insert([1], np.array([1]))
    probe = cache.probe([2, 3])
    match = cache.match([2, 3])
    cache.evict(1)
    cache.insert([2, 3], np.array([2, 3]))
    assert probe.num_tokens == 0 and not cache.is_current(probe)
    cache.lock(match.node)  # a match of nothing may be locked whatever happened since
    cache.unlock(match.node)
    cache.check_integrity()


def test_the_order_of_eviction_does_not_grow_with_use():
    cache = RadixCache()
    for number in range(100):
        cache.insert([number, 1], np.array([2 * number + 1, 2 * number + 2]))
    for number in range(5000):
        match = cache.match([number % 100, 1])
        cache.lock(match.node)
        cache.unlock(match.node)
    assert len(cache._heap) <= 258  # 100 valid entries; swept when the outdated ones outnumber them beyond 256
    cache.check_integrity()


def test_the_cache_that_keeps_nothing_has_the_same_verbs():
    cache = ChunkCache(4)
    assert cache.insert(list(range(8)), np.arange(8)).end == 0
    match = cache.match(list(range(8)))
    assert (match.num_tokens, match.slots.tolist()) == (0, [])
    cache.lock(match.node)
    cache.unlock(match.node)
    handle = cache.pin([1])
    cache.unpin(handle)
    with pytest.raises(RequestError, match="not held"):
        cache.unpin(handle)
    assert cache.probe([1, 2]).num_tokens == cache.evictable_tokens == cache.protected_tokens == 0
    public = [name for name in dir(RadixCache) if not name.startswith("_") and name not in ("nodes",)]
    assert all(hasattr(cache, name) for name in public)


@dataclass
class PageStats:
    """What an eviction policy sees, for one page."""

    page: int
    created: int
    last_access: int
    priority: int
    hits: int = 0
    next_use: int = -1
    locks: int = 0


class CacheModel:
    """Every cached prefix of whole pages with its page and stats. Evicts page by page: the end page of a cached text
    whose rank is lowest, if it is not locked. No nodes, no splits, no heap."""

    def __init__(self, page_size: int, policy: str) -> None:
        self.page_size = page_size
        self.policy = eviction_policy(policy)
        self.pages: dict[PREFIX, PageStats] = {}
        self.clock = self.uses = 0

    def prefixes(self, space: str, ids: tuple[int, ...]) -> list[PREFIX]:
        return [(space, ids[:end]) for end in range(self.page_size, len(ids) + 1, self.page_size)]

    def path(self, space: str, ids: tuple[int, ...]) -> list[PageStats]:
        found = []
        for prefix in self.prefixes(space, ids):
            if prefix not in self.pages:
                break
            found.append(self.pages[prefix])
        return found

    def note_next_use(self, path: list[PageStats], next_use: int) -> None:
        if self.policy.name != "next_use":
            return
        wanted = self.uses + next_use + 1 if next_use >= 0 else -1
        for stats in path:
            times = [time for time in (stats.next_use, wanted) if time > self.uses]
            stats.next_use = min(times, default=-1)

    def match(self, space: str, ids: tuple[int, ...], next_use: int) -> list[int]:
        self.clock += 1
        self.uses += 1
        path = self.path(space, ids)
        for stats in path:
            stats.last_access = self.clock
            stats.hits += 1
        self.note_next_use(path, next_use)
        for stats in self.pages.values():
            if stats.next_use < self.uses:
                stats.next_use = -1
        return [stats.page for stats in path]

    def insert(self, space: str, ids: tuple[int, ...], pages: list[int], priority: int, next_use: int) -> int:
        prefixes = self.prefixes(space, ids)
        if not prefixes:
            return 0
        self.clock += 1
        num_cached = len(self.path(space, ids))
        for prefix, page in zip(prefixes[num_cached:], pages[num_cached:], strict=True):
            self.pages[prefix] = PageStats(page, self.clock, self.clock, priority)
        path = self.path(space, ids)
        for stats in path:
            stats.last_access = self.clock
            stats.priority = max(stats.priority, priority)
        self.note_next_use(path, next_use)
        return num_cached * self.page_size

    def evict(self, num_pages: int) -> set[int]:
        gone = set()
        for _ in range(num_pages):
            inner = {(space, ids[: -self.page_size]) for space, ids in self.pages}
            leaves = [p for p, stats in self.pages.items() if p not in inner and not stats.locks]
            if not leaves:
                break
            ranks = {prefix: self.policy.rank(self.pages[prefix]) for prefix in leaves}
            lowest = min(ranks, key=ranks.__getitem__)
            assert list(ranks.values()).count(ranks[lowest]) == 1, "a tie: the order would be left to chance"
            gone.add(self.pages.pop(lowest).page)
        return gone


class CacheMachine(RuleBasedStateMachine):
    """All verbs in any order, on few tokens and few pages, each answer compared with the model's."""

    spaces = st.sampled_from(["", "salt"])
    texts = st.lists(st.integers(0, 1), max_size=12).map(tuple)
    hints = st.integers(-1, 6)

    @initialize(page_size=st.sampled_from([1, 2, 3]), policy=st.sampled_from(sorted(EVICTION_POLICIES)))
    def begin(self, page_size, policy):
        self.cache = RadixCache(page_size, eviction_policy(policy), max_pinned_tokens=15)
        self.model = CacheModel(page_size, policy)
        self.free = list(range(1, 26))
        self.locks = []  # (node, the model's pages)
        self.pins = []

    def compare(self):
        self.cache.check_integrity()
        size, pages = self.model.page_size, self.model.pages.values()
        assert sorted(self.cache.all_pages().tolist()) == sorted(stats.page for stats in pages)
        assert self.cache.protected_tokens == size * sum(stats.locks > 0 for stats in pages)
        assert self.cache.evictable_tokens == size * sum(stats.locks == 0 for stats in pages)
        pinned = {id(stats) for _, path in self.pins for stats in path}
        assert self.cache.pinned_tokens == size * len(pinned)
        names = ("created", "last_access", "hits", "priority", "next_use")
        by_page = {stats.page: [getattr(stats, name) for name in names] for stats in pages}
        for node in self.cache.nodes():
            for page in node.pages.tolist():
                assert by_page[page] == [getattr(node, name) for name in names]

    @rule(ids=texts, space=spaces, next_use=hints)
    def match(self, ids, space, next_use):
        match = self.cache.match(ids, Namespace(space), next_use=next_use)
        assert match.pages.tolist() == self.model.match(space, ids, next_use)
        self.compare()

    @rule(ids=texts, space=spaces, priority=st.integers(0, 2), next_use=hints)
    def compute_and_insert(self, ids, space, priority, next_use):
        """As a request does: its own pages behind what is cached, and some computed twice."""
        path = self.model.path(space, ids)
        cached = [stats.page for stats in path][: len(path) - len(ids) % 2]
        needed = len(ids) // self.model.page_size - len(cached)
        if needed > len(self.free):
            return
        pages = cached + [self.free.pop() for _ in range(needed)]
        slots = np.concatenate([slots_for(pages, self.model.page_size), [0] * (len(ids) % self.model.page_size)])
        done = self.cache.insert(ids, slots, Namespace(space), priority=priority, next_use=next_use)
        assert done.num_cached == self.model.insert(space, ids, pages, priority, next_use)
        assert done.end == len(pages) * self.model.page_size == done.node.end
        self.free += pages[len(cached) : done.num_cached // self.model.page_size]
        self.compare()

    @rule(ids=texts, space=spaces)
    def match_and_lock(self, ids, space):
        match = self.cache.match(ids, Namespace(space))
        self.model.match(space, ids, -1)
        self.cache.lock(match.node)
        path = self.model.path(space, ids)
        for stats in path:
            stats.locks += 1
        self.locks.append((match.node, path, space, ids[: match.num_tokens]))
        self.compare()

    @precondition(lambda self: self.locks)
    @rule(number=st.integers(0, 99), more=texts, priority=st.integers(0, 2), next_use=hints)
    def compute_and_extend(self, number, more, priority, next_use):
        """As a request does that goes on: what it computed behind its locked prefix, some of it others' work too."""
        place = number % len(self.locks)
        node, path, space, prefix = self.locks[place]
        size = self.model.page_size
        num_new = len(more) // size
        if not num_new or num_new > len(self.free):
            return
        ids = (*prefix, *more[: num_new * size])
        pages = [self.free.pop() for _ in range(num_new)]
        slots = np.concatenate([slots_for(pages, size), [0] * (len(more) % size)])
        before = node.end
        done = self.cache.extend(node, more, slots, Namespace(space), priority=priority, next_use=next_use)
        cached = self.model.insert(space, ids, [stats.page for stats in path] + pages, priority, next_use)
        assert (done.num_cached, done.end, done.node.end) == (cached, len(ids), len(ids))
        whole = self.model.path(space, ids)
        for stats in whole[len(path) :]:
            stats.locks += 1
        if done.node is node and node.end > before:  # the leaf grew: it keeps its time of creation
            for stats in whole[len(path) :]:
                stats.created = node.created
        self.free += pages[: (cached - len(prefix)) // size]
        self.locks[place] = done.node, whole, space, ids
        self.compare()

    @precondition(lambda self: self.locks)
    @rule(number=st.integers(0, 99))
    def unlock(self, number):
        node, path, *_ = self.locks.pop(number % len(self.locks))
        assert self.cache.pages_of(node).tolist() == [stats.page for stats in path]
        self.cache.unlock(node)
        for stats in path:
            stats.locks -= 1
        self.compare()

    @rule(num_tokens=st.integers(0, 12))
    def evict(self, num_tokens):
        pages = self.cache.evict(num_tokens).tolist()
        assert set(pages) == self.model.evict(-(-num_tokens // self.model.page_size)) and len(set(pages)) == len(pages)
        self.free += pages
        self.compare()

    @rule(ids=texts, space=spaces)
    def pin(self, ids, space):
        path = self.model.path(space, ids)
        pinned = {id(stats) for _, other in self.pins for stats in other} | {id(stats) for stats in path}
        if len(pinned) * self.model.page_size > 15:
            with pytest.raises(RequestError, match="limit is 15"):
                self.cache.pin(ids, Namespace(space))
        else:
            handle = self.cache.pin(ids, Namespace(space))
            assert handle.num_tokens == len(path) * self.model.page_size
            for stats in path:
                stats.locks += 1
            self.pins.append((handle, path))
        self.compare()

    @precondition(lambda self: self.pins)
    @rule(number=st.integers(0, 99))
    def unpin(self, number):
        handle, path = self.pins.pop(number % len(self.pins))
        self.cache.unpin(handle)
        for stats in path:
            stats.locks -= 1
        with pytest.raises(RequestError, match="not held"):
            self.cache.unpin(handle)
        self.compare()


def test_all_verbs_in_any_order_against_the_model():
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("policy", sorted(EVICTION_POLICIES))
def test_long_random_runs_against_the_model(policy):
    """The same machine, driven at random for long enough that pages run short and the heap is swept."""
    rng = random.Random(policy)
    machine = CacheMachine()
    machine.begin(2, policy)
    for _ in range(1500):
        ids = tuple(rng.randrange(2) for _ in range(rng.randint(0, 12)))
        space, hint = rng.choice(["", "salt"]), rng.randint(-1, 6)
        action = rng.random()
        if action < 0.3:
            machine.match(ids, space, hint)
        elif action < 0.6:
            machine.compute_and_insert(ids, space, rng.randint(0, 2), hint)
        elif action < 0.7:
            machine.match_and_lock(ids, space)
        elif action < 0.78 and machine.locks:
            more = tuple(rng.randrange(2) for _ in range(rng.randint(0, 6)))
            machine.compute_and_extend(rng.randint(0, 99), more, rng.randint(0, 2), hint)
        elif action < 0.84 and machine.locks:
            machine.unlock(rng.randint(0, 99))
        elif action < 0.92:
            machine.evict(rng.randint(1, 6))
        elif action < 0.95:
            machine.pin(ids, space)
        elif machine.pins:
            machine.unpin(rng.randint(0, 99))
    assert machine.cache.stats.evicted_tokens > 100
