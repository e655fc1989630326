"""What changes logits before a token is drawn: penalties, bias, and end tokens that are barred for a while.

Each is a `Penalizer`; another one is added with `register_penalizer`. They are applied in the order of registration,
each to the rows that need it and to no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.sampling import SamplingParams
    from .batch import SamplingRow

State = dict[str, Tensor]


class Penalizer(ABC):
    """A change of logits, and what it has to remember for each row: tensors whose first dimension is the row.

    The batch keeps the state, takes rows out of it and puts rows together; a penalizer says how it begins, what a new
    token does to it, and how it acts.
    """

    name: ClassVar[str]

    @abstractmethod
    def is_required(self, params: SamplingParams) -> bool:
        """Whether requests with these parameters need it."""

    @abstractmethod
    def begin(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> State:
        """The state of new rows, each tensor [len(rows), ...]. Rows may have output tokens already."""

    def append(self, state: State, ids: Tensor) -> None:
        """Take in a new output token of each row: ids [P] int64, -1 where there is none. Changes the state in place."""
        return

    @abstractmethod
    def apply(self, state: State, logits: Tensor, steps: Tensor) -> None:
        """Change logits [P, V] in place; steps [P] is the number of output tokens so far."""


class RepetitionPenalty(Penalizer):
    """Of every token in prompt or output: positive logits divided, negative ones multiplied (arXiv 1909.05858)."""

    name = "repetition"

    def is_required(self, params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0

    def begin(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> State:
        seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool)
        for i, row in enumerate(rows):
            seen[i, list({*row.prompt_ids, *row.output_ids})] = True
        penalty = _column([row.params.repetition_penalty for row in rows], device)
        return {"seen": seen.to(device), "penalty": penalty}

    def append(self, state: State, ids: Tensor) -> None:
        place = ids.clamp(min=0)[:, None]
        state["seen"].scatter_(1, place, state["seen"].gather(1, place) | (ids >= 0)[:, None])

    def apply(self, state: State, logits: Tensor, steps: Tensor) -> None:
        factor = torch.where(logits > 0, 1 / state["penalty"], state["penalty"])
        logits.mul_(torch.where(state["seen"], factor, 1.0))


class CountPenalty(Penalizer):
    """Of every output token: frequency_penalty times its count, and presence_penalty once, subtracted."""

    name = "count"

    def is_required(self, params: SamplingParams) -> bool:
        return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0

    def begin(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> State:
        counts = torch.zeros(len(rows), vocab_size)
        for i, row in enumerate(rows):
            if row.output_ids:
                counts[i] = torch.bincount(torch.tensor(row.output_ids), minlength=vocab_size)
        return {
            "counts": counts.to(device),
            "frequency": _column([row.params.frequency_penalty for row in rows], device),
            "presence": _column([row.params.presence_penalty for row in rows], device),
        }

    def append(self, state: State, ids: Tensor) -> None:
        state["counts"].scatter_add_(1, ids.clamp(min=0)[:, None], (ids >= 0).float()[:, None])

    def apply(self, state: State, logits: Tensor, steps: Tensor) -> None:
        counts = state["counts"]
        logits.sub_(counts * state["frequency"]).sub_((counts > 0) * state["presence"])


class LogitBias(Penalizer):
    """A number added to the logits of chosen ids."""

    name = "logit_bias"

    def is_required(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def begin(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> State:
        bias = torch.zeros(len(rows), vocab_size)
        for i, row in enumerate(rows):
            ids, values = zip(*row.params.logit_bias, strict=True)
            bias[i, list(ids)] = torch.tensor(values, dtype=torch.float32)
        return {"bias": bias.to(device)}

    def apply(self, state: State, logits: Tensor, steps: Tensor) -> None:
        logits.add_(state["bias"])


class MinNewTokens(Penalizer):
    """Bars the ids that end an output until it has min_new_tokens tokens."""

    name = "min_new_tokens"

    def is_required(self, params: SamplingParams) -> bool:
        return params.min_new_tokens > 0

    def begin(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> State:
        ends = torch.zeros(len(rows), vocab_size, dtype=torch.bool)
        for i, row in enumerate(rows):
            ends[i, list(row.stop_ids)] = True
        minimum = torch.tensor([row.params.min_new_tokens for row in rows], device=device)
        return {"ends": ends.to(device), "minimum": minimum}

    def apply(self, state: State, logits: Tensor, steps: Tensor) -> None:
        logits.masked_fill_(state["ends"] & (steps < state["minimum"])[:, None], float("-inf"))


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


PENALIZERS: dict[str, Penalizer] = {}


def register_penalizer(penalizer: Penalizer) -> Penalizer:
    """Have a penalizer act on every batch made from now on. Raises ValueError if its name is taken."""
    if PENALIZERS.setdefault(penalizer.name, penalizer) is not penalizer:
        raise ValueError(f"penalizer {penalizer.name!r} is registered already")
    return penalizer


for _penalizer in (RepetitionPenalty(), CountPenalty(), LogitBias(), MinNewTokens()):
    register_penalizer(_penalizer)
