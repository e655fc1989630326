"""The radix cache: prefixes of past prompts and outputs, found by their tokens, dropped leaf by leaf.

A tree over pages of token ids (RadixAttention; Zheng et al., arXiv 2312.07104). An edge holds the int32 bytes of its
tokens, so that a whole edge is compared by one memcmp, always on the tokens themselves: no hash is trusted. Among
siblings the child is found by the bytes of its first page. Each namespace has a tree of its own; all share one order
of eviction.

Unlocked leaves stand in a heap by the rank their policy gives them. An entry is valid while its number is the node's
`entry`; others are skipped when they come up, and swept out when they are the majority. So a match, lock or insert
costs O(depth + log leaves), and evicting a leaf O(log leaves). A leaf longer than what is needed loses its tail only.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import RequestError
from .allocator import MemoryAccountError, has_twice
from .eviction import LRU, EvictionPolicy, NextUse, Rank
from .prefix_cache import (
    BYTES_PER_ID,
    DEFAULT_NAMESPACE,
    EMPTY_PAGES,
    CacheStats,
    EvictListener,
    Insertion,
    Match,
    Namespace,
    Node,
    PinHandle,
    Probe,
    TokenIds,
    common_bytes,
    key_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIN_SWEEP = 256  # heap entries below which sweeping out the invalid ones is not worth it


class RadixCache:
    """See `PrefixCache` for the verbs. `max_pinned_tokens` bounds what all pins together hold (None: no bound)."""

    def __init__(
        self, page_size: int = 1, policy: EvictionPolicy | None = None, *, max_pinned_tokens: int | None = None
    ) -> None:
        self.page_size = page_size
        self.policy = policy or LRU()
        self.max_pinned_tokens = max_pinned_tokens
        self.stats = CacheStats()
        self.on_evict: EvictListener | None = None
        self.num_uses = 0
        self._page_bytes = page_size * BYTES_PER_ID
        self._clock = 0
        self._num_pins = 0
        self._num_entries = 0  # entries ever made: gives each its number
        self.start_over()

    def start_over(self) -> None:
        """Forget everything. See `PrefixCache.start_over`."""
        self._roots: dict[Namespace, Node] = {}
        self._namespace_of: dict[Node, Namespace] = {}
        self._evictable = 0
        self._protected = 0
        self._pinned = 0
        self._pins: dict[int, Node] = {}
        self._heap: list[tuple[Rank, int, Node]] = []
        self._num_evictable_leaves = 0  # = valid entries
        self._due: list[tuple[int, int, Node]] | None = [] if isinstance(self.policy, NextUse) else None
        self._sweep_due_at = _MIN_SWEEP

    @property
    def evictable_tokens(self) -> int:
        return self._evictable

    @property
    def protected_tokens(self) -> int:
        return self._protected

    @property
    def pinned_tokens(self) -> int:
        return self._pinned

    # -- looking up ---------------------------------------------------------------------------------------------------

    def match(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, *, next_use: int = -1) -> Match:
        """Longest cached prefix, in whole pages, counted as a use. See `PrefixCache.match`."""
        self._clock += 1
        self.num_uses += 1
        path = self._path(ids, namespace)
        wanted_at = self.num_uses + next_use + 1 if next_use >= 0 else -1
        for node in path[1:]:
            node.last_access = self._clock
            node.hits += 1
        if self._due is not None:
            self._note_next_use(path, wanted_at)
            self._forget_past_uses()
        end = path[-1]
        if end.entry:
            self._push(end)
        self.stats.matched_tokens += end.end
        return Match(end.end, _pages_of_path(path[1:]), end, self.page_size)

    def probe(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, last: Probe | None = None) -> Probe:
        """What `match` would find, changing nothing and not counted. See `PrefixCache.probe`."""
        if last is not None and 0 < last.node.end <= min(last.node_end, len(ids)):
            node = last.node  # still in the tree, so still a prefix of these ids, even if its tail was evicted
        else:
            root = self._roots.get(namespace)
            if root is None:
                return _NOTHING
            node = root
        next_page = key_bytes(ids[node.end : node.end + self.page_size])
        if next_page not in node.children:  # most often, and then the rest of a long prompt is not looked at
            last_node, child, common = node, None, 0
        else:
            data = key_bytes(ids[node.end :])
            path, child, common = self._walk(data, node)
            last_node = path[-1]
            at = (last_node.end - node.end) * BYTES_PER_ID
            next_page = data[at : at + self._page_bytes]
        return Probe(
            last_node.end + common // BYTES_PER_ID,
            last_node,
            last_node.end,
            next_page if len(next_page) == self._page_bytes else None,
            child,
            child.end if child is not None else 0,
        )

    def is_current(self, probe: Probe) -> bool:
        """Whether a probe of the same ids would answer the same now. See `PrefixCache.is_current`."""
        _, node, node_end, next_page, child, child_end = probe
        if node.end != node_end:
            return False
        if next_page is None:
            return True
        return node.children.get(next_page) is child and (child is None or child.end == child_end)

    def evictable_part(self, probe: Probe) -> int:
        """How many tokens of a current probe only a lock would protect. See `PrefixCache.evictable_part`."""
        at = probe.node
        if probe.child is not None and probe.child.lock_ref:
            return 0
        while at.lock_ref == 0 and at.parent is not None:
            at = at.parent
        return probe.num_tokens - at.end

    def pages_of(self, node: Node, start: int = 0) -> npt.NDArray[np.int32]:
        """The pages of tokens [start, node.end) on the path to `node`; `start` is a multiple of the page size."""
        parts: list[npt.NDArray[np.int32]] = []
        at: Node | None = node
        while at is not None and at.end > start:
            begin = at.end - at.num_tokens
            parts.append(at.pages[max(0, start - begin) // self.page_size :])
            at = at.parent
        return np.concatenate(parts[::-1]) if parts else EMPTY_PAGES

    def _path(self, ids: TokenIds, namespace: Namespace) -> list[Node]:
        """The nodes from the root through the longest cached prefix, after splitting the last one if need be."""
        root = self._roots.get(namespace)
        if root is None:
            return [_nowhere()]
        path, child, common = self._walk(key_bytes(ids), root)
        if child is not None and common:
            path.append(self._split(child, common))
        return path

    def _walk(self, data: bytes, node: Node) -> tuple[list[Node], Node | None, int]:
        """From `node` down along `data` (the tokens after it): the nodes matched whole, `node` first; then the child
        matched in part, if any, and how many bytes (whole pages) of it."""
        page_bytes = self._page_bytes
        limit = len(data) - len(data) % page_bytes
        path = [node]
        at = 0
        while at < limit:
            child = node.children.get(data[at : at + page_bytes])
            if child is None:
                break
            key = child.key
            if not data.startswith(key, at):
                return path, child, common_bytes(key, data, at, page_bytes)
            at += len(key)
            node = child
            path.append(node)
        return path, None, 0

    # -- growing ------------------------------------------------------------------------------------------------------

    def insert(
        self, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        """Adopt the pages of tokens not cached yet. See `PrefixCache.insert`."""
        data = key_bytes(ids)
        end = len(data) // self._page_bytes * self.page_size
        if end == 0:
            return Insertion(0, 0, self._roots.get(namespace) or _nowhere())
        if len(slots) < end:
            raise MemoryAccountError(f"insert of {len(data) // BYTES_PER_ID} tokens with {len(slots)} slots")
        self._clock += 1
        path, child, common = self._walk(data, self._root(namespace))
        if child is not None:
            path.append(self._split(child, common))
        last = path[-1]
        num_cached = last.end
        if last.entry:
            self._drop_entry(last)
        if num_cached < end:
            last = self._add_leaf(last, data[num_cached * BYTES_PER_ID : end * BYTES_PER_ID], slots[num_cached:end])
            path.append(last)
        for node in path[1:]:
            node.last_access = self._clock
            node.priority = max(node.priority, priority)
        if self._due is not None:
            self._note_next_use(path, self.num_uses + next_use + 1 if next_use >= 0 else -1)
        if not last.lock_ref and not last.children and last.parent is not None:
            self._push(last)
        return Insertion(num_cached, end, last)

    def extend(
        self, node: Node, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        """Adopt the pages of tokens that follow a locked node, and move the lock. See `PrefixCache.extend`."""
        begin, data = node.end if node.parent is not None else 0, key_bytes(ids)
        end = begin + len(data) // self._page_bytes * self.page_size
        if end == begin:
            return Insertion(begin, begin, node)
        if node.parent is None:
            node = self._root(namespace)  # the one locked may have been dropped since, with nothing below it
        self._clock += 1
        num_cached, last = begin, node
        if self._may_grow(node, priority):
            self._grow(node, data[: (end - begin) * BYTES_PER_ID], slots[: end - begin])
        else:
            path, child, common = self._walk(data, node)
            if child is not None:
                path.append(self._split(child, common))
            last = path[-1]
            num_cached = last.end
            if num_cached < end:
                new = slice(num_cached - begin, end - begin)
                last = self._add_leaf(last, data[new.start * BYTES_PER_ID : new.stop * BYTES_PER_ID], slots[new])
                path.append(last)
            for at in path[1:]:
                self._lock_one(at)
        if self._due is not None:
            self._note_next_use(_path_to(last), self.num_uses + next_use + 1 if next_use >= 0 else -1)
        at = last
        while at.parent is not None:
            at.last_access = self._clock
            if at.priority < priority:
                at.priority = priority
            at = at.parent
        return Insertion(num_cached, end, last)

    def _root(self, namespace: Namespace) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = _nowhere()
            self._namespace_of[root] = namespace
        return root

    def _add_leaf(self, parent: Node, key: bytes, slots: npt.NDArray[np.integer]) -> Node:
        leaf = Node(parent, key, self._pages_of_slots(slots), parent.end + len(key) // BYTES_PER_ID)
        leaf.created = self._clock
        parent.children[key[: self._page_bytes]] = leaf
        num_tokens = leaf.num_tokens
        self._evictable += num_tokens
        self.stats.inserted_tokens += num_tokens
        return leaf

    def _may_grow(self, node: Node, priority: int) -> bool:
        """Whether tokens after `node` may become part of it: a leaf that only the caller holds, with the stats that a
        new one would have. One that was cut never grows again: a shorter node must begin what it was (`probe`)."""
        alone = node.lock_ref == 1 and node.parent is not None and not node.children
        return alone and not node.hits and not node.is_cut and node.priority <= priority and self._due is None

    def _grow(self, leaf: Node, key: bytes, slots: npt.NDArray[np.integer]) -> None:
        leaf.key += key
        leaf.pages = np.concatenate([leaf.pages, self._pages_of_slots(slots)])
        num_tokens = len(key) // BYTES_PER_ID
        leaf.end += num_tokens
        self._protected += num_tokens
        self.stats.inserted_tokens += num_tokens

    def _pages_of_slots(self, slots: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        size = self.page_size
        return (slots[::size] // size if size > 1 else slots).astype(np.int32)

    def _split(self, node: Node, num_bytes: int) -> Node:
        """Cut `node` after num_bytes of its key; returns the new upper half. `node` itself becomes the lower one."""
        parent, key = node.parent, node.key
        assert parent is not None
        num_pages = num_bytes // self._page_bytes
        upper = Node(parent, key[:num_bytes], node.pages[:num_pages], parent.end + num_bytes // BYTES_PER_ID)
        for stat in ("lock_ref", "pin_ref", "last_access", "created", "hits", "priority", "next_use"):
            setattr(upper, stat, getattr(node, stat))
        node.parent, node.key, node.pages = upper, key[num_bytes:], node.pages[num_pages:]
        upper.children[node.key[: self._page_bytes]] = node
        parent.children[key[: self._page_bytes]] = upper
        if self._due is not None and upper.next_use >= 0:
            self._push_due(upper)
        return upper

    # -- locks and pins -----------------------------------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Keep the path from the root to `node` from eviction, once more."""
        if node.end < 0 and node.key:
            raise MemoryAccountError("lock of a node that was evicted since it was matched")
        at = node
        while (parent := at.parent) is not None:
            self._lock_one(at)
            at = parent

    def _lock_one(self, node: Node) -> None:
        if node.lock_ref == 0:
            num_tokens = len(node.key) // BYTES_PER_ID
            self._evictable -= num_tokens
            self._protected += num_tokens
            if node.entry:
                self._drop_entry(node)
        node.lock_ref += 1

    def unlock(self, node: Node) -> None:
        """Take one lock back. Raises MemoryAccountError if there is none."""
        at = node
        while (parent := at.parent) is not None:
            if at.lock_ref == 0:
                raise MemoryAccountError(f"unlock of {at!r}, which is not locked")
            at.lock_ref -= 1
            if at.lock_ref == 0:
                num_tokens = len(at.key) // BYTES_PER_ID
                self._evictable += num_tokens
                self._protected -= num_tokens
                if not at.children:
                    self._push(at)
            at = parent

    def pin(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE) -> PinHandle:
        """Keep the cached part of this prefix until `unpin`. Raises RequestError beyond the limit on pinned tokens."""
        path = self._path(ids, namespace)
        more = sum(node.num_tokens for node in path if not node.pin_ref)
        if self.max_pinned_tokens is not None and self._pinned + more > self.max_pinned_tokens:
            raise RequestError(
                f"{more} more pinned tokens would make {self._pinned + more}; the limit is {self.max_pinned_tokens}. "
                "Unpin another prefix first.",
                field="pin",
            )
        self._pinned += more
        for node in path[1:]:
            node.pin_ref += 1
        self.lock(path[-1])
        self._num_pins += 1
        self._pins[self._num_pins] = path[-1]
        return PinHandle(self._num_pins, path[-1].end)

    def unpin(self, handle: PinHandle) -> None:
        """Release a pin. Raises RequestError for a handle that is not pinned (any more)."""
        node = self._pins.pop(handle.id, None)
        if node is None:
            raise RequestError(f"pin {handle.id} is not held (released twice, or of another engine)", field="handle")
        at = node
        while at.parent is not None:
            at.pin_ref -= 1
            if not at.pin_ref:
                self._pinned -= at.num_tokens
            at = at.parent
        self.unlock(node)

    # -- eviction -----------------------------------------------------------------------------------------------------

    def evict(self, num_tokens: int) -> npt.NDArray[np.int32]:
        """Drop at least `num_tokens` in whole pages, as far as there is something to drop. Returns the pages."""
        missing = -(-num_tokens // self.page_size)  # pages
        parts: list[npt.NDArray[np.int32]] = []
        while missing > 0 and self._heap:
            _, number, leaf = self._heap[0]
            if leaf.entry != number:
                heapq.heappop(self._heap)
                continue
            if len(leaf.pages) > missing:
                parts.append(self._trim(leaf, missing))
                break
            missing -= len(leaf.pages)
            parts.append(leaf.pages)
            heapq.heappop(self._heap)
            self._remove(leaf)
        if not parts:
            return EMPTY_PAGES
        pages = parts[0] if len(parts) == 1 else np.concatenate(parts)
        num_evicted = len(pages) * self.page_size
        self._evictable -= num_evicted
        self.stats.evicted_tokens += num_evicted
        if self.on_evict is not None:
            self.on_evict(num_evicted)
        return pages

    def _trim(self, leaf: Node, num_pages: int) -> npt.NDArray[np.int32]:
        """Cut the last pages off a leaf, which stays where it is in the order."""
        kept = len(leaf.pages) - num_pages
        pages = leaf.pages[kept:]
        leaf.pages = leaf.pages[:kept]
        leaf.key = leaf.key[: kept * self._page_bytes]
        leaf.end -= num_pages * self.page_size
        leaf.is_cut = True
        return pages

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key[: self._page_bytes]]
        leaf.parent = None
        leaf.end = -1
        self._drop_entry(leaf)
        if parent.children:
            return
        if parent.parent is None:
            del self._roots[self._namespace_of.pop(parent)]
            parent.end = -1
        elif not parent.lock_ref:
            self._push(parent)

    def _push(self, leaf: Node) -> None:
        """Give an unlocked leaf its place in the order of eviction, as its stats are now."""
        if not leaf.entry:
            self._num_evictable_leaves += 1
        leaf.entry = number = self._number()
        if len(self._heap) > _MIN_SWEEP and len(self._heap) > 2 * self._num_evictable_leaves:
            self._heap = [item for item in self._heap if item[2].entry == item[1]]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (self.policy.rank(leaf), number, leaf))

    def _drop_entry(self, leaf: Node) -> None:
        leaf.entry = 0
        self._num_evictable_leaves -= 1

    def _number(self) -> int:
        self._num_entries += 1
        return self._num_entries

    # -- next use -----------------------------------------------------------------------------------------------------

    def _note_next_use(self, path: list[Node], wanted_at: int) -> None:
        """A prefix is wanted next at the earliest of the times still to come at which anything below it is."""
        assert self._due is not None
        for node in path[1:]:
            times = [time for time in (node.next_use, wanted_at) if time > self.num_uses]
            earliest = min(times, default=-1)
            if earliest != node.next_use:
                node.next_use = earliest
                if earliest >= 0:
                    self._push_due(node)

    def _push_due(self, node: Node) -> None:
        due = self._due
        assert due is not None
        if len(due) >= self._sweep_due_at:  # far hints outlive what they were for
            still = {other: (time, number, other) for time, number, other in due if other.next_use == time}
            due[:] = [entry for other, entry in still.items() if other.end >= 0]
            heapq.heapify(due)
            self._sweep_due_at = max(_MIN_SWEEP, 2 * len(due))
        heapq.heappush(due, (node.next_use, self._number(), node))

    def _forget_past_uses(self) -> None:
        """Clear the hints whose time has passed: what they promised did not come, or has come."""
        due = self._due
        assert due is not None
        while due and due[0][0] < self.num_uses:
            time, _, node = heapq.heappop(due)
            if node.next_use == time:
                node.next_use = -1
                if node.entry:
                    self._push(node)

    # -- accounts -----------------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, parents first. For checks and statistics: O(size of the tree)."""
        todo = list(self._roots.values())
        while todo:
            for child in todo.pop().children.values():
                yield child
                todo.append(child)

    def all_pages(self) -> npt.NDArray[np.int32]:
        """Every page in the cache. O(size of the tree)."""
        parts = [node.pages for node in self.nodes()]
        return np.concatenate(parts) if parts else EMPTY_PAGES

    def check_integrity(self) -> None:
        """Raise MemoryAccountError unless all counts, links and sizes agree with a recount."""
        sizes = {"evictable": 0, "protected": 0, "pinned": 0, "evictable leaves": 0}
        valid = {number: (rank, node) for rank, number, node in self._heap if node.entry == number}
        for node in self.nodes():
            self._check_node(node)
            sizes["protected" if node.lock_ref else "evictable"] += node.num_tokens
            sizes["pinned"] += node.num_tokens if node.pin_ref else 0
            is_evictable_leaf = not node.lock_ref and not node.children
            sizes["evictable leaves"] += is_evictable_leaf
            if is_evictable_leaf != (node.entry != 0):
                raise MemoryAccountError(f"{node!r} stands in the eviction order wrongly, or is missing there")
            if node.entry and valid.get(node.entry) != (self.policy.rank(node), node):
                raise MemoryAccountError(f"{node!r} has an outdated place in the eviction order")
        counted = {
            "evictable": self._evictable,
            "protected": self._protected,
            "pinned": self._pinned,
            "evictable leaves": self._num_evictable_leaves,
        }
        if sizes != counted:
            raise MemoryAccountError(f"recounted sizes {sizes} differ from the account {counted}")
        pages = self.all_pages()
        if len(pages) and (int(pages.min()) < 1 or has_twice(pages)):
            raise MemoryAccountError("a page is in the tree twice, or it is the padding page")

    def _check_node(self, node: Node) -> None:
        parent = node.parent
        if parent is None or parent.children.get(node.key[: self._page_bytes]) is not node:
            raise MemoryAccountError(f"{node!r} is not linked with its parent")
        if not node.key or len(node.key) != len(node.pages) * self._page_bytes:
            raise MemoryAccountError(f"{node!r} has {len(node.pages)} pages for {node.num_tokens} tokens")
        if node.end != parent.end + node.num_tokens:
            raise MemoryAccountError(f"{node!r} does not end {node.num_tokens} tokens after its parent")
        for name in ("lock_ref", "pin_ref"):
            if getattr(node, name) < sum(getattr(child, name) for child in node.children.values()):
                raise MemoryAccountError(f"{node!r} has a smaller {name} than its children together")
        if node.pin_ref > node.lock_ref:
            raise MemoryAccountError(f"{node!r} is pinned but not locked")


def _path_to(node: Node) -> list[Node]:
    """The nodes from the root down."""
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path[::-1]


def _nowhere() -> Node:
    """A root: of a namespace that has nothing cached until something is inserted."""
    return Node(None, b"", EMPTY_PAGES, 0)


def _pages_of_path(path: list[Node]) -> npt.NDArray[np.int32]:
    if len(path) == 1:
        return path[0].pages
    return np.concatenate([node.pages for node in path]) if path else EMPTY_PAGES


_NOTHING = Probe(0, _nowhere(), -1, None, None, 0)  # never current: another namespace's root may appear any time
