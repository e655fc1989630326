"""Constraints as values: `gen("zip", dslc.regex("[0-9]{5}"))`, kept in a variable, compared, printed.

Each is checked where it is written. `gen(constraint=...)` takes them, also in second place; `regex=`, `json_schema=`
and `grammar=` are short for the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from ..compiler.ir import ConstraintSpec
from ..compiler.tracing.symbols import Symbol, operand
from ..core.constraint import Constraint, ConstraintKind
from ..core.errors import RequestError, SourceLoc
from .checks import check_choices, check_constraint, schema_text
from .exprs import traceable
from .locate import caller
from .types import is_type, schema_of

ConstraintValue = Constraint | ConstraintSpec  # the second inside a trace, where the source is not known yet


@traceable
def regex(pattern: str) -> Constraint:
    """Text that matches `pattern` (Python's syntax) whole. Raises ConstraintError for one that is not regular."""
    return _checked("regex", pattern, (), caller())


@traceable
def ebnf(grammar: str) -> Constraint:
    """Text of a context-free grammar, in lark's form (`start: ...`) or as `root ::= ...`.

    Raises ConstraintError with line and column.
    """
    return _checked("ebnf", grammar, (), caller())


@traceable
def json(
    schema: Any,
    *,
    whitespace: Literal["spaced", "compact", "free"] = "spaced",
    format: Literal["assert", "annotate"] = "assert",
    key_order: Literal["schema", "any"] = "schema",
) -> Constraint:
    """JSON text that a schema describes: a dict, its JSON text, a Python type or a pydantic model.

    `whitespace`: `", "` and `": "`, none, or any. `format`: checked, or a note. `key_order`: properties in the schema's
    order, or in any (for objects with at most 16 declared properties). Raises ConstraintError with the keyword's
    pointer.
    """
    where = caller()
    chosen = (("format", format, "assert"), ("key_order", key_order, "schema"), ("whitespace", whitespace, "spaced"))
    options = tuple((name, value) for name, value, default in chosen if value != default)
    if not isinstance(schema, Symbol):
        if is_type(schema) and not callable(getattr(schema, "model_json_schema", None)):
            try:
                schema = schema_of(schema)
            except (TypeError, NameError) as error:
                raise RequestError(str(error), field="json_schema", where=where) from None
        schema = schema_text(schema, where)
    return _checked("json_schema", schema, options, where)


@traceable
def choice(*options: Any) -> Constraint:
    """One of these texts, sampled token by token (`select` scores whole choices instead)."""
    where = caller()
    if len(options) == 1 and not isinstance(options[0], (str, Symbol)) and isinstance(options[0], Iterable):
        options = tuple(options[0])
    check_choices(options, where)
    for option in options:
        if isinstance(option, Symbol):
            option.recorder.break_here("a choice of texts that are not known yet")
    return _checked("regex", "|".join(re.escape(option) for option in dict.fromkeys(options)), (), where)


def _checked(
    kind: ConstraintKind, source: Any, options: tuple[tuple[str, str], ...], where: SourceLoc | None
) -> Constraint:
    if isinstance(source, Symbol):
        return ConstraintSpec(kind, operand(source), options)  # type: ignore[return-value]
    if not isinstance(source, str):
        raise RequestError(f"must be a str, not {type(source).__name__}", field=kind, where=where)
    made = Constraint(kind, source, options)
    check_constraint(made, where)
    return made
