"""common-gens: equal requests that are in flight together are made once.

Only those whose result is a function of the request: greedy generations, and scorings of choices. Two draws of one
distribution stay two. The executor compares the ids of the prompts when they are sent; whose result was shared says so
in its meta info (`shared_with`).
"""

from __future__ import annotations

from dataclasses import replace

from .base import Draft, SchedulePass, has_forks, plans_of


def run(draft: Draft) -> Draft:
    """The draft with `is_common` set where two requests can be in flight together."""
    beside = len(draft.workload.instances) > 1 or any(map(has_forks, plans_of(draft.workload)))
    return replace(draft, is_common=beside)


COMMON_GENS = SchedulePass(
    "common-gens",
    "Makes equal greedy generations and equal scorings of identical prompts once; never draws at a temperature.",
    run,
)
