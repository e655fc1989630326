"""Automata as bytes: what crosses to another process, and what is kept on disk.

A schema's automaton is saved as its universe, before any text is read; a regex's as its character automaton. Loading
makes only objects of this package, arrays and numbers: bytes that ask for anything else are refused.
"""

from __future__ import annotations

import io
import pickle
from types import MethodType
from typing import Any

from .char_algebra import ALL, NONE
from .char_dfa import CharDfa
from .schema.lower import Lowering
from .schema.machine import SchemaMachine
from .schema.style import Style
from .schema.universe import Universe
from .spelling import ByteDfa
from .token_index import Automaton

FORMAT = 4  # raised whenever what is saved changes its meaning
_OWN = __name__.rpartition(".")[0] + "."
_NUMPY = {"numpy": {"ndarray", "dtype"}, "numpy._core.multiarray": {"_reconstruct", "scalar"},
          "numpy._core.numeric": {"_frombuffer"}}  # fmt: skip
_OTHERS = {"decimal": {"Decimal"}, "builtins": {"set", "frozenset", "complex", "bytearray"}, **_NUMPY}
_KNOWN = {"ALL": ALL, "NONE": NONE}  # told apart by identity
_METHODS = {"shape", "inhabited"}


class NotSaved(Exception):
    """An automaton of a kind that is not saved, or bytes that are not one."""


def automaton_to_bytes(automaton: Automaton) -> bytes:
    """Raises NotSaved."""
    saved: tuple[str, object, object]
    if type(automaton) is ByteDfa:
        saved = ("regex", automaton.chars, automaton.spelling)
    elif type(automaton) is SchemaMachine:
        saved = ("schema", automaton.universe, automaton.style)
    else:
        raise NotSaved(f"automata of the kind {type(automaton).__name__} are not saved")
    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5).dump(saved)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise NotSaved(f"cannot be saved: {error}") from None
    return out.getvalue()


def automaton_from_bytes(data: bytes) -> Automaton:
    """Raises NotSaved."""
    try:
        kind, first, second = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged bytes can raise anything
        raise NotSaved(f"not a saved automaton: {type(error).__name__}: {error}") from None
    if kind == "regex" and isinstance(first, CharDfa) and second in ("utf8", "json", "json-plain"):
        return ByteDfa(first, second)
    if kind == "schema" and isinstance(first, Universe) and isinstance(second, Style):
        return SchemaMachine(first, second)
    raise NotSaved("not a saved automaton")


def bound_method(owner: object, name: str) -> Any:
    """A method of one of the two classes whose methods are handed about."""
    if not isinstance(owner, (Lowering, Universe)) or name not in _METHODS:
        raise NotSaved(f"a method {name!r} of {type(owner).__name__}")
    return getattr(owner, name)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> str | None:
        return next((name for name, known in _KNOWN.items() if obj is known), None) if type(obj) is CharDfa else None

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, MethodType):
            return bound_method, (obj.__self__, obj.__name__)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> CharDfa:
        return _KNOWN[pid]

    def find_class(self, module: str, name: str) -> Any:
        if (module.startswith(_OWN) and "." not in name) or name in _OTHERS.get(module, ()):
            return super().find_class(module, name)
        raise NotSaved(f"{module}.{name} is not part of an automaton")
