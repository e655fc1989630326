"""depth-first: instances whose prompts begin alike are submitted next to each other.

So what they share is computed once and can go once they are through. The cost model compares the order with the given
one on the known prompts and the pool there is; the given one stays where it is as good. Where everything fits into the
cache anyway nothing is compared: that would cost time and gain nothing.
"""

from __future__ import annotations

from dataclasses import replace

from ..cost import tokens_with
from ..schedule import depth_first_order, first_text
from .base import Draft, SchedulePass, plans_of, size_of


def run(draft: Draft) -> Draft:
    """The draft with `order` depth first through the trie of the known first prompts."""
    instances = draft.workload.instances
    if len(instances) < 2 or draft.fits:
        return draft
    tokenizer = draft.machine.tokenizer
    if tokenizer is None:
        return draft
    num_chars = sum(size_of(item.arguments) for item in instances)
    if draft.machine.compares and not draft.machine.cost.pays_to_read(num_chars):
        return draft
    as_text = len(plans_of(draft.workload)) == 1  # of one program: texts share what their ids share
    orders = draft.orders or ({},) * len(instances)
    known = [first_text(item, tokenizer, order, as_text=as_text) for item, order in zip(instances, orders, strict=True)]
    order = depth_first_order(known)
    capacity = draft.machine.kv_tokens
    if capacity is None or not draft.machine.compares:  # of an unknown cache the order asks least
        return replace(draft, order=order)
    choices = [(one, float(tokens_with(known, one, capacity)), 0.0) for one in (draft.order, order)]
    return replace(draft, order=draft.machine.cost.cheapest(choices))


DEPTH_FIRST = SchedulePass(
    "depth-first",
    "Submits instances depth first through the trie of their known prompts, across programs; keeps the given order "
    "where the cache holds everything.",
    run,
)
