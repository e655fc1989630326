"""The verbs every prefix cache has, the values they take and give, and the cache that keeps nothing."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ...core.errors import RequestError

if TYPE_CHECKING:
    from .allocator import IntArray

TokenIds: TypeAlias = npt.NDArray[np.integer] | Sequence[int]
EvictListener = Callable[[int], None]
BYTES_PER_ID = 4
_MAX_ID = 2**31 - 1


class Namespace(NamedTuple):
    """Prefixes of different namespaces never share KV, whatever their tokens."""

    cache_salt: str = ""
    adapter: str | None = None


DEFAULT_NAMESPACE = Namespace()


class Node:
    """A run of whole pages below `parent` in the tree: what callers hold to lock, resume from, or walk up from.

    Callers read `parent` and `end` only. `end` is the number of tokens from the root through this node; -1 once the
    node has left the tree. A split keeps the object for the lower half, so a held node keeps its meaning.
    """

    __slots__ = (
        "children", "created", "end", "entry", "hits", "is_cut", "key", "last_access", "lock_ref", "next_use", "pages",
        "parent", "pin_ref", "priority",
    )  # fmt: skip

    def __init__(self, parent: Node | None, key: bytes, pages: npt.NDArray[np.int32], end: int) -> None:
        self.parent = parent
        self.key = key  # the tokens as int32 bytes; whole pages
        self.pages = pages  # one number per page
        self.end = end
        self.children: dict[bytes, Node] = {}  # by the bytes of the child's first page
        self.lock_ref = 0
        self.pin_ref = 0
        self.last_access = 0
        self.created = 0
        self.hits = 0
        self.is_cut = False  # its tail was evicted
        self.priority = 0
        self.next_use = -1
        self.entry = 0  # number of its valid entry in the eviction heap; 0 if it has none

    @property
    def num_tokens(self) -> int:
        return len(self.key) // BYTES_PER_ID

    def __repr__(self) -> str:
        return f"<Node of {self.num_tokens} tokens up to {self.end}, lock_ref {self.lock_ref}>"


class Match(NamedTuple):
    """The longest cached prefix: `num_tokens` tokens (whole pages) lie in `pages`; `node` is its end, to be locked."""

    num_tokens: int
    pages: npt.NDArray[np.int32]
    node: Node
    page_size: int

    @property
    def slots(self) -> IntArray:
        """[num_tokens] int64 pool slots of the prefix."""
        return slots_of_pages(self.pages, self.page_size)


class Insertion(NamedTuple):
    """What `insert` did with ids[0:len]: [0, num_cached) was there already, [num_cached, end) was adopted, the tokens
    from `end` on (less than a page; all of them if the cache keeps nothing) stay the caller's. `node` ends at `end`."""

    num_cached: int
    end: int
    node: Node


class Probe(NamedTuple):
    """How many leading tokens were cached when asked; `node` is the last one matched whole.

    The rest lets `is_current` see in constant time whether the answer still holds: where `node` ended, the page that
    came next, and the child that began with it, if any, as far as it went.
    """

    num_tokens: int
    node: Node
    node_end: int
    next_page: bytes | None
    child: Node | None
    child_end: int


@dataclass(frozen=True, slots=True)
class PinHandle:
    """A pinned prefix of `num_tokens` tokens; give it to `unpin` exactly once."""

    id: int
    num_tokens: int


@dataclass(slots=True)
class CacheStats:
    """Token totals since the cache was made."""

    matched_tokens: int = 0
    inserted_tokens: int = 0
    evicted_tokens: int = 0


class PrefixCache(Protocol):
    """KV of finished and half-finished prompts, found again by their tokens.

    Sizes are in tokens. Every page in the cache is evictable or protected (locked, below a lock or pinned), never
    free. All verbs take time in the length of the prompt and the depth of the tree, none in the size of the cache.
    """

    page_size: int
    stats: CacheStats
    on_evict: EvictListener | None
    """Called with the number of tokens after each eviction."""
    num_uses: int
    """How many matches there were: the clock that `next_use` counts on."""

    @property
    def evictable_tokens(self) -> int: ...

    @property
    def protected_tokens(self) -> int: ...

    @property
    def pinned_tokens(self) -> int: ...

    def match(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, *, next_use: int = -1) -> Match:
        """Longest cached prefix, in whole pages, counted as a use. May split a node; never allocates or frees a page.

        A caller that needs logits passes all but the last prompt token. The pages are safe only until the next
        `evict`, unless the node is locked. `next_use` says how many uses from now the prefix is wanted again.
        """

    def probe(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, last: Probe | None = None) -> Probe:
        """What `match` would find, changing nothing and not counted. `last`, an earlier probe of the same tokens (now
        more or fewer), makes it cheap: the walk goes on where that one ended, if that place is still there."""

    def is_current(self, probe: Probe) -> bool:
        """Whether a probe of the same ids would answer the same now. False may be said in vain, True never."""

    def insert(
        self, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        """Adopt the pages of `slots` [len(ids)] that hold computed KV of tokens not cached yet; see `Insertion`.

        The caller frees its pages of [its own start, num_cached) and those behind `end`, and no others.
        """

    def extend(
        self, node: Node, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        """`insert` for one who holds a lock on `node`, of the tokens that follow it and their slots [len(ids)].

        The lock moves to the node of the insertion, whose numbers count from the root."""

    def evictable_part(self, probe: Probe) -> int:
        """How many tokens of a current probe could be evicted now, and could not be if they were locked."""

    def lock(self, node: Node) -> None:
        """Keep the path from the root to `node` from eviction, once more."""

    def unlock(self, node: Node) -> None:
        """Take one lock back. Raises MemoryAccountError if there is none."""

    def evict(self, num_tokens: int) -> npt.NDArray[np.int32]:
        """Drop at least `num_tokens` (whole pages; all that is evictable if that is less). Returns the pages, which are
        the caller's now."""

    def pages_of(self, node: Node, start: int = 0) -> npt.NDArray[np.int32]:
        """The pages of tokens [start, node.end) on the path to `node`; `start` is a multiple of the page size."""

    def pin(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE) -> PinHandle:
        """Keep the cached part of this prefix until `unpin`. Raises RequestError beyond the limit on pinned tokens."""

    def unpin(self, handle: PinHandle) -> None:
        """Release a pin. Raises RequestError for a handle that is not pinned (any more)."""

    def start_over(self) -> None:
        """Forget everything, locks and pins included; the pages are the caller's."""

    def all_pages(self) -> npt.NDArray[np.int32]:
        """Every page in the cache."""

    def check_integrity(self) -> None:
        """Raise MemoryAccountError unless all counts, links and sizes agree with a recount."""


def slots_of_pages(pages: npt.NDArray[np.integer], page_size: int) -> IntArray:
    """[len(pages) * page_size] int64 slots of the pages, in order."""
    wide = pages.astype(np.int64)
    if page_size == 1:
        return wide
    slots: IntArray = (wide[:, None] * page_size + np.arange(page_size)).reshape(-1)
    return slots


def key_bytes(ids: TokenIds) -> bytes:
    """The ids as int32 bytes, equal exactly if the ids are equal. An int32 array is quickest.

    Raises RequestError for an id that does not fit into 32 bits.
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype == np.int32:
            return ids.tobytes()
        if len(ids) and (int(ids.min()) < -_MAX_ID or int(ids.max()) > _MAX_ID):
            raise RequestError("token ids must fit into 32 bits", field="input_ids")
        return ids.astype(np.int32).tobytes()
    try:
        return array("i", ids).tobytes()
    except OverflowError:
        raise RequestError("token ids must fit into 32 bits", field="input_ids") from None


def common_bytes(key: bytes, data: bytes, at: int, page_bytes: int) -> int:
    """How many leading bytes of `key`, in whole pages, stand in `data` from `at` on."""
    if data.startswith(key, at):
        return len(key)
    count = min(len(key), len(data) - at) // BYTES_PER_ID
    if count <= 0:
        return 0
    differs = np.frombuffer(key, np.int32, count) != np.frombuffer(data, np.int32, count, at)
    first = int(differs.argmax())
    same = first if differs[first] else count
    return same * BYTES_PER_ID // page_bytes * page_bytes


EMPTY_PAGES: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)


class ChunkCache:
    """The cache that keeps nothing (`disable_radix_cache`): no match finds anything, every page stays its owner's."""

    def __init__(self, page_size: int = 1) -> None:
        self.page_size = page_size
        self.stats = CacheStats()
        self.on_evict: EvictListener | None = None
        self.num_uses = 0
        self._root = Node(None, b"", EMPTY_PAGES, 0)
        self._pins: set[int] = set()
        self._num_pins = 0

    @property
    def evictable_tokens(self) -> int:
        return 0

    @property
    def protected_tokens(self) -> int:
        return 0

    @property
    def pinned_tokens(self) -> int:
        return 0

    def match(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, *, next_use: int = -1) -> Match:
        self.num_uses += 1
        return Match(0, EMPTY_PAGES, self._root, self.page_size)

    def probe(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, last: Probe | None = None) -> Probe:
        return Probe(0, self._root, 0, None, None, 0)

    def is_current(self, probe: Probe) -> bool:
        return True

    def insert(
        self, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        return Insertion(0, 0, self._root)

    def extend(
        self, node: Node, ids: TokenIds, slots: npt.NDArray[np.integer], namespace: Namespace = DEFAULT_NAMESPACE, *,
        priority: int = 0, next_use: int = -1,
    ) -> Insertion:  # fmt: skip
        return Insertion(0, 0, node)

    def evictable_part(self, probe: Probe) -> int:
        return 0

    def lock(self, node: Node) -> None:
        node.lock_ref += 1

    def unlock(self, node: Node) -> None:
        node.lock_ref -= 1

    def evict(self, num_tokens: int) -> npt.NDArray[np.int32]:
        return EMPTY_PAGES

    def pages_of(self, node: Node, start: int = 0) -> npt.NDArray[np.int32]:
        return EMPTY_PAGES

    def pin(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE) -> PinHandle:
        self._num_pins += 1
        self._pins.add(self._num_pins)
        return PinHandle(self._num_pins, 0)

    def unpin(self, handle: PinHandle) -> None:
        if handle.id not in self._pins:
            raise RequestError(f"pin {handle.id} is not held (released twice, or of another engine)", field="handle")
        self._pins.remove(handle.id)

    def start_over(self) -> None:
        self._pins.clear()

    def all_pages(self) -> npt.NDArray[np.int32]:
        return EMPTY_PAGES

    def check_integrity(self) -> None:
        """Nothing is kept, so nothing can be wrong."""
