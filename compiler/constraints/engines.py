"""The engines that can serve a constraint, by name (`grammar_backend=`). All give `CompiledConstraint`s.

"automaton" is our own, and what "auto" stands for. "llguidance", "xgrammar" and "outlines" are imported when first
asked for. `register_engine` adds others. An engine refuses what it cannot enforce exactly as far as it knows; what each
leaves out is in `engines_llguidance`, `engines_xgrammar` and `engines_outlines`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConfigError
from .interface import CompiledConstraint

Encode = Callable[[str], list[int]]
CompileFunction = Callable[[Constraint, Vocabulary, "Encode | None"], CompiledConstraint]

KINDS = frozenset(("regex", "json_schema", "ebnf"))  # what other engines serve; ours sequences too
OWN = "automaton"


@dataclass(frozen=True, slots=True)
class ConstraintEngine:
    """`compile(constraint, vocabulary, encode)` raises ConstraintError for what the engine refuses.

    Matchers are not thread-safe; `compile` may be called by several threads at once. `kinds`: what it serves.
    """

    name: str
    compile: CompileFunction
    kinds: frozenset[str] = KINDS


_engines: dict[str, ConstraintEngine] = {}
# Modules that define `engine()`.
_later = {
    OWN: ".compile",
    "llguidance": ".engines_llguidance",
    "xgrammar": ".engines_xgrammar",
    "outlines": ".engines_outlines",
}


def register_engine(name: str, compile: CompileFunction, kinds: Iterable[str] = KINDS) -> None:
    """Make `name` a grammar_backend. Raises ValueError for a name that is taken."""
    if name in _engines or name in _later or name in ("auto", "none"):
        raise ValueError(f"the constraint engine {name!r} is there already")
    _engines[name] = ConstraintEngine(name, compile, frozenset(kinds))


def unregister_engine(name: str) -> None:
    """Take back `register_engine`. Raises KeyError for an unknown name."""
    del _engines[name]


def engine_names() -> tuple[str, ...]:
    """The values of grammar_backend, "none" left out. Imports nothing."""
    return ("auto", *_later, *(name for name in _engines if name not in _later))


def constraint_engine(name: str) -> ConstraintEngine:
    """The engine of that name. Raises ConfigError for an unknown one, and for one whose package is not installed."""
    name = OWN if name == "auto" else name
    if name not in _engines:
        module = _later.get(name)
        if module is None:
            raise ConfigError(
                f"unknown backend {name!r}; choices: {', '.join(engine_names())}, none", field="grammar_backend"
            )
        try:
            _engines[name] = importlib.import_module(module, __package__).engine()
        except ImportError as error:
            raise ConfigError(
                f"{name!r} is not installed ({error}); `pip install dslc[{name}]`", field="grammar_backend"
            ) from None
    return _engines[name]
