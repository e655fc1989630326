"""What the bookkeeping around a forward costs, without any model: `python benchmarks/scheduler.py [--quick] [PART]`.

- `steps`: the scheduler with a stand-in model, each policy at 1, 16, 256 and 1,024 running requests: microseconds per
  step of `schedule` (messages, admission, memory), `batch` (tensors, sampling parameters) and `resolve` (what tokens
  mean, and the events). Outputs end after 32 to 96 tokens and others wait, so that each step finishes and admits about
  1/64 of the requests, and all prompts share their first half. No arithmetic on logits: they and the draws are
  constants;
- `loads`: the same for simpler loads, and what a request costs more that streams its text or has stop strings;
- `queue`: steps of 64 running under churn while 100, 10,000 and 100,000 requests wait, first come first served;
- `full`: steps of 256 decodes with 0 to 1,048,576 tokens in the cache;
- `cost`: the share of throughput that the radix cache takes where nothing can hit, at 2 ms a forward;
- `cache`: match + insert of a 1,024-token prompt (page size 16) while 100,000 sequences are cached, and eviction;
- `order`: one ordering of 1, 16, 256 and 1,024 waiting requests, look-up of their cached prefixes included;
- `aging`: a simulated engine under more load than it can bear, a queue full of hot prefixes and a few cold requests:
  the cache's hit rate and how much later work went before the unluckiest request, each policy with and without the
  bound on overtaking, the bound printed beside it.

One thread. Times are medians and 99th percentiles of single calls, in microseconds; those of steps are medians of the
best third of the run, because other work on the machine comes in bursts.
"""

import argparse
import gc
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from standin_engine import (
    PHASES,
    VOCAB,
    Phases,
    fresh_prompts,
    make_engine,
    prompts,
    run_all_prefilled,
    submit,
    timed_steps,
)

from dslc.core.text.load import load_tokenizer
from dslc.runtime.loader import model_folder
from dslc.runtime.memory.prefix_cache import slots_of_pages
from dslc.runtime.memory.radix import RadixCache
from dslc.runtime.scheduling.in_flight import PrefillTrie
from dslc.runtime.scheduling.policies import (
    DEFAULT_AGING_TOKENS,
    LPM,
    SCHEDULE_POLICIES,
    Aging,
    WaitingView,
    schedule_policy,
)

PAGE = 16
NEVER = 10**12
RUNNING = (1, 16, 256, 1024)


def microseconds(times):
    """Median and 99th percentile of seconds, in microseconds."""
    ordered = sorted(times)
    return 1e6 * statistics.median(ordered), 1e6 * ordered[len(ordered) * 99 // 100]


def bench_steps(load, num_running, num_steps, policy="lpm"):
    """{"step", "p99", and each phase: median}. Loads: decodes; streams, stops: decodes that stream their text, or have
    stop strings; churn: outputs end and requests come; shared: churn, all prompts sharing their first half."""
    text = {"streams": {"stream": True}, "stops": {"stop": ("\n\n\n", "never", "the end")}}.get(load, {})
    tokenizer = load_tokenizer(model_folder(None, None)) if text else None
    engine = make_engine(num_running, schedule_policy=policy, tokenizer=tokenizer)
    with engine:
        phases = Phases(engine)
        if load in ("churn", "shared"):
            shared = prompts(1, 64, seed=1 << 30)[0] if load == "shared" else ()
            fresh = fresh_prompts(128 - len(shared))

            def top_up():
                missing = num_running // 8 + 1 - len(engine.scheduler.waiting)
                submit(engine, [shared + next(fresh) for _ in range(max(missing, 0))], 32, spread=64)

            submit(engine, [shared + next(fresh) for _ in range(num_running)], 1, spread=96)
            timed_steps(engine, 150, top_up, phases)
            times = timed_steps(engine, num_steps, top_up, phases)
        else:
            vocab_size = tokenizer.vocab_size if tokenizer else VOCAB
            submit(engine, prompts(num_running, 128, vocab_size=vocab_size), 3000, **text)
            run_all_prefilled(engine, num_running)
            timed_steps(engine, 20, phases=phases)
            times = timed_steps(engine, num_steps, phases=phases)
    return best_third(times)


def best_third(times):
    """{"step", "p99", and each phase: median} of timed steps."""
    third = len(times) // 3
    windows = [list(zip(*times[i : i + third], strict=True)) for i in range(0, 3 * third, third)]
    step, *parts = min(windows, key=lambda window: statistics.median(window[0]))
    phases_us = {name: microseconds(part)[0] for name, part in zip(PHASES, parts, strict=True)}
    return {"step": microseconds(step)[0], "p99": microseconds([row[0] for row in times])[1], **phases_us}


def bench_queue(num_waiting, num_steps, num_running=64):
    """As `bench_steps`, with that many requests waiting all the time."""
    engine = make_engine(num_running, schedule_policy="fcfs")
    with engine:
        phases = Phases(engine)
        fresh = fresh_prompts(64)

        def top_up():
            missing = num_running + num_waiting - engine.scheduler.num_waiting
            submit(engine, [next(fresh) for _ in range(missing)] if missing > num_running else [], 32, spread=64)

        timed_steps(engine, 60, top_up, phases)
        return best_third(timed_steps(engine, num_steps, top_up, phases))


def bench_full_cache(num_cached, num_steps):
    """Steps of 256 decodes with that many tokens in the cache: (median, p99)."""
    engine = make_engine(256, num_tokens=num_cached + (1 << 19))
    with engine:
        memory = engine.scheduler.memory
        rng = np.random.default_rng(1)
        for _ in range(num_cached // 1024):
            memory.cache.insert(rng.integers(0, VOCAB, 1024).astype(np.int32), memory.allocator.alloc(1024))
        submit(engine, prompts(256, 128), 3000)
        run_all_prefilled(engine, 256)
        timed_steps(engine, 20)
        return microseconds([step for (step,) in timed_steps(engine, num_steps)])


def bench_cache_cost(num_rounds, step_s=0.002):
    """(share of time that the radix cache adds where no prompt repeats, microseconds per request): 64 running, prompts
    of 256 tokens, outputs of 64, 2 ms a forward.

    From processor time, which other load changes less than wall time, both kinds in turns; the least of all rounds.
    """
    ids = prompts(256, 256)
    best = {True: 1e9, False: 1e9}
    for disabled in (True, False) * num_rounds:
        engine = make_engine(64, disable_radix_cache=disabled, num_tokens=1 << 16)
        with engine:
            submit(engine, ids, 64)
            gc.collect()
            begin = time.process_time()
            while engine.step():
                pass
            forwards = engine.counters().forwards
            best[disabled] = min(best[disabled], time.process_time() - begin + forwards * step_s)
    return best[False] / best[True] - 1, 1e6 * (best[False] - best[True]) / len(ids)


class Slots:
    """Fresh pages for ever: the benchmark never gives any back."""

    def __init__(self):
        self.next_page = 1

    def take(self, num_tokens):
        num_pages = num_tokens // PAGE
        self.next_page += num_pages
        return slots_of_pages(np.arange(self.next_page - num_pages, self.next_page), PAGE)


def filled_cache(num_sequences):
    """`num_sequences` prompts of 1,000 families: 512 tokens shared by the family, 128 their own."""
    rng = np.random.default_rng(0)
    cache, slots = RadixCache(PAGE), Slots()
    families = rng.integers(0, 32_000, (1000, 512)).astype(np.int32)
    for number in range(num_sequences):
        ids = np.concatenate([families[number % 1000], rng.integers(0, 32_000, 128).astype(np.int32)])
        cache.insert(ids, slots.take(640))
    return cache, slots, families, rng


def bench_cache(num_sequences, repeats):
    cache, slots, families, rng = filled_cache(num_sequences)
    rows = {}
    for name, shared in (("half of it cached", 512), ("nothing cached", 0)):
        match_times, insert_times, total = [], [], []
        for number in range(repeats):
            own = rng.integers(0, 32_000, 1024 - shared).astype(np.int32)
            ids = np.concatenate([families[number % 1000][:shared], own])
            begin = time.perf_counter()
            match = cache.match(ids[:-1])
            prefix = match.slots
            matched = time.perf_counter()
            all_slots = np.concatenate([prefix, slots.take(1024 - match.num_tokens)])
            before_insert = time.perf_counter()
            cache.insert(ids, all_slots)
            end = time.perf_counter()
            assert match.num_tokens == shared
            match_times.append(matched - begin)
            insert_times.append(end - before_insert)
            total.append(matched - begin + end - before_insert)
        rows[f"match + insert, {name}"] = microseconds(total)
        rows[f"  match, {name}"] = microseconds(match_times)
        rows[f"  insert, {name}"] = microseconds(insert_times)
    ids = families[0]
    last = cache.probe(ids)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        current = cache.is_current(last)
        times.append(time.perf_counter() - begin)
        assert current
    rows["is an earlier probe still right"] = microseconds(times)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        evicted = cache.evict(1024)
        times.append(time.perf_counter() - begin)
        assert len(evicted) == 64
    rows["evict 1,024 tokens"] = microseconds(times)
    return rows


def bench_order(repeats):
    cache, _, families, rng = filled_cache(10_000)
    rows = {}
    for count in (1, 16, 256, 1024):
        prompts = [
            np.concatenate([families[rng.integers(1000)], rng.integers(0, 32_000, 512).astype(np.int32)])
            for _ in range(count)
        ]
        probes = [cache.probe(prompt[:-1]) for prompt in prompts]
        for name in SCHEDULE_POLICIES:
            policy = Aging(schedule_policy(name))
            look_up, order = [], []
            for _ in range(repeats):
                begin = time.perf_counter()
                if policy.wants_prefixes(count):
                    probes = [
                        last if cache.is_current(last) else cache.probe(ids[:-1], last=last)
                        for ids, last in zip(prompts, probes, strict=True)
                    ]
                looked_up = time.perf_counter()
                waiting = [
                    WaitingView(n, 1024, probe.num_tokens, probe.node, n % 4, 100 + n * 7919 % 400)
                    for n, probe in enumerate(probes)
                ]
                before_order = time.perf_counter()
                policy.arrange(waiting)
                end = time.perf_counter()
                look_up.append(looked_up - begin)
                order.append(end - before_order)
            rows[f"{name}, {count} waiting"] = (microseconds(look_up)[0], microseconds(order)[0])
    return rows


def workload(num_requests, seed):
    """(arrival tick, ids, new tokens): nine of ten from hot families (Zipf), the rest cold, in bursts."""
    rng = np.random.default_rng(seed)
    families = [rng.integers(0, 32_000, int(size)).astype(np.int32) for size in rng.integers(128, 1024, 40)]
    weights = 1 / np.arange(1, 41)
    tick, requests = 0, []
    for _ in range(num_requests):
        tick += int(rng.integers(0, 2)) if rng.random() < 0.9 else int(rng.integers(0, 8))
        own = rng.integers(0, 32_000, int(rng.integers(16, 128))).astype(np.int32)
        if rng.random() < 0.9:
            own = np.concatenate([families[rng.choice(40, p=weights / weights.sum())], own])
        else:
            own = np.concatenate([rng.integers(0, 32_000, 512).astype(np.int32), own])
        requests.append((tick, own, int(rng.integers(8, 128))))
    return requests


def simulate(policy, bound, requests, *, pool=16_384, rows=32, budget=2048):
    """An engine that admits by `policy`, computes at most `budget` prompt tokens a tick, and one token a running
    request; returns (hit rate, most tokens any request was overtaken by, longest wait in ticks, ticks, R)."""
    cache, trie = RadixCache(), PrefillTrie()
    aging = Aging(policy, bound)
    free = list(range(pool, 0, -1))
    waiting, running, todo = {}, {}, list(enumerate(requests))[::-1]
    overtaken, waited, cached, total, tick, most_in_round = {}, {}, 0, 0, 0, 0
    while todo or waiting or running:
        while todo and todo[-1][1][0] <= tick:
            number, (_, ids, new) = todo.pop()
            waiting[number] = (ids, new, tick, None)
        numbers = list(waiting)
        views = []
        for number in numbers:
            ids, new, since, last = waiting[number]
            probe = last if last and cache.is_current(last) else cache.probe(ids[:-1], last=last)
            waiting[number] = (ids, new, since, probe)
            views.append(WaitingView(number, len(ids), probe.num_tokens, probe.node, 0, new))
        order, num_aged = aging.arrange(views)
        for number in numbers:
            overtaken[number] = aging.overtaken(number)
        left = budget - sum(len(state[0]) - state[2] for state in running.values())
        spent = 0
        for place, index in enumerate(order):
            if left <= 0 or len(running) >= rows:
                break
            number, view = numbers[index], views[index]
            ids, new, since, _ = waiting[number]
            if trie.holds_back(ids, view.num_cached):
                if place < num_aged:
                    break
                continue
            match = cache.match(ids[:-1])
            cache.lock(match.node)
            needed = len(ids) - match.num_tokens + new
            if needed > len(free) + cache.evictable_tokens:
                cache.unlock(match.node)
                break
            free += cache.evict(needed - len(free)).tolist()
            own = [free.pop() for _ in range(needed)]
            del waiting[number]
            trie.add(number, ids)
            waited[number] = tick - since
            aging.admitted(number, needed)
            spent += needed
            cached, total = cached + match.num_tokens, total + len(ids)
            running[number] = [ids, match.node, match.num_tokens, new, match.slots.tolist(), own]
            left -= len(ids) - match.num_tokens
        most_in_round = max(most_in_round, spent)
        left = budget
        for number, state in list(running.items()):
            ids, node, done, new, prefix, own = state
            if done < len(ids):
                state[2] = done = min(len(ids), done + left)
                left -= done - state[2]
                if done == len(ids):
                    slots = np.array(prefix + own)[: len(ids)]
                    result = cache.insert(ids, slots)
                    cache.lock(result.node)
                    cache.unlock(node)
                    state[1] = result.node
                    free += own[: result.num_cached - len(prefix)]
                    state[5] = own[len(ids) - len(prefix) :]
                    trie.remove(number)
            elif new > 1:
                state[3] -= 1
            else:
                cache.unlock(node)
                free += state[5]
                del running[number]
        tick += 1
    assert len(free) + cache.evictable_tokens == pool
    return cached / total, max(overtaken.values()), max(waited.values()), tick, most_in_round


def bench_aging(num_requests, bound):
    requests = workload(num_requests, seed=1)
    rows = {}
    policies = {name: schedule_policy(name) for name in SCHEDULE_POLICIES} | {"lpm always": LPM(NEVER)}
    for name, policy in policies.items():
        free_hits, free_most, free_wait, *_ = simulate(policy, NEVER, requests)
        hits, most, wait, ticks, round_most = simulate(policy, bound, requests)
        assert most <= bound + round_most
        rows[name] = {
            "hit rate": hits,
            "of that without aging": hits / free_hits,
            "overtaken by at most": most,
            "bound": bound + round_most,
            "without aging": free_most,
            "longest wait, ticks": wait,
            "longest wait without aging, ticks": free_wait,
            "ticks": ticks,
        }
    return rows


PARTS = ("steps", "loads", "queue", "full", "cost", "cache", "order", "aging")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, sequences and repeats")
    parser.add_argument("--aging-tokens", type=int, default=DEFAULT_AGING_TOKENS, help="bound on being overtaken")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; choices: {', '.join(PARTS)}")
    random.seed(0)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    results = {}
    for part in args.parts or PARTS:
        results[part] = globals()[f"print_{part}"](args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1), "utf-8")


def print_steps(args, loads=(("shared", tuple(SCHEDULE_POLICIES)),)):
    print("load      policy       running   schedule    batch  resolve     step us    p99 us")
    results = {}
    for load, policies in loads:
        for policy in policies:
            for num in RUNNING:
                row = bench_steps(load, num, 100 if args.quick else 300, policy)
                results[f"{load}, {policy}, {num} running"] = row
                parts = " ".join(f"{row[name]:8.1f}" for name in PHASES)
                print(f"{load:<9} {policy:<12} {num:7}   {parts} {row['step']:11.1f} {row['p99']:9.1f}", flush=True)
    return results


def print_loads(args):
    results = print_steps(args, tuple((load, ("lpm",)) for load in ("decodes", "streams", "stops", "churn")))
    for load in ("streams", "stops"):
        more = results[f"{load}, lpm, 256 running"]["step"] - results["decodes, lpm, 256 running"]["step"]
        results[f"{load}: more per request"] = more / 256
        print(f"{load}: {more / 256:.2f} us more per request at 256 running")
    return results


def print_queue(args):
    results = {}
    for num_waiting in (100, 10_000, 100_000):
        row = results[num_waiting] = bench_queue(num_waiting, 100 if args.quick else 300)
        print(
            f"64 running, {num_waiting:7,} waiting: schedule {row['schedule']:7.1f}, step {row['step']:7.1f}, "
            f"99th percentile {row['p99']:7.1f}",
            flush=True,
        )
    return results


def print_full(args):
    results = {}
    for num_cached in (0, 1 << 18, 1 << 20):
        results[num_cached] = median, p99 = bench_full_cache(num_cached, 100 if args.quick else 400)
        print(f"decodes, 256 running, {num_cached:>9,} tokens cached: {median:8.1f} {p99:9.1f}")
    return results


def print_cost(args):
    share, per_request = bench_cache_cost(5 if args.quick else 20)
    print(f"radix cache where nothing hits, 2 ms a step: {100 * share:+.2f} % time, {per_request:.1f} us a request")
    return {"share": share, "us per request": per_request}


def print_cache(args):
    num_sequences = 10_000 if args.quick else 100_000
    results = bench_cache(num_sequences, 300 if args.quick else 2000)
    print(f"cache ({num_sequences:,} sequences cached, page size {PAGE})       median us   p99 us")
    for name, (median, p99) in results.items():
        print(f"  {name:<52} {median:9.1f} {p99:8.1f}")
    return results


def print_order(args):
    results = bench_order(15 if args.quick else 100)
    print("order                                         look-up us   order us")
    for name, (look_up, order) in results.items():
        print(f"  {name:<42} {look_up:11.1f} {order:10.1f}")
    return results


def print_aging(args):
    results = bench_aging(600 if args.quick else 1500, args.aging_tokens)
    print(f"aging after {args.aging_tokens:,} tokens: hit rate, share of the policy's own; most overtaken, its bound")
    print("  policy        hits   share   overtaken     bound   (no aging)   wait   (no aging)   ticks")
    for name, row in results.items():
        print(
            f"  {name:<11} {row['hit rate']:6.1%} {row['of that without aging']:7.1%} {row['overtaken by at most']:11,}"
            f" {row['bound']:9,} {row['without aging']:12,} {row['longest wait, ticks']:6,}"
            f" {row['longest wait without aging, ticks']:12,} {row['ticks']:7,}"
        )
    return results


if __name__ == "__main__":
    main()
