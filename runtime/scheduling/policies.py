"""In which order waiting requests are admitted: small pure objects, tested without a model.

A policy only orders. What fits is admission's matter, and what must wait for another's prefix is `in_flight`'s.
`Aging` is put around any policy and bounds how much later work may go before a request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ...core.errors import ConfigError

LPM_FALLBACK_LEN = 1024
DEFAULT_AGING_TOKENS = 131_072
_MASK64 = 2**64 - 1


class TreeNode(Protocol):
    """A place in the prefix tree; all a policy asks of it is what lies above."""

    @property
    def parent(self) -> TreeNode | None: ...


class Waiting(Protocol):
    """What a policy sees of a waiting request; anything with these attributes will do."""

    @property
    def arrival(self) -> int:
        """Rises with the order of arrival. A retracted request keeps it; the choices of one request share it."""

    @property
    def num_tokens(self) -> int:
        """Tokens it must have in the cache to go on: its prompt, and its output so far if it was retracted."""

    @property
    def num_cached(self) -> int:
        """How many of them the prefix cache holds now. Only read by a policy that `wants_prefixes`."""

    @property
    def node(self) -> TreeNode | None:
        """Where the cached part ends in the tree. Only read by a policy that `wants_prefixes`."""

    @property
    def priority(self) -> int:
        """Higher goes first, where priorities are on."""

    @property
    def expected_len(self) -> int:
        """New tokens it is likely to generate; its limit if nothing better is known."""

    @property
    def queued_step(self) -> int:
        """The scheduler's step in which it was queued first."""

    @property
    def routing_key(self) -> str:
        """What its sender wants to run together with the like; "" for nothing."""


@dataclass(frozen=True, slots=True)
class WaitingView:
    """The plain form of `Waiting`."""

    arrival: int
    num_tokens: int = 1
    num_cached: int = 0
    node: TreeNode | None = None
    priority: int = 0
    expected_len: int = 0
    queued_step: int = 0
    routing_key: str = ""


class Now(NamedTuple):
    """What else an order may depend on: the number of the step, and the routing keys of what is running."""

    step: int = 0
    running_keys: Sequence[str] = ()


START = Now()


class Policy(Protocol):
    """An order of admission."""

    name: str

    def wants_prefixes(self, num_waiting: int) -> bool:
        """Whether `order` of that many requests reads `num_cached` and `node`; if not, none need be looked up."""

    def is_by_arrival(self, num_waiting: int) -> bool:
        """Whether that many would be ordered by arrival: then nobody need ask, and a long queue costs nothing."""

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        """The indices of `waiting`, first to be admitted first. Pure: the same arguments, the same order."""


class FCFS:
    """First come, first served."""

    name = "fcfs"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return False

    def is_by_arrival(self, num_waiting: int) -> bool:
        return True

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        return sorted(range(len(waiting)), key=[w.arrival for w in waiting].__getitem__)


class LPM:
    """Longest cached prefix first; FCFS among equals, and for all when more than `fallback_len` wait.

    The bound keeps a round's work small: looking up and sorting takes about 0.5 us a request when the cache remembers
    where it looked before (benchmarks/scheduler.py), which is why it can be higher than the customary 128.
    """

    name = "lpm"

    def __init__(self, fallback_len: int = LPM_FALLBACK_LEN) -> None:
        self.fallback_len = fallback_len

    def wants_prefixes(self, num_waiting: int) -> bool:
        return num_waiting <= self.fallback_len

    def is_by_arrival(self, num_waiting: int) -> bool:
        return not self.wants_prefixes(num_waiting)

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        if self.is_by_arrival(len(waiting)):
            return FCFS().order(waiting, now)
        keys = [(-w.num_cached, w.arrival) for w in waiting]
        return sorted(range(len(waiting)), key=keys.__getitem__)


class DFSWeight:
    """A depth-first walk of the prefix tree, into the child first below which most requests wait.

    So requests under one branch run together while its pages are held. Below a node, its children come before the
    requests that end there (by longest cached part, then arrival); equally heavy children by the earliest arrival.
    """

    name = "dfs-weight"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return True

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        ending: dict[TreeNode | None, list[int]] = {}
        for index, request in enumerate(waiting):
            ending.setdefault(request.node, []).append(index)
        rank: dict[TreeNode | None, list[int]] = {}  # [- requests below, earliest arrival below]
        children: dict[TreeNode | None, list[TreeNode]] = {}  # None stands above all roots
        for end, indices in ending.items():
            if len(indices) > 1:
                indices.sort(key=lambda index: (-waiting[index].num_cached, waiting[index].arrival))
            first = min(waiting[index].arrival for index in indices)
            at = end
            while at is not None:
                above = at.parent
                known = rank.get(at)
                if known is None:
                    rank[at] = [-len(indices), first]
                    children.setdefault(above, []).append(at)
                else:
                    known[0] -= len(indices)
                    known[1] = min(known[1], first)
                at = above
        order: list[int] = []
        todo: list[tuple[TreeNode | None, bool]] = [(None, False)]
        while todo:
            node, is_left = todo.pop()
            below = None if is_left else children.get(node)
            if below is None:
                order += ending.get(node, ())
                continue
            todo.append((node, True))
            below.sort(key=rank.__getitem__, reverse=True)
            todo += [(child, False) for child in below]
        return order


class LOF:
    """Longest expected output first: long ones overlap with more of the short ones."""

    name = "lof"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return False

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        keys = [(-w.expected_len, w.arrival) for w in waiting]
        return sorted(range(len(waiting)), key=keys.__getitem__)


class ShortestPrefill:
    """Fewest tokens to compute first."""

    name = "spf"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return True

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        keys = [(w.num_tokens - w.num_cached, w.arrival) for w in waiting]
        return sorted(range(len(waiting)), key=keys.__getitem__)


class Random:
    """By a number drawn from (seed, arrival): a request's place among others never changes while it waits."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def wants_prefixes(self, num_waiting: int) -> bool:
        return False

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        arrivals = np.array([w.arrival for w in waiting], dtype=np.uint64)
        drawn = _splitmix64(_splitmix64(np.array([self.seed & _MASK64], dtype=np.uint64)) ^ arrivals)
        order: list[int] = np.lexsort((arrivals, drawn)).tolist()
        return order


class HRRN:
    """Highest response ratio next (Brinch Hansen, 1971): (waited + service) / service, waiting counted in steps and
    service in tokens to compute and to generate. Short ones first, and long ones the sooner the longer they wait."""

    name = "hrrn"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return True

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        def key(w: Waiting) -> tuple[float, int, int]:
            service = max(1, w.num_tokens - w.num_cached + w.expected_len)
            return -(now.step - w.queued_step) / service, service, w.arrival

        keys = [key(w) for w in waiting]
        return sorted(range(len(waiting)), key=keys.__getitem__)


class RoutingKey:
    """Requests whose routing key is the most frequent among those running first: one sender's work, one adapter's or
    one tenant's stays together. FCFS among equals; a key that is not running, and no key, count as 0."""

    name = "routing-key"

    def wants_prefixes(self, num_waiting: int) -> bool:
        return False

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        counts = Counter(key for key in now.running_keys if key)
        keys = [(-counts[w.routing_key], w.arrival) for w in waiting]
        return sorted(range(len(waiting)), key=keys.__getitem__)


class Priority:
    """Highest priority first, and within one priority the order of `within`."""

    name = "priority"

    def __init__(self, within: Policy | None = None) -> None:
        self.within: Policy = within or FCFS()

    def wants_prefixes(self, num_waiting: int) -> bool:
        return self.within.wants_prefixes(num_waiting)

    def is_by_arrival(self, num_waiting: int) -> bool:
        return False

    def order(self, waiting: Sequence[Waiting], now: Now = START) -> list[int]:
        return sorted(self.within.order(waiting, now), key=lambda index: -waiting[index].priority)


SCHEDULE_POLICIES: dict[str, Callable[[int], Policy]] = {
    FCFS.name: lambda seed: FCFS(),
    LPM.name: lambda seed: LPM(),
    DFSWeight.name: lambda seed: DFSWeight(),
    LOF.name: lambda seed: LOF(),
    ShortestPrefill.name: lambda seed: ShortestPrefill(),
    Random.name: lambda seed: Random(seed),
    HRRN.name: lambda seed: HRRN(),
    RoutingKey.name: lambda seed: RoutingKey(),
    Priority.name: lambda seed: Priority(),
}


def schedule_policy(name: str, *, seed: int = 0) -> Policy:
    """The policy of that name; only "random" reads the seed. Raises ConfigError listing the choices."""
    if name not in SCHEDULE_POLICIES:
        raise ConfigError(f"unknown policy {name!r}; choices: {', '.join(SCHEDULE_POLICIES)}", field="schedule_policy")
    return SCHEDULE_POLICIES[name](seed)


class Arrangement(NamedTuple):
    """Indices in the order of admission; the first `num_aged` of them are a barrier: see `Aging`."""

    order: Sequence[int]
    num_aged: int


class Aging:
    """Any policy, with a bound on being overtaken.

    A request is *overtaken* by the tokens of every request admitted while it waits that arrived after it: the prompt
    tokens to be computed plus the new tokens expected (`admitted` is told them). Once that sum reaches `bound_tokens`
    the request is *aged*: the aged go first, in order of arrival.

    The scheduler keeps to two rules. It calls `arrange` at the start of every round of admission, `admitted` for every
    request it admits. And the aged are a barrier: when an aged request cannot be admitted now (no memory, no row, or
    its prefix is just being computed), nothing behind it is admitted in this round.

    The bound: no request is ever overtaken by more than bound_tokens + R tokens, R being the most that one round
    admits. (Below the bound when the round begins, it can be overtaken by that round's admissions only; above, by
    none: before it go only requests that arrived earlier.) So it waits at most for the work that was there when it
    arrived, and bound_tokens + R tokens more.

    Who arrived earlier has been overtaken by at least as much. So only what arrived after the oldest of those that wait
    is remembered, and the aged are the first of the queue: the account costs nothing per waiting request. (One that was
    retracted is taken to have waited all the time.)
    """

    def __init__(self, policy: Policy, bound_tokens: int = DEFAULT_AGING_TOKENS) -> None:
        if bound_tokens < 1:
            raise ConfigError(f"must be at least 1, not {bound_tokens}", field="aging_tokens")
        self.policy = policy
        self.bound_tokens = bound_tokens
        self._later: list[tuple[int, int]] = []  # (arrival, tokens) of those admitted, by arrival; since the oldest
        self._num_later_tokens = 0

    def wants_prefixes(self, num_waiting: int) -> bool:
        """As of the policy within."""
        return self.policy.wants_prefixes(num_waiting)

    def arrange(self, waiting: Sequence[Waiting], now: Now = START) -> Arrangement:
        """The order of admission for this round, of a queue that stands in order of arrival."""
        self._forget_before(waiting[0].arrival if waiting else None)
        by_arrival = self.policy.is_by_arrival(len(waiting))
        order: Sequence[int] = range(len(waiting)) if by_arrival else self.policy.order(waiting, now)
        if self._num_later_tokens < self.bound_tokens:
            return Arrangement(order, 0)
        num_aged = bisect_left(waiting, self._aged_before(), key=lambda one: one.arrival)
        if not by_arrival:
            order = [*range(num_aged), *(index for index in order if index >= num_aged)]
        return Arrangement(order, num_aged)

    def admitted(self, arrival: int, num_tokens: int) -> None:
        """A request was admitted: `num_tokens` prompt tokens to compute plus new tokens expected."""
        insort(self._later, (arrival, num_tokens))
        self._num_later_tokens += num_tokens

    def overtaken(self, arrival: int) -> int:
        """By how many tokens a waiting request has been overtaken."""
        return sum(tokens for _, tokens in self._later[bisect_right(self._later, (arrival, math.inf)) :])

    def _forget_before(self, oldest: int | None) -> None:
        """Whom nobody that waits was overtaken by."""
        count = len(self._later) if oldest is None else bisect_right(self._later, (oldest, math.inf))
        if count:
            self._num_later_tokens -= sum(tokens for _, tokens in self._later[:count])
            del self._later[:count]

    def _aged_before(self) -> int:
        """The latest arrival so far that those before it have been overtaken by the bound."""
        total = 0
        for arrival, tokens in reversed(self._later):
            total += tokens
            if total >= self.bound_tokens:
                return arrival
        return -1


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Steele, Lea & Flood (2014): well mixed 64-bit numbers from others."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
