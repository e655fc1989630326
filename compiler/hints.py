"""What the plan knows of the future of each request, as hints for the backend: they change no output.

`next_use`: whether the KV of a gen's prompt and output is wanted again by its own program. After the last gen of a
stream it is not, so it may go first when memory is short; before that it should stay, whatever else was used since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.request import Hints
from .fields import new_streams
from .ir import AnyOp, Branch, Gen, Join, Select, regions, walk

if TYPE_CHECKING:
    from .plan import Plan

NEXT_TURN = 512  # requests that may come before a program's own next turn


def hints_of(plan: Plan) -> dict[int, Hints]:
    """By the value's number: the hints of each gen and select."""
    found: dict[int, Hints] = {}
    bounds = {facts.out.id: facts.expected_len for facts in plan.gens}
    forks = {op.target: op.stream for op in walk(plan.program.body) if isinstance(op, Branch)}
    _live_before(plan.program.body, frozenset(), found, bounds, forks)
    return found


def _live_before(
    body: tuple[AnyOp, ...],
    live: frozenset[int],
    found: dict[int, Hints],
    bounds: dict[int, int],
    forks: dict[int, int],
) -> frozenset[int]:
    """The streams on which a request comes later, before the region; those after it are `live`.

    `forks`: of streams that a Branch names, the one that stands for all branches.
    """
    for op in reversed(body):
        if isinstance(op, (Gen, Select)):
            known = found.get(op.out.id)
            is_live = op.stream in live or forks.get(op.stream) in live or (known is not None and known.next_use >= 0)
            found[op.out.id] = Hints(bounds.get(op.out.id, 0), NEXT_TURN if is_live else -1)
            live |= {op.stream}
        elif isinstance(op, Join):
            if op.mode == "concate_and_append" and op.stream in live:
                live |= frozenset(op.streams)
        elif streams := new_streams(op):
            if live.intersection(streams):
                live |= {op.stream}
            live -= frozenset(streams)
        elif op.name == "loop":  # what the next round sends comes later than what this one does
            for _ in range(2):
                live |= _live_before(regions(op)[0], live, found, bounds, forks)
        elif inner := regions(op):
            live = frozenset().union(live, *(_live_before(region, live, found, bounds, forks) for region in inner))
    return live
