"""order-free: parts that the author declared order-free are put where more of the prompt is shared.

`dslc.unordered(parts)` says that the parts may stand in any order. Over a batch they are arranged so that what many
instances have comes first (greedily, as a prefix tree of sets), if the trie of the prompts then has fewer nodes than in
the given order; the difference is the account of what is gained, in tokens. The law compares such a run with the
interpreter replaying the chosen orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..prompts import order_free_parts
from ..schedule import first_prompt, schedule_prompts
from .base import Draft, Orders, SchedulePass, has_order_free_parts, plans_of


def run(draft: Draft) -> Draft:
    """The draft with `orders` where they save tokens, and `num_gained` of them."""
    instances, tokenizer = draft.workload.instances, draft.machine.tokenizer
    if len(instances) < 2 or tokenizer is None or not any(map(has_order_free_parts, plans_of(draft.workload))):
        return draft
    parts = [order_free_parts(item.plan.program, tokenizer, item.arguments) for item in instances]
    num_chars = sum(len(part) for one in parts for texts in one.values() for part in texts)
    if draft.machine.compares and not draft.machine.cost.pays_to_read(num_chars):
        return draft
    chosen: list[dict[str, tuple[int, ...]]] = [{} for _ in instances]
    for key in dict.fromkeys(key for one in parts for key in one):
        members = [i for i, one in enumerate(parts) if key in one]
        for i, order in zip(members, arrange([parts[i][key] for i in members]), strict=True):
            if order != tuple(range(len(order))):
                chosen[i][key] = order
    given = schedule_prompts([first_prompt(item, tokenizer) for item in instances])
    better = schedule_prompts([first_prompt(item, tokenizer, one) for item, one in zip(instances, chosen, strict=True)])
    gained = given.num_distinct_tokens - better.num_distinct_tokens
    if gained <= 0:
        return draft
    orders: tuple[Orders, ...] = tuple(chosen)
    return replace(draft, orders=orders, num_gained=gained)


def arrange(rows: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """For each row of parts a permutation. What most rows have comes first, then what most of those have, and so on."""
    orders: list[list[int]] = [[] for _ in rows]
    todo = [list(range(len(rows)))]
    while todo:
        members = todo.pop()
        counts: Counter[str] = Counter()
        for i in members:
            counts.update(list(dict.fromkeys(rows[i][k] for k in _left(rows[i], orders[i]))))  # of equals: the first
        part = max(counts, key=lambda text: (counts[text] * len(text), counts[text]), default=None)
        if part is None or counts[part] < 2:
            for i in members:
                orders[i] += _left(rows[i], orders[i])
            continue
        having = [i for i in members if any(rows[i][k] == part for k in _left(rows[i], orders[i]))]
        held = frozenset(having)
        others = [i for i in members if i not in held]
        for i in having:
            orders[i].append(next(k for k in _left(rows[i], orders[i]) if rows[i][k] == part))
        todo += [group for group in (others, having) if group]
    return [tuple(order) for order in orders]


def _left(row: Sequence[str], order: list[int]) -> list[int]:
    return [k for k in range(len(row)) if k not in order]


ORDER_FREE = SchedulePass(
    "order-free",
    "Arranges the parts of `dslc.unordered` so that a batch shares more, where that saves tokens; says how many.",
    run,
)
