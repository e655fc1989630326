"""The executor: carries out the ops of one program instance against a backend, as they come.

It is the sink of a running program's states. Whether an op comes from the Python body or from a Plan (`walker`), it is
carried out by the same rule (`rules`), so both send the same requests. An op is taken at once: it settles what the
variables of its stream are (slots that fill later). It is carried out when its stream gets there; a stream waits for
its generation in flight. Reading a value that is not there suspends whoever reads, in the hub.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..compiler.ir import (
    AnyOp,
    Copy,
    Fork,
    Gen,
    Join,
    Ref,
    Role,
    Scope,
    Select,
    Set,
)
from ..core.errors import ProgramError, SourceLoc, UndefinedVariable
from ..core.quick import maker
from . import rules, steps
from .generate import generate
from .options import RunOptions
from .reasoning_format import REASONING_SUFFIX
from .score import select
from .stream import GONE, NO_CHANGES, Slot, Step, Stream
from .unordered import arranged

if TYPE_CHECKING:
    from ..compiler.journal import HostJournal
    from ..compiler.plan import Plan, SelectFacts
    from ..core.request import Hints
    from .feed import Feed
    from .gens import GenExpr, SelectExpr
    from .hub import Hub
    from .types import TypeSpec


MAX_AHEAD = 1024  # steps that a stream has been given and not carried out, at which a body waits before it appends more
NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_SLOTS: dict[int, Slot] = {}  # of all that have ended: nothing is defined any more


new_ref = maker(Ref)


class Executor:
    """Sink and state of one running program instance. Touched by the thread of its hub only."""

    __slots__ = (
        "_delivered", "_next_ref", "_next_stream", "_num_unordered", "backend", "failure", "feed", "hosts", "hub",
        "instance", "is_finished", "is_plain", "journal", "num_generated_tokens", "num_in_flight", "num_spec_tokens",
        "options", "orders", "outputs", "plan", "ret_value", "root", "slots", "streams", "title", "tokenizer", "types",
    )  # fmt: skip
    is_tracing = False

    def __init__(self, hub: Hub, title: str, options: RunOptions, instance: int = 0, plan: Plan | None = None) -> None:
        self.hub = hub
        self.title = title
        self.options = options
        self.instance = instance
        self.plan = plan
        self.backend = hub.backend
        self.tokenizer = hub.tokenizer
        self.root = Stream(0, "0")
        self.streams: dict[int, Stream] = {0: self.root}
        self.slots: dict[int, Slot] = {}  # by value id
        self.types: Mapping[str, TypeSpec] = NOTHING  # of variables, where a plan is walked: it holds no types
        self.hosts: Mapping[str, Any] = NOTHING  # objects of the user's process that a plan names
        self.journal: HostJournal | None = None  # results of the plan's host calls, kept for a run that goes on later
        self.feed: Feed | None = None  # for readers outside, while the program streams
        self.ret_value: Any = None
        self.failure: BaseException | None = None
        self.is_finished = False
        # No request asks for more than a text: no readers outside, no bounds, no log-probs, no chat turns, no ahead.
        self.is_plain = options.is_plain and not self.backend.capabilities.chat
        self.num_in_flight = 0
        self.num_generated_tokens = 0
        self.num_spec_tokens: int | None = None  # how many tokens a call asks for that may serve several gens
        self._next_ref = 0
        self.orders: Mapping[str, tuple[int, ...]] = NOTHING  # of order-free parts, by "stream path/occurrence"
        self.outputs: frozenset[str] | None = None  # the variables that can be read after the end; None: all
        self._num_unordered: dict[int, int] | None = None  # by stream
        self._next_stream = 1
        self._delivered: tuple[BaseException, ...] = ()

    # -- Sink

    def new_ref(self) -> Ref:
        ref = new_ref(self._next_ref)
        self._next_ref += 1
        return ref

    def new_stream(self) -> int:
        stream = self._next_stream
        self._next_stream += 1
        return stream

    def emit(self, op: AnyOp, needs: Sequence[Slot] = (), resolve: Callable[[], AnyOp] | None = None) -> None:
        """Take an op whose operands are plain values; or which `resolve()` gives once the slots in `needs` are done."""
        stream = self.streams[op.stream]
        if stream.is_joined or stream.error is not None or self.is_finished:
            self._refuse(stream, op.where)
        kind = type(op)
        step = Step(rules.rule_of(op), op)
        if kind is Gen or kind is Select:
            if len(stream.queue) >= MAX_AHEAD and self.hub.may_suspend:
                self.sync(op.stream, op.where)
            step.slot = slot = self.slots[op.out.id] = Slot()  # type: ignore[union-attr]
            var: str | None = op.var  # type: ignore[union-attr]
            if var is not None:
                if kind is Gen and self.types is not NOTHING:
                    slot.spec = self.types.get(var)
                self._set_variable(stream, var, slot)
            if not needs and resolve is None:
                self.push(stream, step)
                return
        elif isinstance(op, Set):
            value = op.value
            self._set_variable(stream, op.var, Slot(list(value) if isinstance(value, tuple) else value, is_done=True))
            return
        elif isinstance(op, (Fork, Copy)):
            step.extra = self._new_branches(stream, op)
        elif isinstance(op, Join):
            step.extra = self._take_join(stream, op)
            needs = step.extra.marks
        for slot in needs:
            if not slot.is_done:
                self.push(stream, Step(rules.await_slot, op, extra=slot))
        if resolve is not None:
            step.rule, step.extra = rules.resolved, resolve
        self.push(stream, step)

    def append_text(self, number: int, text: str, where: SourceLoc | None) -> None:
        """`emit` of a constant Text, without the op."""
        stream = self.streams[number]
        if stream.is_joined or stream.error is not None or self.is_finished:
            self._refuse(stream, where)
        if stream.is_idle:
            if not stream.pieces and not stream.segments:
                stream.begin(self.tokenizer, stream.open_role is not None)
            stream.append_text(text, where)
        else:
            self.push(stream, Step(rules.plain_text, text, extra=where))

    def _taking(self, number: int, where: SourceLoc | None) -> Stream:
        """The stream, if it takes a generation: programs that run far ahead of theirs wait here."""
        stream = self.streams[number]
        if stream.is_joined or stream.error is not None or self.is_finished:
            self._refuse(stream, where)
        if len(stream.queue) >= MAX_AHEAD and self.hub.may_suspend:
            self.sync(number, where)
        return stream

    def append_gen(self, number: int, expr: GenExpr[Any]) -> None:
        """`emit` of the Gen of an expression, without the op."""
        stream, slot = self._taking(number, expr.where), Slot()
        slot.spec = expr.spec
        if expr.var is not None:
            self._set_variable(stream, expr.var, slot)
            if expr.reasoning is not None:
                slot.beside = Slot()
                self._set_variable(stream, f"{expr.var}{REASONING_SUFFIX}", slot.beside)
        self.push(stream, Step(generate, expr, slot, self._next_ref))
        self._next_ref += 1

    def append_select(self, number: int, expr: SelectExpr) -> None:
        """`emit` of the Select of an expression, without the op."""
        stream, slot = self._taking(number, expr.where), Slot()
        if expr.var is not None:
            self._set_variable(stream, expr.var, slot)
        self.push(stream, Step(select, expr, slot, self._next_ref))
        self._next_ref += 1

    def enter(self, op: Role | Scope) -> None:
        stream = self._stream(op)
        if isinstance(op, Role):
            if any(isinstance(o, Role) for o in stream.regions):
                raise ProgramError("roles do not nest: close the open one first", where=op.where)
        else:
            self.slots[op.out.id] = Slot()
        stream.regions += (op,)
        self.push(stream, Step(rules.enter_role if isinstance(op, Role) else rules.enter_scope, op))

    def leave(self, op: Role | Scope) -> None:
        stream = self.streams[op.stream]
        stream.regions = tuple([region for region in stream.regions if region is not op])
        slot = None
        if isinstance(op, Scope):
            slot = self.slots[op.out.id]
            self._set_variable(stream, op.var, slot)
        if stream.error is not None:
            if slot is not None:
                slot.fail(stream.error)
            return
        self.push(stream, Step(rules.leave_role if isinstance(op, Role) else rules.leave_scope, op, slot))

    def get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        slot = self.variable(stream, var, where)
        self.read(slot, where)
        return slot.read(var, where)

    def raw(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        """The variable as it was generated: the text of a typed one."""
        return self.read(self.variable(stream, var, where), where)

    def variable(self, number: int, var: str, where: SourceLoc | None) -> Slot:
        """The slot of a variable. Raises UndefinedVariable where no op has set it, or it is read in its own scope."""
        stream = self.streams[number]
        if self.is_finished and self.outputs is not None and var not in self.outputs:
            raise ProgramError(f"{var!r} is none of the outputs of this run: {sorted(self.outputs)}", where=where)
        for op in stream.regions:
            if isinstance(op, Scope) and op.var == var:
                raise UndefinedVariable(f"{var!r} is read inside its own scope", where=where)
        slot = stream.variables.get(var)
        if slot is None:
            names = ", ".join(sorted(map(repr, stream.variables))) or "none yet"
            raise UndefinedVariable(f"{var!r} is read before any op sets it; variables so far: {names}", where=where)
        return slot

    def has(self, stream: int, var: str, where: SourceLoc | None) -> bool:
        return var in self.streams[stream].variables

    def text(self, stream: int, where: SourceLoc | None) -> str:
        known = self.streams[stream]
        if self.is_finished and self.outputs is not None:
            raise ProgramError(f"a run with outputs={sorted(self.outputs)} has no text to read", where=where)
        if known.is_idle and known.error is None:
            return known.text()
        return str(self.read(self.mark(known, known.text), where))

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        return self.read(self.slots[ref.id], where)

    def unordered(self, stream: int, separator: str, parts: Any, where: SourceLoc | None) -> str:
        return arranged(separator, parts, self.next_order(stream, where))

    def next_order(self, number: int, where: SourceLoc | None) -> tuple[int, ...] | None:
        """The order of the next order-free parts on this stream; None: as given. What is used is remembered."""
        stream = self.streams[number]
        counts = self._num_unordered
        if counts is None:
            counts = self._num_unordered = {}
        number = counts.get(stream.id, 0)
        counts[stream.id] = number + 1
        key = f"{stream.path}/{number}"
        return self.orders.get(key)

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        return None

    def call(self, body: Callable[..., Any], state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return body(state, *args, **kwargs)

    # -- what the compiler knows

    def facts_of(self, number: int) -> SelectFacts | None:
        """What the plan has prepared for the select whose value has this number."""
        return self.plan.select(Ref(number)) if self.plan is not None else None

    def hints_of(self, number: int) -> Hints | None:
        """What the plan says of the future of the generation or choice whose value has this number."""
        return self.plan.hints.get(number) if self.plan is not None else None

    def path_from(self, number: int) -> float:
        """Tokens to be generated from the generation or choice of this number on, along the longest path."""
        return self.plan.paths.get(number, 0.0) if self.plan is not None else 0.0

    # -- what states read besides

    def sync(self, stream: int, where: SourceLoc | None) -> None:
        """Wait until the stream has carried out everything. Raises what stopped it."""
        known = self.streams[stream]
        self.read(self.mark(known, lambda: None), where)

    def messages(self, stream: int, where: SourceLoc | None) -> list[dict[str, Any]]:
        known = self.streams[stream]
        found: list[dict[str, Any]] = self.read(self.mark(known, lambda: rules.messages(known)), where)
        return found

    def meta_info(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        slot = self.variable(stream, var, where)
        self.read(slot, where)
        if slot.meta is None:
            raise ProgramError(f"{var!r} was not generated, so there is no meta info of it", where=where)
        return rules.meta_of(slot.meta)

    def names(self, stream: int) -> list[str]:
        """The names of the stream's variables."""
        known = list(self.streams[stream].variables)
        if self.is_finished and self.outputs is not None:
            return [name for name in known if name in self.outputs]
        return known

    def error(self) -> BaseException | None:
        """What made the program fail, so far."""
        if self.failure is not None or self.is_finished:
            return self.failure
        return next((stream.error for stream in self.streams.values() if stream.error is not None), None)

    def chunks(self, stream: int, var: str | None, where: SourceLoc | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Inside the program, or when it has ended: everything as one piece."""
        if var is None:
            yield self.text(stream, where), {}
            return
        slot = self.variable(stream, var, where)
        value = self.read(slot, where)
        info = rules.meta_of(slot.meta)
        yield str(value), info if isinstance(info, dict) else {}

    async def async_chunks(
        self, stream: int, var: str | None, where: SourceLoc | None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """`chunks` for an event loop."""
        for chunk in self.chunks(stream, var, where):
            yield chunk

    def cancel(self) -> None:
        """A program that has ended, or runs in this thread, cannot be cancelled."""
        if not self.is_finished:
            raise ProgramError(f"the program {self.title!r} runs in this thread: raise an exception to end it")

    def read(self, slot: Slot, where: SourceLoc | None) -> Any:
        """The value of a slot; suspends the reader until it is there. Raises its error."""
        if not slot.is_done:
            self.hub.block(slot, where)
        if slot.error is not None:
            raise self.deliver(slot.error)
        return slot.value

    async def async_get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        """`get` in an async program."""
        slot = self.variable(stream, var, where)
        await self.hub.wait_for(slot)
        self.read(slot, where)
        return slot.read(var, where)

    async def async_sync(self, stream: int, where: SourceLoc | None) -> None:
        """`sync` in an async program."""
        slot = self.mark(self.streams[stream], lambda: None)
        await self.hub.wait_for(slot)
        self.read(slot, where)

    def mark(self, stream: Stream, value: Callable[[], Any]) -> Slot:
        """A slot that gets `value()` when the stream has carried out everything that it has been given so far."""
        slot = Slot()
        if self.is_finished and self.failure is None:
            slot.set(value())  # what failed on this stream was handled by the body
        elif stream.error is not None:
            slot.fail(stream.error)
        else:
            self.push(stream, Step(rules.set_mark, None, slot, value))
        return slot

    def rest(self) -> Slot:
        """A slot that is done when every stream has carried out what it has been given so far, or has failed."""
        rest = Slot()
        marks = [self.mark(stream, lambda: None) for stream in self.streams.values() if stream.error is None]
        left = len(marks)

        def one_less() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                rest.set(None)

        for mark in marks:
            mark.watch(one_less)
        if not marks:
            rest.set(None)
        return rest

    def deliver(self, error: BaseException) -> BaseException:
        """Mark an error as raised inside the body: if the body goes on, it has handled it.

        What is raised for a branch that was cancelled is what made the other branch fail.
        """
        error = steps.root_of(error)
        if not any(known is error for known in self._delivered):
            self._delivered += (error,)
        return error

    # -- variables, branches, joins

    def _set_variable(self, stream: Stream, var: str, slot: Slot) -> None:
        stream.variables[var] = slot
        if stream.changes is not None:  # a branch
            if stream.changes is NO_CHANGES:
                stream.changes = {var}
            else:
                stream.changes.add(var)
        if self.feed is not None and stream is self.root:
            slot.watch(lambda: self._publish(var, slot))

    def _publish(self, var: str, slot: Slot) -> None:
        assert self.feed is not None
        if slot.error is not None:
            self.feed.fail(var, slot.error)
        else:
            self.feed.set_value(var, slot.value)

    def stream_to(self, feed: Feed) -> None:
        """From now on (before anything has happened) tell readers outside what the program produces."""
        self.feed = self.root.feed = feed
        self.is_plain = False

    def speculate(self, num_tokens: int | None) -> None:
        """From now on each call asks for at least so many tokens, for the gens that follow."""
        self.num_spec_tokens = num_tokens
        self.is_plain = self.is_plain and num_tokens is None

    def set_variable(self, number: int, var: str, slot: Slot, where: SourceLoc | None) -> None:
        """The variable is from here on what the slot holds, or will hold."""
        stream = self.streams[number]
        if stream.is_joined or stream.error is not None or self.is_finished:
            self._refuse(stream, where)
        self._set_variable(stream, var, slot)

    def _new_branches(self, stream: Stream, op: Fork | Copy) -> tuple[Stream, ...]:
        numbers = op.streams if isinstance(op, Fork) else (op.target,)
        first = stream.num_branches
        branches = tuple([Stream(number, f"{stream.path}.{first + i}", stream) for i, number in enumerate(numbers)])
        stream.num_branches += len(branches)
        self.streams.update(zip(numbers, branches, strict=True))
        if isinstance(op, Fork):
            for branch in branches:
                branch.siblings = branches
        stream.branches += branches
        return branches

    def _take_join(self, stream: Stream, op: Join) -> rules.Joined:
        """Settle at once what the parent's variables are after the join: lists that fill when the branches end."""
        streams = self.streams
        branches = tuple([streams[number] for number in op.streams])
        busy: list[Stream] = []
        for branch in branches:
            if branch.is_joined:
                raise ProgramError("a branch is joined twice", where=op.where)
            if branch.queue or branch.busy is not None or not branch.is_started:
                busy.append(branch)
        marks = tuple([self.mark(branch, lambda: None) for branch in busy])
        gathered: list[tuple[Slot, tuple[Slot, ...]]] = []
        for branch in branches:
            branch.is_joined = True
        set_by = [(branch.variables, branch.changes) for branch in branches if branch.changes]
        if set_by and op.mode == "gather_variable":
            names = dict.fromkeys([name for known, own in set_by for name in known if name in own])
            for name in names:
                slots = tuple([known[name] for known, own in set_by if name in own])
                slot = Slot()
                gathered.append((slot, slots))
                self._set_variable(stream, name, slot)
        return rules.new_joined(branches, marks, gathered)

    # -- steps

    def _stream(self, op: AnyOp) -> Stream:
        stream = self.streams[op.stream]
        if stream.is_joined or stream.error is not None or self.is_finished:
            self._refuse(stream, op.where)
        return stream

    def _refuse(self, stream: Stream, where: SourceLoc | None) -> None:
        if stream.error is not None:
            raise self.deliver(stream.error)
        if self.is_finished:
            raise ProgramError(f"the program {self.title!r} has ended: nothing can be appended any more", where=where)
        raise ProgramError("a branch is used after its join", where=where)

    def push(self, stream: Stream, step: Step) -> None:
        """Carry the step out, or keep it until the stream gets there."""
        queue = stream.queue
        if queue or stream.busy is not None or not stream.is_started:
            if queue is GONE:
                queue = stream.queue = deque()
            queue.append(step)
            return
        try:
            step.rule(self, stream, step)
        except Exception as error:
            self.fail_stream(stream, steps.placed(error, step.where), step.slot)

    def advance(self, stream: Stream) -> None:
        """Carry out the stream's steps up to the next generation."""
        queue = stream.queue
        while queue and stream.busy is None and stream.is_started:
            step = queue[0]
            try:
                step.rule(self, stream, step)
            except Exception as error:
                self.fail_stream(stream, steps.placed(error, step.where), step.slot)
                return
            if stream.error is not None:
                return
            queue.popleft()

    def wait_on(self, stream: Stream, slot: Slot) -> None:
        """The stream goes on when the slot is done."""
        if slot.is_done:
            return
        stream.busy = slot

        def go_on() -> None:
            if stream.busy is slot:
                stream.busy = None
                self.advance(stream)

        slot.watch(go_on)

    # -- failing and ending

    def fail_stream(self, stream: Stream, error: BaseException, slot: Slot | None = None) -> None:
        """Nothing more is carried out on the stream; its unfinished values fail, and so do the branches beside it."""
        if slot is not None:
            slot.fail(error)
        todo = [(stream, error)]
        while todo:
            failing, why = todo.pop()
            if failing.error is not None:
                continue
            if failing.request_id:
                self.hub.abort([failing.request_id])
                failing.request_id = ""
            todo += [(branch, why) for branch in failing.fail(why)]
            for sibling in failing.siblings:
                if sibling is not failing and sibling.error is None and not sibling.is_idle:
                    todo.append((sibling, steps.cancelled(sibling, failing, why)))

    def crash(self, error: BaseException) -> None:
        """The program as a whole cannot go on: what it waits for fails with `error`."""
        if self.failure is None:
            self.failure = error
        self.deliver(error)
        for stream in list(self.streams.values()):
            self.fail_stream(stream, error)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """The body has ended and nothing is in flight: settle what the program ends with."""
        if self.failure is None:
            self.failure = error if error is not None else self._unhandled()
        self.ret_value = result
        self.is_finished = True
        for stream in self.streams.values():
            stream.settle()
        self.slots = _NO_SLOTS
        self.plan = None
        self.types = self.hosts = NOTHING
        if self.feed is not None:
            self.feed.end(self.failure)

    def _unhandled(self) -> BaseException | None:
        """The first error of a stream that was not raised inside the body."""
        for stream in self.streams.values():
            error = steps.root_of(stream.error) if stream.error is not None else None
            if error is not None and not any(known is error for known in self._delivered):
                return error
        return None
