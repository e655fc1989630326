"""kv-pressure: no more programs in flight than the pool can hold between their turns.

A program that waits for its next turn with its KV evicted computes it again. So programs are begun while those in
flight fit, the rest as others end. The first guess is from the budgets; the executor corrects it by what programs that
have ended held (`lang.pressure`).
"""

from __future__ import annotations

from dataclasses import replace

from .base import Draft, SchedulePass, plans_of

SHARE = 0.9  # of the pool for programs in flight; the rest holds what they share with those to come


def run(draft: Draft) -> Draft:
    """The draft with `limit` set where not all instances fit at once."""
    kv_tokens, num = draft.machine.kv_tokens, len(draft.workload.instances)
    if kv_tokens is None or draft.fits or num < 2:
        return draft
    each = draft.need / num
    if each == float("inf"):
        return draft
    shared = max(len(plan.static_prefix) for plan in plans_of(draft.workload))
    capacity = max(1.0, kv_tokens * SHARE - shared)
    return replace(draft, limit=max(1, int(capacity / max(each, 1.0))), capacity=capacity)


KV_PRESSURE = SchedulePass(
    "kv-pressure",
    "Begins no more programs than whose KV the pool holds between their turns; all of them where everything fits.",
    run,
)
