"""How much work a constraint may be to compile: a bound from its source alone, in about microseconds.

Small ones are compiled where they are asked for, the rest in a process of their own (`worker`).
"""

from __future__ import annotations

import json
import math
from typing import Any

from ...core.constraint import Constraint
from .char_dfa import MAX_STATES
from .nfa import MAX_POSITIONS, count_positions, text_lengths
from .regex_ast import Alt, Cat, Regex, Repeat
from .regex_syntax import RegexError, parse_regex

QUICK_WORK = 60_000  # up to which an engine tries it while its caller waits
INLINE_WORK = 1_000_000  # up to which another caller does, in a limited number of steps
_PER_CHAR, _PER_POSITION = 4, 3
_CONSTANTS_PER_US = 4  # characters of texts in an enum
_MAX_COUNTED = 2**20


def work_of(constraint: Constraint, limit: int = INLINE_WORK) -> int:
    """A bound on the work; sources that are refused at once are little work. One that is above `limit` may be any."""
    source = constraint.source
    work = _PER_CHAR * len(source)
    if constraint.kind == "json_schema" and work <= _PER_CHAR * _CONSTANTS_PER_US * limit:
        try:
            return _in_schema(json.loads(source), len(source))
        except (ValueError, RecursionError):
            return 0
    if work <= limit and constraint.kind == "regex":
        positions = positions_of(source)
        return work if positions >= MAX_STATES and is_refused(source) else work + _PER_POSITION * positions
    return work


def positions_of(pattern: str) -> int:
    """Characters of the pattern once repeats are written out."""
    try:
        return _positions(parse_regex(pattern))
    except (RegexError, RecursionError):
        return 0


def is_refused(pattern: str) -> bool:
    """Whether a pattern has more characters once its repeats are written out, or longer texts, than are taken."""
    try:
        tree = parse_regex(pattern)
        return count_positions(tree) > MAX_POSITIONS or MAX_STATES < text_lengths(tree)[1] < math.inf
    except (RegexError, RecursionError):
        return True


def _positions(node: Regex) -> int:
    if isinstance(node, Repeat):
        return min(_positions(node.item) * max(node.low + 1 if node.high is None else node.high, 1), 2**40)
    if isinstance(node, Cat):
        return sum(map(_positions, node.parts))
    return sum(map(_positions, node.options)) if isinstance(node, Alt) else 1


def _in_schema(schema: Any, num_chars: int) -> int:
    """Patterns, each times the length bounds beside it; texts of enums; everything else by the character."""
    total = constants = 0
    todo = [schema]
    while todo:
        at = todo.pop()
        if isinstance(at, list):
            todo += at
        elif isinstance(at, dict):
            if isinstance(at.get("enum"), list):
                constants += sum(len(value) + 4 for value in at["enum"] if isinstance(value, str))
                constants += sum(len(str(value)) + 2 for value in at["enum"] if isinstance(value, int))
            todo += (value for value in at.values() if isinstance(value, (dict, list)))
            patterns = [at["pattern"]] if isinstance(at.get("pattern"), str) else []
            if isinstance(at.get("patternProperties"), dict):
                patterns += at["patternProperties"]
            bounds = [at[k] for k in ("minLength", "maxLength") if isinstance(at.get(k), int)]
            length = min(max([1, *bounds]), _MAX_COUNTED)
            total += _PER_POSITION * (sum(map(positions_of, patterns)) * length + length // 16)
            if isinstance(at.get("multipleOf"), int) and at["multipleOf"] > 100:
                total += _PER_POSITION * at["multipleOf"] * 20
    return total + _PER_CHAR * (num_chars - min(constants, num_chars)) + constants // _CONSTANTS_PER_US
