"""The parameters of a program, read once from its function; binds arguments and says what is wrong with them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..compiler.tracing.source import parameters as parameters_of
from ..core.errors import ArgumentError, ProgramError, SourceLoc
from .options import RUN_NAMES


class Signature:
    """The parameters after the state. Raises ProgramError, at the function's line, where it cannot be a program."""

    __slots__ = ("defaults", "has_options", "name", "names", "names_set", "num_positional", "required")

    def __init__(self, body: Any, where: SourceLoc) -> None:
        self.name = body.__name__
        parameters = parameters_of(body)
        if not parameters or parameters[0].name != "s":
            got = f"not {parameters[0].name!r}" if parameters else "but it has none"
            raise ProgramError(f"the first parameter of the program {self.name} must be 's', {got}", where=where)
        kinds = inspect.Parameter
        parameters = parameters[1:]
        for p in parameters:
            if p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
                stars = "*" if p.kind == kinds.VAR_POSITIONAL else "**"
                raise ProgramError(
                    f"the program {self.name} takes {stars}{p.name}: a program needs named parameters", where=where
                )
        self.names = tuple([p.name for p in parameters])
        self.names_set = frozenset(self.names)
        self.has_options = bool(self.names_set & RUN_NAMES)  # parameters called like options of run() go before them
        self.num_positional = sum(p.kind != kinds.KEYWORD_ONLY for p in parameters)
        self.defaults = {p.name: p.default for p in parameters if p.default is not kinds.empty}
        self.required = tuple([p.name for p in parameters if p.default is kinds.empty])

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], bound: Mapping[str, Any], where: SourceLoc | None
    ) -> dict[str, Any]:
        """All arguments by name, bound ones and defaults included. Raises ArgumentError naming what is wrong."""
        if not args and kwargs.keys() == self.names_set:
            return dict(kwargs)
        values = {**self.defaults, **bound, **self.given(args, kwargs, where)}
        if len(values) < len(self.names):
            missing = ", ".join(repr(name) for name in self.required if name not in values)
            raise ArgumentError(f"{self.name} is missing the argument {missing}", where=where)
        return values

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any], where: SourceLoc | None) -> dict[str, Any]:
        """The arguments of a call by name. Raises ArgumentError for too many, unknown ones, one given twice."""
        if len(args) > self.num_positional:
            raise ArgumentError(
                f"{self.name} takes {self.num_positional} positional argument{'s' * (self.num_positional != 1)}, "
                f"got {len(args)}",
                where=where,
            )
        self.refuse_unknown(kwargs, where)
        given = dict(zip(self.names, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise ArgumentError(f"{self.name} got the argument {sorted(twice)[0]!r} twice", where=where)
        return {**given, **kwargs}

    def refuse_unknown(self, kwargs: Mapping[str, Any], where: SourceLoc | None) -> None:
        """Raise ArgumentError for a name that is no parameter."""
        for name in kwargs:
            if name not in self.names:
                near = difflib.get_close_matches(str(name), self.names, n=1)
                takes = f"it takes {', '.join(self.names)}" if self.names else "it takes none"
                hint = f"did you mean {near[0]!r}?" if near else takes
                if not near and (option := difflib.get_close_matches(str(name), RUN_NAMES, n=1)):
                    hint += f"; did you mean the option {option[0]!r} of a run?"
                raise ArgumentError(f"{self.name} has no argument {name!r}; {hint}", where=where)
