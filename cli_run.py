"""`dslc run`: one run, or one for each line of a file of arguments; of a Python function or of a saved plan."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_programs import CliError, placed, split_target
from .core.config import EngineConfig
from .core.errors import ArgumentError, DslcError

if TYPE_CHECKING:
    from .cli_results import Results
    from .cli_runnable import Kept, Launched, Runnable
    from .core.backend import Backend
    from .lang.state import ProgramState
    from .runtime.engine import Engine


def add_run(verbs: Any) -> None:
    parser = verbs.add_parser(
        "run",
        help="run a program and print its text and variables",
        description="Run one program of a Python file on a model; print its text, then its variables as JSON.",
        usage="dslc run [OPTION ...] FILE[:NAME]",  # the engine's options alone would be a page
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
    add("--tools", type=Path, metavar="FILE", help="the Python file whose functions a .plan may call")
    add("--json", action="store_true", help="print one JSON object: text, variables, ret_value")
    add("--trace", action="store_true", help="print what was measured of each gen, to the standard error")
    add("--timeline", type=Path, metavar="FILE", help="write the run's requests over time as an HTML page")
    add(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keep each finished gen and host result there; what it holds of an interrupted run is not made again",
    )
    add(
        "--replay",
        type=Path,
        metavar="FILE",
        help="use again the gens of that journal whose prompt, sampling and seed are the same, as after an edit",
    )
    add_engine_options(parser)
    parser.set_defaults(verb=_run)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """All options of an engine but its model."""
    group = parser.add_argument_group("engine options", "as in dslc.Engine(...)")
    for option in dataclasses.fields(EngineConfig):
        if option.name != "model_path":
            _add_engine_option(group, option)


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {f.name: getattr(arguments, f.name) for f in dataclasses.fields(EngineConfig) if f.name in arguments}


def _add_engine_option(group: Any, option: dataclasses.Field[Any]) -> None:
    flag, kind = "--" + option.name.replace("_", "-"), str(option.type)
    if kind == "bool":
        group.add_argument(flag, dest=option.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        return
    if kind.startswith("bool"):  # or a word, such as "step"
        group.add_argument(flag, dest=option.name, type=_bool_or_word, default=argparse.SUPPRESS, metavar="VALUE")
        return
    read: Callable[[str], Any] = int if kind.startswith("int") else float if kind.startswith("float") else str
    group.add_argument(flag, dest=option.name, type=read, default=argparse.SUPPRESS, metavar="VALUE")


def _bool_or_word(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def _run(arguments: argparse.Namespace) -> int:
    from .cli_runnable import Runnable

    runnable = Runnable.of(arguments.program, arguments.tools)
    values: dict[str, Any] = dict(_pair(text, "--arg") for text in arguments.arg)
    values.update(_json_pair(text, "--arg-json") for text in arguments.arg_json)
    sampling = sampling_options(arguments.sampling)
    options = engine_options(arguments)
    if (arguments.args is None) != (arguments.out is None):
        raise CliError("--args FILE and --out FILE go together: one line of results for each line of arguments")
    rows = [values] if arguments.args is None else _rows(arguments.args, values)
    bound = _bound(runnable, rows, arguments.args)  # before a model is loaded
    from . import Engine

    engine = Engine(model_path=arguments.model, **options)
    try:
        return _run_on(engine, runnable, bound, sampling, arguments)
    except DslcError:
        raise
    except CliError:
        raise
    except Exception as error:
        raise placed(error, split_target(arguments.program)[0]) from error
    finally:
        engine.close()


def _bound(runnable: Runnable, rows: list[dict[str, Any]], file: Path | None) -> list[dict[str, Any]]:
    """All arguments of each row. Raises CliError with the row's line."""
    bound = []
    for number, row in enumerate(rows):
        try:
            bound.append(runnable.arguments(row))
        except ArgumentError as error:
            place = f"{file}:{number + 1}: " if file is not None else f"{runnable.where}: "
            raise CliError(place + error.message) from None
    return bound


def _run_on(
    engine: Engine,
    runnable: Runnable,
    rows: list[dict[str, Any]],
    sampling: dict[str, Any],
    arguments: argparse.Namespace,
) -> int:
    """Run the rows, with what the command wants to be watched, kept and reported."""
    from .cli_results import Results, run_name
    from .cli_runnable import Kept

    results = None
    if arguments.out is not None:
        results = Results(arguments.out, run_name(runnable.fingerprint, arguments.model, sampling))
        results.check_rows(rows, arguments.args)
    kept = Kept.of(engine, arguments.journal, arguments.replay)
    try:
        sampling["seed"] = _seed(sampling, results, kept)
        backend: Backend = kept.around(engine, sampling["seed"]) if kept is not None else engine
        watched = None
        if arguments.trace or arguments.timeline is not None:
            from .cli_trace import watch

            backend = watched = watch(engine, backend, arguments.timeline is not None)
        launched = runnable.on(backend, sampling, kept)
        if results is not None:
            code = _run_rows(launched, rows, sampling["seed"], results)
        else:
            (state,) = launched.states(rows, [0])
            failure = state.error()
            if failure is not None:
                raise failure
            _print_state(state, arguments.json)
            code = 0
        if kept is not None:
            kept.report(launched.plan)
        if watched is not None:
            from .cli_trace import report

            report(watched, launched.plan, arguments.trace, arguments.timeline)
        return code
    finally:
        if kept is not None:
            kept.close()
        if results is not None:
            results.close()


def _seed(sampling: dict[str, Any], results: Results | None, kept: Kept | None) -> int:
    """The run's seed: as given, or as a file that the run goes on with says; otherwise drawn."""
    known = [(results.path, results.seed)] if results is not None else []
    known += kept.seeds if kept is not None else []
    given = sampling.get("seed")
    for path, seed in known:
        if seed is not None and given is not None and seed != given:
            raise CliError(f"{path}: holds results of a run with the seed {seed}, not {given}")
        given = seed if given is None else given
    if given is None and kept is not None and kept.replayed_seed is not None:
        given = kept.replayed_seed
    return given if given is not None else int.from_bytes(os.urandom(7), "little")


def _print_state(state: ProgramState, as_json: bool) -> None:
    from .cli_results import plain

    result = _result(state)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=plain))
        return
    if result["text"] is not None:
        print(result["text"])
    print(json.dumps(result["variables"], ensure_ascii=False, indent=1, default=plain))
    if result["ret_value"] is not None:
        print(f"returned {result['ret_value']!r}")


def _result(state: ProgramState) -> dict[str, Any]:
    """What a run gives: with declared outputs only these, and no text, as not all of it was run."""
    from .lang.executor import Executor

    assert isinstance(state.sink, Executor)  # the sink of a state that has run
    outputs = state.sink.outputs
    names = [name for name in state.sink.streams[state.stream].variables if outputs is None or name in outputs]
    variables = {name: state[name] for name in names}
    return {
        "text": state.text() if outputs is None else None,
        "variables": variables,
        "ret_value": state.ret_value,
    }


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


def _run_rows(launched: Launched, rows: list[dict[str, Any]], seed: int, results: Results) -> int:
    """A result line for each row, as it ends. Rows whose results are there already are not run again."""
    num_failed = 0
    todo = [i for i in range(len(rows)) if i not in results.done]
    for state in launched.states(rows, todo):
        error = state.error()
        num_failed += error is not None
        found = _result(state) if error is None else {"error": {"kind": type(error).__name__, "message": str(error)}}
        results.write(state.index, seed, rows[state.index], found)
    there = len(rows) - len(todo)
    print(f"{len(todo)} run, {there} there before, {num_failed} failed: {results.path}", file=sys.stderr)
    return 1 if num_failed else 0


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CliError(f"{option} {text!r}: write it as NAME=VALUE")
    return name, value


def sampling_options(texts: list[str]) -> dict[str, Any]:
    """What `--sampling` gives. Raises CliError for what is no such option."""
    from .lang.checks import LOGPROB_NAMES
    from .lang.options import SAMPLING_NAMES

    known = {*SAMPLING_NAMES, *LOGPROB_NAMES, "seed", "timeout", "token_budget", "history"}
    found = dict(_json_pair(text, "--sampling") for text in texts)
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise CliError(f"--sampling {name}: there is no such option; {hint}")
    return found


def _json_pair(text: str, option: str) -> tuple[str, Any]:
    name, value = _pair(text, option)
    try:
        return name, json.loads(value)
    except ValueError as error:
        text = f" (a text is written with its quotes: {name}={json.dumps(value)!r})" if value[:1].isalpha() else ""
        raise CliError(f"{option} {name}: {value!r} is not JSON: {error}{text}") from None
