"""Which pages of the KV pool are free.

A page is `page_size` neighbouring slots; slot = page * page_size + offset. Page 0 is never handed out: padding rows
write there. Everything is numpy on the host, so that no decision ever waits for the device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...core.errors import EngineError

IntArray = npt.NDArray[np.int64]


class MemoryAccountError(EngineError):
    """The account of pages is broken: freed twice, freed but never handed out, owned by two, or by none."""


class PageAllocator:
    """Hands out pages 1..num_pages, each to one owner at a time; O(1) per page, vectorised over many.

    The most recently freed pages go out first, a run of fresh ones in ascending order.
    """

    def __init__(self, num_pages: int, page_size: int = 1) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"need at least one page and one slot per page, not {num_pages} x {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self._order = np.zeros(num_pages + 1, dtype=np.int64)  # scratch, to see a page twice in one call
        self.start_over()

    def start_over(self) -> None:
        """All pages are free."""
        self._stack: IntArray = np.arange(self.num_pages, 0, -1, dtype=np.int64)  # free pages; the top is the end
        self._num_free = self.num_pages
        self._is_free = np.ones(self.num_pages + 1, dtype=np.bool_)
        self._is_free[0] = False

    @property
    def num_free_pages(self) -> int:
        return self._num_free

    @property
    def num_free_tokens(self) -> int:
        return self._num_free * self.page_size

    def free_pages(self) -> IntArray:
        """[num_free_pages] the free pages, in no stated order (a copy)."""
        return self._stack[: self._num_free].copy()

    def alloc(self, num_pages: int) -> IntArray | None:
        """[num_pages] page numbers, or None (and no change) when fewer are free."""
        start = self._num_free - num_pages
        if start < 0:
            return None
        pages = self._stack[start : self._num_free][::-1].copy()
        self._num_free = start
        self._is_free[pages] = False
        return pages

    def free(self, pages: npt.NDArray[np.integer]) -> None:
        """Take pages back. Raises MemoryAccountError, changing nothing, for a page that is not out, or named twice."""
        n = len(pages)
        if n == 0:
            return
        if int(pages.min()) < 1 or int(pages.max()) > self.num_pages:
            raise MemoryAccountError(f"pages outside 1..{self.num_pages} given back: {_some(pages)}")
        if self._is_free[pages].any():
            raise MemoryAccountError(f"pages given back twice: {_some(pages[self._is_free[pages]])}")
        numbers = np.arange(n)
        self._order[pages] = numbers
        if (self._order[pages] != numbers).any():
            raise MemoryAccountError(f"the same page named twice in one call: {_some(pages)}")
        self._is_free[pages] = True
        self._stack[self._num_free : self._num_free + n] = pages[::-1]
        self._num_free += n

    def pages_needed(self, old_lens: IntArray, new_lens: IntArray) -> int:
        """How many new pages it takes to grow sequences from old to new lengths (tokens), each on its own pages."""
        size = self.page_size
        return int((-(-new_lens // size) + (-old_lens // size)).sum())

    def alloc_extend(self, old_lens: IntArray, new_lens: IntArray, last_slots: IntArray) -> IntArray | None:
        """[sum(new_lens - old_lens)] slots that grow each sequence, or None (and no change) if pages do not suffice.

        `last_slots[b]` is the slot of token old_lens[b] - 1 (any value where old_lens[b] is 0): a page begun is filled
        up first. Slots come sequence after sequence, in token order.
        """
        size = self.page_size
        num_new = new_lens - old_lens
        if size == 1:
            return self.alloc(int(num_new.sum()))
        old_pages = -(-old_lens // size)
        num_pages = -(-new_lens // size) - old_pages
        pages = self.alloc(int(num_pages.sum()))
        if pages is None:
            return None
        starts = np.cumsum(num_new) - num_new
        seq = np.repeat(np.arange(len(num_new)), num_new)
        offset = np.arange(len(seq)) - starts[seq]  # of the token among its sequence's new ones
        position = old_lens[seq] + offset
        page = position // size - old_pages[seq]  # among its sequence's new pages; -1 is the page begun before
        first_page = np.cumsum(num_pages) - num_pages
        begun = page < 0
        slots: IntArray = last_slots[seq] + 1 + offset
        fresh = ~begun
        slots[fresh] = pages[first_page[seq[fresh]] + page[fresh]] * size + position[fresh] % size
        return slots

    def alloc_decode(self, old_lens: IntArray, last_slots: IntArray) -> IntArray | None:
        """[B] one more slot for each sequence; otherwise as `alloc_extend`."""
        size = self.page_size
        if size == 1:
            return self.alloc(len(old_lens))
        full = old_lens % size == 0
        pages = self.alloc(int(np.count_nonzero(full)))
        if pages is None:
            return None
        slots: IntArray = last_slots + 1
        slots[full] = pages * size
        return slots

    def check_integrity(self) -> None:
        """Raise MemoryAccountError unless the stack holds exactly the pages marked free, each once."""
        free = self._stack[: self._num_free]
        if has_twice(free) or not self._is_free[free].all():
            raise MemoryAccountError("the free stack holds a page twice, or one that is out")
        if int(np.count_nonzero(self._is_free)) != self._num_free or self._is_free[0]:
            raise MemoryAccountError("a page marked free is missing from the free stack")


def has_twice(pages: npt.NDArray[np.integer]) -> bool:
    """Whether a page stands there more than once. Numbers below 0 are no pages: True. Quicker than to sort them."""
    return len(pages) > 0 and (int(pages.min()) < 0 or int(np.bincount(pages).max()) > 1)


def _some(pages: npt.NDArray[np.integer]) -> str:
    shown = ", ".join(str(int(page)) for page in pages[:8])
    return shown + (", ..." if len(pages) > 8 else "")
