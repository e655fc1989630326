"""`dslc`: compile, run and look at programs from the shell. A verb imports what it needs when it is called."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.config import EngineConfig
from .core.errors import ArgumentError, DslcError

if TYPE_CHECKING:
    from .compiler.ir import Program
    from .compiler.plan import Plan
    from .core.text.tokenizer import Tokenizer
    from .lang.function import Function

MODULE_NAME = "__dslc_program__"  # not "__main__": the file's own entry point does not run
EMITS = ("ir", "json", "lowered", "plan", "plan-json", "explain")
BUILTIN_MODEL = Path(__file__).parent / "runtime" / "builtin" / "dslc_tiny"


class CliError(Exception):
    """What is wrong with the command or the user's file, as a line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 1 for an error in a program or its input; 2 for bad usage."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.verb
    try:
        return run(arguments)
    except (CliError, DslcError) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader went away, as in `dslc compile ... | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dslc", description="Compile and run structured LLM programs.")
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_compile(verbs)
    _add_check(verbs)
    _add_run(verbs)
    version = verbs.add_parser("version", help="print the version")
    version.set_defaults(verb=_print_version)
    return parser


def _version() -> str:
    from . import __version__

    return __version__


def _print_version(arguments: argparse.Namespace) -> int:
    print(_version())
    return 0


# compile


def _add_compile(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compile",
        help="trace a program and print what the compiler makes of it",
        description="Trace the programs of a Python file, or read a program saved as .ir or .json, and print them.",
    )
    add = parser.add_argument
    add("program", metavar="FILE[:NAME]", help="a Python file, and which of its programs (default: all)")
    add("--emit", metavar="FORM[,FORM]", help=f"what to print: {', '.join(EMITS)} (default: ir; plan-json with -o)")
    add("-o", "--output", type=Path, metavar="FILE", help="write there instead of the standard output")
    add("--strict", action="store_true", help="fail where the compiler cannot follow the program")
    add("--lines", action="store_true", help="show each op's line in the source")
    add(
        "--explain",
        action="store_true",
        help="say for each gen what is known, shared and cached, and what is not and why",
    )
    add("--stats", action="store_true", help="print counts of the plan, to the standard error")
    add("--print-after-all", action="store_true", help="print after each pass, to the standard error")
    add("--no-pass", action="append", default=[], metavar="NAME", help="leave a pass out; may be repeated")
    add("--model", metavar="PATH", help="the model whose tokenizer the plan is for (default: the built-in one)")
    parser.set_defaults(verb=_compile)


def _compile(arguments: argparse.Namespace) -> int:
    from .compiler.passes.base import CompileOptions
    from .compiler.pipeline import check_pass_names, compile_program, plan_stats
    from .compiler.verifier import verify

    emits = _emits(arguments)
    check_pass_names(tuple(arguments.no_pass))
    options = CompileOptions(disabled=tuple(arguments.no_pass))
    tell = _tell_pass if arguments.print_after_all else None
    texts: list[str] = []
    tokenizer: Tokenizer | None = None
    for program in _programs(arguments.program, arguments.strict):
        plan: Plan | None = None
        if arguments.stats or arguments.print_after_all or not {"ir", "json"}.issuperset(emits):
            tokenizer = tokenizer or _load_tokenizer(arguments.model)
            plan = compile_program(program, tokenizer, None, options, tell)
        elif "verify" not in options.disabled:
            verify(program)
        texts += [_form(form, program, plan, tokenizer, arguments.lines) for form in emits]
        if arguments.stats and plan is not None:
            for name, count in plan_stats(plan).items():
                print(f"{program.title}: {name} {count}", file=sys.stderr)
        _tell_breaks(program)
    if arguments.output is None:
        sys.stdout.write("\n".join(texts))
    else:
        arguments.output.write_text("\n".join(texts), encoding="utf-8")
    return 0


def _emits(arguments: argparse.Namespace) -> list[str]:
    default = "explain" if arguments.explain else "ir" if arguments.output is None else "plan-json"
    emits = [form.strip() for form in (arguments.emit or default).split(",")]
    for form in emits:
        if form not in EMITS:
            raise CliError(f"--emit: there is no form {form!r}; there are {', '.join(EMITS)}")
    return emits


def _form(form: str, program: Program, plan: Plan | None, tokenizer: Tokenizer | None, with_lines: bool) -> str:
    from .compiler.explain import print_explanation
    from .compiler.plan import print_plan
    from .compiler.printer import print_program
    from .compiler.serial import to_json

    if form == "json":
        return to_json(program, indent=1) + "\n"
    if form == "ir" or plan is None:
        return print_program(program, with_lines)
    if form == "explain":
        return print_explanation(plan, tokenizer)
    if form == "lowered":
        return print_program(plan.program, with_lines)
    return print_plan(plan) if form == "plan" else plan.to_json() + "\n"


def _tell_pass(name: str, text: str) -> None:
    print(f"# after {name}\n{text}", file=sys.stderr)


def _tell_breaks(program: Program) -> None:
    from .compiler.ir import Opaque, walk

    for op in walk(program.body):
        if isinstance(op, Opaque):
            place = f"{op.where}: " if op.where is not None else ""
            print(f"{place}the rest of {program.title!r} runs in Python: {op.reason}", file=sys.stderr)


# check


def _add_check(verbs: Any) -> None:
    parser = verbs.add_parser(
        "check",
        help="find mistakes in programs without running them",
        description="Report what is wrong with the programs of a file, or looks like a mistake (see docs/check.md). "
        "Exit code 1 if there are errors.",
    )
    add = parser.add_argument
    add("program", nargs="+", metavar="FILE[:NAME]", help="Python files, and which of their programs (default: all)")
    add("--strict", action="store_true", help="count warnings as errors")
    add("--model", metavar="PATH", help="the model the programs are for (default: the built-in one)")
    add("--context-length", type=int, metavar="TOKENS", help="the model's context (default: what its config says)")
    parser.set_defaults(verb=_check)


def _check(arguments: argparse.Namespace) -> int:
    from .compiler.check import Finding, Model, check

    tokenizer = _load_tokenizer(arguments.model)
    model = Model(tokenizer, arguments.context_length or _context_length(arguments.model))
    counts = dict.fromkeys(("error", "warning", "note"), 0)
    for target in arguments.program:
        findings: list[Finding] = []
        for make in _program_makers(target):
            try:
                findings += check(make(), model)
            except DslcError as error:
                findings.append(Finding("error", "program", error.message, error.where))
        for finding in dict.fromkeys(findings):
            counts[finding.level] += 1
            print(finding)
    if counts["error"] or counts["warning"]:
        print(f"{counts['error']} errors, {counts['warning']} warnings", file=sys.stderr)
    return 1 if counts["error"] or (arguments.strict and counts["warning"]) else 0


def _context_length(model: str | None) -> int | None:
    """`max_position_embeddings` of a model folder's config; None if it is not there to read."""
    path = Path(model if model is not None else BUILTIN_MODEL) / "config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    return found if isinstance(found, int) else None


# run


def _add_run(verbs: Any) -> None:
    parser = verbs.add_parser(
        "run",
        help="run a program and print its text and variables",
        description="Run one program of a Python file on a model; print its text, then its variables as JSON.",
    )
    add = parser.add_argument
    add("program", metavar="FILE[:NAME]", help="a Python file, and which of its programs")
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
    function = _one_function(arguments.program)
    values: dict[str, Any] = dict(_pair(text, "--arg") for text in arguments.arg)
    values.update(_json_pair(text, "--arg-json") for text in arguments.arg_json)
    sampling = dict(_json_pair(text, "--sampling") for text in arguments.sampling)
    options = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(EngineConfig) if f.name in arguments}
    try:
        function.arguments((), values)  # before a model is loaded
    except ArgumentError as error:
        raise CliError(f"{function.where}: {error.message}") from None
    from . import Engine
    from .lang.executor import Executor

    engine = Engine(model_path=arguments.model, **options)
    try:
        state = function.run(backend=engine, **values, **sampling)
        assert isinstance(state.sink, Executor)  # the sink of a state that has run
        names = list(state.sink.streams[state.stream].variables)
        variables = {name: state[name] for name in names}
        if arguments.json:
            result = {"text": state.text(), "variables": variables, "ret_value": state.ret_value}
            print(json.dumps(result, ensure_ascii=False, default=repr))
        else:
            print(state.text())
            print(json.dumps(variables, ensure_ascii=False, indent=1, default=repr))
            if state.ret_value is not None:
                print(f"returned {state.ret_value!r}")
    except DslcError:
        raise
    except Exception as error:
        raise _placed(error, _split_target(arguments.program)[0]) from error
    finally:
        engine.close()
    return 0


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


# Finding programs


def _programs(target: str, strict: bool) -> Iterator[Program]:
    return (make() for make in _program_makers(target, strict))


def _program_makers(target: str, strict: bool = False) -> list[Callable[[], Program]]:
    """For each program named by the target, what reads or traces it; each may raise on its own."""
    path, _ = _split_target(target)
    if path.suffix in (".ir", ".json"):
        return [lambda: _read_program(path)]
    return [functools.partial(function.compile, strict=strict) for function in _functions(target)]


def _read_program(path: Path) -> Program:
    from .compiler.parser import parse_program
    from .compiler.serial import from_json

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {error}") from None
    if path.suffix == ".ir":
        return parse_program(text, str(path))
    try:
        return from_json(text)
    except DslcError as error:
        raise CliError(f"{path}: {error.message}") from None


def _one_function(target: str) -> Function:
    found = _functions(target)
    if len(found) > 1:
        path, _ = _split_target(target)
        names = ", ".join(f"{path}:{function.__name__}" for function in found)
        raise CliError(f"{path}: there are several programs; name one: {names}")
    return found[0]


def _functions(target: str) -> list[Function]:
    """The program named in `FILE:NAME`, or all of a file, in the order of their definition."""
    from .lang.function import Function

    path, name = _split_target(target)
    module = _load(path)
    if name:
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part, None)
        if not isinstance(value, Function):
            what = "is not there" if value is None else f"is a {type(value).__name__}, not a program"
            raise CliError(f"{path}: {name!r} {what}; the programs are {_names(module) or 'none'}")
        return [value]
    found = [value for value in vars(module).values() if isinstance(value, Function)]
    own = [value for value in dict.fromkeys(found) if value.body.__module__ == MODULE_NAME]
    if not own:
        raise CliError(f"{path}: there is no program in it (a function with @dslc.function)")
    return own


def _names(module: types.ModuleType) -> str:
    from .lang.function import Function

    return ", ".join(name for name, value in vars(module).items() if isinstance(value, Function))


def _split_target(target: str) -> tuple[Path, str]:
    """`FILE[:NAME]`; the colon of a drive letter is none of ours."""
    file, colon, name = target.rpartition(":")
    if colon and file and all(part.isidentifier() for part in name.split(".")) and not Path(target).exists():
        return Path(file), name
    return Path(target), ""


def _load(path: Path) -> types.ModuleType:
    """The file as a module, as `python FILE` would run it, but not as __main__."""
    if not path.is_file():
        raise CliError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise CliError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except DslcError:
        raise
    except SyntaxError as error:
        raise CliError(f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}") from None
    except Exception as error:
        raise _placed(error, path) from error
    return module


def _placed(error: Exception, path: Path) -> CliError:
    """An exception of the user's code as one line, with the innermost line of the user's file that it came through."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)]
    place = f"{path}:{steps[-1].lineno}" if steps else str(path)
    return CliError(f"{place}: {type(error).__name__}: {error}")


def _load_tokenizer(model: str | None) -> Tokenizer:
    from .core.text.load import load_tokenizer

    return load_tokenizer(model if model is not None else BUILTIN_MODEL)
