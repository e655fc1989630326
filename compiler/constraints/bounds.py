"""How much work a constraint may be to compile: a bound from its source alone, in about microseconds.

Small ones are compiled where they are asked for, the rest in a process of their own (`worker`).
"""

from __future__ import annotations

import json
from typing import Any

from ...core.constraint import Constraint
from .nfa import MAX_POSITIONS, count_positions
from .regex_ast import Alt, Cat, Regex, Repeat
from .regex_syntax import RegexError, parse_regex

QUICK_WORK = 60_000  # up to which an engine tries it while its caller waits
INLINE_WORK = 1_000_000  # up to which another caller does, in a limited number of steps
_PER_CHAR, _PER_POSITION = 4, 3
_MAX_COUNTED = 2**20


def work_of(constraint: Constraint) -> int:
    """A bound on the work; sources that are refused at once are little work."""
    source = constraint.source
    work = _PER_CHAR * len(source)
    if work > INLINE_WORK:
        return work
    if constraint.kind == "regex":
        positions = positions_of(source)
        return work if positions > MAX_POSITIONS and is_refused(source) else work + _PER_POSITION * positions
    if constraint.kind == "json_schema":
        try:
            return work + _PER_POSITION * _in_schema(json.loads(source))
        except (ValueError, RecursionError):
            return work
    return work


def positions_of(pattern: str) -> int:
    """Characters of the pattern once repeats are written out."""
    try:
        return _positions(parse_regex(pattern))
    except (RegexError, RecursionError):
        return 0


def is_refused(pattern: str) -> bool:
    """Whether a pattern has more characters once its repeats are written out than are taken."""
    try:
        return count_positions(parse_regex(pattern)) > MAX_POSITIONS
    except (RegexError, RecursionError):
        return True


def _positions(node: Regex) -> int:
    if isinstance(node, Repeat):
        return min(_positions(node.item) * max(node.low + 1 if node.high is None else node.high, 1), 2**40)
    if isinstance(node, Cat):
        return sum(map(_positions, node.parts))
    return sum(map(_positions, node.options)) if isinstance(node, Alt) else 1


def _in_schema(value: Any) -> int:
    """Patterns, each times the length bounds beside it."""
    total = 0
    todo = [value]
    while todo:
        at = todo.pop()
        if isinstance(at, list):
            todo += at
        elif isinstance(at, dict):
            todo += at.values()
            patterns = [at["pattern"]] if isinstance(at.get("pattern"), str) else []
            if isinstance(at.get("patternProperties"), dict):
                patterns += at["patternProperties"]
            bounds = [at[k] for k in ("minLength", "maxLength") if isinstance(at.get(k), int)]
            length = min(max([1, *bounds]), _MAX_COUNTED)
            total += sum(map(positions_of, patterns)) * length + length // 16
            if isinstance(at.get("multipleOf"), int) and at["multipleOf"] > 100:
                total += at["multipleOf"] * 20
    return total
