"""`dslc.unordered(parts)`: text whose parts the author declares order-free, so that a batch can share more of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.ir import Text
from ..compiler.tracing.symbols import Symbol, operand
from ..core.errors import ProgramError, SourceLoc
from .exprs import Expression, traceable
from .locate import caller

if TYPE_CHECKING:
    from .state import ProgramState


class UnorderedExpr(Expression):
    """Order-free parts; appended as one text."""

    __slots__ = ("parts", "separator", "where")

    def __init__(self, parts: Any, separator: str, where: SourceLoc | None) -> None:
        self.parts = parts
        self.separator = separator
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        text = state.sink.unordered(state.stream, self.separator, self.parts, self.where)
        if isinstance(text, Symbol):
            state.sink.emit(Text(text=operand(text), stream=state.stream, where=self.where))
        else:
            state.append(text)


@traceable
def unordered(parts: Sequence[str], separator: str = "\n") -> Expression:
    """Append the parts, joined, in any order: `s += dslc.unordered(passages)`.

    The program promises that their order does not matter (retrieved passages, few-shot examples, facts). A single run
    keeps the order given; a batch may arrange them so that its prompts share longer beginnings (`state.orders()` says
    how; `run(orders=...)` replays it). Raises ProgramError for what is no sequence of strings.
    """
    where = caller()
    if not isinstance(separator, str):
        raise ProgramError(f"the separator must be a str, not {separator!r}", where=where)
    if isinstance(parts, Symbol):
        return UnorderedExpr(parts, separator, where)
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise ProgramError(f"unordered() takes a list of strings, not {parts!r}", where=where)
    for part in parts:
        if not isinstance(part, (str, Symbol)):
            raise ProgramError(f"the parts of unordered() must be strings, not {part!r}", where=where)
    return UnorderedExpr(tuple(parts), separator, where)


def arranged(separator: str, parts: Sequence[str], order: Sequence[int] | None) -> str:
    """The parts joined in this order (None: as given). Raises ProgramError where they are no such parts."""
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ProgramError(f"unordered() takes a list of strings, not {parts!r}")
    if order is None:
        return separator.join(parts)
    if sorted(order) != list(range(len(parts))):
        raise ProgramError(f"{list(order)} is no order of {len(parts)} parts")
    return separator.join([parts[i] for i in order])
