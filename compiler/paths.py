"""What still has to be generated after each request of a plan, along the longest path: the critical path.

A path goes on along its stream, from a fork into its branches, from the last branch of a join to what follows it, and
from a value to what needs it. Lengths are expected tokens: the bound of a gen where it has one, else a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .fields import all_defined, new_streams, used
from .ir import AnyOp, Branch, Expr, Gen, Host, Join, Loop, Select, Set, Switch, regions

if TYPE_CHECKING:
    from .plan import Plan

GUESS = 64.0  # tokens of a gen without a bound
CHOICE = 1.0  # a scoring is one forward
ROUNDS = 2  # of a loop: what a round leads to is at least another one


def paths_of(plan: Plan) -> dict[int, float]:
    """By the value's number: tokens to be generated from each gen and select on, its own included."""
    walker = _Paths({facts.out.id: float(facts.expected_len or GUESS) for facts in plan.gens})
    walker.region(plan.program.body)
    return walker.found


class _Paths:
    """Goes through the program backwards."""

    def __init__(self, lengths: dict[int, float]) -> None:
        self.lengths = lengths
        self.found: dict[int, float] = {}
        self.after: dict[int, float] = {}  # stream -> what comes on it
        self.needed: dict[int, float] = {}  # value -> what comes after those that need it
        self.read: dict[tuple[int, str], float] = {}  # (stream, variable) -> what comes after it is read

    def region(self, body: tuple[AnyOp, ...]) -> None:
        for op in reversed(body):
            self.op(op)

    def op(self, op: AnyOp) -> None:
        after = self.after.get(op.stream, 0.0)
        if isinstance(op, (Gen, Select)):
            own = self.lengths.get(op.out.id, GUESS) if isinstance(op, Gen) else CHOICE
            after = own + max(after, self.wanted(op))
            self.found[op.out.id] = max(after, self.found.get(op.out.id, 0.0))
            self.after[op.stream] = after
        elif isinstance(op, Join):
            for stream in op.streams:
                self.after[stream] = max(after, self.after.get(stream, 0.0))
        elif isinstance(op, Switch):
            self.switch(op)
        elif isinstance(op, Loop):
            for _ in range(ROUNDS):
                self.region(op.body)
        elif isinstance(op, (Expr, Host)):
            after = self.wanted(op)
            if isinstance(op, Expr) and op.fn in ("get", "typed"):
                key = (op.stream, str(op.args[0]))
                self.read[key] = max(after, self.read.get(key, 0.0))
        elif isinstance(op, Set):
            after = self.read.get((op.stream, op.var), 0.0)
        else:
            for region in regions(op):
                self.region(region)
            for stream in new_streams(op):
                self.after[op.stream] = max(self.after.get(op.stream, 0.0), self.after.get(stream, 0.0))
                self.carry(stream, op.stream)
            after = self.after.get(op.stream, 0.0)
        if isinstance(op, Branch):
            self.after[op.target] = 0.0
        for ref in used(op):
            self.needed[ref.id] = max(after, self.needed.get(ref.id, 0.0))

    def wanted(self, op: Any) -> float:
        """What comes after the ops that need the values of this one."""
        needs = [self.needed.get(ref.id, 0.0) for ref in all_defined(op)]
        if getattr(op, "var", None) is not None:
            needs.append(self.read.get((op.stream, op.var), 0.0))
        return max(needs, default=0.0)

    def carry(self, branch: int, parent: int) -> None:
        """A branch reads what its parent has set."""
        for (stream, var), after in list(self.read.items()):
            if stream == branch:
                self.read[parent, var] = max(after, self.read.get((parent, var), 0.0))

    def switch(self, op: Switch) -> None:
        """The longer of the ways."""
        behind = dict(self.after)
        ways = [] if op.is_exhaustive else [behind]
        for case in op.cases:
            self.after = dict(behind)
            self.region(case.body)
            ways.append(self.after)
        self.after = {stream: max(way.get(stream, 0.0) for way in ways) for stream in set().union(*ways)}
