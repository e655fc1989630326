"""The options of a constraint, checked."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.constraint import Constraint
from ...core.errors import ConstraintError


def chosen_options(constraint: Constraint, known: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The options with defaults: the first value of each. Raises ConstraintError for unknown ones."""
    chosen = {name: values[0] for name, values in known.items()}
    for name, value in constraint.options:
        if name not in known:
            what = f"known: {', '.join(known)}" if known else f"a {constraint.kind} has none"
            raise ConstraintError(f"unknown option {name!r}; {what}", field=constraint.kind)
        if value not in known[name]:
            raise ConstraintError(
                f"{name} must be one of {', '.join(known[name])}, not {value!r}", field=constraint.kind
            )
        chosen[name] = value
    return chosen
