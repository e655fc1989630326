"""Reasoning apart from the answer: what a model thinks aloud between two markers is split off its text.

s += separate_reasoning(gen("answer"), model_type="qwen3")
s["answer"], s["answer_reasoning_content"]
"""

from __future__ import annotations

from typing import Any

from ..core.errors import RequestError
from .exprs import Expression, ExprList, RoleExpr, traceable
from .gens import GenExpr
from .locate import caller
from .reasoning_format import FORMATS, ReasoningFormat


@traceable
def separate_reasoning(expr: Any = None, model_type: str | None = None) -> Expression:
    """Append `expr`, with the reasoning of its gens in variables of their own (`<name>_reasoning_content`).

    The state's text goes on with the answers alone. A constrained gen thinks freely between the markers, and its answer
    meets the constraint; it does not end before. `model_type` is one of `FORMATS`. Raises RequestError for another one.
    """
    where = caller()
    if model_type is None or model_type.lower() not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise RequestError(f"must be one of {known}, not {model_type!r}", field="model_type", where=where)
    separated: Expression = _separated(expr, FORMATS[model_type.lower()], where)
    return separated


def _separated(expr: Any, form: ReasoningFormat, where: Any) -> Any:
    if isinstance(expr, GenExpr):
        return expr.with_reasoning(form)
    if isinstance(expr, ExprList):
        return ExprList(tuple(_separated(part, form, where) for part in expr.parts))
    if isinstance(expr, RoleExpr):
        return RoleExpr(expr.role, _separated(expr.content, form, where), expr.where)
    return expr
