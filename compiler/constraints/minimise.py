"""Trim and minimise a table automaton whose state 0 is dead."""

from __future__ import annotations

from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int32]]
LongArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_MOORE_ROUNDS = 48
CYCLIC = -1


def minimise(delta: IntArray, labels: IntArray, start: int) -> tuple[IntArray, IntArray, int]:
    """The minimal automaton of the same meaning: `delta` [S, C], `labels` [S] (0: not accepting), start state.

    Texts keep their labels and columns their meaning; state 0 is dead, and the only state that cannot reach
    acceptance. Unreachable states are dropped.
    """
    kept = _reachable(delta, start)
    renumber = np.zeros(delta.shape[0], np.int32)
    renumber[kept] = np.arange(len(kept), dtype=np.int32)
    delta, labels, start = renumber[delta[kept]], labels[kept], int(renumber[start])
    columns = np.unique(delta, axis=1)
    distance, height = distances(columns, labels != 0)
    # All three are properties of a state's language, so that equal states start in one block.
    blocks = np.unique(np.stack([labels, distance, height]), axis=1, return_inverse=True)[1].reshape(-1)
    blocks, stable = _moore(columns, blocks)
    if not stable:
        blocks = _hopcroft(columns, blocks)
    # Block 0 is to be the dead one: state 0's.
    blocks = np.where(blocks == blocks[0], 0, np.where(blocks < blocks[0], blocks + 1, blocks)).astype(np.int32)
    representative = np.zeros(int(blocks.max()) + 1, np.int64)
    representative[blocks[::-1]] = np.arange(len(blocks))[::-1]
    merged = blocks[delta[representative]].astype(np.int32)
    return merged, labels[representative], int(blocks[start])


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
        signature = (mix[blocks[delta]] * columns).sum(axis=1, dtype=np.uint64) + mix[blocks] * np.uint64(0x9E3779B9)
        split = np.unique(np.stack([blocks.astype(np.uint64), signature]), axis=1, return_inverse=True)[1].reshape(-1)
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
