"""Runs a Plan without its Python body: one rule per op, handing ops to the executor as the body's states would.

Where the body would read a value and be suspended, the walker goes on: an op whose operands are not known yet is handed
over with the values it needs, and waits for them in its stream while other streams go on. Only a branch (Switch) and
the end wait for values themselves. So the same requests are sent as by the body, some of them earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..compiler.expressions import STATEFUL, Outcome, Unset, evaluate
from ..compiler.fields import map_operand, map_operands, new_streams
from ..compiler.ir import (
    OP_CLASSES,
    AnyOp,
    Arg,
    Branch,
    Break,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Loop,
    Media,
    Next,
    Opaque,
    Ref,
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
    Tokens,
    walk,
)
from ..compiler.plan import Plan
from ..compiler.renumber import renumbered, with_fields
from ..core.errors import DslcError, ProgramError, set_place
from ..core.quick import copier
from .checks import check_constraint
from .executor import Executor
from .steps import check_text
from .stream import Slot
from .unordered import arranged


class _Returned(Exception):
    """The program has returned; carries the value."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _RoundEnded(Exception):
    """A round of a loop has ended, and the loop with it if `is_last`; carries the values for the next one."""

    def __init__(self, slots: tuple[Slot, ...], is_last: bool) -> None:
        self.slots = slots
        self.is_last = is_last


def walk_plan(executor: Executor, plan: Plan, arguments: Mapping[str, Any], may_block: bool = False) -> Any:
    """Run a whole plan with these arguments (all of them, defaults filled in). Returns what the program returns.

    `may_block`: the functions that it calls may keep their thread for long.
    """
    walker = _Walker(executor, arguments, plan, may_block)
    try:
        walker.region(plan.program.body)
    except _Returned as returned:
        return returned.value
    return None


def never_waits(plan: Plan) -> bool:
    """Whether a walk through the plan reads no value that a generation gives: it hands over all ops at once."""
    known: bool | None = plan.guesses.get("never waits")
    if known is None:
        known = plan.guesses["never waits"] = all(
            (type(op) in _AT_ONCE and not (isinstance(op, Fork) and op.count is not None))
            or (isinstance(op, Return) and next(_refs((op.value,)), None) is None)
            for op in walk(plan.program.body)
        )
    return known


class _Walker:
    __slots__ = ("arguments", "deferred", "executor", "first_stream", "groups", "may_block")

    def __init__(self, executor: Executor, arguments: Mapping[str, Any], plan: Plan, may_block: bool) -> None:
        self.executor = executor
        self.arguments = arguments
        self.may_block = may_block
        self.first_stream = plan.first_free_stream
        self.groups: dict[int, tuple[int, ...]] = {}  # streams that stand for branches -> the branches
        self.deferred: list[Slot] = []  # computations that wait for values

    def region(self, body: tuple[AnyOp, ...]) -> None:
        for op in body:
            _RULES[type(op)](self, op)

    # -- values

    def slot(self, ref: Ref) -> Slot:
        return self.executor.slots[ref.id]

    def define(self, out: Ref, slot: Slot) -> None:
        self.executor.slots[out.id] = slot

    def pending(self, *operands: Any) -> list[Slot]:
        """The slots that operands need and that are not done (a failed one counts: the op must meet its error)."""
        return _waiting([self.slot(ref) for ref in _refs(operands)])

    def value(self, operand: Any) -> Any:
        """The plain value of an operand whose slots are done. Raises the error of one that failed."""
        if isinstance(operand, (Ref, Slot)):
            slot = operand if isinstance(operand, Slot) else self.slot(operand)
            if slot.error is not None:
                raise slot.error
            if type(slot.value) is Unset:
                name = slot.value.name
                raise UnboundLocalError(
                    f"cannot access local variable {name!r} where it is not associated with a value"
                )
            return slot.value
        if isinstance(operand, tuple):
            return tuple(self.value(item) for item in operand)
        return operand

    def kept(self, op: Any) -> Any:
        """The op with its values' slots in their places: a later round of a loop has others under the same numbers."""
        return map_operands(op, self.slot)  # type: ignore[arg-type]

    def plain(self, operands: Iterable[Any]) -> list[Any]:
        """Operands as Python code of the user's gets them: a list written in the program is a new list."""
        return [self.plain(operand) if isinstance(operand, tuple) else self.value(operand) for operand in operands]

    def emit(self, op: Any) -> None:
        self.executor.emit(op)

    def emit_resolved(self, op: Any, operands: tuple[Any, ...], resolve: Callable[[Any], AnyOp]) -> None:
        """Emit an op with its operands put in; where they are not known yet, the stream waits for them."""
        needs = self.pending(*operands)
        if needs:
            self.deferred += needs
            kept = self.kept(op)
            self.executor.emit(op, needs, lambda: resolve(kept))
        else:
            self.executor.emit(resolve(op))

    # -- one rule per op

    def text(self, op: Text) -> None:
        text = op.text
        if type(text) is Ref:
            slot = self.executor.slots[text.id]
            text = slot.value if slot.is_done and slot.error is None else None
        if type(text) is str:
            self.executor.append_text(op.stream, text, op.where)
            return
        self.emit_resolved(op, (op.text,), lambda op: with_fields(op, text=check_text(self.value(op.text), op.where)))

    def arg(self, op: Arg) -> None:
        self.define(op.out, Slot(self.arguments[op.param], is_done=True))

    def media(self, op: Media) -> None:
        def resolve(op: Media) -> Media:
            return replace(op, source=self.value(op.source), options=self.value(op.options))

        self.emit_resolved(op, (op.source, op.options), resolve)

    def gen(self, op: Gen) -> None:
        if _constant.get(id(op)) is op:
            self.executor.emit(op)
            return
        source = op.constraint.source if op.constraint is not None else None
        if _note_constant(op, (op.sampling, source)):
            self.executor.emit(op)
            return

        def resolve(op: Gen) -> Gen:
            spec = op.constraint
            if spec is not None and not isinstance(spec.source, str):
                text = check_text(self.value(spec.source), op.where)
                spec = replace(spec, source=text)
                check_constraint(spec.resolve(text), op.where)
            return replace(op, sampling=self.value(op.sampling), constraint=spec)

        self.emit_resolved(op, (op.sampling, source), resolve)

    def select(self, op: Select) -> None:
        if _constant.get(id(op)) is op or _note_constant(op, (op.choices, op.temperature)):
            self.executor.emit(op)
            return

        def resolve(op: Select) -> Select:
            choices = self.value(op.choices)
            choices = tuple(choices) if isinstance(choices, list) else choices
            return replace(op, choices=choices, temperature=self.value(op.temperature))

        self.emit_resolved(op, (op.choices, op.temperature), resolve)

    def region_op(self, op: Role | Scope) -> None:
        header = _role_header(op, ()) if type(op) is Role else replace(op, body=())
        self.executor.enter(header)
        try:
            self.region(op.body)
        except (_Returned, _RoundEnded):
            self.executor.leave(header)  # a `return` or `break` inside `with` closes it too
            raise
        self.executor.leave(header)

    def set(self, op: Set) -> None:
        if isinstance(op.value, Ref):
            self.executor.set_variable(op.stream, op.var, self.slot(op.value), op.where)
        else:
            slot = self.when_done(op, self.pending(op.value), lambda op: self.plain((op.value,))[0])
            self.executor.set_variable(op.stream, op.var, slot, op.where)

    def expr(self, op: Expr) -> None:
        if op.fn in STATEFUL:
            slot = self.read(op)
        elif op.fn in _CONTAINERS:
            slot = self.when_done(op, self.pending(*op.args), lambda op: evaluate(op.fn, self.plain(op.args)))
        else:
            value = self.value
            slot = self.when_done(op, self.pending(*op.args), lambda op: evaluate(op.fn, [value(o) for o in op.args]))
        self.executor.slots[op.out.id] = slot

    def host(self, op: Host) -> None:
        """Call a function of the user's; one that may have effects waits for all before it, as in Python."""
        operands = (*op.args, *(value for _, value in op.kwargs))
        if op.is_pure and not op.catches:
            self.define(op.out, self.when_done(op, self.pending(*operands), self.call))
            return
        for slot in self.deferred:
            self.executor.read(slot, op.where)
        self.deferred.clear()
        for ref in _refs(operands):
            self.executor.read(self.slot(ref), op.where)
        try:
            if op.function.startswith("state:"):
                value = self.call(op)
            else:
                value = self.executor.hub.call(lambda: self.call(op), self.may_block, op.where)
        except Exception as error:
            if not any(isinstance(error, self.captured(name)) for name in op.catches):
                if not isinstance(error, DslcError):
                    set_place(error, op.where, self.executor.title)
                raise
            value = Outcome(error=error)
        else:
            value = Outcome(value) if op.catches else value
        self.define(op.out, Slot(value, is_done=True))

    def call(self, op: Host) -> Any:
        """The function's result; `state:get` and the like read the state."""
        if op.function.startswith("state:"):
            fn = op.function.partition(":")[2]
            slot = self.read(Expr(stream=op.stream, out=op.out, fn=fn, args=op.args, where=op.where))
            return self.executor.read(slot, op.where)
        args = self.plain(op.args)
        kwargs = dict(zip((name for name, _ in op.kwargs), self.plain(value for _, value in op.kwargs), strict=True))
        if op.function.startswith("."):
            return getattr(args[0], op.function[1:])(*args[1:], **kwargs)
        if op.function == "()":
            return args[0](*args[1:], **kwargs)
        function = self.captured(op.function)
        journal = self.executor.journal
        if journal is None or op.is_pure or op.function.startswith("expr:"):
            return function(*args, **kwargs)
        return journal.call(op.function, args, kwargs, lambda: function(*args, **kwargs))

    def captured(self, name: Any) -> Any:
        """The object of the user's process that the program calls by this name."""
        try:
            return self.executor.hosts[name]
        except KeyError:
            raise ProgramError(
                f"the plan needs {name}, which this process has not registered: load the plan with its program"
            ) from None

    def when_done(self, op: Any, slots: Sequence[Slot], value_of: Callable[[Any], Any]) -> Slot:
        """A slot that gets `value_of(op)` once these are done, or the error of one that has failed."""
        if not slots:
            try:
                return Slot(value_of(op), is_done=True)
            except Exception as error:
                self.fail(op, error)
                raise
        slot = Slot()
        needs = [need for need in slots if not need.is_done or need.error is not None]
        left = len(needs)

        def compute() -> None:
            nonlocal left
            left -= 1
            if left > 0 or slot.is_done:
                return
            failed = next((need.error for need in needs if need.error is not None), None)
            if failed is not None:
                slot.fail(failed)
                return
            try:
                value = value_of(kept)
            except Exception as error:
                self.fail(op, error)
                slot.fail(error)
                return
            slot.set(value)

        kept = self.kept(op)
        for need in needs:
            need.watch(compute)
        if not slot.is_done:
            self.deferred.append(slot)
        elif slot.error is not None:
            raise slot.error
        return slot

    def fail(self, op: AnyOp, error: Exception) -> None:
        """A computation of the program has failed, and so has the program."""
        if isinstance(error, DslcError):
            error.at(op.where)
        else:
            set_place(error, op.where, self.executor.title)
        self.executor.crash(error)

    def read(self, op: Expr) -> Slot:
        executor = self.executor
        if op.fn == "get":
            return executor.variable(op.stream, str(op.args[0]), op.where)
        if op.fn == "has":
            return Slot(executor.has(op.stream, str(op.args[0]), op.where), is_done=True)
        if op.fn == "unordered":
            order = executor.next_order(op.stream, op.where)
            join = lambda op: arranged(self.value(op.args[0]), self.value(op.args[1]), order)  # noqa: E731
            return self.when_done(op, self.pending(*op.args), join)
        if op.fn == "captured":
            return Slot(self.captured(op.args[0]), is_done=True)
        if op.fn == "typed":
            var = str(op.args[0])
            slot = executor.variable(op.stream, var, op.where)
            return self.when_done(op, _waiting((slot,)), lambda op: slot.read(var, op.where))
        stream = executor.streams[op.stream]
        return executor.mark(stream, stream.text)

    def fork(self, op: Fork) -> None:
        if op.count is None:
            self.executor.emit(op)
            return
        if isinstance(op.count, Ref):
            self.executor.read(self.slot(op.count), op.where)
        size = self.value(op.count)
        if type(size) is not int or size < 1:
            raise ProgramError(f"fork() needs a positive number of branches, not {size!r}", where=op.where)
        numbers = tuple(range(self.first_stream, self.first_stream + size))
        self.first_stream += size
        self.groups[op.streams[0]] = numbers
        self.executor.emit(with_fields(op, streams=numbers, count=None))

    def branch(self, op: Branch) -> None:
        """The number stands for another branch from here on; what its ops wait for has the stream itself."""
        if isinstance(op.index, Ref):
            self.executor.read(self.slot(op.index), op.where)
        streams = self.executor.streams
        try:
            streams[op.target] = streams[self.groups[op.stream][self.value(op.index)]]
        except (IndexError, TypeError) as error:
            set_place(error, op.where, self.executor.title)
            raise

    def join(self, op: Join) -> None:
        streams = tuple([number for stream in op.streams for number in self.groups.get(stream, (stream,))])
        self.executor.emit(op if streams == op.streams else with_fields(op, streams=streams))

    def switch(self, op: Switch) -> None:
        value = self.executor.read(self.slot(op.on), op.where) if isinstance(op.on, Ref) else op.on
        for case in op.cases:
            if type(case.value) is type(value) and case.value == value:
                self.region(case.body)
                return

    def loop(self, op: Loop) -> None:
        """Each round is a copy of the body with values and streams of its own."""
        items: Iterator[Any] | None = None
        if op.over is not None:
            for ref in _refs(op.over):
                self.executor.read(self.slot(ref), op.where)
            try:
                items = iter(self.plain((op.over,))[0])
            except TypeError as error:
                set_place(error, op.where, self.executor.title)
                raise
        carried = tuple(self.slot_of(init, op) for init in op.inits)
        is_last = False
        while not is_last:
            begins = carried
            if items is not None:
                try:
                    begins = (Slot(next(items), is_done=True), *carried)
                except StopIteration:
                    break
            for param, slot in zip(op.params, begins, strict=True):
                self.define(param, slot)
            try:
                self.region(self.round(op))
            except _RoundEnded as ended:
                carried, is_last = ended.slots, ended.is_last
        for out, slot in zip(op.outs, carried, strict=True):
            self.define(out, slot)

    def round(self, op: Loop) -> tuple[AnyOp, ...]:
        """The body of a round: its streams have numbers that nothing else in the run has.

        Its values keep theirs: what waits for one holds its slot.
        """
        made = [stream for inner in walk(op.body) if type(inner) is not Branch for stream in new_streams(inner)]
        if not made:
            return op.body
        streams = {stream: self.first_stream + number for number, stream in enumerate(made)}
        self.first_stream += len(made)
        return renumbered(op.body, {}, streams)

    def end_round(self, op: Next | Break) -> None:
        raise _RoundEnded(tuple(self.slot_of(value, op) for value in op.values), isinstance(op, Break))

    def slot_of(self, operand: Any, op: AnyOp) -> Slot:
        """The slot of an operand, which may still be waited for."""
        if isinstance(operand, Ref):
            return self.slot(operand)
        kept = map_operand(operand, self.slot)  # type: ignore[arg-type]
        return self.when_done(op, self.pending(operand), lambda op: self.plain((kept,))[0])

    def opaque(self, op: Opaque) -> None:
        raise ProgramError(f"a plan with a break cannot run by itself: {op.reason}", where=op.where)

    def end(self, op: Return) -> None:
        for ref in _refs((op.value,)):
            self.executor.read(self.slot(ref), op.where)
        raise _Returned(self.plain((op.value,))[0])


def _waiting(slots: Sequence[Slot]) -> list[Slot]:
    """Those that are not done; one that failed is among them: who needs it must meet its error."""
    return [slot for slot in slots if not slot.is_done or slot.error is not None]


def _refs(operand: Any) -> Iterator[Ref]:
    if isinstance(operand, Ref):
        yield operand
    elif isinstance(operand, tuple):
        for item in operand:
            yield from _refs(item)


_MAX_CONSTANT = 4096
_constant: dict[int, Gen | Select] = {}  # ops without values to put in, by id, which they keep while they are here


def _note_constant(op: Gen | Select, operands: tuple[Any, ...]) -> bool:
    """Whether there are no values to be put in; remembers it."""
    if next(_refs(operands), None) is not None:
        return False
    if len(_constant) >= _MAX_CONSTANT:
        _constant.clear()
    _constant[id(op)] = op
    return True


_role_header = copier(Role, "body")
_AT_ONCE = frozenset({Text, Tokens, Special, Media, Arg, Gen, Select, Role, Scope, Fork, Copy, Join, Set, Expr})
_CONTAINERS = frozenset({"tuple", "dict"})  # they hold what they are given: a list in them is a list


_RULES: dict[type, Callable[[Any, Any], None]] = {
    Text: _Walker.text, Tokens: _Walker.emit, Special: _Walker.emit, Media: _Walker.media, Arg: _Walker.arg,
    Gen: _Walker.gen, Select: _Walker.select, Role: _Walker.region_op, Scope: _Walker.region_op,
    Fork: _Walker.fork, Branch: _Walker.branch, Copy: _Walker.emit, Join: _Walker.join, Set: _Walker.set,
    Expr: _Walker.expr,
    Host: _Walker.host, Switch: _Walker.switch, Loop: _Walker.loop, Next: _Walker.end_round,
    Break: _Walker.end_round, Opaque: _Walker.opaque, Return: _Walker.end,
}  # fmt: skip

if missing := set(OP_CLASSES.values()) - _RULES.keys():
    raise TypeError(f"the walker has no rule for {sorted(cls.__name__ for cls in missing)}")
