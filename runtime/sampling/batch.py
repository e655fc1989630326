"""The sampling parameters of a batch as tensors, kept up to date as rows come and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .penalties import PENALIZERS, Penalizer, State
from .random import stream_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.sampling import SamplingParams

HOTTEST = float(np.finfo(np.float32).max)  # more would be infinite, and -inf / inf lets barred tokens in
NO_LIMIT = 2**31  # a top_k that keeps everything


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One output being drawn: its parameters, and where its randomness comes from (`seed`, `choice`).

    `prompt_ids` and `output_ids` (what it has drawn before, after a retraction) are read by penalties only; `stop_ids`
    are the ids that end it, barred until min_new_tokens.
    """

    params: SamplingParams
    seed: int
    choice: int = 0
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    stop_ids: Sequence[int] = ()


@dataclass(slots=True)
class _Active:
    """A penalizer at work on the rows `at` of a batch, ascending."""

    penalizer: Penalizer
    at: list[int]
    state: State


@dataclass(frozen=True, slots=True)
class RowKind:
    """Rows that are drawn in one way: their numbers (None: all rows of the batch), and their parameters.

    temperature [b, 1] and min_p [b, 1] float32, top_k [b] int64, top_p [b] float32, keys [b, 2] int64.
    """

    rows: Tensor | None
    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    keys: Tensor
    has_min_p: bool

    def row(self, i: int) -> RowKind:
        """Row i alone."""
        one = slice(i, i + 1)
        return RowKind(
            None, self.temperature[one], self.min_p[one], self.top_k[one], self.top_p[one], self.keys[one],
            self.has_min_p,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kinds:
    """How the rows of a batch are drawn: the likeliest token, from all tokens, or from a ranked selection of them."""

    greedy: RowKind | None
    plain: RowKind | None
    ranked: RowKind | None


class SamplingBatch:
    """B rows. Made with `of`, then changed row-wise with `filter` and `merge`, and by each token with `append`.

    Only numbers are kept per row, and for rows with penalties what those remember; a batch without penalties is a few
    short arrays.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._numbers: npt.NDArray[np.float32] = np.zeros((0, 3), dtype=np.float32)  # temperature, top_p, min_p
        self._top_k: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._keys: npt.NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
        self._is_greedy: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._active: dict[str, _Active] = {}
        self._kinds: Kinds | None = None

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device | str = "cpu") -> SamplingBatch:
        """A batch of these rows, in this order."""
        batch = cls(vocab_size, device)
        if not rows:
            return batch
        params = [row.params for row in rows]
        numbers = [(min(p.temperature, HOTTEST), p.top_p, p.min_p) for p in params]
        batch._numbers = np.array(numbers, dtype=np.float32)
        batch._top_k = np.array([p.top_k if p.top_k > 0 else NO_LIMIT for p in params], dtype=np.int64)
        batch._keys = np.array([stream_key(row.seed, row.choice) for row in rows], dtype=np.int64)
        batch._is_greedy = np.array([p.is_greedy for p in params], dtype=np.bool_)
        for name, penalizer in PENALIZERS.items():
            at = [i for i, p in enumerate(params) if penalizer.is_required(p)]
            if at:
                state = penalizer.begin([rows[i] for i in at], vocab_size, batch.device)
                batch._active[name] = _Active(penalizer, at, state)
        return batch

    def __len__(self) -> int:
        return len(self._top_k)

    @property
    def all_greedy(self) -> bool:
        """Whether every row takes its likeliest token, so that no distribution is needed."""
        return bool(self._is_greedy.all())

    @property
    def changes_logits(self) -> bool:
        """Whether any row has a penalty, a bias, or a minimum length."""
        return bool(self._active)

    def filter(self, keep: Sequence[int]) -> None:
        """Keep these rows, in this order (each once at most); drop the others and what was remembered for them."""
        order = np.asarray(keep, dtype=np.int64)
        self._numbers, self._top_k = self._numbers[order], self._top_k[order]
        self._keys, self._is_greedy = self._keys[order], self._is_greedy[order]
        self._kinds = None
        for name, active in list(self._active.items()):
            place = {row: i for i, row in enumerate(active.at)}
            at = [new for new, old in enumerate(keep) if old in place]
            if not at:
                del self._active[name]
                continue
            picked = torch.tensor([place[keep[new]] for new in at], device=self.device)
            active.state = {key: value.index_select(0, picked) for key, value in active.state.items()}
            active.at = at

    def merge(self, other: SamplingBatch) -> None:
        """Append the rows of `other`, which must not be used any more."""
        offset = len(self)
        self._numbers = np.concatenate([self._numbers, other._numbers])
        self._top_k = np.concatenate([self._top_k, other._top_k])
        self._keys = np.concatenate([self._keys, other._keys])
        self._is_greedy = np.concatenate([self._is_greedy, other._is_greedy])
        self._kinds = None
        for name, theirs in other._active.items():
            theirs.at = [row + offset for row in theirs.at]
            ours = self._active.get(name)
            if ours is None:
                self._active[name] = theirs
                continue
            ours.at += theirs.at
            ours.state = {key: torch.cat([value, theirs.state[key]]) for key, value in ours.state.items()}
        self._active = {name: self._active[name] for name in PENALIZERS if name in self._active}

    def append(self, ids: Tensor) -> None:
        """Take in the new token of each row: ids [B] int64 on the batch's device, -1 for a row that has none."""
        for active in self._active.values():
            active.penalizer.append(active.state, self._of(active, ids))

    def change_logits_(self, logits: Tensor, steps: Tensor) -> None:
        """Apply all penalties to logits [B, V], in place; steps [B] int64 is the number of output tokens so far."""
        for active in self._active.values():
            if len(active.at) == len(self):
                active.penalizer.apply(active.state, logits, steps)
                continue
            rows = torch.tensor(active.at, device=self.device)
            changed = logits.index_select(0, rows)
            active.penalizer.apply(active.state, changed, steps.index_select(0, rows))
            logits.index_copy_(0, rows, changed)

    @property
    def kinds(self) -> Kinds:
        """The rows by the way they are drawn; worked out anew after a change of rows."""
        if self._kinds is None:
            needs_rank = ((self._top_k < self.vocab_size) | (self._numbers[:, 1] < 1)) & ~self._is_greedy
            self._kinds = Kinds(
                greedy=self._kind(self._is_greedy),
                plain=self._kind(~self._is_greedy & ~needs_rank),
                ranked=self._kind(needs_rank),
            )
        return self._kinds

    def _kind(self, where: npt.NDArray[np.bool_]) -> RowKind | None:
        if not where.any():
            return None

        def tensor(values: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values[where]).to(self.device)

        return RowKind(
            rows=None if where.all() else torch.from_numpy(np.flatnonzero(where)).to(self.device),
            temperature=tensor(self._numbers[:, :1]),
            min_p=tensor(self._numbers[:, 2:]),
            top_k=tensor(self._top_k),
            top_p=tensor(self._numbers[:, 1]),
            keys=tensor(self._keys),
            has_min_p=bool((self._numbers[where, 2] > 0).any()),
        )

    def _of(self, active: _Active, ids: Tensor) -> Tensor:
        if len(active.at) == len(self):
            return ids
        return ids.index_select(0, torch.tensor(active.at, device=self.device))
