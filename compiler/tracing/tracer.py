"""One path through a program: the rewritten copy runs on symbols, and what it does is recorded as events.

`PathTracer` is the sink of the states and the recorder of the symbols of one run of the copy. Which way a decision goes
is told beforehand (`decisions`); beyond that list it goes true first, and `explore` comes back for the other way.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ...core.errors import ProgramError, SourceLoc, UndefinedVariable
from ..ir import AnyOp, Branch, Break, Copy, Fork, Gen, Join, Loop, Next, Operand, Ref, Role, Scope, Select, Set, Text
from .copies import Copies
from .events import Decision, Enter, Leave, NotInline, TraceStop
from .language import holds_language, is_language
from .loops import copies_of
from .purity import HOOKS, reachable_mutables
from .recorder import PathRecorder, Way, new_expr
from .rewrite import CannotRewrite, NoSource
from .symbols import Symbol, operand

MAX_DEPTH = 64  # functions followed into one another
MAX_LOOPS = 96  # of one path, and branches that are regions: the IR holds them one after the other


@dataclass(slots=True)
class _Stream:
    """What the tracer knows of a text stream."""

    variables: dict[str, Any] = field(default_factory=dict)
    from_branches: set[str] = field(default_factory=set)  # variables that a join brought
    changed: set[str] = field(default_factory=set)  # variables set on this stream itself, or brought to it
    is_joined: bool = False
    is_one_of_many: bool = False  # a branch of a fork whose size only the run knows
    named: int = 0  # of such a fork: the stream of the branch that was named last
    is_left: bool = False  # another branch was named since


class PathTracer(PathRecorder):
    """Sink and recorder of one path: what states, functions and loops do, on top of what is recorded."""

    is_tracing = True

    def __init__(self, copies: Copies, way: Way, budget: int) -> None:
        super().__init__(copies, way, budget)
        copies.hooks.tracer = self
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._open: list[Role | Scope] = []

    # -- running the copy

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

    def call_user(self, function: types.FunctionType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call of a plain function of the user's.

        One that makes parts of the program is followed. One that only computes is followed too if it does so without a
        branch on what is not known yet; otherwise it is called when the program runs.
        """
        if function.__globals__.get(HOOKS) is self._copies.hooks:
            return self.follow(function, args, kwargs)
        values = [*args, *kwargs.values()]
        if holds_language(values) or self._copies.mentions_language(function):
            return self.follow(function, args, kwargs)
        if any(self.is_shared(value) for value in values):
            return self.follow(function, args, kwargs)  # it may change what the program goes on with
        found = self.attempt(lambda: self.follow(function, args, kwargs))
        return found[0] if found else self.host_call(function, args, kwargs)

    def call(self, body: Callable[..., Any], state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.follow(body, (state, *args), kwargs)

    # -- loops: what `LoopDriver` needs

    def decide_loop(self, loop: Loop) -> bool:
        """Whether this path goes through the loop's body, or on behind it."""
        if self._num_inline:
            raise NotInline
        if self._num_loops >= MAX_LOOPS:
            self.break_here(f"more than {MAX_LOOPS} loops and branches on one path")
        self._num_loops += 1
        taken = self.decisions[self.num_decisions] if self.num_decisions < len(self.decisions) else True
        self._go(Decision(Ref(-1), taken, self._next_ref, self._next_stream, loop.where, loop))
        self.has_loops = True
        self._num_calls += 1
        if taken:
            self.in_body = True
            here = copies_of(sys._getframe(1), lambda frame: frame.f_globals.get(HOOKS) is self._copies.hooks)
            self._outside = reachable_mutables([value for value in here if not is_language(value)])
        return taken

    def end_round(self, kind: str, values: tuple[Operand, ...], where: SourceLoc | None) -> NoReturn:
        """The round ends, and with it this path."""
        self._record(Next(values=values, where=where) if kind == "next" else Break(values=values, where=where))
        self._stopped = True
        raise TraceStop

    def check_outside(self, container: Any, what: str) -> None:
        """A loop's body is traced once: it must not change what was made before it."""
        if id(container) in self._outside and not self.is_captured(container):
            self.break_here(f"{what} in a loop changes a {type(container).__name__} that was made before it")

    def is_language(self, value: Any) -> bool:
        """Whether this is, or holds, a part of the program."""
        return holds_language(value)

    # -- Sink: what states write to

    def new_stream(self) -> int:
        stream = self._next_stream
        self._next_stream += 1
        return stream

    def emit(self, op: AnyOp) -> None:
        if self.guards:
            self._check_try(op.where)
        self._record(op)
        stream = self._streams.get(op.stream)
        if stream is None or stream.is_joined:
            raise ProgramError("a branch is used after its join", where=op.where)
        if stream.is_left:
            self.break_here("two branches at once of a fork into a number of branches that is not known yet", op.where)
        kind = type(op)
        if kind is Text:
            return
        if kind is Gen or kind is Select:
            self._note_output(op, stream)
        elif isinstance(op, Set):
            self._set(stream, op.var, Symbol(self, op.value) if isinstance(op.value, Ref) else op.value)
        elif isinstance(op, Fork):
            for branch in op.streams:
                self._streams[branch] = _Stream(dict(stream.variables), set(stream.from_branches))
        elif isinstance(op, Branch):
            if stream.named:
                self._streams[stream.named].is_left = True
            stream.named = op.target
            # What one branch has set may be set in another.
            self._streams[op.target] = replace(stream, is_one_of_many=True)
        elif isinstance(op, Copy):
            self._streams[op.target] = _Stream(dict(stream.variables), set(stream.from_branches))
        elif isinstance(op, Join):
            for branch in op.streams:
                joined = self._streams[branch]
                joined.is_joined = True
                if op.mode == "gather_variable":
                    stream.from_branches |= joined.changed
                    stream.changed |= joined.changed

    def _note_output(self, op: Any, stream: _Stream) -> None:
        if type(op) is Select or not op.sampling or "n" not in dict(op.sampling):
            self._texts.add(op.out.id)
        if op.var is not None:
            self._set(stream, op.var, Symbol(self, op.out))

    def _set(self, stream: _Stream, var: str, value: Any) -> None:
        stream.variables[var] = value
        stream.changed.add(var)
        stream.from_branches.discard(var)

    def enter(self, op: Role | Scope) -> None:
        if self._stopped:
            raise TraceStop
        if self.guards:
            self._check_try(op.where)
        is_nested = self._open and type(op) is Role
        if is_nested and any(type(around) is Role and around.stream == op.stream for around in self._open):
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
        if self._open and any(isinstance(op, Scope) and op.stream == stream and op.var == var for op in self._open):
            raise UndefinedVariable(f"{var!r} is read inside its own scope", where=where)
        if self.has_loops or known.is_one_of_many:
            return self._stateful("typed", stream, var)  # a round before, or another op on this branch may have set it
        if var not in known.variables:
            if self.num_decisions:
                self.break_here(f"{var!r} is read where this path has not set it", where)
            names = ", ".join(sorted(map(repr, known.variables))) or "none yet"
            raise UndefinedVariable(f"{var!r} is read before any op sets it; variables so far: {names}", where=where)
        value = known.variables[var]
        if (self.num_decisions == 0 and not self.guards) or not isinstance(value, Symbol):
            return value
        if self._catches_failures:
            return self._record_host("state:get", (var,), (), False, stream)
        # After a decision the value is read by name, so that paths on which another op set it can meet again; where
        # only one op can have set it, `merge` puts its value back.
        symbol = self._stateful("get", stream, var)
        self._keys[symbol.ref.id] = ("same", ("%", value.ref.id))
        return symbol

    def typed(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        """The variable as the type that its gen was given."""
        return self._stateful("typed", stream, var)

    def has(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        known = self._streams[stream]
        if not known.is_one_of_many and (var in known.variables or var in known.from_branches):
            return True
        return self._stateful("has", stream, var) if self.has_loops or known.is_one_of_many else False

    def text(self, stream: int, where: SourceLoc | None) -> Any:
        return self._stateful("text", stream)

    def unordered(self, stream: int, separator: str, parts: Any, where: SourceLoc | None) -> Any:
        """Order-free parts, joined: in which order is for the schedule to say."""
        return self._stateful("unordered", stream, separator, operand(parts))

    def _stateful(self, fn: str, stream: int, *args: Any) -> Symbol:
        if self._catches_failures and fn != "has":
            return self._record_host(f"state:{fn}", args, (), False, stream)
        symbol = self.symbol()
        self._record(new_expr(stream=stream, out=symbol.ref, fn=fn, args=args, where=self.here()))
        self._keys[symbol.ref.id] = (fn, stream, *args)
        return symbol

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        return Symbol(self, ref)

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        self.break_here(reason, where)
