"""The rewritten copies that the paths of one trace share, and what the functions behind them can reach."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from ...core.errors import SourceLoc
from .hooks import Hooks
from .host import HostTable
from .purity import HOOKS, reachable_mutables
from .rewrite import rewrite


class Copies:
    """The rewritten copies that the paths of one trace share, and the hooks they go through."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.host_table = HostTable()
        self.forced_loops: set[tuple[str, int]] = set()  # loops not to be unrolled
        self.originals: dict[int, types.FunctionType] = {}  # by id, in the order in which they were followed
        self._copies: dict[int, types.FunctionType] = {}
        self.captured: dict[int, Any] = {}  # mutable objects that the functions followed can reach, by id
        self.names: dict[int, str] = {}  # of the globals and closure variables that the functions read, by id
        self.reads: dict[
            tuple[int, str], tuple[Any, str, Any]
        ] = {}  # attributes of the process's objects that were read
        self._places: dict[tuple[int, int], tuple[types.CodeType, SourceLoc]] = {}

    def place(self, code: types.CodeType, line: int) -> SourceLoc:
        """A line of a copy as a place in the user's file; made once."""
        found = self._places.get((id(code), line))
        if found is None:
            found = self._places[id(code), line] = (code, SourceLoc(code.co_filename, line, code.co_name))
        return found[1]

    def of(self, function: types.FunctionType) -> types.FunctionType:
        """The copy of a function. Raises NoSource or CannotRewrite."""
        if function.__globals__.get(HOOKS) is self.hooks:
            return function  # defined inside a copy: rewritten already
        if id(function) not in self._copies:
            self._copies[id(function)] = rewrite(function, self.hooks)
            for name, value in free_values(function):
                self.names.setdefault(id(value), f"{function.__module__}:{name}")
            self.originals[id(function)] = function
            self.captured.update(captured_by(function, {}))
        return self._copies[id(function)]


def captured_by(function: types.FunctionType, bound: Mapping[str, Any]) -> dict[int, Any]:
    """The mutable objects a function can reach through its globals, closure, defaults and bound arguments."""
    roots: list[Any] = [*bound.values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    roots += [value for _, value in free_values(function)]
    return reachable_mutables(roots)


def free_values(function: types.FunctionType) -> list[tuple[str, Any]]:
    """(name, value) of each global and closure variable that a function's code, nested code included, may read."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        for name in code.co_names:
            if name in function.__globals__ and name not in found:
                found[name] = function.__globals__[name]
        todo.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
    return sorted(found.items())
