"""`dslc run`: one run, or one for each line of a file of arguments; of a Python function or of a saved plan."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_programs import CliError, one_function, placed, split_target
from .core.config import EngineConfig
from .core.errors import ArgumentError, DslcError

if TYPE_CHECKING:
    from .compiler.plan import Plan
    from .lang.function import Function
    from .lang.hub import Hub, Task
    from .lang.state import ProgramState
    from .runtime.engine import Engine


def add_run(verbs: Any) -> None:
    parser = verbs.add_parser(
        "run",
        help="run a program and print its text and variables",
        description="Run one program of a Python file on a model; print its text, then its variables as JSON.",
    )
    add = parser.add_argument
    add("program", metavar="FILE[:NAME]", help="a Python file, and which of its programs; or a plan saved as .plan")
    add("--args", type=Path, metavar="FILE", help="run once for each line: a JSON object of arguments")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="where results of --args go, a line each; what it holds is not run again",
    )
    add("--arg", action="append", default=[], metavar="NAME=TEXT", help="an argument of the program; may be repeated")
    add("--arg-json", action="append", default=[], metavar="NAME=JSON", help="the same, read as JSON")
    add(
        "--sampling",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a sampling option of the run, as in SGLang",
    )
    add("--model", metavar="PATH", help="a model folder or hub name (default: the built-in model)")
    add("--json", action="store_true", help="print one JSON object: text, variables, ret_value")
    group = parser.add_argument_group("engine options", "as in dslc.Engine(...)")
    for option in dataclasses.fields(EngineConfig):
        if option.name != "model_path":
            _add_engine_option(group, option)
    parser.set_defaults(verb=_run)


def _add_engine_option(group: Any, option: dataclasses.Field[Any]) -> None:
    flag, kind = "--" + option.name.replace("_", "-"), str(option.type)
    if kind == "bool":
        group.add_argument(flag, dest=option.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        return
    read: Callable[[str], Any] = int if kind.startswith("int") else float if kind.startswith("float") else str
    group.add_argument(flag, dest=option.name, type=read, default=argparse.SUPPRESS, metavar="VALUE")


def _run(arguments: argparse.Namespace) -> int:
    runnable = _runnable(arguments.program)
    values: dict[str, Any] = dict(_pair(text, "--arg") for text in arguments.arg)
    values.update(_json_pair(text, "--arg-json") for text in arguments.arg_json)
    sampling = dict(_json_pair(text, "--sampling") for text in arguments.sampling)
    options = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(EngineConfig) if f.name in arguments}
    if (arguments.args is None) != (arguments.out is None):
        raise CliError("--args FILE and --out FILE go together: one line of results for each line of arguments")
    rows = [values] if arguments.args is None else _rows(arguments.args, values)
    bound = []
    for number, row in enumerate(rows):
        try:
            bound.append(runnable.arguments(row))  # before a model is loaded
        except ArgumentError as error:
            place = f"{arguments.args}:{number + 1}: " if arguments.args is not None else f"{runnable.where}: "
            raise CliError(place + error.message) from None
    from . import Engine

    engine = Engine(model_path=arguments.model, **options)
    try:
        if arguments.args is not None:
            return _run_rows(runnable, engine, bound, sampling, arguments.out)
        (state,) = runnable.states(engine, bound, [0], sampling)
        failure = state.error()
        if failure is not None:
            raise failure
        _print_state(state, arguments.json)
    except DslcError:
        raise
    except Exception as error:
        raise placed(error, split_target(arguments.program)[0]) from error
    finally:
        engine.close()
    return 0


def _print_state(state: ProgramState, as_json: bool) -> None:
    result = _result(state)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=repr))
        return
    print(result["text"])
    print(json.dumps(result["variables"], ensure_ascii=False, indent=1, default=repr))
    if result["ret_value"] is not None:
        print(f"returned {result['ret_value']!r}")


def _result(state: ProgramState) -> dict[str, Any]:
    from .lang.executor import Executor

    assert isinstance(state.sink, Executor)  # the sink of a state that has run
    names = list(state.sink.streams[state.stream].variables)
    variables = {name: state[name] for name in names}
    return {"text": state.text(), "variables": variables, "ret_value": state.ret_value}


def _rows(path: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments in a file of JSON objects, one a line, over those given to all."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {error}") from None
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CliError(f"{path}:{number + 1}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise CliError(f"{path}:{number + 1}: must be a JSON object of arguments, not {line[:40]!r}")
        rows.append({**shared, **row})
    return rows


def _run_rows(
    runnable: _Runnable, engine: Engine, rows: list[dict[str, Any]], sampling: dict[str, Any], out: Path
) -> int:
    """A result line for each row, as it ends. Rows that `out` holds already are not run again."""
    done, seed = _results_so_far(out)
    if seed is not None and sampling.setdefault("seed", seed) != seed:
        raise CliError(f"{out}: holds results of a run with the seed {seed}, not {sampling['seed']}")
    sampling.setdefault("seed", int.from_bytes(os.urandom(7), "little"))
    num_failed = 0
    todo = [i for i in range(len(rows)) if i not in done]
    with out.open("a", encoding="utf-8") as file:
        for state in runnable.states(engine, rows, todo, sampling):
            error = state.error()
            num_failed += error is not None
            found = (
                _result(state) if error is None else {"error": {"kind": type(error).__name__, "message": str(error)}}
            )
            line = {"index": state.index, "seed": sampling["seed"], "arguments": rows[state.index], **found}
            file.write(json.dumps(line, ensure_ascii=False, default=repr) + "\n")
            file.flush()
    print(f"{len(todo)} run, {len(done)} there before, {num_failed} failed: {out}", file=sys.stderr)
    return 1 if num_failed else 0


def _results_so_far(out: Path) -> tuple[set[int], int | None]:
    """The rows whose results a file holds, and their run seed. A line cut off by an interruption is taken away."""
    if not out.exists():
        return set(), None
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done: set[int] = set()
    seed: int | None = None
    for number, line in enumerate(whole.decode("utf-8").splitlines()):
        try:
            found = json.loads(line)
            done.add(found["index"])
            seed = found["seed"]
        except (ValueError, KeyError, TypeError):
            raise CliError(f"{out}:{number + 1}: not a result line of dslc run; name another file") from None
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return done, seed


class _Runnable:
    """A program to run: a function of a Python file, or a saved plan, which needs no Python body."""

    def __init__(self, function: Function | None = None, plan: Plan | None = None) -> None:
        """Exactly one of the two."""
        self.function = function
        self.plan = plan
        self.where = function.where if function is not None else plan.program.where if plan is not None else None

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

    def states(
        self, engine: Engine, rows: list[dict[str, Any]], todo: list[int], sampling: dict[str, Any]
    ) -> Iterator[ProgramState]:
        """The states of the rows in `todo`, each as it ends, under its row's number (which its seed depends on)."""
        from .compiler.schedule import Instance, Workload, schedule
        from .lang.hub import Hub
        from .lang.state import ProgramState

        hub = Hub(engine)
        make, plan = self._maker(hub, engine, sampling)
        order: Sequence[int] = todo
        if plan is not None and len(todo) > 1:
            workload = Workload(tuple(Instance(plan, rows[i]) for i in todo))
            order = [todo[i] for i in schedule(workload, engine.tokenizer).order]
        for task in hub.run(make(rows[i], i) for i in order):
            yield ProgramState(task.executor)

    def _maker(
        self, hub: Hub, engine: Engine, sampling: dict[str, Any]
    ) -> tuple[Callable[[dict[str, Any], int], Task], Plan | None]:
        """What makes the task of one instance, and the plan that it walks, if it does."""
        from .lang.executor import Executor
        from .lang.hub import Task
        from .lang.options import run_options
        from .lang.running import Running
        from .lang.walker import walk_plan

        if self.function is not None:
            running = Running.of(self.function, {"backend": engine, **sampling}, self.function.where)
            return functools.partial(running.task, hub), running.plan
        assert self.plan is not None
        plan, options = self.plan, run_options(sampling, self.where)
        plan.check_tokenizer(engine.tokenizer.hash if engine.tokenizer is not None else None)

        def walk(arguments: dict[str, Any], instance: int) -> Task:
            executor = Executor(hub, plan.program.title, options, instance, plan)
            return Task(executor, lambda: walk_plan(executor, plan, arguments))

        return walk, plan


def _runnable(target: str) -> _Runnable:
    path, _ = split_target(target)
    if path.suffix != ".plan":
        return _Runnable(function=one_function(target))
    from .compiler.plan import Plan

    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {error}") from None
    except DslcError as error:
        raise CliError(f"{path}: {error.message}") from None
    if not plan.is_whole:
        raise CliError(f"{path}: the plan has a break, so it needs its Python body: run the Python file")
    return _Runnable(plan=plan)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CliError(f"{option} {text!r}: write it as NAME=VALUE")
    return name, value


def _json_pair(text: str, option: str) -> tuple[str, Any]:
    name, value = _pair(text, option)
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise CliError(f"{option} {name}: {value!r} is not JSON: {error}") from None
