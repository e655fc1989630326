"""Trim and minimise a table automaton whose state 0 is dead."""

from __future__ import annotations

from typing import Any

import numpy as np

from .native import given, library, written

IntArray = np.ndarray[Any, np.dtype[np.int32]]
LongArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

MAX_MINIMISED = 4000
_SMALL = 3000  # cells
_MOORE_ROUNDS = 48
CYCLIC = -1


def minimise(delta: IntArray, labels: IntArray, start: int) -> tuple[IntArray, IntArray, int]:
    """The minimal automaton of the same meaning: `delta` [S, C], `labels` [S] (0: not accepting), start state.

    Texts keep their labels and columns their meaning; state 0 is dead, and the only state that cannot reach
    acceptance. Unreachable states are dropped. Automata of more than MAX_MINIMISED states are only trimmed.
    """
    if delta.size <= _SMALL:
        return _minimise_small(delta, labels, start)
    kept = _reachable(delta, start)
    renumber = np.zeros(delta.shape[0], np.int32)
    renumber[kept] = np.arange(len(kept), dtype=np.int32)
    delta, labels, start = renumber[delta[kept]], labels[kept], int(renumber[start])
    return _merged(delta, labels, start, partition(delta, labels))


def partition(delta: IntArray, labels: IntArray) -> LongArray:
    """For each state the number of its block; states of a block have equal futures. Those that cannot reach acceptance
    are in state 0's. Automata of more than MAX_MINIMISED states get a block for each other state."""
    columns = _distinct_columns(delta)
    distance, height = distances(columns, labels != 0)
    if delta.shape[0] > MAX_MINIMISED:
        return np.where(distance < 0, 0, np.arange(len(distance)))
    # All three are properties of a state's language, so that equal states start in one block.
    scale = int(max(distance.max(), height.max())) + 3
    keys = (labels.astype(np.int64) * scale + distance + 2) * scale + height + 2
    blocks, stable = _moore(columns, np.unique(keys, return_inverse=True)[1].reshape(-1))
    return blocks if stable else _hopcroft(columns, blocks)


def _merged(delta: IntArray, labels: IntArray, start: int, blocks: LongArray) -> tuple[IntArray, IntArray, int]:
    """One state per block, that of state 0 first."""
    distinct, first, inverse = np.unique(blocks, return_index=True, return_inverse=True)
    dead = int(np.searchsorted(distinct, blocks[0]))
    number = np.arange(len(distinct)) + (np.arange(len(distinct)) < dead)
    number[dead] = 0
    state = number[inverse.reshape(-1)].astype(np.int32)
    representative = np.zeros(len(distinct), np.int64)
    representative[number] = first
    return state[delta[representative]], labels[representative], int(state[start])


def _distinct_columns(delta: IntArray) -> IntArray:
    seen: dict[bytes, int] = {}
    for c in range(delta.shape[1]):
        seen.setdefault(delta[:, c].tobytes(), c)
    return delta[:, list(seen.values())]


def _minimise_small(delta: IntArray, labels: IntArray, start: int) -> tuple[IntArray, IntArray, int]:
    """The same without arrays, whose overhead is most of the time on small tables."""
    rows, label_of = delta.tolist(), labels.tolist()
    reached, todo = {start, 0}, [start]
    sources: dict[int, set[int]] = {}
    for s in todo:
        for t in set(rows[s]):
            sources.setdefault(t, set()).add(s)
            if t not in reached:
                reached.add(t)
                todo.append(t)
    todo = [s for s in reached if s and label_of[s]]
    alive = set(todo)
    for s in todo:
        new = sources.get(s, set()) - alive - {0}
        alive |= new
        todo.extend(new)
    states = [0, *sorted(alive)]
    block = dict.fromkeys(reached, 0)
    block.update({s: label_of[s] + 1 for s in alive})
    columns = list(dict.fromkeys(zip(*(rows[s] for s in states), strict=True)))
    short = dict(zip(states, zip(*columns, strict=True), strict=True)) if columns else dict.fromkeys(states, ())
    count = len(set(block.values()))
    while True:
        number: dict[tuple[int, ...], int] = {(0,): 0}
        after = {s: number.setdefault((block[s], *(block[t] for t in short[s])), len(number)) for s in states[1:]}
        block.update(after)
        block[0] = 0
        if len(number) == count:
            break
        count = len(number)
    representative = {block[s]: s for s in reversed(states)}
    order = [representative[b] for b in range(count)]
    table = [[block[t] if t in alive else 0 for t in rows[s]] for s in order]
    table[0] = [0] * delta.shape[1]
    made = np.array(table, np.int32).reshape(count, delta.shape[1])
    return made, np.array([label_of[s] if s else 0 for s in order], np.int32), block[start] if start in alive else 0


def _reachable(delta: IntArray, start: int) -> LongArray:
    """The reachable states in ascending order; the dead one always counts."""
    seen = bytearray(delta.shape[0])
    seen[0] = seen[start] = 1
    todo = [start]
    while todo:
        for target in set(delta[todo.pop()].tolist()):
            if not seen[target]:
                seen[target] = 1
                todo.append(target)
    return np.flatnonzero(np.frombuffer(bytes(seen), np.uint8)).astype(np.int64)


def _edges_by_target(delta: IntArray) -> tuple[LongArray, list[int]]:
    """Distinct (source, target) pairs sorted by target, and for each target where its sources begin."""
    num_states = delta.shape[0]
    keys = delta.astype(np.int64) * num_states + np.arange(num_states)[:, None]
    pairs = np.unique(keys)
    starts = np.searchsorted(pairs, np.arange(num_states + 1, dtype=np.int64) * num_states)
    return pairs % num_states, starts.tolist()


def distances(delta: IntArray, accept: BoolArray) -> tuple[LongArray, LongArray]:
    """Per state: length of the shortest text (-1: none) and of the longest (`CYCLIC`: unbounded, -2: none)."""
    lib = library()
    if lib is not None:
        table, ends = np.ascontiguousarray(delta, np.int32), np.ascontiguousarray(accept).view(np.uint8)
        low, high = np.empty(len(table), np.int64), np.empty(len(table), np.int64)
        lib.distances(*table.shape, given(table), given(ends), written(low), written(high))
        return low, high
    return distances_in_python(delta, accept)


def distances_in_python(delta: IntArray, accept: BoolArray) -> tuple[LongArray, LongArray]:
    sources_array, starts = _edges_by_target(delta)
    sources = sources_array.tolist()
    num_states = len(starts) - 1
    shortest = [-1] * num_states
    level = np.flatnonzero(accept).tolist()
    for s in level:
        shortest[s] = 0
    depth = 0
    while level:
        depth += 1
        following = []
        for s in level:
            for p in sources[starts[s] : starts[s + 1]]:
                if shortest[p] < 0:
                    shortest[p] = depth
                    following.append(p)
        level = following
    # Longest: peel states whose live successors are all done, from the ends backwards.
    live = np.array(shortest) >= 0
    out_degree = [0] * num_states
    for s in range(num_states):
        if live[s]:
            for p in sources[starts[s] : starts[s + 1]]:
                out_degree[p] += 1
    longest = [CYCLIC if alive else -2 for alive in live.tolist()]
    ready = [s for s in range(num_states) if live[s] and not out_degree[s]]
    height = [0] * num_states
    for s in ready:
        longest[s] = height[s]
        for p in sources[starts[s] : starts[s + 1]]:
            height[p] = max(height[p], height[s] + 1)
            out_degree[p] -= 1
            if not out_degree[p]:
                ready.append(p)
    return np.array(shortest, np.int64), np.array(longest, np.int64)


def _moore(delta: IntArray, blocks: LongArray) -> tuple[LongArray, bool]:
    """Split blocks by where their states go, some rounds long. Returns (blocks, whether they are stable)."""
    random = np.random.default_rng(0x5EED)
    count = int(blocks.max()) + 1
    for _ in range(_MOORE_ROUNDS):
        # A random linear hash of each state's row of target blocks; checked exactly below.
        mix = random.integers(0, 2**63, count, dtype=np.uint64)
        columns = random.integers(0, 2**63, delta.shape[1], dtype=np.uint64) | np.uint64(1)
        signature = (mix[blocks[delta]] * columns).sum(axis=1, dtype=np.uint64) + mix[blocks] * np.uint64(
            0x9E3779B97F4A7C15
        )
        split = np.unique(signature, return_inverse=True)[1].reshape(-1)
        new_count = int(split.max()) + 1
        if new_count == count:
            representative = np.zeros(count, np.int64)
            representative[split] = np.arange(len(split))
            if (split[delta] == split[delta[representative[split]]]).all():
                return split, True
        blocks, count = split, new_count
    return blocks, False


def _hopcroft(delta: IntArray, blocks: LongArray) -> LongArray:
    """Refine `blocks` to the coarsest stable partition (Hopcroft 1971)."""
    num_states, num_columns = delta.shape
    preimages: list[tuple[list[int], list[int]]] = []
    for c in range(num_columns):
        column = delta[:, c]
        order = np.argsort(column, kind="stable")
        preimages.append((order.tolist(), np.searchsorted(column[order], np.arange(num_states + 1)).tolist()))
    block_of: list[int] = blocks.tolist()
    members: list[set[int]] = [set() for _ in range(int(blocks.max()) + 1)]
    for s, block in enumerate(block_of):
        members[block].add(s)
    todo = set(range(len(members)))
    while todo:
        splitter = list(members[todo.pop()])
        for sources, starts in preimages:
            touched: dict[int, list[int]] = {}
            for q in splitter:
                for p in sources[starts[q] : starts[q + 1]]:
                    touched.setdefault(block_of[p], []).append(p)
            for b, hit in touched.items():
                if len(hit) == len(members[b]):
                    continue
                new = len(members)
                members.append(set(hit))
                members[b] -= members[new]
                for p in hit:
                    block_of[p] = new
                if b in todo or len(members[new]) <= len(members[b]):
                    todo.add(new)
                else:
                    todo.add(b)
    return np.array(block_of, np.int64)
