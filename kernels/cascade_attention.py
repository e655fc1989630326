"""Attention over prefixes that groups of rows share: each prefix is read once for its whole group.

(Cascade inference, Ye et al. 2024; Hydragen, Juravsky et al., arXiv 2402.05099.) The result is a partial one: it is
joined by `merge_states` with each row's attention over the keys that are its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .plain_attention import attend, slots_of
from .registry import Implementation, operation

if TYPE_CHECKING:
    from torch import Tensor


@operation("cascade_attention", Implementation("triton", ".triton.cascade_attention:cascade_attention"))
def cascade_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    rows: Tensor,
    starts: Tensor,
    ends: Tensor,
    members: Tensor,
    member_starts: Tensor,
    scale: float,
    logit_cap: float = 0.0,
    max_members: int | None = None,
) -> tuple[Tensor, Tensor]:
    """q [T, heads, D] -> out [T, heads, D] in q's dtype, lse [T, heads] float32; 0 and -inf for rows in no group.

    Of G groups, group g is rows members[member_starts[g] : member_starts[g + 1]] of q, and all of them see the keys
    starts[g]..ends[g] - 1 of the sequence in row rows[g] of the table. members [N], member_starts [G + 1], all else
    [G], int64. A row is in one group at most. `max_members` is a bound on a group's size that spares a look at the
    device.
    """
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float32, device=q.device)
    for g, (row, start, end) in enumerate(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        group = members[int(member_starts[g]) : int(member_starts[g + 1])]
        slots = slots_of(table, row, start, end)
        found = attend(q[group], k_cache[slots], v_cache[slots], None, scale, logit_cap)
        out[group], lse[group] = found[0].to(q.dtype), found[1]
    return out, lse
