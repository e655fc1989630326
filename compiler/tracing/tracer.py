"""One path through a program: the rewritten copy runs on symbols, and what it does is recorded as events.

`PathTracer` is the sink of the states and the recorder of the symbols of one run of the copy. Which way a decision goes
is told beforehand (`decisions`); beyond that list it goes true first, and `explore` comes back for the other way.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn, TypeAlias

from ...core.errors import ProgramError, SourceLoc, UndefinedVariable
from ..ir import AnyOp, Copy, Expr, Fork, Gen, Join, Opaque, Ref, Role, Scope, Select, Set
from .hooks import Hooks
from .purity import reachable_mutables
from .rewrite import HOOKS, CannotRewrite, NoSource, rewrite
from .symbols import Symbol, operand

MAX_PATHS = 256
MAX_OPS = 4096
MAX_TICKS = 1_000_000  # hook calls of one path: bounds pure Python loops
MAX_DEPTH = 64  # functions followed into one another
MAX_DECISIONS = 64  # of one path: they nest in the IR, and everything that reads it goes down into them

# Exprs whose value is already true or false, so that a decision needs no "bool" around them.
_BOOLEAN = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "contains", "startswith", "endswith", "not", "bool", "has", "is_none"}
)
# Exprs that read the state: never shared between two places.
_STATEFUL = frozenset({"get", "has", "text"})


class TraceStop(BaseException):
    """Ends a path. Not an Exception, so that the user's own `except` clauses do not catch it."""


@dataclass(frozen=True, slots=True)
class Enter:
    """A region opened here."""

    op: Role | Scope


@dataclass(frozen=True, slots=True)
class Leave:
    """The innermost region closed here."""

    op: Role | Scope


@dataclass(frozen=True, slots=True)
class Decision:
    """The path went the way `taken` on the truth of `ref`. Refs and streams from these numbers on came later."""

    ref: Ref
    taken: bool
    first_ref: int
    first_stream: int
    where: SourceLoc | None = field(default=None, compare=False)


PathEvent: TypeAlias = "AnyOp | Enter | Leave | Decision"


class Copies:
    """The rewritten copies that the paths of one trace share, and the hooks they go through."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.originals: dict[int, types.FunctionType] = {}  # by id, in the order in which they were followed
        self._copies: dict[int, types.FunctionType] = {}

    def of(self, function: types.FunctionType) -> types.FunctionType:
        """The copy of a function. Raises NoSource or CannotRewrite."""
        if function.__globals__.get(HOOKS) is self.hooks:
            return function  # defined inside a copy: rewritten already
        if id(function) not in self._copies:
            self._copies[id(function)] = rewrite(function, self.hooks)
            self.originals[id(function)] = function
        return self._copies[id(function)]


@dataclass(slots=True)
class _Stream:
    """What the tracer knows of a text stream."""

    variables: dict[str, Any] = field(default_factory=dict)
    from_branches: set[str] = field(default_factory=set)  # variables that a join brought
    changed: set[str] = field(default_factory=set)  # variables set on this stream itself, or brought to it
    is_joined: bool = False


class PathTracer:
    """Sink and recorder of one path. `run` gives its events; `decisions_taken` says which way it went."""

    is_tracing = True

    def __init__(self, copies: Copies, decisions: Sequence[bool], captured: Mapping[int, Any], budget: int) -> None:
        self.decisions = decisions
        self.events: list[PathEvent] = []
        self.num_decisions = 0
        self._captured = captured
        self._budget = budget
        self._ticks = 0
        self._depth = 0
        self._next_ref = 0
        self._next_stream = 1
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._open: list[Role | Scope] = []
        self._stopped = False
        self._copies = copies
        copies.hooks.tracer = self
        self._exprs: dict[tuple[Any, ...], tuple[Symbol, int]] = {}
        self._keys: dict[int, tuple[Any, ...]] = {}  # ref id -> what it computes
        self._facts: dict[tuple[Any, ...], bool] = {}

    # -- running the copy

    def symbol(self) -> Symbol:
        """A fresh symbolic value."""
        return Symbol(self, self.new_ref())

    def follow(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the rewritten copy of a function of the user's."""
        if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
            self.break_here(f"call of {getattr(function, '__qualname__', function)!s}, which wraps another function")
        if self._depth >= MAX_DEPTH:
            self.break_here(f"{function.__qualname__} is more than {MAX_DEPTH} calls deep")
        try:
            copy = self._copies.of(function)
        except (NoSource, CannotRewrite) as error:
            if self._depth == 0:
                raise
            self.break_here(f"call of {function.__qualname__}: {error.message}")
        self._depth += 1
        try:
            return copy(*args, **kwargs)
        finally:
            self._depth -= 1

    def tick(self) -> None:
        """Count a step of the copy; end the path when it has stopped already, or goes on for ever."""
        if self._stopped:
            raise TraceStop
        self._ticks += 1
        if self._ticks > MAX_TICKS:
            self.break_here(f"more than {MAX_TICKS} steps without an end")

    def is_captured(self, value: Any) -> bool:
        """Whether the object existed before the trace, so that the copy must not change it."""
        return id(value) in self._captured

    def break_here(self, reason: str, where: SourceLoc | None = None) -> NoReturn:
        """Record a break at the user's line and end the path."""
        if not self._stopped:
            self._stopped = True
            self.events.append(Opaque(reason=reason, where=where or self.here()))
        raise TraceStop

    def here(self) -> SourceLoc | None:
        """The user's line that is being run: the innermost frame of a rewritten copy."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get(HOOKS) is self._copies.hooks:
                return SourceLoc(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        return None

    # -- Recorder: what symbols need

    def expr(self, fn: str, *args: Any) -> Symbol:
        """Record an Expr, or give the one already recorded since the last decision."""
        self.tick()
        try:
            operands = tuple(operand(arg) for arg in args)
        except TypeError as error:
            self.break_here(str(error))
        key = (fn, *map(_typed, operands))
        known = self._exprs.get(key)
        if known is not None and known[1] == self.num_decisions:
            return known[0]
        symbol = self.symbol()
        self._record(Expr(out=symbol.ref, fn=fn, args=operands, where=self.here()))
        self._exprs[key] = (symbol, self.num_decisions)
        self._keys[symbol.ref.id] = key
        return symbol

    def decide(self, symbol: Symbol) -> bool:
        """Which way this path goes on the truth of a symbol; the same question is answered the same way twice."""
        self.tick()
        fn = self._keys.get(symbol.ref.id, ("",))[0]
        if fn not in _BOOLEAN:
            symbol = self.expr("bool", symbol)
        key = self._deep_key(symbol.ref)
        if key in self._facts:
            return self._facts[key]
        if self.num_decisions >= MAX_DECISIONS:
            self.break_here(f"more than {MAX_DECISIONS} branches on one path")
        taken = self.decisions[self.num_decisions] if self.num_decisions < len(self.decisions) else True
        self.events.append(Decision(symbol.ref, taken, self._next_ref, self._next_stream, self.here()))
        self.num_decisions += 1
        self._facts[key] = taken
        return taken

    def _deep_key(self, ref: Ref) -> tuple[Any, ...]:
        """What a value computes down to arguments and generated values, so that equal questions have equal keys."""
        key = self._keys.get(ref.id)
        if key is None or key[0] in _STATEFUL:
            return ("ref", ref.id)
        if key[0] == "same":
            return self._deep_key(Ref(key[1][1]))
        return tuple(
            self._deep_key(Ref(part[1])) if isinstance(part, tuple) and part[:1] == ("%",) else part for part in key
        )

    # -- Sink: what states write to

    def new_ref(self) -> Ref:
        ref = Ref(self._next_ref)
        self._next_ref += 1
        return ref

    def new_stream(self) -> int:
        stream = self._next_stream
        self._next_stream += 1
        return stream

    def _record(self, op: AnyOp) -> None:
        self.tick()
        if len(self.events) >= self._budget:
            self.break_here(f"more than {MAX_OPS} ops")
        self.events.append(op)

    def emit(self, op: AnyOp) -> None:
        self._record(op)
        stream = self._streams.get(op.stream)
        if stream is None or stream.is_joined:
            raise ProgramError("a branch is used after its join", where=op.where)
        if isinstance(op, (Gen, Select)):
            if op.var is not None:
                self._set(stream, op.var, Symbol(self, op.out))
        elif isinstance(op, Set):
            self._set(stream, op.var, Symbol(self, op.value) if isinstance(op.value, Ref) else op.value)
        elif isinstance(op, Fork):
            for branch in op.streams:
                self._streams[branch] = _Stream(dict(stream.variables), set(stream.from_branches))
        elif isinstance(op, Copy):
            self._streams[op.target] = _Stream(dict(stream.variables), set(stream.from_branches))
        elif isinstance(op, Join):
            for branch in op.streams:
                joined = self._streams[branch]
                joined.is_joined = True
                if op.mode == "gather_variable":
                    stream.from_branches |= joined.changed
                    stream.changed |= joined.changed

    def _set(self, stream: _Stream, var: str, value: Any) -> None:
        stream.variables[var] = value
        stream.changed.add(var)
        stream.from_branches.discard(var)

    def enter(self, op: Role | Scope) -> None:
        self.tick()
        if isinstance(op, Role) and any(isinstance(o, Role) and o.stream == op.stream for o in self._open):
            raise ProgramError("roles do not nest: close the open one first", where=op.where)
        self._open.append(op)
        self.events.append(Enter(op))

    def leave(self, op: Role | Scope) -> None:
        if self._stopped:
            return
        if not self._open or self._open[-1] is not op:
            self.break_here("regions of two streams overlap")
        self._open.pop()
        self.events.append(Leave(op))
        if isinstance(op, Scope):
            self._set(self._streams[op.stream], op.var, Symbol(self, op.out))

    def get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        self.tick()
        known = self._streams[stream]
        if var in known.from_branches:
            return self._stateful("get", stream, var)
        if any(isinstance(op, Scope) and op.stream == stream and op.var == var for op in self._open):
            raise UndefinedVariable(f"{var!r} is read inside its own scope", where=where)
        if var not in known.variables:
            if self.num_decisions:
                self.break_here(f"{var!r} is read where this path has not set it", where)
            names = ", ".join(sorted(map(repr, known.variables))) or "none yet"
            raise UndefinedVariable(f"{var!r} is read before any op sets it; variables so far: {names}", where=where)
        value = known.variables[var]
        if self.num_decisions == 0 or not isinstance(value, Symbol):
            return value
        # After a decision the value is read by name, so that paths on which another op set it can meet again; where
        # only one op can have set it, `merge` puts its value back.
        symbol = self._stateful("get", stream, var)
        self._keys[symbol.ref.id] = ("same", ("%", value.ref.id))
        return symbol

    def has(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        known = self._streams[stream]
        return var in known.variables or var in known.from_branches

    def text(self, stream: int, where: SourceLoc | None) -> Any:
        return self._stateful("text", stream)

    def _stateful(self, fn: str, stream: int, *args: Any) -> Symbol:
        symbol = self.symbol()
        self._record(Expr(stream=stream, out=symbol.ref, fn=fn, args=args, where=self.here()))
        self._keys[symbol.ref.id] = (fn, stream, *args)
        return symbol

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        return Symbol(self, ref)

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        self.break_here(reason, where)

    def call(self, body: Callable[..., Any], state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.follow(body, (state, *args), kwargs)


def _typed(value: Any) -> Any:
    """An operand as part of a key: True, 1 and 1.0 are three values."""
    if isinstance(value, Ref):
        return ("%", value.id)
    if isinstance(value, tuple):
        return ("[", *map(_typed, value))
    return (type(value).__name__, value)


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


def renamed(value: Any, refs: Mapping[int, int], streams: Mapping[int, int]) -> Any:
    """An op, region or operand with its value and stream numbers replaced (numbers not listed stay)."""
    if isinstance(value, Ref):
        return Ref(refs.get(value.id, value.id))
    if isinstance(value, tuple):
        return tuple(renamed(item, refs, streams) for item in value)
    if not hasattr(value, "__dataclass_fields__") or isinstance(value, SourceLoc):
        return value
    changes: dict[str, Any] = {}
    for f in fields(value):
        old = getattr(value, f.name)
        if f.name == "stream" or f.name == "target":
            changes[f.name] = streams.get(old, old)
        elif f.name == "streams":
            changes[f.name] = tuple(streams.get(s, s) for s in old)
        elif f.name not in ("where", "sampling_params"):
            new = renamed(old, refs, streams)
            if new is not old:
                changes[f.name] = new
    return replace(value, **changes) if changes else value
