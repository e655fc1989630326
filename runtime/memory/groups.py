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
    below: dict[Node, list[int]] = {}
    for request, node in enumerate(nodes):
        if node is not None:
            below.setdefault(node, []).append(request)
    ends_here = dict(below)
    children: dict[Node, list[Node]] = {}
    roots: list[Node] = []
    seen: set[Node] = set()
    for node in ends_here:
        at = node
        while at not in seen:
            seen.add(at)
            if at.parent is None:
                roots.append(at)
                break
            children.setdefault(at.parent, []).append(at)
            at = at.parent
    downward = list(roots)
    for at in downward:
        downward += children.get(at, [])
    groups: list[PrefixGroup] = []
    requests_of: dict[Node, list[int]] = {}
    for at in reversed(downward):
        parts = [requests_of.pop(child) for child in children.get(at, [])]
        own = ends_here.get(at, [])
        merged = parts[0] if len(parts) == 1 and not own else sorted([*own, *(r for part in parts for r in part)])
        requests_of[at] = merged
        is_new = not (len(parts) == 1 and not own)
        if is_new and len(merged) > 1 and at.end >= min_len:
            groups.append(PrefixGroup(tuple(merged), at.end))
    return tuple(sorted(groups, key=lambda group: (group.shared_len, group.rows)))
