"""The state a program writes to and reads from. It turns what the user writes into ops for its sink, and holds nothing
else: text, variables and turns live with the executor that is the sink of a running program."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast, overload

from ..compiler.ir import Copy, Fork, Gen, Join, Media, Role, Scope, Select, Set, Special, Text
from ..compiler.tracing.symbols import Symbol, operand
from ..core.errors import ProgramError, SourceLoc
from ..core.quick import maker
from .display import executor_of
from .exprs import Expression, ExprList, MediaExpr, flatten, not_text
from .gens import GenExpr, SelectExpr
from .html import page_html, show, state_html
from .locate import caller
from .partial import MISSING, partial_json
from .traced_group import TracedGroup

if TYPE_CHECKING:
    from types import TracebackType

    from ..compiler.sink import Sink
    from .executor import Executor
    from .outside import Outside
    from .types import TypeSpec

T = TypeVar("T")
JoinMode = Literal["gather_variable", "concate_and_append"]


new_text, new_gen, new_role, new_fork, new_join = maker(Text), maker(Gen), maker(Role), maker(Fork), maker(Join)


class TracedTypes:
    """The types of variables on one path of a trace; `found` collects those of all paths (None: no type)."""

    def __init__(self, found: dict[str, set[TypeSpec | None]]) -> None:
        self.found = found
        self.current: dict[str, TypeSpec] = {}
        self.gathered: set[str] = set()

    def add(self, var: str, spec: TypeSpec | None) -> None:
        """A gen of this variable: with a type, or without."""
        self.gathered.discard(var)
        self.current.pop(var, None)
        if spec is not None:
            self.current[var] = spec
        self.found.setdefault(var, set()).add(spec)


class ProgramState:
    """One text stream of a program: `s += text`, `s += gen("x")`, `s["x"]`.

    Reading a variable that is not generated yet suspends the program until it is. After `run()` the state holds the
    whole result.
    """

    __dslc_traceable__ = True
    __slots__ = ("_open", "_types", "sink", "stream")

    def __init__(self, sink: Sink, stream: int = 0, types: TracedTypes | None = None) -> None:
        """`types`: where a tracer is told of the types of variables."""
        self.sink = sink
        self.stream = stream
        self._open: Role | None = None
        self._types = types

    # -- appending

    def __iadd__(self, other: Any) -> ProgramState:
        sink: Any = self.sink
        if other.__class__ is str and other and not sink.is_tracing:
            sink.append_text(self.stream, other, caller())
        elif other.__class__ is GenExpr and not sink.is_tracing:
            sink.append_gen(self.stream, other)
        elif other.__class__ is SelectExpr and not sink.is_tracing:
            sink.append_select(self.stream, other)
        elif isinstance(other, Expression):
            other.append_to(self)
        else:
            self.append(other)
        return self

    def __add__(self, other: Any) -> NoReturn:
        raise ProgramError("`s + ...` appends nothing: write `s += ...`", where=caller())

    if not TYPE_CHECKING:  # a type checker is to find names that are not there

        def __getattr__(self, name: str) -> NoReturn:
            hint = "" if name.startswith("_") else f"; a variable is read as s[{name!r}]"
            raise AttributeError(f"a program's state has no attribute {name!r}{hint}", name=name, obj=self)

    def append(self, other: Any) -> None:
        """`s += other` as a method. Raises ProgramError for what has no text form."""
        if isinstance(other, (str, Symbol)):
            if not self.sink.is_tracing:
                if other:
                    self.sink.append_text(self.stream, other, caller())  # type: ignore[attr-defined]
            elif not (isinstance(other, str) and not other):
                self.sink.emit(new_text(text=operand(other), stream=self.stream, where=caller()))
        elif isinstance(other, Expression):
            other.append_to(self)
        elif isinstance(other, (list, tuple)):
            ExprList(flatten(other)).append_to(self)
        else:
            raise ProgramError(not_text(other), where=caller())

    def append_text(self, text: str, where: SourceLoc | None) -> None:
        """Append plain text that stands at this line."""
        if not text:
            return
        if self.sink.is_tracing:
            self.sink.emit(new_text(text=text, stream=self.stream, where=where))
        else:
            self.sink.append_text(self.stream, text, where)  # type: ignore[attr-defined]

    def emit_gen(self, expr: GenExpr[Any]) -> None:
        """Emit the op of a gen expression."""
        if not self.sink.is_tracing:
            self.sink.append_gen(self.stream, expr)  # type: ignore[attr-defined]
            return
        if expr.reasoning is not None:
            self.sink.opaque("separate_reasoning", expr.where)
        if self._types is not None and expr.var is not None:
            self._types.add(expr.var, expr.spec)
        self.sink.emit(
            new_gen(
                out=self.sink.new_ref(), var=expr.var, sampling=expr.sampling, constraint=expr.constraint,
                logprobs=expr.logprobs, stream=self.stream, where=expr.where,
            )
        )  # fmt: skip

    def emit_select(self, expr: SelectExpr) -> None:
        """Emit the op of a select expression."""
        if not self.sink.is_tracing:
            self.sink.append_select(self.stream, expr)  # type: ignore[attr-defined]
            return
        self.sink.emit(
            Select(
                out=self.sink.new_ref(), var=expr.var, choices=operand(expr.choices), method=expr.method,
                temperature=operand(expr.temperature), stream=self.stream, where=expr.where,
            )
        )  # fmt: skip

    def emit_special(self, text: str, where: SourceLoc | None) -> None:
        """Emit template text."""
        self.sink.emit(Special(text=text, stream=self.stream, where=where))

    def emit_media(self, expr: MediaExpr) -> None:
        """Emit a picture or video. A program holds paths and arguments, no picture: one in the body is a break."""
        source, options = expr.source, expr.options
        if self.sink.is_tracing:
            if not isinstance(source, (str, Symbol)):
                what = "an image" if expr.kind == "image" else "a video"
                advice = "a plan holds no pictures: give it as an argument, or by its path"
                self.sink.opaque(f"{what} that is not given by its path ({advice})", expr.where)
            source, options = operand(source), tuple([(name, operand(value)) for name, value in options])
        self.sink.emit(Media(kind=expr.kind, source=source, options=options, stream=self.stream, where=expr.where))

    def orders(self) -> dict[str, tuple[int, ...]]:
        """How the parts of `dslc.unordered` stood in this run, where not as given; `run(orders=...)` replays it."""
        self.sink.opaque("reading the orders of order-free parts", caller())
        return dict(self.sink.orders)  # type: ignore[attr-defined]

    def forget_types(self) -> None:
        """After a join a tracer cannot tell a typed value from a list of such."""
        if self._types is not None:
            self._types.gathered.update(self._types.current)

    # -- chat turns and scopes

    def role_region(self, role: str, where: SourceLoc | None = None) -> _Region:
        """The context manager of a chat turn."""
        return _Region(self, Role(role=role, stream=self.stream, where=where or caller()))

    def emit_turn(self, role: str, content: Any, where: SourceLoc | None) -> None:
        """Append a whole chat turn."""
        op = new_role(role=role, stream=self.stream, where=where or caller())
        sink = self.sink
        sink.enter(op)
        try:
            if content is not None:
                self.append(content)
        finally:
            sink.leave(op)

    @overload
    def system(self, expr: None = None) -> _Region: ...
    @overload
    def system(self, expr: object) -> ProgramState: ...
    def system(self, expr: Any = None) -> Any:
        """`s.system(content)` appends a turn; `with s.system():` opens one."""
        return self._turn("system", expr)

    @overload
    def user(self, expr: None = None) -> _Region: ...
    @overload
    def user(self, expr: object) -> ProgramState: ...
    def user(self, expr: Any = None) -> Any:
        """`s.user(content)` appends a turn; `with s.user():` opens one."""
        return self._turn("user", expr)

    @overload
    def assistant(self, expr: None = None) -> _Region: ...
    @overload
    def assistant(self, expr: object) -> ProgramState: ...
    def assistant(self, expr: Any = None) -> Any:
        """`s.assistant(content)` appends a turn; `with s.assistant():` opens one."""
        return self._turn("assistant", expr)

    def _turn(self, role: str, expr: Any) -> Any:
        region = self.role_region(role)
        if expr is None:
            return region
        with region:
            self.append(expr)
        return self

    def begin_role(self, role: str, where: SourceLoc | None) -> None:
        """Open a chat turn that `end_role` closes."""
        op = Role(role=role, stream=self.stream, where=where)
        self.sink.enter(op)
        self._open = op

    def end_role(self, role: str, where: SourceLoc | None) -> None:
        """Close the turn that `begin_role` opened. Raises ProgramError when another one, or none, is open."""
        if self._open is None or self._open.role != role:
            open_role = "none" if self._open is None else repr(self._open.role)
            raise ProgramError(f"{role}_end() without {role}_begin(): the open role is {open_role}", where=where)
        op, self._open = self._open, None
        self.sink.leave(op)

    @property
    def open_turn(self) -> Role | None:
        """The chat turn that `begin_role` has opened, if it is open."""
        return self._open

    def go_on_with(self, turn: Role | None) -> None:
        """Take over an open turn from the state that this one is a copy of."""
        self._open = turn

    def var_scope(self, name: str) -> _Region:
        """`with s.var_scope("x"):` stores the text appended inside in the variable."""
        return _Region(self, Scope(out=self.sink.new_ref(), var=name, stream=self.stream, where=caller()))

    # -- forks

    def fork(self, size: int = 1, position_ids_offset: list[int] | None = None) -> ProgramStateGroup:
        """`size` branches, each beginning with a copy of this state, which run at the same time."""
        where = caller()
        if position_ids_offset is not None:
            raise ProgramError("position_ids_offset is not supported: branches keep their own positions", where=where)
        if isinstance(size, Symbol):
            return cast("ProgramStateGroup", TracedGroup(self, size, where))
        if type(size) is not int or size < 1:
            raise ProgramError(f"fork() needs a positive number of branches, not {size!r}", where=where)
        sink, types, make = self.sink, self._types, type(self)
        new_stream = sink.new_stream
        streams = tuple([new_stream() for _ in range(size)])
        sink.emit(new_fork(streams=streams, stream=self.stream, where=where))
        return ProgramStateGroup([make(sink, stream, types) for stream in streams], self)

    def copy(self, position_ids_offset: list[int] | None = None) -> _Copy:
        """One branch, as a context manager: `with s.copy() as t:`. It is never joined."""
        where = caller()
        if position_ids_offset is not None:
            raise ProgramError("position_ids_offset is not supported: branches keep their own positions", where=where)
        stream = self.sink.new_stream()
        self.sink.emit(Copy(target=stream, stream=self.stream, where=where))
        return _Copy(type(self)(self.sink, stream, self._types))

    # -- reading and setting

    @overload
    def __getitem__(self, name: GenExpr[T]) -> T: ...
    @overload
    def __getitem__(self, name: SelectExpr) -> str: ...
    @overload
    def __getitem__(self, name: str) -> Any: ...
    def __getitem__(self, name: Any) -> Any:
        return self._read(name, caller())

    def _read(self, name: Any, where: SourceLoc | None) -> Any:
        if isinstance(name, (GenExpr, SelectExpr)):
            if name.var is None:
                raise ProgramError("only a gen or select with a name can be read", where=where)
            name = name.var
        value = self.sink.get(self.stream, name, where)
        spec = self._types.current.get(name) if self._types is not None else None
        if spec is None or self._types is None:
            return value
        if name not in self._types.gathered and isinstance(value, Symbol):
            if spec.function == "str":
                return value
            if spec.function is not None:
                return value.recorder.expr(spec.function, value)
        return self.sink.typed(self.stream, name, where)  # type: ignore[attr-defined]

    def raw(self, name: str) -> Any:
        """A variable as it was generated: the text of a typed one."""
        where = caller()
        if self.sink.is_tracing:
            return self.sink.get(self.stream, name, where)
        return self._executor("raw()").raw(self.stream, name, where)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> Any:
        return self.sink.has(self.stream, name, caller())

    def get_var(self, name: str) -> Any:
        """`s[name]`."""
        return self._read(name, caller())

    def get(self, name: str) -> Coroutine[Any, Any, Any]:
        """`await s.get(name)`: `s[name]` in an async program, and for a state that another thread runs."""
        return self._executor("get()").async_get(self.stream, name, caller())

    def wait(self) -> Coroutine[Any, Any, None]:
        """`await s.wait()`: `s.sync()` in an async program, and for a state that another thread runs."""
        return self._executor("wait()").async_sync(self.stream, caller())

    def set_var(self, name: str, value: Any) -> None:
        """`s[name] = value`: a str, number, bool, None, or a list of such."""
        where = caller()
        try:
            given = operand(value)
        except TypeError:
            if self.sink.is_tracing:
                self.sink.opaque(f"the variable {name!r} is set to a {type(value).__name__}", where)
            given = value  # an executor keeps any object
        if self._types is not None:
            self._types.current.pop(name, None)
        self.sink.emit(Set(var=name, value=given, stream=self.stream, where=where))

    def text(self) -> str:
        """All text of this state so far, special tokens included."""
        text: str = self.sink.text(self.stream, caller())
        return text

    def messages(self) -> Any:
        """The chat turns so far, as a list of {"role": ..., "content": ...}."""
        return self._executor("messages()").messages(self.stream, caller())

    def get_meta_info(self, name: str) -> Any:
        """What the backend said about the generation of a variable: a dict as in SGLang."""
        return self._executor(f"get_meta_info({name!r})").meta_info(self.stream, name, caller())

    def sync(self) -> ProgramState:
        """Wait until everything appended so far is generated."""
        self._executor("sync()").sync(self.stream, caller())
        return self

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text of the state, or of one variable, piece by piece as it is generated (`run(stream=True)`).

        Leaving the iterator before the end cancels the program.
        """
        for text, _ in self._executor("text_iter()").chunks(self.stream, var_name, caller()):
            if text:
                yield text

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """`text_iter` for an event loop; with `return_meta_data` (text, meta info) pairs, the last with the whole."""
        async for text, info in self._executor("text_async_iter()").async_chunks(self.stream, var_name, caller()):
            if return_meta_data:
                yield text, info
            elif text:
                yield text

    def partial_iter(self, var_name: str) -> Iterator[Any]:
        """The JSON value of a variable as it grows (`run(stream=True)`): what is in it stays, more comes.

        The last item is the whole, as the type of the gen if it has one.
        """
        where = caller()
        text, last = "", MISSING
        for piece, _ in self._executor("partial_iter()").chunks(self.stream, var_name, where):
            text += piece
            value = partial_json(text)
            if value is not MISSING and value != last:
                last = value
                yield value
        whole = self._read(var_name, where)
        if isinstance(whole, str):
            whole = partial_json(whole)
        if whole is not MISSING and whole != last:
            yield whole

    def cancel(self) -> None:
        """End the program of `run(stream=True)`; what it has in flight is aborted."""
        self._executor("cancel()").cancel()

    def variables(self) -> dict[str, Any]:
        """All variables of the state with their values."""
        where = caller()
        return {
            name: self.sink.get(self.stream, name, where) for name in self._executor("variables()").names(self.stream)
        }

    def error(self) -> BaseException | None:
        """What made the program fail, or None."""
        return self._executor("error()").error()

    @property
    def index(self) -> int:
        """The number of this instance in its batch (0 for a single run)."""
        return self._executor("index").instance

    @property
    def ret_value(self) -> Any:
        """What the program's function returned."""
        return self._executor("ret_value").ret_value

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the state as a page: tokens coloured by where they came from, branches as tabs, variables."""
        self._executor("save_html()")
        executor = executor_of(self)
        Path(path).write_text(page_html(self, executor.title), encoding="utf-8")

    def _repr_html_(self) -> str | None:
        """What a notebook shows of a state that has run."""
        return None if self.sink.is_tracing else state_html(self)

    def _ipython_display_(self) -> None:
        """A notebook shows a state of `run(stream=True)` while it grows."""
        show(self)

    def _executor(self, what: str) -> Executor | Outside:
        if self.sink.is_tracing:
            self.sink.opaque(f"use of {what}", caller())
        return self.sink  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<ProgramState of stream {self.stream}>"


class _Region:
    """A chat turn or a scope as a context manager. An exception inside closes it too."""

    __dslc_traceable__ = True
    __slots__ = ("op", "state")

    def __init__(self, state: ProgramState, op: Role | Scope) -> None:
        self.state = state
        self.op = op

    def __enter__(self) -> ProgramState:
        self.state.sink.enter(self.op)
        return self.state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.state.sink.leave(self.op)


class _Copy:
    """What `s.copy()` returns: a context manager that gives the copied state."""

    __dslc_traceable__ = True
    __slots__ = ("state",)

    def __init__(self, state: ProgramState) -> None:
        self.state = state

    def __enter__(self) -> ProgramState:
        return self.state

    def __exit__(self, *error: object) -> None:
        return None


class ProgramStateGroup:
    """The branches of a fork. `group += x` appends to all; a list gives each its own, a function gets the number."""

    __dslc_traceable__ = True
    __slots__ = ("parent", "states")

    def __init__(self, states: list[ProgramState], parent: ProgramState) -> None:
        self.states = states
        self.parent = parent

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """End the branches.

        "gather_variable": each variable set in a branch becomes, in the parent, the list of the branches' values.
        "concate_and_append": the text each branch added is appended to the parent, in order.
        """
        where = caller()
        if mode not in ("gather_variable", "concate_and_append"):
            raise ProgramError(
                f"unknown join mode {mode!r}; use 'gather_variable' or 'concate_and_append'", where=where
            )
        streams = tuple([state.stream for state in self.states])
        self.parent.forget_types()
        self.parent.sink.emit(new_join(streams=streams, mode=mode, stream=self.parent.stream, where=where))

    @overload
    def __getitem__(self, i: int) -> ProgramState: ...
    @overload
    def __getitem__(self, i: slice) -> list[ProgramState]: ...
    def __getitem__(self, i: Any) -> Any:
        return self.states[i]

    def __setitem__(self, i: int, value: ProgramState) -> None:
        if self.states[i] is not value:
            raise ProgramError("a branch cannot be replaced by another state", where=caller())

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> ProgramStateGroup:
        if callable(other) and not isinstance(other, Expression):
            maker: Callable[[int], Any] = other
            for i, state in enumerate(self.states):
                state.append(maker(i))
        elif isinstance(other, (list, tuple)):
            if len(other) != len(self.states):
                raise ProgramError(
                    f"{len(other)} things for {len(self.states)} branches: a list must have one for each",
                    where=caller(),
                )
            for state, item in zip(self.states, other, strict=True):
                state.append(item)
        else:
            for state in self.states:
                state.append(other)
        return self


__all__ = ["JoinMode", "ProgramState", "ProgramStateGroup"]
