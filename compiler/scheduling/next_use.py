"""next-use: each request says whether its own program goes on from what it computes.

So a cache that evicts by next use (`radix_eviction_policy="next_use"`) drops what nobody can want any more before
what a program in flight waits to go on from. The hints are facts of the plan (`compiler.hints`); this pass decides
whether they are sent: where everything fits they are of no use.
"""

from __future__ import annotations

from dataclasses import replace

from .base import Draft, SchedulePass


def run(draft: Draft) -> Draft:
    """The draft with `sends_hints` set where memory can be short."""
    return replace(draft, sends_hints=not draft.fits)


NEXT_USE = SchedulePass(
    "next-use",
    "Tells the cache which KV the plan needs again and which it cannot use any more, where memory can be short.",
    run,
)
