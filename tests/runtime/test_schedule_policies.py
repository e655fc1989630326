"""Orders of admission on hand-made queues, and the bound on being overtaken in simulation."""

import random
from dataclasses import dataclass

import pytest

from dslc.core.errors import ConfigError
from dslc.runtime.scheduling.policies import (
    FCFS,
    HRRN,
    LOF,
    LPM,
    SCHEDULE_POLICIES,
    Aging,
    DFSWeight,
    Now,
    Priority,
    Random,
    RoutingKey,
    ShortestPrefill,
    WaitingView,
    schedule_policy,
)


@dataclass(eq=False)
class Node:
    """A place in a tree, as a policy sees it."""

    name: str
    parent: "Node | None" = None


def arrivals(policy, waiting, *now):
    return [waiting[index].arrival for index in policy.order(waiting, *now)]


def queue(*views, seed=1):
    """The views in a shuffled list: an order must not depend on where a request stands in it."""
    shuffled = list(views)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def test_fcfs_is_the_order_of_arrival_whatever_else_differs():
    waiting = queue(*(WaitingView(n, 9 - n, n, priority=n % 3, expected_len=n * 7 % 5) for n in range(10)))
    assert arrivals(FCFS(), waiting) == list(range(10))


def test_lpm_takes_the_longest_cached_prefix_then_arrival():
    waiting = queue(WaitingView(0, 9, 2), WaitingView(1, 9, 5), WaitingView(2, 9, 0), WaitingView(3, 9, 5))
    assert arrivals(LPM(), waiting) == [1, 3, 0, 2]


def test_lpm_falls_back_to_fcfs_when_the_queue_is_long():
    waiting = queue(*(WaitingView(n, 200, n) for n in range(129)))
    assert not LPM(128).wants_prefixes(129) and LPM(128).wants_prefixes(128)
    assert arrivals(LPM(128), waiting) == list(range(129))
    assert arrivals(LPM(128), [w for w in waiting if w.arrival < 128]) == list(range(127, -1, -1))
    assert arrivals(LPM(), waiting) == list(range(128, -1, -1))
    assert LPM().wants_prefixes(1024) and not LPM().wants_prefixes(1025)


def test_dfs_weight_walks_the_heaviest_child_first():
    """root ─ a (3 wait below: a1 ×2, a itself ×1) ─ b (2: b1, b2) ─ c (2, later): heavy first, then early."""
    root = Node("root")
    a, b, c = (Node(name, root) for name in "abc")
    a1, b1, b2, c1 = Node("a1", a), Node("b1", b), Node("b2", b), Node("c1", c)
    waiting = queue(
        WaitingView(0, node=root),
        WaitingView(1, node=b2),
        WaitingView(2, node=b1),
        WaitingView(3, node=a),
        WaitingView(4, node=a1),
        WaitingView(5, node=c1),
        WaitingView(6, node=a1),
        WaitingView(7, node=c),
    )
    assert arrivals(DFSWeight(), waiting) == [4, 6, 3, 1, 2, 5, 7, 0]


def test_dfs_weight_keeps_namespaces_and_the_uncached_apart():
    """Two roots are walked like two children; requests without a node come last; partial matches longest first."""
    one, two = Node("one"), Node("two")
    waiting = queue(
        WaitingView(0),
        WaitingView(1, node=one),
        WaitingView(2, 9, 3, node=two),
        WaitingView(3, 9, 6, node=two),
    )
    assert arrivals(DFSWeight(), waiting) == [3, 2, 1, 0]


def below(node, nodes, waiting):
    """All that wait at or below a node."""
    deeper = [w for child in nodes if child.parent is node for w in below(child, nodes, waiting)]
    return deeper + [w for w in waiting if w.node is node]


def walk(node, nodes, waiting):
    """The stated order, written down recursively."""
    sizes = {child: below(child, nodes, waiting) for child in nodes if child.parent is node}
    children = [child for child in sizes if sizes[child]]
    children.sort(key=lambda child: (-len(sizes[child]), min(w.arrival for w in sizes[child])))
    own = sorted((w for w in waiting if w.node is node), key=lambda w: (-w.num_cached, w.arrival))
    return [w for child in children for w in walk(child, nodes, waiting)] + own


def test_dfs_weight_on_random_trees_against_recursion():
    for seed in range(200):
        rng = random.Random(seed)
        nodes = [Node("0")]
        for number in range(1, rng.randint(2, 12)):
            nodes.append(Node(str(number), rng.choice(nodes)))
        waiting = [WaitingView(n, 9, rng.randint(0, 3), rng.choice(nodes)) for n in range(rng.randint(1, 15))]
        rng.shuffle(waiting)

        assert arrivals(DFSWeight(), waiting) == [w.arrival for w in walk(nodes[0], nodes, waiting)]


def test_dfs_weight_needs_no_recursion():
    node = None
    for depth in range(5000):
        node = Node(str(depth), node)
    assert DFSWeight().order([WaitingView(1, node=node), WaitingView(0, node=node)]) == [1, 0]


def test_longest_output_and_shortest_prefill_first():
    waiting = queue(
        WaitingView(0, 50, 45, expected_len=10),
        WaitingView(1, 20, 0, expected_len=99),
        WaitingView(2, 90, 85, expected_len=10),
    )
    assert arrivals(LOF(), waiting) == [1, 0, 2]
    assert arrivals(ShortestPrefill(), waiting) == [0, 2, 1]


def test_highest_response_ratio_first():
    """(waited + service) / service, worked out by hand at two moments: the long one overtakes as it waits."""
    waiting = queue(
        WaitingView(0, 90, 0, expected_len=10, queued_step=0),  # service 100
        WaitingView(1, 30, 20, expected_len=10, queued_step=90),  # service 20: what is cached costs nothing
        WaitingView(2, 5, 0, expected_len=5, queued_step=98),  # service 10
        WaitingView(3, 5, 0, expected_len=5, queued_step=98),
    )
    # waited / service at step 100: 1.0, 0.5, 0.2, 0.2; at step 108: 1.08, 0.9, 1.0, 1.0; at 130: 1.3, 2.0, 3.2, 3.2
    assert arrivals(HRRN(), waiting, Now(100)) == [0, 1, 2, 3]
    assert arrivals(HRRN(), waiting, Now(108)) == [0, 2, 3, 1]
    assert arrivals(HRRN(), waiting, Now(130)) == [2, 3, 1, 0]
    assert arrivals(HRRN(), queue(*(WaitingView(n, 50 - n) for n in range(5)))) == [4, 3, 2, 1, 0]  # nobody waited


def test_the_routing_key_most_frequent_among_the_running_goes_first():
    keys = ["b", "", "a", "c", "b", "a"]
    waiting = queue(*(WaitingView(n, routing_key=key) for n, key in enumerate(keys)))
    assert arrivals(RoutingKey(), waiting, Now(5, ["a", "b", "a", "", "", ""])) == [2, 5, 0, 4, 1, 3]
    assert arrivals(RoutingKey(), waiting, Now(5, [])) == list(range(6))


def test_random_is_seeded_and_stable_as_the_queue_changes():
    waiting = queue(*(WaitingView(n) for n in range(50)))
    order = arrivals(Random(3), waiting)
    assert order == arrivals(Random(3), waiting[::-1]) and order != arrivals(Random(4), waiting)
    assert sorted(order) == list(range(50)) != order
    some = [w for w in waiting if w.arrival % 3]
    assert arrivals(Random(3), some) == [arrival for arrival in order if arrival % 3]
    firsts = [arrivals(Random(seed), waiting)[0] for seed in range(1000)]
    assert len(set(firsts)) == 50 and max(map(firsts.count, set(firsts))) < 50


def test_priority_goes_first_and_keeps_the_inner_order():
    waiting = queue(
        WaitingView(0, 9, 1, priority=1),
        WaitingView(1, 9, 8, priority=0),
        WaitingView(2, 9, 5, priority=1),
        WaitingView(3, 9, 9, priority=-2),
    )
    assert arrivals(Priority(), waiting) == [0, 2, 1, 3]
    assert arrivals(Priority(LPM()), waiting) == [2, 0, 1, 3]
    assert Priority(LPM()).wants_prefixes(5) and not Priority().wants_prefixes(5)


@pytest.mark.parametrize("name", SCHEDULE_POLICIES)
def test_every_policy_orders_every_queue(name):
    policy = schedule_policy(name, seed=7)
    assert policy.name == name and policy.order([]) == []
    waiting = queue(*(WaitingView(n, 10, n % 4, priority=n % 2, expected_len=n % 3) for n in range(40)))
    assert sorted(policy.order(waiting)) == list(range(40))


def test_an_unknown_policy_names_the_choices():
    with pytest.raises(ConfigError, match="schedule_policy: unknown policy 'lmp'; choices: fcfs, lpm, dfs-weight"):
        schedule_policy("lmp")


# -- aging ------------------------------------------------------------------------------------------------------------


def test_aging_changes_nothing_until_the_bound_is_reached():
    aging = Aging(LPM(), bound_tokens=100)
    old, new = WaitingView(0, 9, 0), WaitingView(1, 9, 8)
    assert aging.arrange([old, new]) == ([1, 0], 0)
    aging.admitted(1, 99)
    assert aging.arrange([old, WaitingView(2, 9, 8)]) == ([1, 0], 0)
    assert aging.overtaken(0) == 99
    aging.admitted(2, 1)
    assert aging.arrange([old, WaitingView(3, 9, 8)]) == ([0, 1], 1)


def test_being_passed_by_an_earlier_request_is_not_being_overtaken():
    aging = Aging(LOF(), bound_tokens=10)
    aging.arrange([WaitingView(4), WaitingView(6)])
    aging.admitted(2, 1000)
    aging.admitted(5, 7)
    aging.arrange([WaitingView(4), WaitingView(6)])
    assert (aging.overtaken(4), aging.overtaken(6)) == (7, 0)


def test_the_choices_of_one_request_do_not_overtake_each_other():
    aging = Aging(LOF(), bound_tokens=10)
    aging.arrange([WaitingView(4), WaitingView(4)])
    aging.admitted(4, 50)
    assert aging.arrange([WaitingView(4)]).num_aged == aging.overtaken(4) == 0


def test_the_aged_go_in_order_of_arrival():
    aging = Aging(LPM(), bound_tokens=5)
    waiting = [WaitingView(1, 9, 2), WaitingView(2, 9, 8), WaitingView(3, 9, 7), WaitingView(9, 9, 9)]
    assert aging.arrange(waiting) == ([3, 1, 2, 0], 0)
    aging.admitted(8, 5)
    assert aging.arrange(waiting) == ([0, 1, 2, 3], 3)
    assert aging.arrange(waiting[2:]) == ([0, 1], 1)  # the others were admitted or aborted
    assert aging.arrange(waiting[3:]) == ([0], 0)
    aging.admitted(9, 5)
    assert aging.arrange([]) == ([], 0) and aging.overtaken(3) == 0, "nothing is kept of what nobody waited for"


@pytest.mark.parametrize("name", SCHEDULE_POLICIES)
def test_a_policy_that_orders_by_arrival_says_so(name):
    """What the scheduler does not ask for is what it would have been told."""
    policy = schedule_policy(name, seed=7)
    waiting = [WaitingView(n, 10, n % 4, priority=n % 2, expected_len=n % 3) for n in range(1100)]
    for count in (1, 40, 1024, 1025, 1100):
        if policy.is_by_arrival(count):
            assert policy.order(waiting[:count]) == list(range(count))
    assert policy.is_by_arrival(1025) == (name in ("fcfs", "lpm")) and policy.is_by_arrival(40) == (name == "fcfs")


def test_a_bound_must_be_positive():
    with pytest.raises(ConfigError, match="aging_tokens: must be at least 1"):
        Aging(FCFS(), 0)


def simulate(aging, seed, *, steps=400, pool=64, round_tokens=24):
    """Rounds of admission with ever new requests that every policy prefers to an old one; returns what was observed.

    A tick admits up to `round_tokens` of work while it fits the pool; work is done one token a tick by each running
    request. Overtaking is recounted here from scratch, request by request.
    """
    rng = random.Random(seed)
    waiting, running, overtaken, most_in_a_round = [], [], {}, 0
    next_arrival = 0
    for _ in range(steps):
        running = [(left - 1, size) for left, size in running if left > 1]
        for _ in range(rng.choice([0, 1, 1, 2, 3]) if len(waiting) < 60 else 0):
            tokens = rng.choice([2, 3, 4, 20])
            hot = rng.random() < 0.9
            waiting.append(
                WaitingView(
                    next_arrival, tokens, tokens - 1 if hot else 0, None, int(hot), tokens + 4 if hot else tokens
                )
            )
            overtaken[next_arrival] = 0
            next_arrival += 1
        order, num_aged = aging.arrange(waiting)
        assert [waiting[i].arrival for i in order[:num_aged]] == sorted(
            a for a in (w.arrival for w in waiting) if overtaken[a] >= aging.bound_tokens
        )
        admitted, spent = [], 0
        for place, index in enumerate(order):
            view = waiting[index]
            cost = view.num_tokens - view.num_cached + view.expected_len
            fits = sum(size for _, size in running) + cost <= pool and spent + cost <= round_tokens
            is_held = rng.random() < 0.2  # its prefix is being computed
            if fits and not is_held:
                admitted.append(view)
                running.append((view.expected_len + 1, cost))
                spent += cost
                aging.admitted(view.arrival, cost)
                for other in waiting:
                    if other.arrival < view.arrival and other not in admitted:
                        overtaken[other.arrival] += cost
            elif place < num_aged:
                break
        most_in_a_round = max(most_in_a_round, spent)
        waiting = [view for view in waiting if view not in admitted]
    return overtaken, most_in_a_round


@pytest.mark.parametrize("name", SCHEDULE_POLICIES)
def test_no_request_is_overtaken_beyond_the_bound(name):
    """In simulation every policy keeps bound + one round; without aging the worst exceeds it by far."""
    for seed in range(4):
        overtaken, round_most = simulate(Aging(schedule_policy(name, seed=seed), 100), seed)
        assert max(overtaken.values()) <= 100 + round_most
        if name != "fcfs":
            free, _ = simulate(Aging(schedule_policy(name, seed=seed), 10**9), seed)
            assert max(free.values()) > 300
