"""What calls of a program may change: a value that is looked at later than it stands in the source must not be that."""

from __future__ import annotations

from collections.abc import Sequence

from ..expressions import SCALAR, STATEFUL
from ..fields import all_defined, refs_in, used
from ..ir import AnyOp, Arg, Expr, Gen, Host, Loop, Ref, Scope, Select, walk


class Changes:
    """Of the values of a program, which a call of the user's may change."""

    def __init__(self, body: Sequence[AnyOp]) -> None:
        self._ops = list(walk(tuple(body)))
        self._made_by = {ref.id: op for op in self._ops for ref in all_defined(op)}
        calls = [op for op in self._ops if isinstance(op, Host) and not op.is_pure]
        self.num_calls = len(calls)
        self._known: dict[int, bool] = {}
        self._handed: set[int] = set()
        todo = [ref.id for op in calls for ref in used(op)]
        while todo:  # what a call gets, and what that was made of: an item of a list is a part of the list
            number = todo.pop()
            if number not in self._handed:
                self._handed.add(number)
                made_by = self._made_by.get(number)
                if isinstance(made_by, Expr) and made_by.fn not in SCALAR:
                    todo += [ref.id for ref in used(made_by)]

    def may_change(self, number: int) -> bool:
        """Whether what the value is, or holds, may be another after some call."""
        if not self.num_calls:
            return False
        if number not in self._known:
            self._known[number] = self._may_change(number)
        return self._known[number]

    def _may_change(self, number: int) -> bool:
        op = self._made_by.get(number)
        if isinstance(op, (Select, Scope)) or (isinstance(op, Gen) and "n" not in dict(op.sampling)):
            return False
        if isinstance(op, Arg):
            return number in self._handed
        if not isinstance(op, Expr) or op.fn in STATEFUL - SCALAR:
            return True
        return op.fn not in SCALAR and any(self.may_change(ref.id) for ref in refs_in(op.args))

    def is_used_before_calls(self, number: int) -> bool:
        """Whether no call lies between where a value is made and where it is used last, in no loop around its use."""
        at = next(i for i, op in enumerate(self._ops) if Ref(number) in all_defined(op))
        last = max((i for i, op in enumerate(self._ops) if Ref(number) in used(op)), default=at)
        loops = [op for op in self._ops[at:last] if isinstance(op, Loop)]
        between = [*self._ops[at:last], *(op for loop in loops for op in walk((loop,)))]
        return not any(isinstance(op, Host) and not op.is_pure for op in between)
