"""What one path through a program records: events, computed values, decisions, and the calls that the run makes.

Symbols and the hooks of the rewritten copy speak to it. `PathTracer` adds what states, functions and loops do.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ...core.errors import SourceLoc
from ...core.quick import maker
from ..expressions import BOOLEAN, FUNCTIONS, SCALAR, TEXTUAL
from ..ir import AnyOp, Expr, Host, Opaque, Operand, Ref
from .copies import Copies
from .effects import changes_argument
from .events import Decision, NotInline, PathEvent, TraceStop
from .hooks import Recipe
from .host import is_immutable, module_name
from .language import holds_language, is_language, may_catch_failures, stand_in
from .loops import LoopDriver, Retrace
from .purity import HOOKS, is_pure_module
from .symbols import Symbol, operand

new_expr = maker(Expr)

MAX_OPS = 4096
MAX_TICKS = 1_000_000  # hook calls of one path: bounds pure Python loops
MAX_ROUNDS = 8  # of a loop that is unrolled, where the paths turn out to be too many or too long
MAX_DECISIONS = 64  # of one path: they nest in the IR, and everything that reads it goes down into them

# Exprs that read the state: never shared between two places.
_STATEFUL = frozenset({"get", "has", "text", "typed", "unordered"})

_STRING_METHODS = TEXTUAL | {
    "startswith", "endswith", "find", "rfind", "count", "isdigit", "isalpha", "isalnum", "isspace", "isupper",
    "islower", "splitlines", "len", "slice",
}  # fmt: skip
# Exprs that give a container of their own each time: one may be changed, so two places never share it.
_MAKES_NEW = frozenset({"split", "rsplit", "splitlines", "parse_json", "dict"})
_ARITHMETIC = frozenset({"add", "sub", "div", "floordiv", "pow", "mod"})
# Exprs of texts alone: of an object that can be changed they make no sense.
_OF_TEXTS = frozenset(
    {"strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "replace", "casefold", "zfill",
     "removeprefix", "removesuffix", "startswith", "endswith", "isdigit", "isalpha", "isalnum", "isspace", "isupper",
     "islower", "split", "rsplit", "splitlines", "partition", "rpartition", "is_none"}
)  # fmt: skip


class Way(NamedTuple):
    """How a path is to go: its first decisions, and which attempts up to there are known to be in vain."""

    decisions: Sequence[bool] = ()
    vain: Sequence[bool] = ()


class PathRecorder:
    """Recorder of one path: its decisions, what it computes, and the calls that the run makes."""

    def __init__(self, copies: Copies, way: Way, budget: int) -> None:
        self.decisions = way.decisions
        self._vain = way.vain
        self.attempts: list[bool] = []  # which of those that were not made within another gave nothing
        self._attempts_before: list[int] = []  # each decision: how many
        self.events: list[PathEvent] = []
        self.taken: list[bool] = []  # which way each decision of this path went
        self.forced_loops = copies.forced_loops
        self._budget = budget
        self._ticks = 0
        self._depth = 0
        self._next_ref = 0
        self._next_stream = 1
        self._stopped = False
        self._copies = copies
        self._exprs: dict[tuple[Any, ...], tuple[Symbol, int]] = {}
        self._keys: dict[int, tuple[Any, ...]] = {}  # ref id -> what it computes
        self._facts: dict[tuple[Any, ...], bool] = {}
        self._num_loops = 0  # decisions that were about loops
        self._num_calls = 0  # times that something may have been changed: calls, and the edges of loops
        self._handed: set[Any] = set()  # what such a call may have changed, and may keep: roots of values
        self._num_inline = 0  # attempts to follow a plain computation, one within another
        self.guards: list[
            tuple[type[BaseException], ...]
        ] = []  # what the `try` statements around catch, outermost first
        self._texts: set[int] = set()  # values that are strings
        self.unrolled: list[LoopDriver] = []  # of each round of a loop that was unrolled, so far
        self.in_body = False  # in the body of a Loop, which goes round
        self.has_loops = False  # in or behind a Loop: what its body sets is not known
        self._outside: dict[int, Any] = {}  # containers made before the Loop whose body this is
        self._made: dict[int, Any] = {}  # objects that the copy has made, by id
        self._fresh: dict[int, Any] = {}  # lists and dicts written as arguments: nobody else holds them

    def symbol(self) -> Symbol:
        """A fresh symbolic value."""
        return Symbol(self, self.new_ref())

    def new_ref(self) -> Ref:
        ref = Ref(self._next_ref)
        self._next_ref += 1
        return ref

    @property
    def num_decisions(self) -> int:
        return len(self.taken)

    def _record(self, op: AnyOp) -> None:
        if self._stopped:
            raise TraceStop
        if len(self.events) >= self._budget:
            self._retrace()
            self.break_here(f"more than {MAX_OPS} ops")
        self.events.append(op)

    def tick(self) -> None:
        """Count a step of the copy; end the path when it has stopped already, or goes on for ever."""
        if self._stopped:
            raise TraceStop
        self._ticks += 1
        if self._ticks > MAX_TICKS:
            self.break_here(f"more than {MAX_TICKS} steps without an end")

    def is_captured(self, value: Any) -> bool:
        """Whether the object existed before the trace, so that the copy must not change it."""
        return self._copies.is_captured(value)

    def break_here(self, reason: str, where: SourceLoc | None = None) -> NoReturn:
        """Record a break at the user's line and end the path."""
        if self._num_inline:
            raise NotInline
        if not self._stopped:
            self._stopped = True
            self.events.append(Opaque(reason=reason, where=where or self.here()))
        raise TraceStop

    def here(self) -> SourceLoc | None:
        """The user's line that is being run: the innermost frame of a rewritten copy."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get(HOOKS) is self._copies.hooks:
                return self._copies.place(frame.f_code, frame.f_lineno)
            frame = frame.f_back  # type: ignore[assignment]
        return None

    # -- plain computations that are tried out

    def attempt(self, compute: Callable[[], Any]) -> tuple[Any] | None:
        """What `compute` gives if it only computes: no branch, no effect, no error. Otherwise nothing has happened."""
        number = len(self.attempts)
        if self._num_inline:
            return self._attempted(compute)
        made = None if number < len(self._vain) and self._vain[number] else self._attempted(compute)
        self.attempts.append(made is None)
        return made

    def _attempted(self, compute: Callable[[], Any]) -> tuple[Any] | None:
        num_events, first_ref, depth = len(self.events), self._next_ref, self._depth
        self._num_inline += 1
        try:
            return (compute(),)
        except (NotInline, Exception):
            del self.events[num_events:]
            self._next_ref, self._depth = first_ref, depth
            self._exprs = {key: known for key, known in self._exprs.items() if known[0].ref.id < first_ref}
            self._keys = {ref: key for ref, key in self._keys.items() if ref < first_ref}
            return None
        finally:
            self._num_inline -= 1

    # -- what symbols need

    def expr(self, fn: str, *args: Any) -> Symbol:
        """Record an Expr, or give the one already recorded since the last decision."""
        self.tick()
        try:
            operands = tuple([arg if type(arg) is str else operand(arg) for arg in args])
        except TypeError as error:
            self.break_here(str(error))
        key = (fn, *[value if type(value) is str else _typed(value) for value in operands])
        if self._num_calls and self._may_have_changed(fn, operands):
            key = (*key, ("calls", self._num_calls))
        known = self._exprs.get(key) if fn not in _MAKES_NEW else None
        if known is not None and known[1] == self.num_decisions:
            return known[0]
        if self.guards and self._may_raise(fn, operands):
            host = self._copies.host_table.expr_name(fn)
            symbol = self._record_host(host, operands, (), is_pure=True)
            self._exprs[key] = (symbol, self.num_decisions)
            return symbol
        symbol = self.symbol()
        self._record(new_expr(out=symbol.ref, fn=fn, args=operands, where=self.here()))
        if fn in TEXTUAL:
            self._texts.add(symbol.ref.id)
        self._exprs[key] = (symbol, self.num_decisions)
        self._keys[symbol.ref.id] = key
        return symbol

    def is_text(self, symbol: Symbol) -> bool:
        """Whether the value is known to be a string."""
        return symbol.ref.id in self._texts

    # -- values that a call may have changed: asked again, they are looked at again

    def is_scalar(self, value: Any) -> bool:
        """Whether a value is known to be one that nobody can change: a string, a number, a truth value."""
        if not isinstance(value, (Symbol, Ref)):
            return _is_plain(value)
        number = value.ref.id if isinstance(value, Symbol) else value.id
        if number in self._texts:
            return True
        fn, *parts = self._keys.get(number, ("",))
        if fn in _ARITHMETIC:
            return any(self.is_scalar(_operand_of(part)) for part in parts)
        if fn in ("same", "mul", "and", "or"):
            return all(self.is_scalar(_operand_of(part)) for part in parts)
        return fn in SCALAR

    def _roots(self, operand: Any) -> set[Any]:
        """The arguments, results of calls and the like whose parts a value may be, or hold."""
        if isinstance(operand, tuple):
            return set().union(*map(self._roots, operand))
        if not isinstance(operand, Ref) or self.is_scalar(operand):
            return set()
        key = self._keys.get(operand.id)
        if key is None:
            return {operand.id}
        if key[0] in _STATEFUL or key[0] == "captured":
            return {key}
        return set().union(*(self._roots(_operand_of(part)) for part in key[1:]))

    def _may_have_changed(self, fn: str, operands: Sequence[Operand]) -> bool:
        if fn in _OF_TEXTS or (fn in ("eq", "ne") and any(_is_plain(part) for part in operands)):
            return False
        changed = self._handed | self._copies.handed
        return any(
            root in changed or (isinstance(root, tuple) and root[0] == "captured")
            for part in operands
            for root in self._roots(part)
        )

    def _note_change(self, operands: Sequence[Operand], result: Ref | None) -> None:
        """A call that is not pure: it may change what it gets, now or in a later call, and what it gives."""
        self._num_calls += 1
        roots: set[Any] = set().union(*map(self._roots, operands))
        if result is not None:
            roots.add(result.id)
        self._handed |= roots
        arguments = {root for root in roots if isinstance(root, int) and root < self._copies.num_arguments}
        if self.in_body and not arguments <= self._copies.handed:
            self._copies.handed |= arguments  # a round before may have changed them: trace anew, knowing that
            raise Retrace

    def operate(self, function: Any, *args: Any) -> Symbol:
        """An operator that has no Expr: the run applies it."""
        return self.host_call(function, [self._set_of(arg) for arg in args], is_pure=True)

    def _set_of(self, value: Any) -> Any:
        """A set of the program is made anew by the run: the IR has no form for one."""
        if type(value) not in (set, frozenset) or self.is_captured(value):
            return value
        return self.host_call(type(value), [sorted(value, key=repr)], is_pure=True)

    def changed_by(self, function: Any, before: Symbol, value: Any) -> Symbol:
        """`before += value` on an object that may be changed by it: the run does it."""
        self.tick()
        if self._num_inline:
            raise NotInline
        try:
            operands = (before.ref, self.host_operand(self._set_of(value)))
        except TypeError as error:
            self.break_here(str(error))
        return self._record_host(self._copies.host_table.name_of(function), operands, (), False)

    # -- which way the path goes

    def decide(self, symbol: Symbol) -> bool:
        """Which way this path goes on the truth of a symbol; the same question is answered the same way twice."""
        self.tick()
        fn = self._keys.get(symbol.ref.id, ("",))[0]
        if fn not in BOOLEAN:
            symbol = self.expr("bool", symbol)
        key = self._deep_key(symbol.ref)
        if key in self._facts:
            return self._facts[key]
        if self._num_inline:
            raise NotInline
        if self.num_decisions - self._num_loops >= MAX_DECISIONS:
            self._retrace()
            self.break_here(f"more than {MAX_DECISIONS} branches on one path")
        taken = self.decisions[self.num_decisions] if self.num_decisions < len(self.decisions) else True
        self._go(Decision(symbol.ref, taken, self._next_ref, self._next_stream, self.here()))
        self._facts[key] = taken
        return taken

    def _go(self, decision: Decision) -> None:
        self.events.append(decision)
        self.taken.append(decision.taken)
        self._attempts_before.append(len(self.attempts))

    def other_ways(self) -> list[Way]:
        """The ways that leave this path where it went true on its own; up to there they are the same."""
        first = len(self.decisions)
        return [
            Way([*self.taken[:i], False], self.attempts[: self._attempts_before[i]])
            for i in range(first, len(self.taken))
            if self.taken[i]
        ]

    def _retrace(self) -> None:
        """A path has grown too long: if a loop was unrolled that went round more than a few times, do not unroll it;
        else let each `if` be a region of its own."""
        if (place := self.long_loop()) is not None:
            raise Retrace(place)
        if not self.branches() <= self._copies.forced_branches:
            raise Retrace(branches=self.branches())

    def branches(self) -> set[tuple[str, int]]:
        """Where this path has branched."""
        found = (event.where for event in self.events if isinstance(event, Decision) and event.loop is None)
        return {(where.file, where.line) for where in found if where is not None}

    def long_loop(self) -> tuple[str, int] | None:
        """The loop that was unrolled most often on this path, if that was more than a few times."""
        rounds = Counter(driver.key for driver in self.unrolled)
        place, count = max(rounds.items(), key=lambda item: item[1], default=(("", 0), 0))
        return place if count > MAX_ROUNDS and place not in self.forced_loops else None

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

    # -- calls when the program runs

    def host_call(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, is_pure: bool = False
    ) -> Symbol:
        """Record a call that the run makes. Breaks where an argument cannot be handed over."""
        self.tick()
        if self._num_inline and not is_pure:
            raise NotInline
        name, values = self._callee(function, args)
        given = dict(kwargs or {})
        if not is_pure:
            self._refuse_shared([*args, *given.values()], function)
            self._note_effects(function, args, given)
        try:
            operands = tuple(self.host_operand(value) for value in values)
            named = tuple((key, self.host_operand(value)) for key, value in given.items())
        except TypeError as error:
            self.break_here(f"call of {_callable_name(function)}: {error}")
        return self._record_host(name, operands, named, is_pure)

    def _note_effects(self, function: Any, args: Sequence[Any], given: Mapping[str, Any]) -> None:
        """What a call may change of the process is read by the run; what the trace has read of it makes it void."""
        objects: list[Any] = []
        names: list[tuple[int, str]] = []
        receiver = getattr(function, "__self__", None)
        if receiver is not None and not isinstance(receiver, (types.ModuleType, type, Symbol)):
            objects.append(receiver)
        places: list[tuple[int | str, Any]] = [*enumerate(args), *given.items()]
        for position, value in places:
            if isinstance(value, (Symbol, str, int, float)) or value is None:
                continue
            if isinstance(value, (types.FunctionType, types.MethodType)):
                found = self._copies.effects(value)
                objects += found.objects
                names += found.names
            elif self.is_captured(value) and changes_argument(function, position, value):
                objects.append(value)
        if isinstance(function, (types.FunctionType, types.MethodType, type)):
            found = self._copies.effects(function)
            objects += found.objects
            names += found.names
        if not objects and not names:
            return
        if self._copies.note_changes(objects, names):
            raise Retrace
        name = self._copies.rebound_name() if names else None
        if name is not None:
            self.break_here(f"call of {_callable_name(function)}, which sets {name!r}, a global that the program reads")

    def is_changed(self, value: Any) -> bool:
        """Whether a call of the run may change an object of the process, so that the trace must not look at it."""
        return self._copies.is_changed(value)

    def note_looked_at(self, value: Any) -> None:
        """The trace goes by what this object of the process holds now."""
        self._copies.read[id(value)] = value

    def _record_host(
        self,
        name: str,
        args: tuple[Operand, ...],
        kwargs: tuple[tuple[str, Operand], ...],
        is_pure: bool,
        stream: int = 0,
    ) -> Symbol:
        """Record a Host. In a `try` its failure is a branch, which goes on in the handlers."""
        if self.guards and self._num_inline:
            raise NotInline
        classes = tuple(dict.fromkeys(kind for guard in reversed(self.guards) for kind in guard))
        catches = tuple(self._copies.host_table.name_of(kind) for kind in classes)
        symbol = self.symbol()
        self._record(
            Host(
                out=symbol.ref, function=name, args=args, kwargs=kwargs, catches=catches, is_pure=is_pure,
                stream=stream, where=self.here(),
            )
        )  # fmt: skip
        if not is_pure and not name.startswith("state:"):
            self._note_change((*args, *(value for _, value in kwargs)), symbol.ref)
        if not classes:
            return symbol
        around, self.guards = self.guards, []
        try:
            error = self.expr("error_of", symbol)
            if self.decide(self.expr("is_none", error)):
                return self.expr("result_of", symbol)
            for kind in classes[:-1]:
                if self.decide(self.expr("bool", self.host_call(isinstance, (error, kind), is_pure=True))):
                    raise stand_in(kind, error)
            raise stand_in(classes[-1], error)
        finally:
            self.guards = around

    def _may_raise(self, fn: str, operands: Sequence[Operand]) -> bool:
        if FUNCTIONS[fn].is_total or fn in ("concat", "format", "str", "repr", "error_of", "result_of"):
            return False
        first = operands[0] if operands else None
        is_text = isinstance(first, str) or (isinstance(first, Ref) and first.id in self._texts)
        return not (is_text and fn in _STRING_METHODS)

    @property
    def _catches_failures(self) -> bool:
        """Whether a handler around may catch what a generation fails with."""
        return any(may_catch_failures(kind) for guard in self.guards for kind in guard)

    def _check_try(self, where: SourceLoc | None) -> None:
        if self._catches_failures:
            self.break_here("a state is appended to in a `try` that may catch the failure of a generation", where)

    def whole(self, recipe: Recipe, first: Any, values: Callable[[Recipe], tuple[Any, ...]]) -> Symbol | None:
        """A comprehension over `first` as one call when the program runs; None where it reads the language, or a value
        that cannot be handed over."""
        read = [recipe.globals[name] for name in recipe.reads if name in recipe.globals]
        try:
            free = values(recipe)
        except TypeError:
            return None
        if self._num_inline:
            raise NotInline
        if holds_language([*read, *free, first]):
            return None
        function = recipe.make()
        for value in read:
            if isinstance(value, types.FunctionType) and self._copies.mentions_language(value):
                return None
        try:
            operands = tuple(self.host_operand(value) for value in (first, *free))
        except TypeError:
            return None
        symbol = self.symbol()
        name = self._copies.host_table.name_of(function)
        self._record(Host(out=symbol.ref, function=name, args=operands, where=self.here()))
        self._note_change(operands, symbol.ref)
        return symbol

    def _callee(self, function: Any, args: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """The name of a function in the IR, and its operands."""
        if isinstance(function, Symbol):
            return "()", (function, *args)
        receiver = getattr(function, "__self__", None)
        if receiver is None or isinstance(receiver, (types.ModuleType, type)):
            if isinstance(function, types.FunctionType) and function.__globals__.get(HOOKS) is self._copies.hooks:
                return "()", (function, *args)
            return self._copies.host_table.name_of(function, self._hint(function)), args
        if not isinstance(receiver, Symbol) and (known := module_name(function)) is not None:
            return self._copies.host_table.name_of(function, known), args
        return f".{function.__name__}", (receiver, *args)

    def _hint(self, value: Any) -> str:
        if isinstance(value, (types.FunctionType, type, types.BuiltinFunctionType)):
            return ""  # they say where they are from
        return self._copies.names.get(id(value), "")

    def handed(self, value: Any) -> Ref:
        """An object of the process as a value of the program. Breaks where there can be none."""
        try:
            made = self.host_operand(value)
        except TypeError as error:
            self.break_here(str(error))
        assert isinstance(made, Ref)
        return made

    def is_shared(self, value: Any) -> bool:
        """Whether this is a container that the copy has made, and may still hold."""
        return isinstance(value, (list, dict, set)) and not self.is_captured(value) and id(value) not in self._fresh

    def _refuse_shared(self, values: Sequence[Any], function: Any) -> None:
        for value in values:
            if self.is_shared(value):
                kind = type(value).__name__
                self.break_here(f"call of {_callable_name(function)} with a {kind} of the program, which it may change")

    def host_operand(self, value: Any) -> Operand:
        """A value that is handed to a function of the user's. Raises TypeError where that cannot be."""
        if isinstance(value, Symbol):
            return value.ref
        if value is None or type(value) in (str, int, float, bool):
            return value  # type: ignore[no-any-return]
        if is_language(value):
            raise TypeError(f"a {type(value).__name__} is handed over")
        if type(value) in (list, dict, tuple) and not (type(value) is not tuple and self.is_captured(value)):
            items: Any = [part for pair in value.items() for part in pair] if type(value) is dict else value
            operands: tuple[Operand, ...] = tuple(self.host_operand(item) for item in items)
            if type(value) is list:
                return operands
            return self._container("tuple" if type(value) is tuple else "dict", operands)
        if isinstance(value, (list, dict, set)) and not self.is_captured(value):
            raise TypeError(f"a {type(value).__name__} of the program is handed over")
        if isinstance(value, types.FunctionType) and value.__globals__.get(HOOKS) is self._copies.hooks:
            made: Symbol = self._copies.hooks.original_of(value)
            return made.ref
        if id(value) in self._made and not is_immutable(value):
            raise TypeError(f"a {type(value).__name__} that the program has made is handed over")
        return self.expr("captured", self._copies.host_table.name_of(value, self._hint(value))).ref

    def _container(self, fn: str, operands: tuple[Operand, ...]) -> Operand:
        symbol = self.symbol()
        self._record(Expr(out=symbol.ref, fn=fn, args=operands, where=self.here()))
        return symbol.ref

    def note_read(self, owner: Any, name: str, value: Any) -> Any:
        """Remember what an attribute of an object of the process was: with another value the trace is another one."""
        is_data = not callable(value) and not isinstance(value, types.ModuleType)
        is_of_process = isinstance(owner, (types.ModuleType, type)) or self.is_captured(owner)
        is_of_process |= not is_pure_module(type(owner).__module__)
        if is_data:
            self.note_looked_at(owner)
        if is_data and is_of_process and not is_language(owner):
            self._copies.reads[id(owner), name] = (owner, name, value)
        return value

    def note_made(self, value: Any) -> Any:
        """Remember an object that the copy has made: runs must not share it."""
        if not isinstance(value, (str, int, float, bool, type(None), Symbol)):
            self._made[id(value)] = value
        return value

    def note_fresh(self, value: Any) -> Any:
        """Remember a list or dict that is written as an argument."""
        self._fresh[id(value)] = value
        return value


def _callable_name(function: Any) -> str:
    if isinstance(function, Symbol):
        return "a value that is not known yet"
    name: str = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
    return name


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _operand_of(part: Any) -> Any:
    """The operand that a part of a key was made of, as `_typed` makes it; how many calls were made counts as plain."""
    if type(part) is not tuple:
        return part
    if part[0] == "%":
        return Ref(part[1])
    return tuple(map(_operand_of, part[1:])) if part[0] == "[" else part[1]


def _typed(value: Any) -> Any:
    """An operand as part of a key: True, 1 and 1.0 are three values."""
    if type(value) is str:
        return value
    if isinstance(value, Ref):
        return ("%", value.id)
    if isinstance(value, tuple):
        return ("[", *map(_typed, value))
    return (type(value).__name__, value)
