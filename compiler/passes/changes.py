"""What calls of a program may change: a value that is looked at later than it stands in the source must not be that."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ..expressions import SCALAR, STATEFUL
from ..fields import all_defined, refs_in, used
from ..ir import AnyOp, Arg, Expr, Gen, Host, Loop, Scope, Select, walk


class Changes:
    """Of the values of a program, which a call of the user's may change."""

    def __init__(self, body: Sequence[AnyOp]) -> None:
        ops = list(walk(tuple(body)))
        self._made_by: dict[int, AnyOp] = {}
        self._made_at: dict[int, int] = {}
        self._used_last: dict[int, int] = {}
        self._loops: list[tuple[int, int]] = []  # where they begin, and where they end
        self._calls: list[int] = []
        calls: list[Host] = []
        for at, op in enumerate(ops):
            for ref in all_defined(op):
                self._made_by[ref.id], self._made_at[ref.id] = op, at
            self._used_last.update((ref.id, at) for ref in used(op))
            if isinstance(op, Loop):
                self._loops.append((at, at + sum(1 for _ in walk((op,)))))
            elif isinstance(op, Host) and not op.is_pure:
                self._calls.append(at)
                calls.append(op)
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
        made = self._made_at[number]
        last = self._used_last.get(number, made)
        until = max((end for begin, end in self._loops if made <= begin < last), default=last)
        at = bisect_left(self._calls, made)
        return at == len(self._calls) or self._calls[at] >= max(last, until)
