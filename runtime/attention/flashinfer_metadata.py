"""Page tables in FlashInfer's layout, from a ForwardBatch and the request table. Plain torch: tested on the CPU.

FlashInfer (Ye et al., arXiv 2501.01005) wants the pages of a batch as compressed sparse rows: request b's pages are
`kv_indices[kv_indptr[b] : kv_indptr[b + 1]]`, the last of them filled with `last_page_len[b]` tokens; its queries are
rows qo_indptr[b] .. qo_indptr[b + 1]. All int32. The pointers are made from host lengths and stay on the host, as
`plan` reads them there; only the page numbers are gathered on the device.

Slots of a page are neighbours and page-aligned positions begin pages, so a page is slot // page_size of its first
token. A segment of KV is given by request row, first token (a page's beginning) and length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class PagedSegments:
    """The `plan` arguments of one paged wrapper call over S segments; int32, all but `kv_indices` on the host."""

    qo_indptr: Tensor  # [S + 1] query rows
    kv_indptr: Tensor  # [S + 1] pages
    kv_indices: Tensor  # [pages] on the table's device
    last_page_len: Tensor  # [S] tokens in the last page, 1..page_size; 0 for a segment without KV


@dataclass(frozen=True, slots=True)
class RaggedExtend:
    """Prefix and new tokens apart: paged attention over what was cached, ragged causal attention over the new rows.

    The two results are merged by their log-sum-exps. The new rows are qo_indptr of both.
    """

    prefix: PagedSegments  # not causal
    qo_indptr: Tensor  # [B + 1] int32, also the ragged kv_indptr


@dataclass(frozen=True, slots=True)
class Cascade:
    """Prefixes shared by groups read once: level 0 has a segment per group, level 1 one per request for the rest.

    The queries of level 0 are `q[group_rows]`, those of level 1 all rows. Results of rows in both are merged by their
    log-sum-exps.
    """

    group_rows: Tensor  # [rows in groups] int64, on the table's device
    shared: PagedSegments  # one segment per group, not causal
    rest: PagedSegments  # one segment per request, causal


def paged_segments(
    req_to_token: Tensor,
    page_size: int,
    *,
    rows: Sequence[int] | Tensor,
    starts: Sequence[int],
    lens: Sequence[int],
    num_queries: Sequence[int],
) -> PagedSegments:
    """Segments of tokens [starts[s], starts[s] + lens[s]) of the requests in table rows `rows`.

    `req_to_token` is [rows, context] int32. Raises ValueError for a start that is not the beginning of a page.
    """
    if any(start % page_size for start in starts):
        raise ValueError(f"segments begin at whole pages of {page_size}, not at {tuple(starts)}")
    device = req_to_token.device
    lens_t = torch.tensor(lens, dtype=torch.int64)
    num_pages = (lens_t + page_size - 1) // page_size
    kv_indptr = _indptr(num_pages)
    segment = torch.repeat_interleave(torch.arange(len(lens)), num_pages)
    page = torch.arange(int(kv_indptr[-1])) - kv_indptr[:-1].long()[segment]
    position = torch.tensor(starts, dtype=torch.int64)[segment] + page * page_size
    rows_t = torch.as_tensor(rows, dtype=torch.int64).to(device)
    slots = req_to_token[rows_t[segment.to(device)], position.to(device)]
    last_page_len = torch.where(num_pages > 0, lens_t - (num_pages - 1) * page_size, 0)
    return PagedSegments(
        qo_indptr=_indptr(torch.tensor(num_queries, dtype=torch.int64)),
        kv_indptr=kv_indptr,
        kv_indices=slots // page_size,
        last_page_len=last_page_len.int(),
    )


def whole_kv(fb: ForwardBatch, req_to_token: Tensor, page_size: int) -> PagedSegments:
    """A segment per request with all its KV, new tokens included: for decode, and causal paged prefill."""
    return paged_segments(
        req_to_token,
        page_size,
        rows=fb.req_rows,
        starts=[0] * fb.num_requests,
        lens=fb.seq_lens_cpu,
        num_queries=fb.extend_lens_cpu,
    )


def ragged_extend(fb: ForwardBatch, req_to_token: Tensor, page_size: int) -> RaggedExtend:
    """The cached prefixes as pages, the new rows as they lie in the batch."""
    prefix = paged_segments(
        req_to_token,
        page_size,
        rows=fb.req_rows,
        starts=[0] * fb.num_requests,
        lens=fb.prefix_lens_cpu,
        num_queries=fb.extend_lens_cpu,
    )
    return RaggedExtend(prefix, prefix.qo_indptr)


def cascade(fb: ForwardBatch, req_to_token: Tensor, page_size: int) -> Cascade:
    """Two levels over `fb.groups`. Of nested groups the outermost is read once; prefixes count in whole pages.

    A group is used as far as it lies before all new rows of its requests. Without usable groups level 0 is empty.
    """
    starts = [0] * fb.num_requests  # of each request's own segment
    firsts: list[int] = []
    shared_lens: list[int] = []
    num_queries: list[int] = []
    group_rows: list[Tensor] = []
    row_starts = _indptr(torch.tensor(fb.extend_lens_cpu, dtype=torch.int64)).tolist()
    for group in sorted(fb.groups, key=lambda group: group.shared_len):
        shared_len = min(group.shared_len, *(fb.prefix_lens_cpu[b] for b in group.rows)) // page_size * page_size
        if shared_len == 0 or any(starts[b] for b in group.rows):
            continue
        firsts.append(group.rows[0])
        shared_lens.append(shared_len)
        num_queries.append(sum(fb.extend_lens_cpu[b] for b in group.rows))
        for b in group.rows:
            starts[b] = shared_len
            group_rows.append(torch.arange(row_starts[b], row_starts[b + 1]))
    empty = torch.zeros(0, dtype=torch.int64)
    return Cascade(
        group_rows=torch.cat([empty, *group_rows]).to(req_to_token.device),
        shared=paged_segments(
            req_to_token,
            page_size,
            rows=fb.req_rows[torch.tensor(firsts, dtype=torch.int64, device=fb.req_rows.device)],
            starts=[0] * len(firsts),
            lens=shared_lens,
            num_queries=num_queries,
        ),
        rest=paged_segments(
            req_to_token,
            page_size,
            rows=fb.req_rows,
            starts=starts,
            lens=[length - start for length, start in zip(fb.seq_lens_cpu, starts, strict=True)],
            num_queries=fb.extend_lens_cpu,
        ),
    )


def _indptr(counts: Tensor) -> Tensor:
    """[n] -> [n + 1] int32: 0, and the running sums."""
    indptr = torch.zeros(len(counts) + 1, dtype=torch.int32)
    indptr[1:] = counts.cumsum(0)
    return indptr
