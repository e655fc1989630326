"""Programs in flight together: the schedule's decisions (`compiler.scheduling`), put to work in their hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .common import CommonGens
from .pressure import Pressure

if TYPE_CHECKING:
    from ..compiler.plan import Plan
    from ..compiler.scheduling.base import Draft
    from .hub import Hub
    from .running import Running


def draft_of(runs: Sequence[tuple[Running, Mapping[str, Any]]]) -> Draft | None:
    """The decisions about these instances, of one program or of several; None where nothing is known of some."""
    from ..compiler.cost_kept import cost_of
    from ..compiler.schedule import Instance, Workload
    from ..compiler.scheduling.base import Machine
    from ..compiler.scheduling.make import make_draft

    instances: list[Instance] = []
    for running, arguments in runs:
        if running.known is None:
            return None
        instances.append(Instance(running.known, arguments))
    if not runs:
        return None
    first = runs[0][0]
    able = first.backend.capabilities
    tokenizer = first.backend.tokenizer if able.token_ids else None
    machine = Machine(tokenizer, able.kv_tokens, dict(first.options.sampling), cost_of(first.backend))
    disabled = {name for running, _ in runs for name in running.disabled}
    return make_draft(Workload(tuple(instances)), machine, disabled)


def prepare(hub: Hub, draft: Draft) -> None:
    """Have a hub that has not begun yet run by these decisions."""
    if draft.is_common:
        hub.common = CommonGens()
    if draft.limit is not None and draft.limit < len(draft.order):
        hub.pressure = Pressure(draft.limit, draft.capacity)
    hub.sends_hints = draft.sends_hints
    hub.by_path = draft.by_path


def prepare_one(hub: Hub, plan: Plan, disabled: Sequence[str]) -> None:
    """The same for a single program with branches: they may have gens in common."""
    if "common-gens" not in disabled:
        hub.common = CommonGens()
    hub.by_path = "critical-path" not in disabled and len(set(plan.paths.values())) > 1
