"""A record of what the scheduler was told and what it decided, turn by turn: to be read, compared and played again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .scheduling.messages import Submit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.errors import ErrorInfo
    from ..core.request import GenRequest
    from .scheduling.batch import Batch
    from .scheduling.messages import Message


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request came in, with the seed drawn for it."""

    source: GenRequest
    seed: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request was ended from outside."""

    request_id: str
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Turn:
    """One step: what came in before it, and the launch decided, as a line (empty: none)."""

    step: int
    messages: tuple[Submitted | Cancelled, ...]
    decision: str


@dataclass(slots=True)
class StepTrace:
    """Set as `Engine.trace` to record. Steps in which nothing came in and nothing was launched are left out."""

    turns: list[Turn] = field(default_factory=list)

    def record(self, step: int, messages: Sequence[Message], batch: Batch | None) -> None:
        if not messages and batch is None:
            return
        told = tuple(
            Submitted(message.request.source, message.request.seed)
            if isinstance(message, Submit)
            else Cancelled(message.request_id, message.error)
            for message in messages
        )
        self.turns.append(Turn(step, told, str(batch) if batch is not None else ""))
