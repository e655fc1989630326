"""Pages are handed out once, given back once, and never lost."""

import random

import numpy as np
import pytest

from dslc.runtime.memory.allocator import MemoryAccountError, PageAllocator


def naive_slots(pages: list[int], length: int, page_size: int) -> list[int]:
    """The slots of a sequence of `length` tokens on its pages, one by one."""
    return [pages[i // page_size] * page_size + i % page_size for i in range(length)]


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
def test_random_growth_and_release_against_a_model(page_size):
    """Sequences grow by runs and by single tokens, and end in any order: slots stay in whole pages, one owner each."""
    rng = random.Random(page_size)
    allocator = PageAllocator(40, page_size)
    slots: dict[int, list[int]] = {}
    refused = 0
    for step in range(3000):
        if rng.random() < 0.25 and slots:
            ended = rng.sample(sorted(slots), rng.randint(1, min(3, len(slots))))
            pages = [slot // page_size for name in ended for slot in slots.pop(name)[::page_size]]
            rng.shuffle(pages)
            allocator.free(np.array(pages, dtype=np.int64))
        else:
            if rng.random() < 0.3:
                slots[step] = []
            grown = rng.sample(sorted(slots), rng.randint(0, min(5, len(slots))))
            decode = rng.random() < 0.4
            counts = [1 if decode else rng.randint(0, 3 * page_size) for _ in grown]
            old = np.array([len(slots[name]) for name in grown], dtype=np.int64)
            last = np.array([slots[name][-1] if slots[name] else -7 for name in grown], dtype=np.int64)
            new = old + np.array(counts, dtype=np.int64)
            needed = sum(-(-int(n) // page_size) - -(-int(o) // page_size) for o, n in zip(old, new, strict=True))
            assert allocator.pages_needed(old, new) == needed
            got = allocator.alloc_decode(old, last) if decode else allocator.alloc_extend(old, new, last)
            if got is None:
                refused += 1
                assert needed > allocator.num_free_pages
            else:
                assert got.dtype == np.int64
                parts = np.split(got, np.cumsum(counts)[:-1]) if grown else []
                for name, part in zip(grown, parts, strict=True):
                    slots[name] += part.tolist()
        allocator.check_integrity()
        owned = []
        for sequence in slots.values():
            pages = [slot // page_size for slot in sequence[::page_size]]
            assert sequence == naive_slots(pages, len(sequence), page_size)
            owned += pages
        assert sorted(owned + allocator.free_pages().tolist()) == list(range(1, 41))
        assert allocator.num_free_tokens == (40 - len(owned)) * page_size
    assert refused > 10


def test_fresh_pages_come_in_order_and_freed_ones_first():
    allocator = PageAllocator(8)
    assert allocator.alloc(5).tolist() == [1, 2, 3, 4, 5]
    allocator.free(np.array([2, 4]))
    assert allocator.alloc(3).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("pages", "message"),
    [([3, 3], "named twice"), ([5], "given back twice"), ([0], "outside 1..8"), ([9], "outside"), ([-1], "outside")],
)
def test_wrong_returns_are_refused_and_change_nothing(pages, message):
    allocator = PageAllocator(8)
    allocator.alloc(4)
    with pytest.raises(MemoryAccountError, match=message):
        allocator.free(np.array(pages))
    allocator.check_integrity()
    assert allocator.num_free_pages == 4


def test_what_does_not_fit_changes_nothing():
    allocator = PageAllocator(3, 4)
    first = allocator.alloc_extend(np.array([0]), np.array([6]), np.array([0]))
    assert first.tolist() == [4, 5, 6, 7, 8, 9]
    assert allocator.alloc_extend(np.array([6, 0]), np.array([9, 4]), np.array([9, 0])) is None
    assert allocator.num_free_pages == 1
    assert allocator.alloc_extend(np.array([6]), np.array([9]), np.array([9])).tolist() == [10, 11, 12]


def test_integrity_check_sees_a_damaged_free_list():
    allocator = PageAllocator(4)
    allocator.alloc(1)
    allocator._stack[0] = allocator._stack[1]
    with pytest.raises(MemoryAccountError):
        allocator.check_integrity()


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 1), (4, 0)])
def test_an_empty_pool_is_refused(num_pages, page_size):
    with pytest.raises(ValueError, match="at least one page"):
        PageAllocator(num_pages, page_size)
