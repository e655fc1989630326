"""Regexes and JSON Schemas to automata over bytes, and to masks over a vocabulary.

The chain for a regex: `regex_syntax` (text to tree) - `nfa` and `char_dfa` (tree to a minimal automaton over
characters) - `spelling` (characters to bytes) - `token_index` (bytes to tokens) - `matcher`.

The names are loaded when they are asked for: numpy and the automata are not needed to trace a program, or to check a
constraint that is known to be good.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..checked import is_good, note
from .source import source_of_schema

if TYPE_CHECKING:
    from ...core.constraint import Constraint
    from .compile import CacheCounters, ConstraintCache, cache_counters, compile_constraint
    from .interface import CompiledConstraint, ConstraintStats, Matcher, mask_words

_HOMES = {
    **dict.fromkeys(("CacheCounters", "ConstraintCache", "cache_counters", "compile_constraint"), ".compile"),
    **dict.fromkeys(("CompiledConstraint", "ConstraintStats", "Matcher", "mask_words"), ".interface"),
}

__all__ = [
    "CacheCounters",
    "CompiledConstraint",
    "ConstraintCache",
    "ConstraintStats",
    "Matcher",
    "cache_counters",
    "check_constraint",
    "compile_constraint",
    "mask_words",
    "source_of_schema",
]


def check_constraint(constraint: Constraint) -> None:
    """Raise ConstraintError if `constraint` cannot be compiled, whatever the vocabulary. Compiles the automaton."""
    if is_good(constraint):
        return
    from .compile import check_constraint as check

    check(constraint)
    note(constraint)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
