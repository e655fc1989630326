"""What the plan knows of the future of each request, as hints for the backend: they change no output.

`next_use`: whether the KV of a gen's prompt and output is wanted again by its own program. After the last gen of a
stream it is not, so it may go first when memory is short; before that it should stay, whatever else was used since.
The last gen takes back what those before it were promised: nobody else tells the cache that a program has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..core.request import Hints
from .fields import new_streams
from .ir import AnyOp, Branch, Gen, Join, Opaque, Select, regions, walk

if TYPE_CHECKING:
    from .plan import Plan

NEXT_TURN = 512  # requests that may come before a program's own next turn
DONE = 0  # what was promised of the prompt ends now


class _Known(NamedTuple):
    """`bounds`: tokens of each gen; `forks`: of streams that a Branch names, the one that stands for all branches."""

    bounds: dict[int, int]
    forks: dict[int, int]
    every: frozenset[int]  # stream


def hints_of(plan: Plan) -> dict[int, Hints]:
    """By the value's number: the hints of each gen and select."""
    found: dict[int, Hints] = {}
    bounds = {facts.out.id: facts.expected_len for facts in plan.gens}
    ops = list(walk(plan.program.body))
    every = frozenset({0, *(stream for op in ops for stream in new_streams(op))})
    known = _Known(bounds, {op.target: op.stream for op in ops if isinstance(op, Branch)}, every)
    _live_before(plan.program.body, frozenset(), found, known)
    return found


def _live_before(
    body: tuple[AnyOp, ...], live: frozenset[int], found: dict[int, Hints], known: _Known
) -> frozenset[int]:
    """The streams on which a request comes later, before the region; those after it are `live`."""
    for op in reversed(body):
        if isinstance(op, (Gen, Select)):
            before = found.get(op.out.id)
            is_live = op.stream in live or known.forks.get(op.stream) in live
            is_live = is_live or (before is not None and before.next_use > 0)
            found[op.out.id] = Hints(known.bounds.get(op.out.id, 0), NEXT_TURN if is_live else DONE)
            live |= {op.stream}
        elif isinstance(op, Join):
            if op.mode == "concate_and_append" and op.stream in live:
                live |= frozenset(op.streams)
        elif streams := new_streams(op):
            if live.intersection(streams):
                live |= {op.stream}
            live -= frozenset(streams)
        elif isinstance(op, Opaque):  # only the body knows
            live |= known.every
        elif op.name == "loop":  # what the next round sends comes later than what this one does
            for _ in range(2):
                live |= _live_before(regions(op)[0], live, found, known)
        elif inner := regions(op):
            live = frozenset().union(live, *(_live_before(region, live, found, known) for region in inner))
    return live
