"""static-prefixes: how much of each prompt is the same in every run, so that it can be computed and pinned once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..prompts import prompts
from .base import Context, PlanPass

if TYPE_CHECKING:
    from ..ir import Ref
    from ..plan import GenFacts, Plan, SelectFacts

Ids = tuple[int, ...]
_Facts = TypeVar("_Facts", "GenFacts", "SelectFacts")


def run(plan: Plan, context: Context) -> Plan:
    """The plan with `prefixes`, and in each gen's and select's facts which one its prompt begins with."""
    known = {prompt.out: prompt.ids for prompt in prompts(plan.program, context.tokenizer) if prompt.ids}
    prefixes = maximal(known.values())
    return replace(
        plan,
        prefixes=prefixes,
        gens=tuple(_with_prefix(facts, known, prefixes) for facts in plan.gens),
        selects=tuple(_with_prefix(facts, known, prefixes) for facts in plan.selects),
    )


def _with_prefix(facts: _Facts, known: dict[Ref, Ids], prefixes: tuple[Ids, ...]) -> _Facts:
    ids = known.get(facts.out, ())
    if not ids:
        return facts
    place = next(i for i, prefix in enumerate(prefixes) if prefix[: len(ids)] == ids)
    return replace(facts, prefix=place, num_static_tokens=len(ids))


def maximal(sequences: Iterable[Ids]) -> tuple[Ids, ...]:
    """The sequences that begin no other, each once, sorted."""
    ordered = sorted(set(sequences))  # what begins another stands right before one that it begins
    return tuple(ids for i, ids in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1][: len(ids)] != ids)


STATIC_PREFIXES = PlanPass(
    "static-prefixes",
    "Finds the constant leading ids of every prompt, across turns, branches and forks; changes nothing else.",
    run,
)
