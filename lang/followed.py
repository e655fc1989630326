"""A program whose body runs with its trace as look-ahead (`compiler.ahead`): each op that it makes is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.ahead import LookAhead
from ..compiler.ir import AnyOp, Role, Scope
from ..core.errors import SourceLoc
from .executor import Executor
from .stream import Slot

if TYPE_CHECKING:
    from ..compiler.plan import SelectFacts
    from ..core.request import Hints
    from .gens import GenExpr, SelectExpr


class FollowedExecutor(Executor):
    """An executor that knows where in its trace the body is, until it does what the trace does not foretell."""

    __slots__ = ("ahead",)

    ahead: LookAhead | None

    def append_text(self, number: int, text: str, where: SourceLoc | None) -> None:
        if self.ahead is not None and not self.ahead.text(text, where):
            self.ahead = None
        super().append_text(number, text, where)

    def append_gen(self, number: int, expr: GenExpr[Any]) -> None:
        if self.ahead is not None and not self.ahead.gen(self._next_ref, expr):
            self.ahead = None
        super().append_gen(number, expr)

    def append_select(self, number: int, expr: SelectExpr) -> None:
        if self.ahead is not None and not self.ahead.op(expr.op(number, self._next_ref)):
            self.ahead = None
        super().append_select(number, expr)

    def emit(self, op: AnyOp, needs: Sequence[Slot] = (), resolve: Callable[[], AnyOp] | None = None) -> None:
        if self.ahead is not None and not self.ahead.op(op):
            self.ahead = None
        super().emit(op, needs, resolve)

    def enter(self, op: Role | Scope) -> None:
        if self.ahead is not None and not self.ahead.op(op):
            self.ahead = None
        super().enter(op)

    def leave(self, op: Role | Scope) -> None:
        if self.ahead is not None and not self.ahead.leave(op):
            self.ahead = None
        super().leave(op)

    def facts_of(self, number: int) -> SelectFacts | None:
        return self.ahead.select(number) if self.ahead is not None else None

    def hints_of(self, number: int) -> Hints | None:
        return self.ahead.hints(number) if self.ahead is not None else None

    def path_from(self, number: int) -> float:
        return self.ahead.path(number) if self.ahead is not None else 0.0

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        self.ahead = None
        super().finish(error, result)
