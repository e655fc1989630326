"""`dslc`: compile, run and look at programs from the shell. A verb imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_calibrate import add_calibrate
from .cli_compile import Compiling, kept_on_disk, refuse_unsaveable, write_whole
from .cli_programs import BUILTIN_MODEL, CliError, function_of, load_tokenizer_of, outputs_of, program_makers
from .cli_record import add_record
from .cli_repl import add_repl
from .cli_run import add_run
from .core.errors import DslcError

if TYPE_CHECKING:
    from .compiler.ir import Program
    from .compiler.plan import Plan
    from .core.backend import Capabilities

EMITS = ("ir", "json", "lowered", "plan", "plan-json", "explain", "html", "dot")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 1 for an error in a program or its input; 2 for bad usage."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    run: Callable[[argparse.Namespace], int] = arguments.verb
    try:
        with kept_on_disk():
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


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments. Leaves with exit code 2 where there is none, or one that it does not have."""
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"{argv[0]} has no {unknown[0]}{_advice(argv[0], unknown)}")
    return arguments


def _advice(verb: str, unknown: Sequence[str]) -> str:
    """What to write instead of an option of sampling, or where the options are."""
    from .lang.options import SAMPLING_NAMES

    option, _, value = unknown[0].partition("=")
    name = option.lstrip("-").replace("-", "_")
    if verb in ("run", "repl") and name in SAMPLING_NAMES:
        return f": an option of sampling is given as --sampling {name}={value or ''.join(unknown[1:2]) or 'VALUE'}"
    return f"; `dslc {verb} --help` says what there is"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dslc", description="Compile and run structured LLM programs.")
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_compile(verbs)
    _add_check(verbs)
    add_run(verbs)
    add_calibrate(verbs)
    add_repl(verbs)
    add_record(verbs)
    env = verbs.add_parser("check-env", help="print versions, devices and kernels of this machine, with advice")
    env.set_defaults(verb=_check_env)
    version = verbs.add_parser("version", help="print the version")
    version.set_defaults(verb=_print_version)
    return parser


def _version() -> str:
    from . import __version__

    return __version__


def _check_env(arguments: argparse.Namespace) -> int:
    from .runtime.check_env import check_environment

    print(check_environment())
    return 0


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
    add("--pass", action="append", dest="only", metavar="NAME", help="run this pass only; may be repeated")
    add("--model", metavar="PATH", help="the model whose tokenizer the plan is for (default: the built-in one)")
    parser.set_defaults(verb=_compile)


def _compile(arguments: argparse.Namespace) -> int:
    from .compiler.passes.base import CompileOptions
    from .compiler.pipeline import PASS_NAMES, check_pass_names

    emits = _emits(arguments)
    disabled = list(arguments.no_pass)
    check_pass_names((*disabled, *(arguments.only or ())))
    if arguments.only is not None:
        disabled += [name for name in PASS_NAMES if name not in arguments.only]
    options = CompileOptions(disabled=tuple(dict.fromkeys(disabled)))
    compiling = Compiling(arguments.model, options)
    needs_plan = arguments.stats or arguments.print_after_all or not {"ir", "json", "dot"}.issuperset(emits)
    texts: list[str] = []
    for make in program_makers(arguments.program, arguments.strict):
        program = make()
        compiling.options = replace(options, outputs=outputs_of(make))
        plan: Plan | None = None
        if needs_plan:
            plan = compiling.plan(program, _tell_pass if arguments.print_after_all else None)
            plan = replace(plan, types=getattr(function_of(make), "type_names", ()))
        else:
            compiling.verify(program)
        if "plan-json" in emits:
            refuse_unsaveable(program)
        texts += [_form(form, program, plan, compiling, arguments.lines) for form in emits]
        if arguments.stats and plan is not None:
            for name, count in compiling.stats(program, plan).items():
                print(f"{program.title}: {name} {count}", file=sys.stderr)
        _tell_breaks(program)
    if arguments.output is None:
        sys.stdout.write("\n".join(texts))
    else:
        write_whole(arguments.output, "\n".join(texts))
    return 0


def _emits(arguments: argparse.Namespace) -> list[str]:
    default = "explain" if arguments.explain else "ir" if arguments.output is None else "plan-json"
    emits = [form.strip() for form in (arguments.emit or default).split(",")]
    for form in emits:
        if form not in EMITS:
            raise CliError(f"--emit: there is no form {form!r}; there are {', '.join(EMITS)}")
    return emits


def _form(form: str, program: Program, plan: Plan | None, compiling: Compiling, with_lines: bool) -> str:
    from .compiler.plan import print_plan
    from .compiler.printer import print_program

    if form == "json":
        from .compiler.serial import to_json

        return to_json(program, indent=1) + "\n"
    if form == "dot":
        from .compiler.page import print_dot

        return print_dot(program)
    if form == "ir" or plan is None:
        return print_program(program, with_lines)
    if form == "explain":
        from .compiler.explain import print_explanation
        from .core.picture_tokens import picture_tokens

        return print_explanation(plan, compiling.tokenizer, picture_tokens(compiling.model))
    if form == "html":
        from .compiler.page import print_page

        return print_page(program, plan, compiling.tokenizer) + "\n"
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
    from .core.picture_tokens import picture_tokens

    tokenizer = load_tokenizer_of(arguments.model)
    context_length = arguments.context_length or _context_length(arguments.model)
    pictures = picture_tokens(arguments.model)
    able = replace(engine_capabilities(), media=pictures.kinds) if pictures is not None else engine_capabilities()
    model = Model(tokenizer, context_length, able, pictures)
    counts = dict.fromkeys(("error", "warning", "note"), 0)
    for target in arguments.program:
        findings: list[Finding] = []
        for make in program_makers(target):
            try:
                findings += check(make(), model, outputs_of(make))
            except DslcError as error:
                findings.append(Finding("error", "program", error.message, error.where))
        for finding in dict.fromkeys(findings):
            counts[finding.level] += 1
            print(finding)
    if counts["error"] or counts["warning"]:
        print(f"{counts['error']} errors, {counts['warning']} warnings", file=sys.stderr)
    return 1 if counts["error"] or (arguments.strict and counts["warning"]) else 0


def engine_capabilities() -> Capabilities:
    """What the engine can do, known without loading one: of `Engine.capabilities` what programs can ask for."""
    from .compiler.constraints.engines import constraint_engine
    from .core.backend import Capabilities

    return Capabilities("dslc", constraint_engine("auto").kinds, scoring=True, logprobs=True)


def _context_length(model: str | None) -> int | None:
    """`max_position_embeddings` of a model folder's config; None if it is not there to read."""
    path = Path(model if model is not None else BUILTIN_MODEL) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    inner = config.get("text_config") or {}
    found = config.get("max_position_embeddings") or inner.get("max_position_embeddings")
    return found if isinstance(found, int) else None
