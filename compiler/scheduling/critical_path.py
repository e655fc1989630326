"""critical-path: of the requests that are ready together, those with most still to come after them go first.

What ends last decides when a program ends. Where an engine cannot begin all requests at once, the branch with the long
answer would otherwise begin last, and run alone in the end. The lengths are facts of the plan (`compiler.paths`); this
pass decides whether the executor sorts by them: where an order for the cache was chosen, that one stays.
"""

from __future__ import annotations

from dataclasses import replace

from .base import Draft, SchedulePass, has_forks, plans_of


def run(draft: Draft) -> Draft:
    """The draft with `by_path` set where requests of different lengths can be ready together."""
    plans = plans_of(draft.workload)
    if draft.order != tuple(range(len(draft.order))):
        return draft
    lengths = {length for plan in plans for length in plan.paths.values()}
    return replace(draft, by_path=len(lengths) > 1 and (len(plans) > 1 or any(map(has_forks, plans))))


CRITICAL_PATH = SchedulePass(
    "critical-path",
    "Sends those of the ready requests first after which most is still to be generated; the cache's order goes before.",
    run,
)
