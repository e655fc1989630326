"""From the scheduler's decision to the tensors of a forward: lengths, positions, slots, and which logits are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..batch import ForwardBatch, ForwardMode
from ..transfer import to_device

if TYPE_CHECKING:
    from ..memory.allocator import IntArray
    from .batch import Batch, Extend


@dataclass(slots=True)
class LogitRows:
    """Where in the R wanted logits of a forward everything stands.

    `sampled` [S] rows of batch.sampled; None if they are all rows, in order. By index into batch.extends: `prompt` the
    first row and the prompt positions it and the following rows predict; `tries` the row of the prompt's last token
    (-1: not computed) and that of the trie's first row.
    """

    sampled: IntArray | None = None
    prompt: dict[int, tuple[int, range]] = field(default_factory=dict)
    tries: dict[int, tuple[int, int]] = field(default_factory=dict)


class BatchBuilder:
    """Makes ForwardBatches on one device. The new tokens of decodes stay there: `last_ids` [rows] holds, by row of the
    request table, the last sampled id."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.device = device
        self.last_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def build(self, batch: Batch) -> tuple[ForwardBatch, LogitRows]:
        """The forward of a batch, and where its results will stand."""
        if not batch.extends:
            return self._decode(batch), LogitRows()
        num_decodes = len(batch.decodes)
        starts = np.concatenate([batch.lens[:num_decodes] - 1, [extend.start for extend in batch.extends]])
        counts = batch.lens - starts
        ids, positions, wanted = [], [batch.lens[:num_decodes] - 1], [np.arange(num_decodes)]
        where = LogitRows()
        sampled = list(range(num_decodes))
        num_wanted = row = num_decodes
        for number, extend in enumerate(batch.extends):
            ids.append(_ids_of(extend))
            positions.append(_positions_of(extend))
            rows = self._wanted(extend, number, where, num_wanted, sampled)
            wanted.append(row + rows)
            num_wanted += len(rows)
            row += extend.num_rows
        if len(sampled) < num_wanted:
            where.sampled = np.array(sampled, dtype=np.int64)
        host_ids = self._tensor(np.concatenate(ids))
        rows_on_device = self._tensor(batch.rows)
        fb = ForwardBatch(
            mode=ForwardMode.MIXED if num_decodes else ForwardMode.EXTEND,
            input_ids=torch.cat([self.last_ids[rows_on_device[:num_decodes]], host_ids]) if num_decodes else host_ids,
            positions=self._tensor(np.concatenate(positions)),
            out_slots=self._tensor(batch.slots),
            req_rows=rows_on_device,
            seq_lens=self._tensor(batch.lens),
            prefix_lens=self._tensor(starts),
            extend_lens=self._tensor(counts),
            seq_lens_cpu=tuple(batch.lens.tolist()),
            prefix_lens_cpu=tuple(starts.tolist()),
            extend_lens_cpu=tuple(counts.tolist()),
            logits_rows=self._tensor(np.concatenate(wanted)),
            groups=batch.groups,
            tree_parents=self._trees(batch),
        )
        return fb, where

    def _decode(self, batch: Batch) -> ForwardBatch:
        """The common case: one row each, all from the device."""
        num = len(batch.decodes)
        starts = batch.lens - 1
        rows, lens, positions = self._tensor(batch.rows), self._tensor(batch.lens), self._tensor(starts)
        return ForwardBatch(
            mode=ForwardMode.DECODE,
            input_ids=self.last_ids[rows],
            positions=positions,
            out_slots=self._tensor(batch.slots),
            req_rows=rows,
            seq_lens=lens,
            prefix_lens=positions,
            extend_lens=torch.ones(num, dtype=torch.int64, device=self.device),
            seq_lens_cpu=tuple(batch.lens.tolist()),
            prefix_lens_cpu=tuple(starts.tolist()),
            extend_lens_cpu=(1,) * num,
            logits_rows=torch.arange(num, device=self.device),
            groups=batch.groups,
        )

    @staticmethod
    def _wanted(extend: Extend, number: int, where: LogitRows, at: int, sampled: list[int]) -> IntArray:
        """Rows of the extend whose logits are wanted, counted from its own first; `at` is where they will stand."""
        num_tokens = extend.end - extend.start
        first = num_tokens
        last_known = extend.seq.prompt_len + len(extend.seq.output_ids) - 1  # its logits predict a token to be drawn
        if extend.logprobs_from < extend.end:
            stop = min(extend.end, last_known)
            if stop > extend.logprobs_from:
                first = extend.logprobs_from - extend.start
                where.prompt[number] = at, range(extend.logprobs_from + 1, stop + 1)
        if first < num_tokens and extend.end > last_known and not (extend.samples or extend.trie):
            num_tokens -= 1  # nothing asks for what follows the prompt
        elif extend.samples or (extend.trie is not None and num_tokens):
            first = min(first, num_tokens - 1)
        rows = np.arange(first, num_tokens)
        if extend.samples:
            sampled.append(at + len(rows) - 1)
        if extend.trie is not None:
            where.tries[number] = at + len(rows) - 1 if len(rows) else -1, at + len(rows)
            rows = np.concatenate([rows, num_tokens + np.arange(len(extend.trie.token_ids))])
        return rows

    def _trees(self, batch: Batch) -> tuple[Tensor | None, ...] | None:
        if not any(extend.trie for extend in batch.extends):
            return None
        trees: list[Tensor | None] = [None] * len(batch.decodes)
        for extend in batch.extends:
            if extend.trie is None:
                trees.append(None)
                continue
            num_tokens = extend.end - extend.start  # a chain, on whose end the trie stands
            parents = np.array([*range(-1, num_tokens - 1), *extend.trie.parents], dtype=np.int64)
            parents[num_tokens:] += num_tokens
            trees.append(self._tensor(parents))
        return tuple(trees)

    def _tensor(self, values: IntArray) -> Tensor:
        return to_device(values.astype(np.int64, copy=False), self.device)


def _ids_of(extend: Extend) -> IntArray:
    ids = extend.seq.ids(extend.start, extend.end).astype(np.int64)
    if extend.trie is None:
        return ids
    return np.concatenate([ids, np.array(extend.trie.token_ids, dtype=np.int64)])


def _positions_of(extend: Extend) -> IntArray:
    positions = np.arange(extend.start, extend.end)
    if extend.trie is None:
        return positions
    return np.concatenate([positions, extend.end - 1 + np.array(extend.trie.depths, dtype=np.int64)])
