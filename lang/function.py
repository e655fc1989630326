"""`@function`: a Python function whose first parameter is a state, as a program that can be compiled and run."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import threading
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from ..compiler.ahead import LookAhead
from ..compiler.ir import Arg, Expr, Host, Opaque, walk
from ..compiler.tracing import NoSource, Traced, strict_error, trace
from ..compiler.tracing.rewrite import location
from ..core.backend import Backend
from ..core.errors import ArgumentError, DslcError, ProgramError, RequestError, SourceLoc, TraceError, VerifyError
from .defaults import default_backend
from .locate import caller
from .options import RUN_NAMES, History, checked_outputs
from .prefix import cache_prefix
from .running import Running
from .signature import Signature
from .state import ProgramState, TracedTypes
from .takeover import HOLD_S, LONG_HOLD_S
from .type_names import type_names

if TYPE_CHECKING:
    from ..compiler.ir import Program
    from ..compiler.passes.base import CompileOptions
    from ..compiler.plan import Plan
    from ..core.text.tokenizer import Tokenizer
    from .types import TypeSpec

T = TypeVar("T")
P = ParamSpec("P")
# Options of `run` that most calls leave out.
_GIVEN = (
    "stream", "use_thread", "seed", "timeout", "token_budget", "history", "compile_options", "outputs", "orders",
)  # fmt: skip
_NONE_GIVEN = (None,) * len(_GIVEN)
GeneratorStyle = bool | Literal["unordered"]


class Function:
    """A program. Made by `@function`; immutable but for its cache of traces and plans, which is thread-safe."""

    __dslc_traceable__ = True

    def __init__(
        self,
        body: types.FunctionType,
        num_api_spec_tokens: int | None = None,
        bound: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.body = body
        self.outputs = checked_outputs(outputs, location(body))
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bound or {})
        self.where = location(body)
        self.__name__ = body.__name__
        self.__qualname__ = body.__qualname__
        self.__doc__ = body.__doc__
        self.__module__ = body.__module__
        self.__wrapped__ = body
        self.is_async = inspect.iscoroutinefunction(body)
        if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
            raise ProgramError(f"{self.__name__} is a generator: a program must not yield", where=self.where)
        self.signature = Signature(body, self.where)
        self._lock = threading.RLock()
        self._traced: Traced | None = None
        self._types: dict[str, set[TypeSpec | None]] = {}
        self._specs: dict[str, TypeSpec] = {}
        self._plans: dict[Any, Plan] = {}
        self._last_plan: tuple[Any, Any, Traced, Plan] | None = None  # what it was made for, and it
        self._has_source = True
        self._may_block: bool | None = None
        self._never_blocks: bool | None = None
        self.num_looked_ahead = 0  # runs of a body with its trace as look-ahead
        self.num_lost_ahead = 0  # of them, those that did what the trace did not foretell

    def __repr__(self) -> str:
        return f"<dslc program {self.__name__} at {self.where}>"

    # -- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """In a program, with its state first: append this program's ops there, and return what it returns.

        Otherwise the same as `run`.
        """
        if args and isinstance(args[0], ProgramState):
            state = args[0]
            arguments = self.arguments(args[1:], kwargs)
            return state.sink.call(self.body, state, (), arguments)
        return self.run(*args, **kwargs)

    def bind(self, **kwargs: Any) -> Function:
        """The program with some arguments given; a call may still give them anew."""
        self.signature.refuse_unknown(kwargs, caller())
        return type(self)(self.body, self.num_api_spec_tokens, {**self.bound, **kwargs}, self.outputs)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name, bound ones and defaults included. Raises ArgumentError naming what is wrong."""
        if not args and kwargs.keys() == self.signature.names_set:
            return dict(kwargs)
        return self.signature.arguments(args, kwargs, self.bound, caller())

    # -- compiling

    def compile(self, strict: bool = False) -> Program:
        """The program as IR; bound arguments are constants. With `strict`, raises TraceError at the first break.

        Traced once; anew when a global, closure cell or default that it depends on has changed.
        """
        program = self._trace().program
        if strict:
            line = next((op.where for op in walk(program.body) if isinstance(op, Opaque)), None)
            error = strict_error(program, _source_line(line))
            if error is not None:
                raise error
        return program

    def _trace(self) -> Traced:
        with self._lock:
            if self._traced is None or not self._traced.guards.hold():
                self._plans.clear()
                self._never_blocks = None
                types: dict[str, set[TypeSpec | None]] = {}
                self._traced = trace(
                    self.body,
                    lambda sink: ProgramState(sink, 0, TracedTypes(types)),
                    bound=self.bound,
                    num_api_spec_tokens=self.num_api_spec_tokens,
                )
                self._types = types
                self._specs = {name: spec for name, specs in types.items() for spec in specs if spec is not None}
            return self._traced

    def trace(self, *args: Any, backend: Backend | None = None, **kwargs: Any) -> Program:
        """The program as IR with these arguments bound (all, some or none), under SGLang's rule for tracing: a program
        that formats an argument (f"...{argument}") raises TypeError. `compile` has no such limit.

        With a backend, as it is run there: chat turns written out, constant text as token ids.
        """
        if backend is not None and "backend" in self.signature.names_set:
            backend, kwargs = None, {**kwargs, "backend": backend}  # the program's own
        kwargs = self.signature.given(args, kwargs, caller())
        bound = self.bind(**kwargs) if kwargs else self
        program = bound.compile()
        arguments = {op.out for op in program.body if isinstance(op, Arg)}
        for op in walk(program.body):
            if isinstance(op, Expr) and op.fn in ("concat", "format") and arguments.intersection(op.args):
                raise TypeError(f"{op.where}: an argument has no text while tracing: use .compile()")
        if backend is not None:
            return bound.plan(backend.tokenizer if backend.capabilities.token_ids else None).program
        return program

    def cache(self, backend: Backend | None = None) -> int:
        """Put the constant beginning of the program's prompts into the backend's prefix cache. Returns its tokens."""
        return cache_prefix(self, backend if backend is not None else default_backend())

    def plan(self, tokenizer: Tokenizer | None, options: CompileOptions | None = None) -> Plan:
        """The plan for a tokenizer; made once per program, tokenizer and options."""
        from ..compiler.plan_cache import compiled

        with self._lock:
            program = self._trace().program
            key = (tokenizer.hash if tokenizer is not None else None, options)
            if key not in self._plans:
                plan = compiled(program, tokenizer, options)
                self._plans[key] = replace(plan, types=self.type_names) if self._types else plan
            return self._plans[key]

    def plan_to_run(
        self, backend: Backend, compiled: bool | None, options: CompileOptions | None, history: History = "append"
    ) -> Plan | None:
        """The plan to walk instead of the body; None to interpret.

        With `compiled=True` raises TraceError or NoSource where there is no whole plan.
        """
        if self.is_async:
            if compiled:
                raise TraceError(f"{self.__name__} is async: it runs as it is written", where=self.where)
            return None
        if compiled is False:
            return None
        tokenizer = backend.tokenizer if backend.capabilities.token_ids else None
        last = self._last_plan
        if last is not None and last[0] is tokenizer and last[2].guards.hold():
            made_for = last[1]
            if made_for[1] == history and (made_for[0] is options or made_for[0] == options):
                return last[3]
        plan = self._plan_to_run(tokenizer, compiled, options, history)
        traced = self._traced
        self._last_plan = (tokenizer, (options, history), traced, plan) if plan is not None and traced else None
        return plan

    def plan_ahead(self, backend: Backend, options: CompileOptions | None) -> Plan | None:
        """The plan of a program that is not whole, up to its breaks: the look-ahead of its body.

        None where it says nothing of any generation.
        """
        if self.is_async:
            return None
        tokenizer = backend.tokenizer if backend.capabilities.token_ids else None
        try:
            plan = self.plan(tokenizer, options)
        except DslcError:
            return None  # no source, or not a legal program: the body says what is wrong
        return plan if plan.gens or plan.selects else None

    def look_ahead(self, plan: Plan) -> LookAhead | None:
        """Where a body that begins now is in its trace; counts those that leave it."""
        self.num_looked_ahead += 1
        traced = self._traced
        return LookAhead(traced.program, plan, self._note_lost) if traced is not None else None

    def _note_lost(self) -> None:
        self.num_lost_ahead += 1

    def _plan_to_run(
        self, tokenizer: Tokenizer | None, compiled: bool | None, options: CompileOptions | None, history: History
    ) -> Plan | None:
        try:
            program = self._trace().program
        except NoSource as error:
            if compiled:
                raise
            if self._has_source:
                self._has_source = False
                warnings.warn(f"{error.message}; {self.__name__} is interpreted op by op", stacklevel=5)
            return None
        except ProgramError:
            return None  # the body raises the same when it gets there
        if any(len(specs) > 1 for specs in self._types.values()):
            return None  # one variable of several types: only the body knows which is when
        if not program.is_whole:
            if compiled:
                error_of_break = strict_error(program)
                assert isinstance(error_of_break, TraceError)
                raise error_of_break
            return None
        if history == "render":
            options = _with_roles(options)
        try:
            return self.plan(tokenizer, options)
        except (VerifyError, RequestError):
            if compiled:
                raise
            return None  # an illegal program: likewise

    @property
    def types(self) -> Mapping[str, TypeSpec]:
        """The types of the variables that the plan generates."""
        return self._specs

    @property
    def type_names(self) -> tuple[tuple[str, str], ...]:
        """(variable, name of its type) of those that are read as values of a type."""
        return type_names(self._types)

    @property
    def hosts(self) -> Mapping[str, Any]:
        """The objects of this process that the plan names: functions it calls, captured values."""
        return self._traced.hosts if self._traced is not None else {}

    @property
    def may_block(self) -> bool:
        """Whether a body may keep its thread for long.

        So it is taken to be when it calls what the compiler cannot look into; after a batch it is known.
        """
        if self._may_block is None:
            try:
                body = self._trace().program.body
            except DslcError:
                self._may_block = True
            else:
                self._may_block = any(
                    (isinstance(op, Opaque) and op.reason.startswith("call of "))
                    or (isinstance(op, Host) and not op.is_pure)
                    for op in walk(body)
                )
        return self._may_block

    @property
    def never_blocks(self) -> bool:
        """Whether the compiler knows all that a body does, and it only computes.

        Then what keeps its thread is other processes, and a second thread would not help.
        """
        if self._never_blocks is None:
            try:
                program = self._trace().program
            except DslcError:
                self._never_blocks = False
            else:
                self._never_blocks = program.is_whole and not any(
                    isinstance(op, Host) and not op.is_pure for op in walk(program.body)
                )
        return self._never_blocks

    def note_holds(self, held_s: Sequence[float]) -> None:
        """A batch has ended whose bodies have kept their threads for these seconds, at most.

        A thread may be kept by other processes too, so a few milliseconds of a few bodies prove nothing.
        """
        num_holds = sum(1 for held in held_s if held > HOLD_S)
        self._may_block = num_holds > max(1, len(held_s) // 4) or max(held_s, default=0.0) > LONG_HOLD_S

    # -- running

    def run(
        self,
        *args: Any,
        backend: Backend | None = None,
        stream: bool = False,
        use_thread: bool = True,
        seed: int | None = None,
        timeout: float | None = None,
        token_budget: int | None = None,
        history: History | None = None,
        compiled: bool | None = None,
        compile_options: CompileOptions | None = None,
        outputs: Sequence[str] | None = None,
        orders: Mapping[str, Sequence[int]] | None = None,
        **options: Any,
    ) -> ProgramState:
        """Run once. `options` are the program's arguments and defaults for its gens (temperature=, stop=, n=, ...).

        A name that is both goes to the program. With `stream` the state is there at once and is read while a thread
        runs the program (`use_thread=False`: when it has run in this one). `seed` makes sampling reproducible;
        `timeout` (seconds) and `token_budget` (generated tokens) bound the run. `compiled` False interprets the body op
        by op; True raises TraceError where the program cannot run from its plan; None decides. `outputs` names the
        variables that will be read: what no other can observe need not run. `orders` replays those of another run's
        `state.orders()`. Raises what failed, at its line.
        """
        others: dict[str, Any] = {} if compiled is None else {"compiled": compiled}
        if backend is not None:
            others["backend"] = backend
        rest = (
            stream or None, None if use_thread else False, seed, timeout, token_budget, history, compile_options,
            outputs, orders,
        )  # fmt: skip
        if rest != _NONE_GIVEN:
            others.update({name: value for name, value in zip(_GIVEN, rest, strict=True) if value is not None})
        own: dict[str, Any] = {}
        if options or self.signature.has_options:
            own, others = self._split(options, others)
        arguments = self.arguments(args, own)
        try:
            running = Running.of(self._unbound((args, own)) if self.bound else self, others, None)
        except DslcError as error:
            raise error.at(caller())  # noqa: B904 - it is the error itself, with its place
        if self.is_async:
            return _in_new_loop(self.__name__, lambda: _raising(running.arun(arguments)))
        if running.options.stream and others.get("use_thread", True):
            return running.stream(arguments)
        return running.run(arguments)

    def arun(self, *args: Any, **options: Any) -> Coroutine[Any, Any, ProgramState]:
        """`run` for an event loop, which is not blocked: `state = await program.arun(...)`, with run()'s options.

        Cancelling it ends the program.
        """
        own, others = self._split(options, {})
        arguments = self.arguments(args, own)
        return _raising(Running.of(self._unbound((args, own)), others, caller()).arun(arguments))

    def arun_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        on_error: Literal["keep", "raise"] = "keep",
        **options: Any,
    ) -> Coroutine[Any, Any, list[ProgramState]]:
        """`run_batch` for an event loop: the states in order, when all are there."""
        where = caller()
        own, others = self._split(options, {})
        rows = [self._row(i, row, own, where) for i, row in enumerate(batch_kwargs)]
        return _gathered(Running.of(self._unbound(*_calls(batch_kwargs), ((), own)), others, where), rows, on_error)

    @overload
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, object] | Sequence[object]],
        *,
        generator_style: Literal[False] = False,
        **options: Any,
    ) -> list[ProgramState]: ...
    @overload
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, object] | Sequence[object]],
        *,
        generator_style: Literal[True, "unordered"],
        **options: Any,
    ) -> Iterator[ProgramState]: ...
    @overload
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, object] | Sequence[object]],
        *,
        generator_style: GeneratorStyle,
        **options: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]: ...
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Backend | None = None,
        seed: int | None = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: GeneratorStyle = False,
        on_error: Literal["keep", "raise"] = "keep",
        timeout: float | None = None,
        token_budget: int | None = None,
        history: History | None = None,
        compiled: bool | None = None,
        compile_options: CompileOptions | None = None,
        outputs: Sequence[str] | None = None,
        orders: Sequence[Mapping[str, Sequence[int]]] | None = None,
        **options: Any,
    ) -> Any:
        """Run once for each set of arguments (dicts, or tuples in the order of the parameters), all in flight at once.

        Returns the states in order; with `generator_style` an iterator of states, each as soon as it and all before it
        are done ("unordered": as soon as it is done; `state.index` is its number). A program that fails keeps the
        others' results: its `state.error()` says why, unless `on_error="raise"`. Raises ArgumentError before anything
        runs if a set of arguments does not fit.
        """
        where = caller()
        if on_error not in ("keep", "raise"):
            raise ArgumentError(f"on_error must be 'keep' or 'raise', not {on_error!r}", where=where)
        if generator_style not in (True, False, "unordered"):
            raise ArgumentError(
                f"generator_style must be True, False or 'unordered', not {generator_style!r}", where=where
            )
        if num_threads != "auto" and (type(num_threads) is not int or num_threads < 1):
            raise ArgumentError(f"num_threads must be 'auto' or at least 1, not {num_threads!r}", where=where)
        named = {
            "backend": backend, "seed": seed, "timeout": timeout, "token_budget": token_budget, "history": history,
            "compiled": compiled, "compile_options": compile_options, "outputs": outputs, "orders": orders,
        }  # fmt: skip
        own, others = self._split(options, named)
        rows = [self._row(i, row, own, where) for i, row in enumerate(batch_kwargs)]
        running = Running.of(self._unbound(*_calls(batch_kwargs), ((), own)), others, where)
        if self.is_async:
            states = iter(_in_new_loop(self.__name__, lambda: _gathered(running, rows, on_error)))
            return states if generator_style else list(states)
        states = running.run_batch(rows, num_threads, progress_bar, generator_style == "unordered", on_error)
        return states if generator_style else list(states)

    def _row(self, i: int, row: Any, shared: Mapping[str, Any], where: SourceLoc | None) -> dict[str, Any]:
        if isinstance(row, Mapping):
            args, kwargs = (), row
        elif isinstance(row, Sequence) and not isinstance(row, str):
            args, kwargs = tuple(row), {}
        else:
            raise ArgumentError(f"batch_kwargs[{i}] must be a dict or a tuple, not {row!r}", where=where)
        try:
            return self.signature.arguments(args, kwargs, {**self.bound, **shared}, where)
        except ArgumentError as error:
            error.message = f"batch_kwargs[{i}]: {error.message}"
            raise

    def _unbound(self, *given: tuple[Sequence[Any], Mapping[str, Any]]) -> Function:
        """The program to compile for these calls: bound arguments that a call gives anew are no constants."""
        if not self.bound:
            return self
        names = {name for args, kwargs in given for name in (*self.signature.names[: len(args)], *kwargs)}
        rest = {name: value for name, value in self.bound.items() if name not in names}
        if len(rest) == len(self.bound):
            return self
        return type(self)(self.body, self.num_api_spec_tokens, rest, self.outputs)

    def _split(self, options: Mapping[str, Any], named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The program's own arguments, and the run's options; a parameter of the program goes before an option."""
        own: dict[str, Any] = {}
        others: dict[str, Any] = {}
        names = self.signature.names_set
        for name, value in options.items():
            (others if name in RUN_NAMES and name not in names else own)[name] = value
        for name, value in named.items():
            if value is not None:
                (others if name not in names else own)[name] = value
        return own, others


def _with_roles(options: CompileOptions | None) -> CompileOptions:
    """The options of a plan in which roles stay roles: the executor renders them."""
    from ..compiler.passes.base import CompileOptions

    known = options or CompileOptions()
    return replace(known, disabled=tuple(dict.fromkeys((*known.disabled, "lower-chat-template"))))


def _calls(rows: Sequence[Any]) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Rows of a batch as (positional, named) arguments."""
    return [((), row) if isinstance(row, Mapping) else (row, {}) for row in rows]


async def _raising(running: Awaitable[ProgramState]) -> ProgramState:
    """The state of a single run; raises what failed."""
    state = await running
    error = state.error()
    if error is not None:
        raise error
    return state


async def _gathered(running: Running, rows: Sequence[dict[str, Any]], on_error: str) -> list[ProgramState]:
    """The states of a batch in an event loop. With on_error="raise" the first failure ends the others."""
    if on_error == "keep":
        return list(await asyncio.gather(*(running.arun(row, i) for i, row in enumerate(rows))))
    tasks = [asyncio.ensure_future(_raising(running.arun(row, i))) for i, row in enumerate(rows)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _in_new_loop(name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine from code that is not async."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    raise ProgramError(f"{name} is async and an event loop runs here: write `await {name}.arun(...)`")


def _source_line(where: SourceLoc | None) -> str:
    return linecache.getline(where.file, where.line) if where is not None else ""


class _Decorator(Protocol):
    """What `@function(num_api_spec_tokens=...)` decorates with."""

    def __call__(self, func: Callable[Concatenate[ProgramState, P], object], /) -> Function: ...


@overload
def function(
    func: Callable[Concatenate[ProgramState, P], object],
    num_api_spec_tokens: int | None = None,
    *,
    outputs: Sequence[str] | None = None,
) -> Function: ...
@overload
def function(
    func: None = None, num_api_spec_tokens: int | None = None, *, outputs: Sequence[str] | None = None
) -> _Decorator: ...


def function(
    func: Callable[..., Any] | None = None,
    num_api_spec_tokens: int | None = None,
    *,
    outputs: Sequence[str] | None = None,
) -> Any:
    """Make a program of a function whose first parameter is `s`: `@function` or `@function(num_api_spec_tokens=k)`.

    `outputs` names the variables that are read after a run: what no other can observe need not run.

    Raises ProgramError at the function's line if it cannot be a program.
    """
    if func is None:
        return lambda f: function(f, num_api_spec_tokens, outputs=outputs)
    if not isinstance(func, types.FunctionType):
        raise ProgramError(f"@function takes a plain function, not {func!r}", where=caller())
    return Function(func, num_api_spec_tokens, outputs=outputs)
