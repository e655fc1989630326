"""What the scheduler is told from outside. Its decisions are a pure function of these and of the step number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ...core.errors import ErrorInfo
    from ..request import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """A checked, tokenised request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request with this error: aborted by its owner, past its deadline, or the engine closes."""

    request_id: str
    error: ErrorInfo


Message: TypeAlias = Submit | Cancel
