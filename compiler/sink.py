"""Where the ops of a program go: one protocol, two makers.

`lang`'s states turn what the user writes into ops and hand them to a sink. The executor runs them as they come; the
tracer records them. What a program reads back is a plain value in the first case and a `Symbol` in the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..core.errors import SourceLoc
from .ir import AnyOp, Ref, Role, Scope


class Sink(Protocol):
    """Receives the ops of one program instance, in the order in which its body makes them."""

    is_tracing: bool

    def new_ref(self) -> Ref:
        """A value id not used before in this program."""

    def emit(self, op: AnyOp) -> None:
        """A leaf op, or one whose streams were allotted by `new_stream`."""

    def enter(self, op: Role | Scope) -> None:
        """Open a region (`op.body` is empty): what follows belongs to it until `leave`. Raises ProgramError when nested
        where it may not be."""

    def leave(self, op: Role | Scope) -> None:
        """Close the region opened with this op. `failed` bodies are closed too."""

    def new_stream(self) -> int:
        """A stream number for a Fork or Copy about to be emitted."""

    def get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        """The value of a variable of a stream; may suspend the body. Raises UndefinedVariable."""

    def has(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        """Whether the variable is set (or will be, once a gen already emitted is done)."""

    def text(self, stream: int, where: SourceLoc | None) -> Any:
        """The text of a stream so far; may suspend the body."""

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        """The value of one op's `out`; may suspend the body."""

    def unordered(self, stream: int, separator: str, parts: Any, where: SourceLoc | None) -> Any:
        """Order-free parts joined with `separator`, in the order that the schedule chose for this place."""

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        """The body does something that only Python can follow (meta info, a sync point, ...): a tracer stops here, an
        executor does nothing."""

    def call(self, body: Callable[..., Any], state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run another program's body on this state, in line. Returns what it returns."""
