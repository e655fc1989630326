"""Each eviction policy on one access log, beside an order worked out by hand."""

import numpy as np
import pytest

from dslc.core.errors import ConfigError
from dslc.runtime.memory.eviction import EVICTION_POLICIES, eviction_policy
from dslc.runtime.memory.prefix_cache import DEFAULT_NAMESPACE
from dslc.runtime.memory.radix import RadixCache

NAMES = "abcde"
INSERTED = [("a", 0), ("b", 2), ("c", 1), ("d", 0), ("e", 1)]  # in this order, with these priorities
MATCHED = "adbaaeb"  # afterwards


def run_log(policy, *, next_use=()):
    """A cache with five texts of one token each, after the log."""
    cache = RadixCache(policy=eviction_policy(policy))
    for name, priority in INSERTED:
        cache.insert([ord(name)], np.array([NAMES.index(name) + 1]), priority=priority)
    for name in MATCHED:
        cache.match([ord(name)])
    for name, distance in next_use:
        cache.match([ord(name)], next_use=distance)
    cache.check_integrity()
    return cache


def evicted_order(cache):
    order = ""
    while cache.evictable_tokens:
        order += "".join(NAMES[page - 1] for page in cache.evict(1).tolist())
        cache.check_integrity()
    return order


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("lru", "cdaeb"),  # last touched: c at insertion, then d, a, e, b
        ("lfu", "cdeba"),  # hits: c 0; d 1, e 1 (d longer ago); b 2; a 3
        ("fifo", "abcde"),
        ("mru", "beadc"),
        ("slru", "cdeab"),  # c, d, e on probation (fewer than 2 hits) by LRU; then a before b by LRU
        ("priority", "daceb"),  # priority 0: d, a by LRU; 1: c, e; 2: b
        ("next_use", "cdaeb"),  # no hints: LRU
    ],
)
def test_order_on_a_fixed_log(policy, expected):
    assert evicted_order(run_log(policy)) == expected


def test_next_use_evicts_the_unknown_first_and_then_the_farthest():
    hints = [("c", 40), ("a", 30), ("d", 50), ("b", -1)]
    assert evicted_order(run_log("next_use", next_use=hints)) == "ebdca"


def test_a_next_use_that_has_passed_counts_as_unknown():
    cache = run_log("next_use", next_use=[("a", 2), ("b", 100)])
    for _ in range(3):
        cache.match([ord("c")])
    cache.check_integrity()
    assert evicted_order(cache) == "deacb"


def test_an_inner_node_is_wanted_when_the_first_below_it_is():
    """a-b and a-c are wanted after 8 and 20 uses, d after 12: a, once a leaf, outlives d."""
    cache = RadixCache(policy=eviction_policy("next_use"))
    cache.insert([1, 2], np.array([1, 2]))
    cache.insert([1, 3], np.array([9, 3]))
    cache.insert([4], np.array([4]))
    cache.match([1, 2], next_use=8)
    cache.match([1, 3], next_use=20)
    cache.match([4], next_use=12)
    assert [cache.evict(1).tolist() for _ in range(4)] == [[3], [4], [2], [1]]


def test_hints_of_a_far_use_do_not_pile_up():
    """A hint that never comes true is forgotten with what it was for, not when its time comes."""
    cache = RadixCache(policy=eviction_policy("next_use"))
    for turn in range(3000):
        cache.insert([7, turn % 50], np.array([1, 2 + turn % 50]), next_use=10**9 + turn)
        cache.match([7, turn % 50], next_use=10**9 - turn)
        if turn % 10 == 0:
            cache.evict(1)
    assert len(cache._due) <= 256 and len(list(cache.nodes())) <= 51
    cache.check_integrity()


def test_an_unknown_policy_names_the_choices():
    with pytest.raises(ConfigError, match="radix_eviction_policy: unknown policy 'lrru'; choices: lru, lfu, fifo"):
        eviction_policy("lrru")


def test_a_namespace_with_more_than_one_leaf_shares_one_order_with_the_others():
    cache = RadixCache()
    spaces = [DEFAULT_NAMESPACE, DEFAULT_NAMESPACE._replace(cache_salt="x")]
    for number in range(6):
        cache.insert([number], np.array([number + 1]), spaces[number % 2])
    assert [cache.evict(1).tolist() for _ in range(6)] == [[n] for n in range(1, 7)]


def test_every_policy_has_its_own_name():
    assert all(make().name == name for name, make in EVICTION_POLICIES.items())
