"""`@function`: a Python function whose first parameter is a state, as a program that can be compiled and run."""

from __future__ import annotations

import inspect
import os
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..compiler.ir import Opaque, walk
from ..compiler.tracing import NoSource, Traced, strict_error, trace
from ..compiler.tracing.rewrite import location
from ..core.backend import Backend
from ..core.errors import ArgumentError, ProgramError, SourceLoc, TraceError
from .defaults import default_backend
from .executor import Executor
from .exprs import caller, logprob_wish, sampling_overrides
from .options import RunOptions
from .state import ProgramState

if TYPE_CHECKING:
    from ..compiler.ir import Program
    from ..compiler.passes.base import CompileOptions
    from ..compiler.plan import Plan
    from ..core.text.tokenizer import Tokenizer
    from .hub import Hub, Task

# What run() and run_batch() take besides the program's own arguments.
_SAMPLING_NAMES = {
    "max_new_tokens": "max_new_tokens", "min_new_tokens": "min_new_tokens", "stop": "stop",
    "stop_token_ids": "stop_token_ids", "stop_regex": "stop_regex", "temperature": "temperature", "top_p": "top_p",
    "top_k": "top_k", "min_p": "min_p", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "repetition_penalty": "repetition_penalty", "ignore_eos": "ignore_eos",
    "logit_bias": "logit_bias", "skip_special_tokens": "skip_special_tokens",
    "spaces_between_special_tokens": "spaces_between_special_tokens", "no_stop_trim": "no_stop_trim",
}  # fmt: skip
_LOGPROB_NAMES = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
_OTHER_NAMES = ("backend", "seed", "compiled", "compile_options")
_RESERVED = frozenset({*_SAMPLING_NAMES, *_LOGPROB_NAMES, *_OTHER_NAMES})


class Function:
    """A program. Made by `@function`; immutable but for its cache of traces and plans, which is thread-safe."""

    __dslc_traceable__ = True

    def __init__(
        self,
        body: types.FunctionType,
        num_api_spec_tokens: int | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> None:
        self.body = body
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bound or {})
        self.where = location(body)
        self.__name__ = body.__name__
        self.__qualname__ = body.__qualname__
        self.__doc__ = body.__doc__
        self.__module__ = body.__module__
        self.__wrapped__ = body
        self._lock = threading.RLock()
        self._traced: Traced | None = None
        self._plans: dict[Any, Plan] = {}
        self._has_source = True
        self._check_signature()

    def _check_signature(self) -> None:
        where = self.where
        if inspect.iscoroutinefunction(self.body) or inspect.isasyncgenfunction(self.body):
            raise ProgramError(f"{self.__name__} is an async def: a program must be a plain def", where=where)
        if inspect.isgeneratorfunction(self.body):
            raise ProgramError(f"{self.__name__} is a generator: a program must not yield", where=where)
        parameters = list(inspect.signature(self.body).parameters.values())
        if not parameters or parameters[0].name != "s":
            got = f"not {parameters[0].name!r}" if parameters else "but it has none"
            raise ProgramError(f"the first parameter of the program {self.__name__} must be 's', {got}", where=where)
        for parameter in parameters[1:]:
            if parameter.name in _RESERVED:
                raise ProgramError(
                    f"the parameter {parameter.name!r} of {self.__name__} is named like an option of run(); rename it",
                    where=where,
                )

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
        self._refuse_unknown(kwargs, caller())
        return type(self)(self.body, self.num_api_spec_tokens, {**self.bound, **kwargs})

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name, bound ones and defaults included. Raises ArgumentError naming what is wrong."""
        where = caller()
        parameters = list(inspect.signature(self.body).parameters.values())[1:]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise ArgumentError(
                f"{self.__name__} takes *args or **kwargs: a program needs named parameters", where=self.where
            )
        positional = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
        if len(args) > len(positional):
            raise ArgumentError(
                f"{self.__name__} takes {len(positional)} positional arguments, got {len(args)}", where=where
            )
        given = dict(zip(positional, args, strict=False))
        self._refuse_unknown(kwargs, where)
        if twice := given.keys() & kwargs.keys():
            raise ArgumentError(f"{self.__name__} got the argument {sorted(twice)[0]!r} twice", where=where)
        values = {**self.bound, **given, **kwargs}
        missing = [p.name for p in parameters if p.name not in values and p.default is p.empty]
        if missing:
            raise ArgumentError(f"{self.__name__} is missing the argument {', '.join(map(repr, missing))}", where=where)
        return {p.name: values.get(p.name, p.default) for p in parameters}

    def _refuse_unknown(self, kwargs: Mapping[str, Any], where: SourceLoc | None) -> None:
        known = list(inspect.signature(self.body).parameters)[1:]
        for name in kwargs:
            if name not in known:
                takes = ", ".join(known) or "none"
                raise ArgumentError(f"{self.__name__} has no argument {name!r}; it takes {takes}", where=where)

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
                self._traced = trace(
                    self.body, ProgramState, bound=self.bound, num_api_spec_tokens=self.num_api_spec_tokens
                )
            return self._traced

    def plan(self, tokenizer: Tokenizer | None, options: CompileOptions | None = None) -> Plan:
        """The plan for a tokenizer; made once per program, tokenizer and options."""
        from ..compiler.pipeline import compile_program

        with self._lock:
            program = self._trace().program
            key = (tokenizer.hash if tokenizer is not None else None, options)
            if key not in self._plans:
                self._plans[key] = compile_program(program, tokenizer, None, options)
            return self._plans[key]

    def _plan_to_run(self, backend: Backend, compiled: bool | None, options: CompileOptions | None) -> Plan | None:
        """The plan to walk instead of the body; None to interpret."""
        if compiled is False:
            return None
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
        if not program.is_whole:
            if compiled:
                raise self._break_error(program)
            return None
        return self.plan(backend.tokenizer, options)

    def _break_error(self, program: Program) -> TraceError:
        error = strict_error(program)
        assert error is not None
        return error

    # -- running

    def run(
        self,
        *args: Any,
        backend: Backend | None = None,
        seed: int | None = None,
        compiled: bool | None = None,
        compile_options: CompileOptions | None = None,
        **options: Any,
    ) -> ProgramState:
        """Run once. `options` are the program's arguments and defaults for its gens (temperature=, stop=, ...).

        `seed` makes sampling reproducible. `compiled` False interprets the body op by op; True raises TraceError where
        the program cannot run from its plan; None decides. Raises what failed, with the program's line.
        """
        own, sampling = self._split(options)
        arguments = self.arguments(args, own)
        target = backend if backend is not None else default_backend()
        run = self._options(sampling, seed)
        plan = self._plan_to_run(target, compiled, compile_options)
        task = self._run_one(target, run, plan, arguments)
        if task.executor.failure is not None:
            raise task.executor.failure
        return ProgramState(task.executor)

    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Backend | None = None,
        seed: int | None = None,
        progress_bar: bool = False,
        generator_style: bool = False,
        on_error: Literal["keep", "raise"] = "keep",
        compiled: bool | None = None,
        compile_options: CompileOptions | None = None,
        **options: Any,
    ) -> Any:
        """Run once for each set of arguments (dicts, or tuples in the order of the parameters), all in flight at once.

        Returns the states in order; with `generator_style` an iterator of states in order, each as soon as it and all
        before it are done. A program that fails keeps the others' results: its `state.error()` says why, unless
        `on_error="raise"`. Raises ArgumentError before anything runs if a set of arguments does not fit.
        """
        if on_error not in ("keep", "raise"):
            raise ArgumentError(f"on_error must be 'keep' or 'raise', not {on_error!r}", where=caller())
        own, sampling = self._split(options)
        self._refuse_unknown(own, caller())
        rows = [self._row(i, row, own) for i, row in enumerate(batch_kwargs)]
        target = backend if backend is not None else default_backend()
        run = self._options(sampling, seed)
        plan = self._plan_to_run(target, compiled, compile_options)
        order = self._order(plan, rows, target.tokenizer)
        finished = _with_progress(self._run_all(target, run, plan, rows, order), len(rows), progress_bar)
        states = _in_order(finished, on_error)
        return states if generator_style else list(states)

    def _row(self, i: int, row: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(row, Mapping):
            args, kwargs = (), row
        elif isinstance(row, Sequence) and not isinstance(row, str):
            args, kwargs = tuple(row), {}
        else:
            raise ArgumentError(f"batch_kwargs[{i}] must be a dict or a tuple, not {row!r}", where=caller())
        try:
            return self.arguments(args, {**shared, **kwargs})
        except ArgumentError as error:
            error.message = f"batch_kwargs[{i}]: {error.message}"
            raise

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The program's own arguments, and the run's options."""
        own = {name: value for name, value in options.items() if name not in _RESERVED}
        return own, {name: value for name, value in options.items() if name in _RESERVED}

    def _options(self, options: Mapping[str, Any], seed: int | None) -> RunOptions:
        where = caller()
        sampling = {field: options[name] for name, field in _SAMPLING_NAMES.items() if name in options}
        wish = logprob_wish(*(options.get(name) for name in _LOGPROB_NAMES), None, where)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little") >> 1
        elif type(seed) is not int:
            raise ArgumentError(f"seed must be an integer, not {seed!r}", where=where)
        return RunOptions(sampling_overrides(sampling, where), seed, wish)

    def _order(self, plan: Plan | None, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Sequence[int]:
        """The order of submission: depth first through what the prompts share, as far as the plan knows it."""
        if plan is None or len(rows) < 2:
            return range(len(rows))
        from ..compiler.schedule import Instance, Workload, schedule

        return schedule(Workload(tuple(Instance(plan, row) for row in rows)), tokenizer).order

    def _run_one(self, backend: Backend, run: RunOptions, plan: Plan | None, arguments: dict[str, Any]) -> Task:
        from .hub import Hub

        hub = Hub(backend)
        task = self._task(hub, run, plan, arguments, 0)
        hub.run_here(task)
        return task

    def _run_all(
        self,
        backend: Backend,
        run: RunOptions,
        plan: Plan | None,
        rows: Sequence[dict[str, Any]],
        order: Sequence[int],
    ) -> Iterator[Task]:
        from .hub import Hub

        hub = Hub(backend)
        return hub.run(self._task(hub, run, plan, rows[i], i) for i in order)

    def _task(self, hub: Hub, run: RunOptions, plan: Plan | None, arguments: dict[str, Any], i: int) -> Task:
        from .hub import Task
        from .walker import walk_plan

        executor = Executor(hub, self.__name__, run, i, plan)
        if plan is not None:
            return Task(executor, lambda: walk_plan(executor, plan, arguments))
        return Task(executor, lambda: self.body(ProgramState(executor), **arguments))


def _source_line(where: SourceLoc | None) -> str:
    import linecache

    return linecache.getline(where.file, where.line) if where is not None else ""


def _with_progress(finished: Iterator[Task], total: int, is_shown: bool) -> Iterator[Task]:
    if not is_shown:
        yield from finished
        return
    from tqdm import tqdm

    with tqdm(total=total) as bar:
        for task in finished:
            bar.update()
            yield task


def _in_order(finished: Iterator[Task], on_error: str) -> Iterator[ProgramState]:
    """States in the order of the batch, each as soon as all before it are there."""
    ready: dict[int, Task] = {}
    following = 0
    for task in finished:
        ready[task.executor.instance] = task
        if on_error == "raise" and task.executor.failure is not None:
            raise task.executor.failure
        while following in ready:
            yield ProgramState(ready.pop(following).executor)
            following += 1


def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function whose first parameter is `s`: `@function` or `@function(num_api_spec_tokens=k)`.

    Raises ProgramError at the function's line if it cannot be a program.
    """
    if func is None:
        return lambda f: function(f, num_api_spec_tokens)
    if not isinstance(func, types.FunctionType):
        raise ProgramError(f"@function takes a plain function, not {func!r}", where=caller())
    return Function(func, num_api_spec_tokens)
