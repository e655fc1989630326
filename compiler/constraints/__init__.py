"""Regexes and JSON Schemas to automata over bytes, and to masks over a vocabulary.

The chain for a regex: `regex_syntax` (text to tree) - `nfa` and `char_dfa` (tree to a minimal automaton over
characters) - `spelling` (characters to bytes) - `token_index` (bytes to tokens) - `matcher`.
"""

from .compile import (
    CacheCounters,
    ConstraintCache,
    cache_counters,
    check_constraint,
    compile_constraint,
)
from .interface import CompiledConstraint, ConstraintStats, Matcher, mask_words
from .source import source_of_schema

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
