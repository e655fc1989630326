"""From a workload to the decisions about it: the schedule passes in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..budget import budget
from .base import Draft, Machine, SchedulePass, size_of
from .common_gens import COMMON_GENS
from .critical_path import CRITICAL_PATH
from .depth_first import DEPTH_FIRST
from .kv_pressure import KV_PRESSURE
from .next_use import NEXT_USE
from .order_free import ORDER_FREE

if TYPE_CHECKING:
    from ..plan import Plan
    from ..schedule import Workload

SCHEDULE_PASSES: tuple[SchedulePass, ...] = (
    ORDER_FREE, DEPTH_FIRST, KV_PRESSURE, COMMON_GENS, NEXT_USE, CRITICAL_PATH,
)  # fmt: skip
COST_MODEL = "cost-model"  # off: passes decide by rule, without comparing costs
SCHEDULE_PASS_NAMES = (*(item.name for item in SCHEDULE_PASSES), COST_MODEL)


def make_draft(workload: Workload, machine: Machine, disabled: Iterable[str] = ()) -> Draft:
    """The decisions of all schedule passes but those left out. No output depends on any of them."""
    draft = Draft(workload, machine, _need(workload, machine), tuple(range(len(workload.instances))))
    left_out = frozenset(disabled)
    if COST_MODEL in left_out:
        draft = replace(draft, machine=replace(machine, compares=False))
    for item in SCHEDULE_PASSES:
        if item.name not in left_out:
            draft = item.run(draft)
    return draft


def _need(workload: Workload, machine: Machine) -> float:
    """A guess of the KV that all instances take: of each program one is worked out, the others by their size."""
    if machine.kv_tokens is None:
        return float("inf")
    options = tuple(sorted((name, repr(value)) for name, value in machine.defaults.items()))
    key = "kv", machine.tokenizer.hash if machine.tokenizer is not None else None, options
    total = 0.0
    for instance in workload.instances:
        size = 1 + size_of(instance.arguments)
        known = instance.plan.guesses.get(key)
        if known is None:
            known = instance.plan.guesses[key] = _kv_of(instance.plan, instance.arguments, machine), size
        total += known[0] * max(1.0, size / known[1])
    return total


def _kv_of(plan: Plan, arguments: Mapping[str, Any], machine: Machine) -> float:
    return budget(plan.program, machine.tokenizer, arguments, machine.defaults).kv
