"""The rewritten copies that the paths of one trace share, and what the functions behind them can reach."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable
from typing import Any

from ...core.errors import SourceLoc
from .effects import Effects, effects_of
from .hooks import Hooks
from .host import HostTable, mentions_language
from .language import is_language
from .purity import HOOKS, reachable_mutables
from .rewrite import rewrite


class Copies:
    """The rewritten copies that the paths of one trace share, and the hooks they go through."""

    def __init__(self, bound: Iterable[Any] = ()) -> None:
        """`bound`: the values of arguments that are known."""
        self.hooks = Hooks()
        self.host_table = HostTable()
        self.forced_loops: set[tuple[str, int]] = set()  # loops not to be unrolled
        self.forced_branches: set[tuple[str, int]] = set()  # lines of `if`s that are to be regions
        self._changed: dict[int, Any] = {}  # objects of the process that calls of the run may change, by id
        self._effects: dict[int, tuple[Any, Effects]] = {}
        self.rebound: set[tuple[int, str]] = set()  # globals that they set: the id of their dict, and the name
        self.read: dict[int, Any] = {}  # objects of the process that the trace has read, by id
        self.num_arguments = 0  # they are the first values
        self.handed: set[int] = set()  # arguments that a call in the body of a Loop may change
        self.originals: dict[int, types.FunctionType] = {}  # by id, in the order in which they were followed
        self._copies: dict[int, types.FunctionType] = {}
        self.free: dict[int, list[tuple[str, Any]]] = {}  # the same, by id: what they read besides their arguments
        self._mentioning: dict[int, tuple[types.FunctionType, bool]] = {}
        self._roots: list[Any] = list(bound)  # values that the functions followed can reach, not gone through yet
        self._captured: dict[int, Any] = {}  # mutable objects found there, by id
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
            file = function.__code__.co_filename
            lines = frozenset(line for name, line in self.forced_branches if name == file)
            self._copies[id(function)] = rewrite(function, self.hooks, lines)
            self.originals[id(function)] = function
            free = self.free[id(function)] = free_values(function)
            for name, value in free:
                self.names.setdefault(id(value), f"{function.__module__}:{name}")
                self._roots.append(value)
            self._roots += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return self._copies[id(function)]

    def mentions_language(self, function: types.FunctionType) -> bool:
        """Whether a function of the user's makes parts of a program, or calls one that does."""
        if id(function) not in self._mentioning:
            self._mentioning[id(function)] = (function, mentions_language(function, is_language))
        return self._mentioning[id(function)][1]

    def force_branches(self, places: Iterable[tuple[str, int]]) -> bool:
        """From now on the `if`s at these lines are regions, where they can be. Says whether some were not before."""
        new = set(places) - self.forced_branches
        if new:
            self.forced_branches |= new
            self._copies.clear()
        return bool(new)

    def effects(self, function: Any) -> Effects:
        """What calling a function may change; looked for once in a trace."""
        found = self._effects.get(id(function))
        if found is None:
            found = self._effects[id(function)] = (function, effects_of(function))
        return found[1]

    def note_changes(self, objects: Iterable[Any], names: Iterable[tuple[int, str]]) -> bool:
        """A call of the run may change these objects and what they hold, and set these globals.

        Says whether some of them were read by the trace already, which is then void.
        """
        new = [value for value in objects if id(value) not in self._changed]
        self._changed.update({id(value): value for value in new})
        self._changed.update(found := reachable_mutables(new))
        self.rebound.update(names)
        return bool(new) and any(number in self.read or id(value) in self.read for number, value in found.items())

    def is_changed(self, value: Any) -> bool:
        """Whether a call of the run may change the object: the run looks at it."""
        return id(value) in self._changed

    def rebound_name(self) -> str | None:
        """A global that the functions followed read, and one that is called sets."""
        if not self.rebound:
            return None
        for number, free in self.free.items():
            table = id(self.originals[number].__globals__)
            for name, _ in free:
                if (table, name) in self.rebound:
                    return name
        for owner, name, _ in self.reads.values():
            if isinstance(owner, types.ModuleType) and (id(vars(owner)), name) in self.rebound:
                return f"{owner.__name__}.{name}"
        return None

    def is_captured(self, value: Any) -> bool:
        """Whether a mutable object can be reached through globals, closures, defaults or arguments that are known."""
        if self._roots:  # most programs never ask
            self._captured.update(reachable_mutables(self._roots))
            self._roots = []
        return id(value) in self._captured


# The names of globals that code may read, nested code included. Code that is equal reads the same.
_global_names: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = weakref.WeakKeyDictionary()


def free_values(function: types.FunctionType) -> list[tuple[str, Any]]:
    """(name, value) of each global and closure variable that a function's code, nested code included, may read."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    known = function.__globals__
    for name in _names_in(function.__code__):
        if name in known and name not in found:
            found[name] = known[name]
    return sorted(found.items())


def _names_in(code: types.CodeType) -> tuple[str, ...]:
    names = _global_names.get(code)
    if names is None:
        found: dict[str, None] = {}
        todo = [code]
        while todo:
            inner = todo.pop()
            found.update(dict.fromkeys(inner.co_names))
            todo.extend(const for const in inner.co_consts if isinstance(const, types.CodeType))
        names = _global_names[code] = tuple(found)
    return names
