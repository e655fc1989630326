"""ForwardBatches for tests of the model side: sequences with slots of their own, extended in any grouping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dslc.runtime.batch import ForwardBatch, ForwardMode, PrefixGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dslc.runtime.memory.request_table import ReqToTokenPool


class Slots:
    """Hands out rows of a request table and KV slots in a scattered but reproducible order; frees nothing."""

    def __init__(self, table: ReqToTokenPool, num_tokens: int, scatter: bool = True) -> None:
        self.table = table
        slots = np.arange(1, num_tokens + 1)
        self.free = list(np.random.default_rng(0).permutation(slots) if scatter else slots)

    def sequence(self, share: Sequence_ | None = None, shared_len: int = 0) -> Sequence_:
        """A new sequence; its first `shared_len` tokens are those of `share`, computed already."""
        row = self.table.alloc()
        assert row is not None
        seq = Sequence_(row, shared_len)
        if share is not None:
            self.table.write(row, 0, self.table.slots(share.row, 0, shared_len))
        return seq

    def take(self, num: int) -> np.ndarray:
        taken, self.free = self.free[:num], self.free[num:]
        return np.array(taken, dtype=np.int64)


class Sequence_:
    """A token sequence in the pool: `length` tokens are computed."""

    def __init__(self, row: int, length: int = 0) -> None:
        self.row = row
        self.length = length


def make_batch(
    slots: Slots,
    work: Sequence[tuple[Sequence_, Sequence[int]]],
    *,
    all_logits: bool = True,
    groups: tuple[PrefixGroup, ...] = (),
    parents: Sequence[Sequence[int] | None] | None = None,
) -> ForwardBatch:
    """The batch that appends tokens to each sequence, whose lengths grow by it.

    `parents[b]` makes the new rows of request b a tree (positions by depth). All rows' logits are wanted, or only the
    last of each request.
    """
    ids: list[int] = []
    positions: list[int] = []
    prefix, extend, out_slots, wanted = [], [], [], []
    for b, (seq, tokens) in enumerate(work):
        new = slots.take(len(tokens))
        slots.table.write(seq.row, seq.length, new)
        tree = parents[b] if parents is not None else None
        depth = list(range(len(tokens)))
        for i, parent in enumerate(tree or ()):
            depth[i] = 0 if parent < 0 else depth[parent] + 1
        ids += list(tokens)
        positions += [seq.length + d for d in depth]
        out_slots += new.tolist()
        prefix.append(seq.length)
        extend.append(len(tokens))
        seq.length += len(tokens)
        wanted += list(range(len(ids) - len(tokens), len(ids))) if all_logits else [len(ids) - 1]
    lens = [p + e for p, e in zip(prefix, extend, strict=True)]
    decode = [n == 1 for n in extend]
    mode = ForwardMode.DECODE if all(decode) else ForwardMode.MIXED if any(decode) else ForwardMode.EXTEND
    trees = None
    if parents is not None:
        trees = tuple(None if tree is None else torch.tensor(tree) for tree in parents)
    return ForwardBatch(
        mode=mode if work else ForwardMode.IDLE,
        input_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        out_slots=torch.tensor(out_slots, dtype=torch.int64),
        req_rows=torch.tensor([seq.row for seq, _ in work], dtype=torch.int64),
        seq_lens=torch.tensor(lens, dtype=torch.int64),
        prefix_lens=torch.tensor(prefix, dtype=torch.int64),
        extend_lens=torch.tensor(extend, dtype=torch.int64),
        seq_lens_cpu=tuple(lens),
        prefix_lens_cpu=tuple(prefix),
        extend_lens_cpu=tuple(extend),
        logits_rows=torch.tensor(wanted, dtype=torch.int64),
        groups=groups,
        tree_parents=trees,
    )
