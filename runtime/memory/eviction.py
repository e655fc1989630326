"""Which unlocked leaf of the radix tree goes first when memory is short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Rank = tuple[float, ...]


class LeafStats(Protocol):
    """What a policy may look at. Times are the tree's own clock: one tick per match or insert."""

    last_access: int
    """When a match or an insert last went through the node."""
    created: int
    """When its first tokens were inserted; both halves of a split node keep it."""
    hits: int
    """How many matches went through the node."""
    priority: int
    """The highest priority of a request that inserted through it."""
    next_use: int
    """At which future use (`RadixCache.num_uses`) it is wanted again; -1 never, or unknown."""


class EvictionPolicy(Protocol):
    """Ranks leaves: the lowest rank is evicted first. A pure function of the node's stats."""

    name: str

    def rank(self, leaf: LeafStats) -> Rank: ...


class LRU:
    """Least recently used first."""

    name = "lru"

    def rank(self, leaf: LeafStats) -> Rank:
        return (leaf.last_access,)


class LFU:
    """Fewest hits first; among equals the least recently used."""

    name = "lfu"

    def rank(self, leaf: LeafStats) -> Rank:
        return (leaf.hits, leaf.last_access)


class FIFO:
    """Oldest insertion first, however often it was used since."""

    name = "fifo"

    def rank(self, leaf: LeafStats) -> Rank:
        return (leaf.created, leaf.last_access)


class MRU:
    """Most recently used first: right for scans longer than the pool that come round again."""

    name = "mru"

    def rank(self, leaf: LeafStats) -> Rank:
        return (-leaf.last_access,)


class SLRU:
    """Segmented LRU (Karedla et al. 1994): what was hit fewer than twice goes before what was hit more, each by LRU."""

    name = "slru"
    hits_to_protect = 2

    def rank(self, leaf: LeafStats) -> Rank:
        return (leaf.hits >= self.hits_to_protect, leaf.last_access)


class Priority:
    """Lowest request priority first; among equals the least recently used."""

    name = "priority"

    def rank(self, leaf: LeafStats) -> Rank:
        return (leaf.priority, leaf.last_access)


class NextUse:
    """Belady's rule (1966) from the Schedule's hints: first what has no known next use (by LRU), then the farthest.

    A hint whose time has passed counts as unknown: the tree clears it.
    """

    name = "next_use"

    def rank(self, leaf: LeafStats) -> Rank:
        if leaf.next_use < 0:
            return (0, leaf.last_access)
        return (1, -leaf.next_use, leaf.last_access)


EVICTION_POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    policy.name: policy for policy in (LRU, LFU, FIFO, MRU, SLRU, Priority, NextUse)
}


def eviction_policy(name: str) -> EvictionPolicy:
    """The policy of that name. Raises ConfigError listing the choices."""
    if name not in EVICTION_POLICIES:
        raise ConfigError(
            f"unknown policy {name!r}; choices: {', '.join(EVICTION_POLICIES)}", field="radix_eviction_policy"
        )
    return EVICTION_POLICIES[name]()
