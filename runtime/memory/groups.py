"""Which requests of a batch share a prefix, read off the tree they lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..batch import PrefixGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .prefix_cache import Node


def shared_prefixes(nodes: Sequence[Node | None], min_len: int = 1) -> tuple[PrefixGroup, ...]:
    """Groups of two or more requests whose first `shared_len` >= min_len tokens lie in the same pages.

    `nodes[b]` is where the locked prefix of request b ends (None: none). Groups may be nested: each set of requests
    appears once, with the longest prefix common to it; shorter prefixes first. Time in requests and in the nodes above
    them, not in tokens. The result holds as long as the batch and its locks do.
    """
    requests_at = _meeting_places(nodes, min_len)
    if not requests_at:
        return ()
    children: dict[Node, list[Node]] = {}
    downward: list[Node] = []
    seen: set[Node] = set()
    for node in requests_at:
        at = node
        while at not in seen:
            seen.add(at)
            if at.parent is None:
                downward.append(at)
                break
            children.setdefault(at.parent, []).append(at)
            at = at.parent
    for at in downward:
        downward += children.get(at, [])
    groups: list[PrefixGroup] = []
    below: dict[Node, list[int]] = {}
    for at in reversed(downward):
        parts = [below.pop(child) for child in children.get(at, [])]
        if at in requests_at:
            parts.append(requests_at[at])
        below[at] = merged = parts[0] if len(parts) == 1 else sorted([request for part in parts for request in part])
        is_new = len(parts) > 1 or at in requests_at
        if is_new and len(merged) > 1 and at.end >= min_len:
            groups.append(PrefixGroup(tuple(merged), at.end))
    return tuple(sorted(groups, key=lambda group: (group.shared_len, group.rows)))


def _meeting_places(nodes: Sequence[Node | None], min_len: int) -> dict[Node, list[int]]:
    """For each request, ascending, the lowest node above which it may not be alone: one that is locked twice.

    What is locked once is on the way of one request only, and most nodes are.
    """
    requests_at: dict[Node, list[int]] = {}
    for request, node in enumerate(nodes):
        if node is None:
            continue
        at = node
        while at.lock_ref == 1 and at.parent is not None:
            at = at.parent
        if at.end >= min_len:
            if at in requests_at:
                requests_at[at].append(request)
            else:
                requests_at[at] = [request]
    return requests_at
