"""constraint-cache: each constant constraint once, under its key; compiled now if asked, so that no run waits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import ConstraintError
from ..ir import Gen, walk
from .base import Context, PlanPass

if TYPE_CHECKING:
    from ...core.constraint import Constraint
    from ..plan import Plan


def run(plan: Plan, context: Context) -> Plan:
    """The plan with `constraints`, and each gen's key. Raises ConstraintError at the user's line."""
    constraints: dict[str, Constraint] = {}
    keys: dict[int, str] = {}
    for op in walk(plan.program.body):
        if not isinstance(op, Gen) or op.constraint is None or not isinstance(op.constraint.source, str):
            continue
        constraint = op.constraint.resolve(op.constraint.source)
        keys[op.out.id] = constraint.key
        if constraint.key not in constraints:
            constraints[constraint.key] = constraint
            if context.options.warm_constraints and context.tokenizer is not None:
                from ..constraints import compile_constraint  # numpy and the grammar engines: only when needed

                try:
                    compile_constraint(constraint, context.tokenizer.vocabulary, encode=context.tokenizer.encode)
                except ConstraintError as error:
                    raise error.at(op.where) from None
    return replace(
        plan,
        constraints=tuple(constraints.values()),
        gens=tuple(replace(facts, constraint=keys.get(facts.out.id)) for facts in plan.gens),
    )


CONSTRAINT_CACHE = PlanPass(
    "constraint-cache",
    "Lists each constant constraint once, under its key, and compiles it into the process's cache if asked.",
    run,
)
