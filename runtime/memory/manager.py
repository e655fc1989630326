"""The one place that moves pages between their three owners: the free list, the prefix cache, and running requests.

A running request holds a `Lease`: a row of the request table, a lock on the cached prefix it starts with, and the
pages behind that prefix. The law, checked by `check_integrity`: free + cached + owned by leases = all pages, and no
page has two owners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .allocator import IntArray, MemoryAccountError, PageAllocator, has_twice
from .prefix_cache import DEFAULT_NAMESPACE, Namespace, Node, PrefixCache, TokenIds, slots_of_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .request_table import ReqToTokenPool


class Lease:
    """What one running request holds. Made and changed by `MemoryManager` only; the scheduler reads it.

    `row` is its row in the request table. The KV of its first `num_shared` tokens (whole pages) belongs to the cache,
    under a lock on `node`; it owns the pages of tokens num_shared .. length. `num_cached` is what the cache held when
    the lease was made: the request's cached tokens. `use` numbers its match among all uses of the cache.
    """

    __slots__ = ("is_released", "namespace", "node", "num_cached", "num_shared", "row", "use")

    def __init__(self, row: int, namespace: Namespace, node: Node, num_cached: int, use: int) -> None:
        self.row = row
        self.namespace = namespace
        self.node = node
        self.num_cached = num_cached
        self.num_shared = num_cached
        self.use = use
        self.is_released = False

    def __repr__(self) -> str:
        return f"<Lease row {self.row}, {self.num_shared} shared tokens>"


class MemoryManager:
    """Leases over one request table, one page allocator and one prefix cache; evicts when it must, retracts never."""

    def __init__(self, table: ReqToTokenPool, allocator: PageAllocator, cache: PrefixCache) -> None:
        if allocator.page_size != cache.page_size:
            raise ValueError(f"allocator pages of {allocator.page_size}, cache pages of {cache.page_size}")
        self.table = table
        self.allocator = allocator
        self.cache = cache
        self.page_size = allocator.page_size
        self.lengths: IntArray = np.zeros(table.max_running_requests, dtype=np.int64)
        """By row: tokens that have a slot. The scheduler reads it; only the manager writes."""
        self._leases: dict[int, Lease] = {}

    @property
    def available_tokens(self) -> int:
        """Tokens that could be given out now, after evicting all that is evictable (a multiple of the page size)."""
        return self.allocator.num_free_tokens + self.cache.evictable_tokens

    @property
    def num_leases(self) -> int:
        return len(self._leases)

    def acquire(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE, *, next_use: int = -1) -> Lease | None:
        """Start a request: take a row, match `ids`, lock what is cached and write it into the row.

        Give all prompt tokens: the last one is never taken from the cache, because it must run to have logits.
        None (and no change) when all rows are taken. Allocates no page. Raises MemoryAccountError if the ids do not
        fit into a row: such a request must be refused at admission.
        """
        self.table.check_fits(len(ids))
        if not self.table.num_free_rows:
            return None
        match = self.cache.match(ids[:-1], namespace, next_use=next_use)
        row = self.table.alloc()
        assert row is not None
        self.cache.lock(match.node)
        if match.num_tokens:
            self.table.write(row, 0, match.slots)
        self.lengths[row] = match.num_tokens
        lease = self._leases[row] = Lease(row, namespace, match.node, match.num_tokens, self.cache.num_uses)
        return lease

    def extend(self, leases: Sequence[Lease], num_new: Sequence[int] | IntArray) -> IntArray | None:
        """[sum(num_new)] int64 slots: num_new[b] more tokens for each lease, in token order, already in the table.

        Evicts from the cache what is missing. None, with nothing changed and nothing evicted, if free and evictable
        pages together do not suffice: the caller must retract.
        """
        rows = np.fromiter((lease.row for lease in leases), np.int64, len(leases))
        return self.extend_rows(rows, np.asarray(num_new, dtype=np.int64))

    def extend_rows(self, rows: IntArray, num_new: IntArray) -> IntArray | None:
        """`extend` by row numbers (each at most once), for large decode batches."""
        old_lens = self.lengths[rows]
        new_lens = old_lens + num_new
        self.table.check_fits(int(new_lens.max(initial=0)))
        if not self._make_room(self.allocator.pages_needed(old_lens, new_lens)):
            return None
        last_slots = old_lens  # only read where a page may have been begun
        if self.page_size > 1:
            last_slots = self.table.host[rows, np.maximum(old_lens - 1, 0)].astype(np.int64)
        if (num_new == 1).all():
            slots = self.allocator.alloc_decode(old_lens, last_slots)
            positions, row_of = old_lens, rows
        else:
            slots = self.allocator.alloc_extend(old_lens, new_lens, last_slots)
            row_of = np.repeat(rows, num_new)
            starts = np.cumsum(num_new) - num_new
            positions = np.arange(len(row_of)) + np.repeat(old_lens - starts, num_new)
        assert slots is not None
        self.table.write_many(row_of, positions, slots)
        self.lengths[rows] = new_lens
        return slots

    def truncate(self, lease: Lease, length: int) -> None:
        """Forget tokens from `length` on (rejected drafts, scored alternatives) and free their pages.

        `length` must not lie inside the shared prefix.
        """
        if not lease.num_shared <= length <= int(self.lengths[lease.row]):
            raise MemoryAccountError(f"{lease!r} cannot be cut to {length} of {int(self.lengths[lease.row])} tokens")
        self._free_slots_from(lease, -(-length // self.page_size) * self.page_size)
        self.lengths[lease.row] = length

    def commit(self, lease: Lease, ids: TokenIds, *, start: int = 0, priority: int = 0, next_use: int = -1) -> None:
        """Give the computed pages of a request that goes on to the cache. `ids` are its tokens whose KV is computed,
        from token `start` on, at most `num_shared`.

        Only after the forward that computed them: before, others would match slots without content. Where another
        request was faster, its pages replace this one's in the table and the duplicates are freed. `next_use` counts
        from the use with which the lease began.
        """
        self._hand_over(lease, ids, start, priority, next_use)

    def release(
        self, lease: Lease, ids: TokenIds | None = None, *, start: int = 0, priority: int = 0, next_use: int = -1
    ) -> None:
        """End a request: the pages of `ids`, its tokens from `start` on whose KV is computed, go to the cache; the rest
        is freed.

        Without `ids` (abort, failure) nothing more goes to the cache. Raises MemoryAccountError when done twice.
        """
        if lease.is_released:
            raise MemoryAccountError(f"{lease!r} released twice")
        if ids is not None and start + len(ids) > lease.num_shared:
            self._hand_over(lease, ids, start, priority, next_use)
        if lease.num_shared < self.lengths[lease.row]:
            self._free_slots_from(lease, lease.num_shared)
        self.cache.unlock(lease.node)
        self.table.free(lease.row)
        self.lengths[lease.row] = 0
        del self._leases[lease.row]
        lease.is_released = True

    def flush(self) -> int:
        """Evict all that is evictable; returns the tokens freed."""
        pages = self.cache.evict(self.cache.evictable_tokens)
        self.allocator.free(pages)
        return len(pages) * self.page_size

    def start_over(self) -> None:
        """After a fault in the middle of a change: all pages and rows are free, nothing is cached, pinned or leased."""
        self.table.start_over()
        self.allocator.start_over()
        self.cache.start_over()
        self.lengths[:] = 0
        for lease in self._leases.values():
            lease.is_released = True
        self._leases.clear()

    def _make_room(self, num_pages: int) -> bool:
        missing = num_pages - self.allocator.num_free_pages
        if missing <= 0:
            return True
        if missing * self.page_size > self.cache.evictable_tokens:
            return False
        self.allocator.free(self.cache.evict(missing * self.page_size))
        return True

    def _hand_over(self, lease: Lease, ids: TokenIds, start: int, priority: int, next_use: int) -> None:
        begin, end = lease.num_shared, start + len(ids)
        if start > begin or end > int(self.lengths[lease.row]):
            raise MemoryAccountError(
                f"{lease!r} has slots for {int(self.lengths[lease.row])} tokens, not for the {end} to be cached"
            )
        slots = self.table.host[lease.row, begin:end]
        from_now = max(-1, lease.use + next_use - self.cache.num_uses) if next_use >= 0 else -1
        num_cached, lease.num_shared, lease.node = self.cache.extend(
            lease.node, ids[begin - start :], slots, lease.namespace, priority=priority, next_use=from_now
        )
        if num_cached > begin:
            self.allocator.free(slots[: num_cached - begin : self.page_size] // self.page_size)
            theirs = slots_of_pages(self.cache.pages_of(lease.node, begin), self.page_size)[: num_cached - begin]
            self.table.write(lease.row, begin, theirs)

    def _free_slots_from(self, lease: Lease, start: int) -> None:
        """Free the lease's own pages that hold tokens from `start` (a page boundary) on."""
        slots = self.table.host[lease.row, start : int(self.lengths[lease.row]) : self.page_size]
        self.allocator.free(slots // self.page_size)

    def owned_pages(self, leases: Iterable[Lease] | None = None) -> IntArray:
        """The pages leases own beyond the shared prefixes."""
        parts = [
            self.table.slots(lease.row, lease.num_shared, int(self.lengths[lease.row]))[:: self.page_size]
            // self.page_size
            for lease in (self._leases.values() if leases is None else leases)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def check_integrity(self) -> None:
        """Raise MemoryAccountError unless free + cached + owned = all pages, each page exactly once.

        Also: every lease's shared prefix in the table is what the cache holds, and the cache and the allocator are
        sound in themselves. O(all pages).
        """
        self.allocator.check_integrity()
        self.cache.check_integrity()
        free, cached, owned = self.allocator.free_pages(), self.cache.all_pages(), self.owned_pages()
        every = np.concatenate([free, cached, owned])
        if len(every) != self.allocator.num_pages or has_twice(every):
            raise MemoryAccountError(
                f"{len(free)} free + {len(cached)} cached + {len(owned)} owned pages, {len(np.unique(every))} "
                f"different ones, of {self.allocator.num_pages}"
            )
        if len(self._leases) + self.table.num_free_rows != self.table.max_running_requests:
            raise MemoryAccountError(f"{len(self._leases)} leases, {self.table.num_free_rows} free rows")
        for lease in self._leases.values():
            shared = slots_of_pages(self.cache.pages_of(lease.node), self.page_size)
            if not np.array_equal(shared, self.table.slots(lease.row, 0, lease.num_shared)):
                raise MemoryAccountError(f"{lease!r}: the table does not hold the cache's slots")
