"""Scoring: the tokens of several alternatives after one prompt, as a tree of rows for one forward.

A token's log-prob is read at its parent's row, so leaves are not computed at all: alternatives of one token each cost
no row beyond the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

SeqIds = tuple[int, ...]


class Edge(NamedTuple):
    """The log-prob of `token_id` after row `parent` of the part (-1: after the prompt) is that of trie node `node`."""

    parent: int
    token_id: int
    node: int


@dataclass(frozen=True, slots=True)
class TriePart:
    """Rows of one forward: the inner nodes of a part of the trie, parents before children.

    parents[i] is a row of the part or -1, the prompt's last token; depths[i] counts tokens after the prompt, from 1.
    """

    token_ids: SeqIds
    parents: SeqIds
    depths: SeqIds
    edges: tuple[Edge, ...]


@dataclass(slots=True)
class TrieWork:
    """A scoring request's alternatives: parts to compute one after the other, and the log-probs found so far.

    All log-probs that follow the prompt directly are read with part 0, which is computed together with the prompt's
    last token.
    """

    parts: list[TriePart]
    paths: list[list[int]]  # node numbers of each sequence
    found: dict[int, float] = field(default_factory=dict)
    num_done: int = 0  # parts resolved

    @property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        """[i][j]: the log-prob of token j of sequence i. All parts must be done."""
        return tuple(tuple(self.found[node] for node in path) for path in self.paths)


def plan_trie(sequences: tuple[SeqIds, ...], max_rows: int) -> TrieWork:
    """Lay the alternatives out in parts of at most `max_rows` rows (more where a single alternative needs more).

    Shared beginnings are one row; where a cut between parts goes through one, it is computed in both.
    """
    numbers: dict[SeqIds, int] = {}
    for seq in sequences:
        for end in range(1, len(seq) + 1):
            numbers.setdefault(seq[:end], len(numbers))
    parts: list[TriePart] = []
    inner: dict[SeqIds, int] = {}
    members: list[SeqIds] = []
    for seq in sorted(set(sequences)):
        new = [seq[:end] for end in range(1, len(seq)) if seq[:end] not in inner]
        if members and new and len(inner) + len(new) > max_rows:
            parts.append(_part(members, inner, numbers, with_roots=not parts))
            inner, members = {}, []
            new = [seq[:end] for end in range(1, len(seq))]
        for prefix in new:
            inner[prefix] = len(inner)
        members.append(seq)
    parts.append(_part(members, inner, numbers, with_roots=not parts))
    if len(parts) > 1:  # every log-prob right after the prompt is read with part 0
        roots = {edge.node for edge in parts[0].edges if edge.parent < 0}
        more = [Edge(-1, seq[0], numbers[seq[:1]]) for seq in sequences if numbers[seq[:1]] not in roots]
        first = parts[0]
        parts[0] = TriePart(first.token_ids, first.parents, first.depths, first.edges + tuple(dict.fromkeys(more)))
    return TrieWork(parts, [[numbers[seq[:end]] for end in range(1, len(seq) + 1)] for seq in sequences])


def _part(members: list[SeqIds], inner: dict[SeqIds, int], numbers: dict[SeqIds, int], with_roots: bool) -> TriePart:
    edges: dict[int, Edge] = {}
    for seq in members:
        for end in range(1, len(seq) + 1):
            prefix, node = seq[:end], numbers[seq[:end]]
            if node not in edges and (end > 1 or with_roots):
                edges[node] = Edge(inner[prefix[:-1]] if end > 1 else -1, prefix[-1], node)
    return TriePart(
        token_ids=tuple(prefix[-1] for prefix in inner),
        parents=tuple(inner[prefix[:-1]] if len(prefix) > 1 else -1 for prefix in inner),
        depths=tuple(len(prefix) for prefix in inner),
        edges=tuple(edges.values()),
    )
