"""What `dslc run` runs (a function of a Python file, or a saved plan), and what it keeps of the run."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .cli_programs import CliError, host_names, host_objects, one_function, split_target
from .compiler.journal import HostJournal, Journal, JournalFile, Record
from .core.errors import ArgumentError, DslcError

if TYPE_CHECKING:
    from .compiler.plan import Plan
    from .core.backend import Backend
    from .lang.function import Function
    from .lang.hub import Hub, Task
    from .lang.options import RunOptions
    from .lang.running import Running
    from .lang.state import ProgramState
    from .runtime.engine import Engine


class Runnable:
    """A program to run: a function of a Python file, or a saved plan, which needs no Python body."""

    def __init__(
        self, function: Function | None = None, plan: Plan | None = None, hosts: Mapping[str, Any] | None = None
    ) -> None:
        """Either a function, or a plan with what the names in it stand for."""
        self.function = function
        self.plan = plan
        self.hosts = hosts or {}
        self.where = function.where if function is not None else plan.program.where if plan is not None else None

    @classmethod
    def of(cls, target: str, tools: Path | None = None) -> Runnable:
        """What a target names; `tools` is the Python file whose functions a plan may call. Raises CliError."""
        path, _ = split_target(target)
        if path.suffix != ".plan":
            if tools is not None:
                raise CliError("--tools goes with a plan: a Python file has its functions with it")
            return cls(function=one_function(target))
        from .compiler.ir import Opaque, walk
        from .compiler.plan import Plan

        try:
            plan = Plan.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"{path}: {error}") from None
        except DslcError as error:
            raise CliError(f"{path}: {error.message}") from None
        if not plan.is_whole:
            reason = next(
                (f": {op.where}: {op.reason}" for op in walk(plan.program.body) if isinstance(op, Opaque)), ""
            )
            raise CliError(f"{path}: the plan has a break, so it needs its Python body: run the Python file{reason}")
        names = host_names(plan.program)
        hosts = host_objects(names, tools)
        if missing := [name for name in names if name not in hosts]:
            advice = "name the Python file that defines it with --tools" if tools is None else f"{tools} has none of it"
            raise CliError(f"{path}: the plan calls {', '.join(missing)}: {advice}")
        return cls(plan=plan, hosts=hosts)

    @property
    def fingerprint(self) -> str:
        """Changes when the program does: its IR, and the body's source. Lines do not count."""
        from .compiler.printer import print_program

        if self.function is None:
            assert self.plan is not None
            text = print_program(self.plan.program)
        else:
            try:
                text = inspect.getsource(self.function.body) + print_program(self.function.compile())
            except (DslcError, OSError, TypeError):
                text = self.function.__qualname__
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name. Raises ArgumentError."""
        if self.function is not None:
            return self.function.arguments((), given)
        assert self.plan is not None
        title, params = self.plan.program.title, self.plan.program.params
        for name in given:
            if name not in {param.name for param in params}:
                takes = ", ".join(param.name for param in params) or "none"
                raise ArgumentError(f"{title} has no argument {name!r}; it takes {takes}")
        values = {**{param.name: param.default for param in params if param.has_default}, **given}
        missing = [param.name for param in params if param.name not in values]
        if missing:
            raise ArgumentError(f"{title} is missing the argument {', '.join(map(repr, missing))}")
        return values

    def on(self, backend: Backend, sampling: dict[str, Any], kept: Kept | None = None) -> Launched:
        """The program on a backend, ready to run rows. Raises what is wrong with options or plan."""
        from .lang.options import run_options
        from .lang.running import Running

        if self.function is not None:
            running = Running.of(self.function, {"backend": backend, **sampling}, self.function.where)
            return LaunchedFunction(running, kept)
        assert self.plan is not None
        options = run_options(sampling, self.where)
        self.plan.check_tokenizer(backend.tokenizer.hash if backend.tokenizer is not None else None)
        return LaunchedPlan(backend, self.plan, self.hosts, options, kept)


class Launched(Protocol):
    """A program on a backend. `plan` None: its body runs."""

    @property
    def plan(self) -> Plan | None: ...

    def states(self, rows: list[dict[str, Any]], todo: list[int]) -> Iterator[ProgramState]:
        """The states of the rows in `todo`, each as it ends, under its row's number (which its seed depends on).

        What the schedule arranges (`dslc.unordered`) follows from all rows: it is the same when a run goes on.
        """


class LaunchedFunction:
    """A function of a Python file: what `run_batch` does, under the rows' numbers."""

    def __init__(self, running: Running, kept: Kept | None) -> None:
        self.running = running
        self.plan = running.plan
        self.kept = kept

    def states(self, rows: list[dict[str, Any]], todo: list[int]) -> Iterator[ProgramState]:
        from .lang.together import draft_of

        running = self.running
        if running.function.is_async:
            return _async_states(running, rows, todo)
        draft = draft_of([(running, row) for row in rows]) if len(rows) > 1 else None
        orders = draft.orders if draft is not None and draft.orders else None
        numbered = numbered_type()(**{**_fields(running), "orders": orders}, numbers=tuple(todo), kept=self.kept)
        states: Iterator[ProgramState] = numbered.run_batch([rows[i] for i in todo], "auto", False, True, "keep")
        return states


def _fields(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value) if item.init}


@functools.cache
def numbered_type() -> Any:
    """`Running` whose instances carry given numbers and journals; made late, as `lang` is loaded late."""
    from .lang.running import Running

    @dataclass(frozen=True)
    class Numbered(Running):
        numbers: tuple[int, ...] = ()
        kept: Kept | None = None

        def task(self, hub: Hub, arguments: dict[str, Any], instance: int = 0, orders: Any = None) -> Task:
            task = super().task(hub, arguments, self.numbers[instance], orders)
            if self.kept is not None and self.plan is not None:
                task.executor.journal = self.kept.hosts(task.executor.title, self.numbers[instance])
            return task

    return Numbered


def _async_states(running: Running, rows: list[dict[str, Any]], todo: list[int]) -> Iterator[ProgramState]:
    """The states of an async program, in an event loop of its own."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        pending = {loop.create_task(running.arun(rows[i], i)) for i in todo}
        while pending:
            ended, pending = loop.run_until_complete(asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))
            yield from (task.result() for task in ended)
    finally:
        loop.close()


class LaunchedPlan:
    """A saved plan, with what the names in it stand for."""

    def __init__(
        self, backend: Backend, plan: Plan, hosts: Mapping[str, Any], options: RunOptions, kept: Kept | None
    ) -> None:
        from .lang.type_names import specs_of

        self.backend = backend
        self.plan = plan
        self.hosts = hosts
        self.types = specs_of(plan.types, hosts)
        self.options = options
        self.kept = kept

    def states(self, rows: list[dict[str, Any]], todo: list[int]) -> Iterator[ProgramState]:
        from .compiler.cost_kept import cost_of
        from .compiler.schedule import Instance, Workload
        from .compiler.scheduling.base import Machine
        from .compiler.scheduling.make import make_draft
        from .lang.hub import Hub
        from .lang.state import ProgramState
        from .lang.together import prepare

        hub, able = Hub(self.backend), self.backend.capabilities
        machine = Machine(hub.tokenizer, able.kv_tokens, dict(self.options.sampling), cost_of(self.backend))
        draft = make_draft(Workload(tuple(Instance(self.plan, row) for row in rows)), machine)
        prepare(hub, draft)
        wanted = frozenset(todo)
        orders = draft.orders
        tasks = (self._task(hub, rows[i], i, orders[i] if orders else None) for i in draft.order if i in wanted)
        for task in hub.run(tasks):
            yield ProgramState(task.executor)

    def _task(self, hub: Hub, arguments: dict[str, Any], number: int, orders: Any) -> Task:
        from .lang.executor import Executor
        from .lang.hub import Task
        from .lang.walker import walk_plan

        executor = Executor(hub, self.plan.program.title, self.options, number, self.plan)
        executor.hosts, executor.types = self.hosts, self.types
        if orders:
            executor.orders = orders
        if self.kept is not None:
            executor.journal = self.kept.hosts(executor.title, number)
        return Task(executor, lambda: walk_plan(executor, self.plan, arguments))


@dataclass
class Kept:
    """The journal of a run, and the record that it replays; see `compiler.journal`."""

    made_for: dict[str, Any]
    path: Path | None  # of the journal
    record: Record  # of the journal so far
    replayed: Record  # of --replay
    file: JournalFile | None = None
    journal: Journal | None = None
    host_journals: list[HostJournal] = field(default_factory=list)

    @classmethod
    def of(cls, engine: Engine, path: Path | None, replay: Path | None) -> Kept | None:
        """None if the command asks for neither. Raises CliError, or ProgramError for a file of something else."""
        if path is None and replay is None:
            return None
        if replay is not None and not replay.is_file():
            raise CliError(f"--replay {replay}: there is no such file")
        tokenizer, config = engine.tokenizer, engine.config
        made_for = {
            "model": config.model_path or "built-in",
            "tokenizer": tokenizer.hash if tokenizer is not None else None,
            "dtype": config.dtype,
            "deterministic": config.deterministic,
        }
        records = []
        for file in (path, replay):
            record = Record.load(file) if file is not None else Record()
            if file is not None:
                record.check_made_for(made_for, file)
            records.append(record)
        return cls(made_for, path, records[0], records[1])

    @property
    def seeds(self) -> list[tuple[Path, int | None]]:
        """The seed that the run has to have, by file."""
        return [(self.path, self.record.seed)] if self.path is not None else []

    @property
    def replayed_seed(self) -> int | None:
        return self.replayed.seed

    def around(self, engine: Engine, seed: int) -> Journal:
        """The engine, with what is recorded not made again."""
        if self.path is not None:
            self.file = JournalFile(self.path, self.record, seed, self.made_for)
        known = Record(seed, self.made_for, {**self.replayed.gens, **self.record.gens})
        self.journal = Journal(engine, known, self.file)
        return self.journal

    def hosts(self, program: str, instance: int) -> HostJournal:
        """The host calls of an instance. Those of `--replay` are made again: an edit may have changed what they do."""
        made = HostJournal(self.record, self.file, program, instance)
        self.host_journals.append(made)
        return made

    def report(self, plan: Plan | None) -> None:
        """Say to the standard error what was used again, and which gens were not."""
        from .compiler.timeline import op_names

        assert self.journal is not None
        num_hosts = sum(calls.num_replayed for calls in self.host_journals)
        print(
            f"journal: {self.journal.num_replayed} gens and {num_hosts} host results used again, "
            f"{self.journal.num_computed} gens computed",
            file=sys.stderr,
        )
        if self.replayed.gens:
            names = op_names(plan)
            for (program, number), count in self.journal.computed_ops.items():
                print(f"replay: {names.get((program, number), f'gen %{number}')}: {count} computed", file=sys.stderr)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
