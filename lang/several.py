"""Different programs run at once, with what their prompts share computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import ArgumentError
from . import together
from .function import Function
from .hub import Hub
from .locate import caller
from .options import new_seed
from .running import MAX_CARRIERS, Running, states_of
from .takeover import Hands

if TYPE_CHECKING:
    from ..core.backend import Backend
    from .state import ProgramState


def run_together(
    calls: Sequence[tuple[Function, Mapping[str, Any]]],
    *,
    backend: Backend | None = None,
    seed: int | None = None,
    on_error: Literal["keep", "raise"] = "keep",
    **options: Any,
) -> list[ProgramState]:
    """Run different programs at once: `run_together([(triage, {"ticket": t}), (summarise, {"text": x})])`.

    Their states come in order. What their prompts share is computed once, across programs, as in a `run_batch` of one
    program, whose options these are. Raises ArgumentError before anything runs if arguments do not fit.
    """
    where = caller()
    named = {"backend": backend, "seed": seed if seed is not None else new_seed(), **options}
    runs: dict[int, Running] = {}
    rows: list[tuple[Running, dict[str, Any]]] = []
    for number, call in enumerate(calls):
        if not (isinstance(call, tuple) and len(call) == 2 and isinstance(call[0], Function)):
            raise ArgumentError(f"calls[{number}] must be (program, arguments), not {call!r}", where=where)
        function, arguments = call
        if function.is_async:
            raise ArgumentError(f"{function.__name__} is async: use asyncio.gather and arun", where=where)
        if id(function) not in runs:
            given = {name: value for name, value in named.items() if value is not None}
            runs[id(function)] = Running.of(function, given, where)
        rows.append((runs[id(function)], function.arguments((), arguments)))
    if not rows:
        return []
    target = rows[0][0].backend
    draft = together.draft_of(rows)
    nested = Hub.here(target)
    hub = nested or Hub(target)
    if not nested:
        hub.hands = Hands(MAX_CARRIERS)
    if draft is not None and not nested:
        together.prepare(hub, draft)
    chosen = draft.orders if draft is not None and draft.orders else None
    order = draft.order if draft is not None else range(len(rows))
    tasks = (rows[i][0].task(hub, rows[i][1], i, chosen[i] if chosen else None) for i in order)
    return list(states_of(hub.run_nested(tasks) if nested else hub.run(tasks), on_error))
