"""The branches of a fork whose number only the run knows, while a program is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

from ..compiler.ir import Branch, Fork, Join
from ..compiler.tracing.items import Items
from ..compiler.tracing.loops import LoopDriver
from ..compiler.tracing.symbols import Symbol, operand
from ..core.errors import ProgramError, SourceLoc
from .exprs import Expression
from .locate import caller

if TYPE_CHECKING:
    from ..compiler.tracing.tracer import PathTracer
    from .state import ProgramState


class TracedGroup:
    """Stands for a `ProgramStateGroup`: one stream for all branches, and a Branch wherever one of them is meant."""

    __dslc_traceable__ = True
    __slots__ = ("count", "parent", "stream")

    def __init__(self, parent: ProgramState, count: Symbol, where: SourceLoc | None) -> None:
        self.parent = parent
        self.count = count
        self.stream = parent.sink.new_stream()
        parent.sink.emit(Fork(streams=(self.stream,), count=operand(count), stream=parent.stream, where=where))

    def branch(self, index: Any) -> ProgramState:
        """The state of one branch, until another one is asked for."""
        sink = self.parent.sink
        target = sink.new_stream()
        sink.emit(Branch(target=target, index=operand(index), stream=self.stream, where=caller()))
        return type(self.parent)(sink, target, self.parent._types)

    def __dslc_items__(self) -> Items:
        tracer: Any = self.parent.sink
        return Items(tracer.expr("range", self.count), self.branch)

    def join(self, mode: Any = "gather_variable") -> None:
        """As `ProgramStateGroup.join`."""
        where = caller()
        if mode not in ("gather_variable", "concate_and_append"):
            raise ProgramError(
                f"unknown join mode {mode!r}; use 'gather_variable' or 'concate_and_append'", where=where
            )
        self.parent.forget_types()
        self.parent.sink.emit(Join(streams=(self.stream,), mode=mode, stream=self.parent.stream, where=where))

    def __getitem__(self, i: Any) -> ProgramState:
        if isinstance(i, slice):
            self._refuse("some of the branches")
        return self.branch(i)

    def __setitem__(self, i: Any, value: ProgramState) -> None:
        if value.stream == 0 or value.sink is not self.parent.sink:
            raise ProgramError("a branch cannot be replaced by another state", where=caller())

    def __iadd__(self, other: Any) -> TracedGroup:
        if isinstance(other, (list, tuple)):
            self._refuse("a list for the branches")
        tracer: Any = self.parent.sink
        if isinstance(other, Symbol) and not tracer.is_text(other):
            self._refuse("a value that may be a list for the branches")
        for i in LoopDriver(tracer, [], caller(), 0).over(tracer.expr("range", self.count)):
            made = other(i) if callable(other) and not isinstance(other, Expression) else other
            self.branch(i).append(made)
        return self

    def __len__(self) -> int:
        return self._refuse("len()")

    def __iter__(self) -> Any:
        return self._refuse("iteration")

    def _refuse(self, what: str) -> NoReturn:
        tracer = cast("PathTracer", self.parent.sink)
        tracer.break_here(f"{what} of a fork into a number of branches that is not known yet")
