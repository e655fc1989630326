"""FlashInfer's page tables: worked out by hand, and read by a plain reader that attends as FlashInfer does."""

import random

import numpy as np
import pytest
import torch

from dslc.runtime.attention.flashinfer_metadata import cascade, paged_segments, ragged_extend, whole_kv
from dslc.runtime.batch import ForwardBatch, ForwardMode, PrefixGroup
from dslc.runtime.memory.allocator import PageAllocator
from dslc.runtime.memory.groups import shared_prefixes
from dslc.runtime.memory.manager import MemoryManager
from dslc.runtime.memory.radix import RadixCache
from dslc.runtime.memory.request_table import ReqToTokenPool

torch.set_num_threads(1)
HEADS, DIM = 2, 4


def test_arrays_worked_out_by_hand():
    """Pages of 4; request in row 2 has 6 tokens on pages 7, 3; row 0 has 4 on page 5; row 1 none."""
    table = torch.zeros(3, 12, dtype=torch.int32)
    table[2, :6] = torch.tensor([28, 29, 30, 31, 12, 13])
    table[0, :4] = torch.tensor([20, 21, 22, 23])
    segments = paged_segments(table, 4, rows=[2, 0, 1], starts=[0, 0, 0], lens=[6, 4, 0], num_queries=[2, 1, 3])
    assert segments.qo_indptr.tolist() == [0, 2, 3, 6]
    assert segments.kv_indptr.tolist() == [0, 2, 3, 3]
    assert segments.kv_indices.tolist() == [7, 3, 5]
    assert segments.last_page_len.tolist() == [2, 4, 0]
    tensors = (segments.qo_indptr, segments.kv_indptr, segments.kv_indices, segments.last_page_len)
    assert all(tensor.dtype == torch.int32 for tensor in tensors)
    rest = paged_segments(table, 4, rows=[2], starts=[4], lens=[2], num_queries=[1])
    assert (rest.kv_indices.tolist(), rest.last_page_len.tolist()) == ([3], [2])
    with pytest.raises(ValueError, match="whole pages of 4, not at \\(2,\\)"):
        paged_segments(table, 4, rows=[2], starts=[2], lens=[4], num_queries=[1])


def test_an_empty_batch_has_empty_arrays():
    segments = paged_segments(torch.zeros(1, 4, dtype=torch.int32), 1, rows=[], starts=[], lens=[], num_queries=[])
    assert (segments.qo_indptr.tolist(), segments.kv_indptr.tolist()) == ([0], [0])
    assert segments.kv_indices.tolist() == segments.last_page_len.tolist() == []


def read_kv(segments, s, pages):
    """The KV of segment s, page by page, as FlashInfer reads it. pages [num_pages, page_size, ...]."""
    begin, end = segments.kv_indptr[s : s + 2].tolist()
    if begin == end:
        return pages[0, :0]
    chosen = [pages[int(page)] for page in segments.kv_indices[begin:end]]
    chosen[-1] = chosen[-1][: int(segments.last_page_len[s])]
    return torch.cat(chosen)


def attend(q, k, v, causal):
    """(out [n, H, D], log-sum-exp [n, H]); with `causal` the last query sees the last key."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / DIM**0.5
    if causal:
        scores += torch.full((len(q), len(k)), float("-inf")).triu(len(k) - len(q) + 1)
    lse = scores.logsumexp(-1)
    return torch.einsum("hqk,khd->qhd", (scores - lse[..., None]).exp(), v), lse.T


def run_segments(q, segments, k_pages, v_pages, causal):
    outs, lses = [], []
    for s in range(len(segments.last_page_len)):
        begin, end = segments.qo_indptr[s : s + 2].tolist()
        k, v = read_kv(segments, s, k_pages), read_kv(segments, s, v_pages)
        if len(k):
            out, lse = attend(q[begin:end], k, v, causal)
        else:
            out = torch.zeros_like(q[begin:end])
            lse = torch.full(out.shape[:2], float("-inf"))
        outs.append(out)
        lses.append(lse)
    empty = torch.zeros(0, HEADS, DIM)
    return torch.cat([empty, *outs]), torch.cat([empty[..., 0], *lses])


def merge(out_a, lse_a, out_b, lse_b):
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse_a - lse).exp()[..., None] + out_b * (lse_b - lse).exp()[..., None]


def random_batch(page_size, seed):
    """Requests of a few families over a real cache, as an engine would lease them; returns the batch and its KV."""
    rng = random.Random(seed)
    memory = MemoryManager(ReqToTokenPool(8, 80), PageAllocator(800 // page_size, page_size), RadixCache(page_size))
    stems = [[rng.randrange(50) for _ in range(rng.randint(1, 40))] for _ in range(2)]
    leases, prefix_lens, extend_lens = [], [], []
    for _ in range(rng.randint(1, 8)):
        ids = rng.choice(stems)[: rng.randint(1, 40)] + [rng.randrange(50) for _ in range(rng.randint(0, 20))]
        ids = np.array(ids, dtype=np.int32)
        lease = memory.acquire(ids)
        done = rng.randint(lease.num_cached, len(ids) - 1)
        memory.extend([lease], [done - lease.num_cached])
        memory.commit(lease, ids[:done])
        memory.extend([lease], [len(ids) - done])
        leases.append(lease)
        prefix_lens.append(done)
        extend_lens.append(len(ids) - done)
    memory.check_integrity()
    groups = shared_prefixes([lease.node for lease in leases])
    seq_lens = [p + e for p, e in zip(prefix_lens, extend_lens, strict=True)]
    as_tensor = torch.tensor
    num_rows = sum(extend_lens)
    fb = ForwardBatch(
        mode=ForwardMode.EXTEND,
        input_ids=torch.zeros(num_rows, dtype=torch.int64),
        positions=torch.zeros(num_rows, dtype=torch.int64),
        out_slots=torch.zeros(num_rows, dtype=torch.int64),
        req_rows=as_tensor([lease.row for lease in leases]),
        seq_lens=as_tensor(seq_lens),
        prefix_lens=as_tensor(prefix_lens),
        extend_lens=as_tensor(extend_lens),
        seq_lens_cpu=tuple(seq_lens),
        prefix_lens_cpu=tuple(prefix_lens),
        extend_lens_cpu=tuple(extend_lens),
        logits_rows=torch.arange(num_rows),
        groups=groups,
    )
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(2, 800 + page_size, HEADS, DIM, generator=generator, dtype=torch.float64).float()
    q = torch.randn(num_rows, HEADS, DIM, generator=generator)
    return memory, fb, q, kv[0], kv[1], leases


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_all_layouts_attend_to_the_same_keys(page_size):
    """Whole KV, prefix + ragged new rows, and shared prefix + rest: each gives what reading the table token by token
    gives."""
    num_grouped = 0
    for seed in range(25):
        memory, fb, q, k, v, _ = random_batch(page_size, seed)
        table = memory.table.device
        expected, starts = [], np.cumsum([0, *fb.extend_lens_cpu])
        for b, row in enumerate(fb.req_rows.tolist()):
            slots = table[row, : fb.seq_lens_cpu[b]].long()
            expected.append(attend(q[starts[b] : starts[b + 1]], k[slots], v[slots], True)[0])
        expected = torch.cat(expected)
        pages = [t.view(-1, page_size, HEADS, DIM) for t in (k, v)]

        whole = whole_kv(fb, table, page_size)
        torch.testing.assert_close(run_segments(q, whole, *pages, True)[0], expected)

        split = ragged_extend(fb, table, page_size)
        out, lse = run_segments(q, split.prefix, *pages, False)
        new_outs, new_lses = [], []
        for b, row in enumerate(fb.req_rows.tolist()):
            begin, end = split.qo_indptr[b : b + 2].tolist()
            slots = table[row, fb.prefix_lens_cpu[b] : fb.seq_lens_cpu[b]].long()
            new_out, new_lse = attend(q[begin:end], k[slots], v[slots], True)
            new_outs.append(new_out)
            new_lses.append(new_lse)
        torch.testing.assert_close(merge(out, lse, torch.cat(new_outs), torch.cat(new_lses)), expected)

        two = cascade(fb, table, page_size)
        out, lse = run_segments(q, two.rest, *pages, True)
        shared_out, shared_lse = run_segments(q[two.group_rows], two.shared, *pages, False)
        rows = two.group_rows
        assert len(rows.unique()) == len(rows)
        out[rows] = merge(out[rows], lse[rows], shared_out, shared_lse)
        torch.testing.assert_close(out, expected)
        num_grouped += len(rows)
        read = len(whole.kv_indices)
        assert len(two.rest.kv_indices) + len(two.shared.kv_indices) <= read
    assert num_grouped > 20 or page_size == 16


def test_a_shared_prefix_is_read_once():
    table = torch.arange(1, 61, dtype=torch.int32).view(3, 20).clone()
    table[1, :8], table[2, :5] = table[0, :8], table[0, :5]
    lens = torch.tensor([12, 10, 9])
    fb = ForwardBatch(
        ForwardMode.DECODE, *[torch.zeros(3, dtype=torch.int64)] * 3, torch.arange(3), lens, lens - 1,
        torch.ones(3, dtype=torch.int64), (12, 10, 9), (11, 9, 8), (1, 1, 1), torch.arange(3),
        (PrefixGroup((0, 1), 8), PrefixGroup((0, 1, 2), 5)),
    )  # fmt: skip
    two = cascade(fb, table, 1)
    assert two.shared.kv_indices.tolist() == [1, 2, 3, 4, 5]  # of nested groups, the one of all three
    assert (two.shared.qo_indptr.tolist(), two.group_rows.tolist()) == ([0, 3], [0, 1, 2])
    assert two.rest.kv_indptr.tolist() == [0, 7, 12, 16]
    assert cascade(fb, table, 16).group_rows.tolist() == []  # not a whole page


def test_groups_of_random_batches_against_brute_force():
    """Each set of two or more requests that share locked pages appears once, with all they share."""
    for seed in range(40):
        memory, fb, *_, leases = random_batch(2, seed)
        shared = [memory.cache.pages_of(lease.node).tolist() for lease in leases]
        expected = {}
        longest = max((len(pages) for pages in shared), default=0)
        for length in range(1, longest + 1):
            for pages in {tuple(p[:length]) for p in shared if len(p) >= length}:
                rows = tuple(b for b, p in enumerate(shared) if tuple(p[:length]) == pages)
                if len(rows) > 1:
                    expected[rows] = 2 * length
        assert {group.rows: group.shared_len for group in fb.groups} == expected
        assert len(fb.groups) == len(expected)
        assert [g.shared_len for g in fb.groups] == sorted(g.shared_len for g in fb.groups)
        long_ones = shared_prefixes([lease.node for lease in leases], min_len=20)
        assert {group.rows for group in long_ones} == {rows for rows, length in expected.items() if length >= 20}
    assert shared_prefixes([]) == shared_prefixes([None, None]) == ()


def test_a_group_appears_once_however_many_nodes_its_prefix_has():
    """Texts outside of the batch cut the shared prefix into several nodes."""
    cache = RadixCache()
    for number, ids in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 9], [1, 2, 8])):
        cache.insert(ids, np.arange(5) + 10 * number + 1)
    nodes = [cache.match(ids).node for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])]
    assert shared_prefixes(nodes) == (PrefixGroup((0, 1), 4),)
