"""Finding programs for the shell: a Python file's functions, programs saved as .ir or .json, and what loads them."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import DslcError, place_of

if TYPE_CHECKING:
    from .compiler.ir import Program
    from .core.text.tokenizer import Tokenizer
    from .lang.function import Function

MODULE_NAME = "__dslc_program__"  # not "__main__": the file's own entry point does not run
BUILTIN_MODEL = Path(__file__).parent / "runtime" / "builtin" / "dslc_tiny"


class CliError(Exception):
    """What is wrong with the command or the user's file, as a line for the user."""


def program_makers(target: str, strict: bool = False) -> list[Callable[[], Program]]:
    """For each program named by the target, what reads or traces it; each may raise on its own."""
    path, _ = split_target(target)
    if path.suffix in (".ir", ".json"):
        return [lambda: _read_program(path)]
    return [functools.partial(function.compile, strict=strict) for function in functions_of(target)]


def outputs_of(make: Callable[[], Program]) -> tuple[str, ...] | None:
    """The outputs that the program declares, which this makes; None if it declares none."""
    outputs: tuple[str, ...] | None = getattr(function_of(make), "outputs", None)
    return outputs


def function_of(make: Callable[[], Program]) -> Function | None:
    """The function whose program this makes; None for a program that is read from a file."""
    found: Function | None = getattr(getattr(make, "func", None), "__self__", None)
    return found


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


def one_function(target: str) -> Function:
    """The one program a target names. Raises CliError if the file has several and none is named."""
    found = functions_of(target)
    if len(found) > 1:
        path, _ = split_target(target)
        names = ", ".join(f"{path}:{function.__name__}" for function in found)
        raise CliError(f"{path}: there are several programs; name one: {names}")
    return found[0]


def functions_of(target: str) -> list[Function]:
    """The program named in `FILE:NAME`, or all of a file, in the order of their definition."""
    from .lang.function import Function

    path, name = split_target(target)
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


def split_target(target: str) -> tuple[Path, str]:
    """`FILE[:NAME]`; the colon of a drive letter is none of ours."""
    file, colon, name = target.rpartition(":")
    if colon and file and all(part.isidentifier() for part in name.split(".")) and not Path(target).exists():
        return Path(file), name
    return Path(target), ""


def host_names(program: Program) -> list[str]:
    """The names of functions and values of the user's process that a program needs, in order, each once."""
    from .compiler.ir import Expr, Host, walk

    names: list[Any] = []
    for op in walk(program.body):
        if isinstance(op, Host):
            names += [op.function, *op.catches]
        elif isinstance(op, Expr) and op.fn == "captured":
            names.append(op.args[0])
    apart = ("()", ".", "expr:", "state:")
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and not name.startswith(apart)]


def host_objects(names: Sequence[str], path: Path | None) -> dict[str, Any]:
    """What names in a plan stand for, those that may be used: what only computes in Python itself, and what the Python
    file at `path` defines, or imports, or has in a module that it imports, with Python's builtins."""
    from .compiler.tracing.host import is_harmless, resolve

    found = {name: resolve(name) for name in names if is_harmless(name)}
    if path is None:
        return found
    found |= {f"builtins:{name}": value for name, value in vars(builtins).items()}
    packages = set[str]()
    for name, value in vars(_load(path)).items():
        found[f"{MODULE_NAME}:{name}"] = value
        if callable(value) and hasattr(value, "__qualname__"):
            found[f"{value.__module__}:{value.__qualname__}"] = value
        if isinstance(value, types.ModuleType):
            packages |= {module.__name__.partition(".")[0] for module in ((os, os.path) if value is os else (value,))}
    for name in names:
        if name not in found and name.partition(":")[0].partition(".")[0] in packages:
            with contextlib.suppress(KeyError):
                found[name] = resolve(name)
    return found


def _load(path: Path) -> types.ModuleType:
    """The file as a module, as `python FILE` would run it, but not as __main__."""
    if not path.is_file():
        raise CliError(f"{path}: {_missing(path)}")
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
        raise placed(error, path) from error
    return module


def placed(error: Exception, path: Path) -> CliError:
    """An exception of the user's code as one line, with the innermost line of the user's file that it came through."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if _is_same(step.filename, path)]
    where = place_of(error)  # of a call that a plan has made
    known = f"{where.file}:{where.line}" if where is not None else str(path)
    place = f"{path}:{steps[-1].lineno}" if steps and where is None else known
    return CliError(f"{place}: {type(error).__name__}: {error}")


def _missing(path: Path) -> str:
    """Why a path is not the file of a program, and what may have been meant."""
    if path.is_dir():
        return "it is a folder; name one of its Python files"
    file, dot, name = str(path).rpartition(".")
    if path.with_name(f"{path.name}.py").is_file():
        return f"there is no such file; did you mean {path}.py?"
    if dot and Path(f"{file}.py").is_file():
        return f"there is no such file; did you mean {file}.py:{name}?"
    return "there is no such file"


def _is_same(filename: str, path: Path) -> bool:
    return filename == str(path) or Path(filename) == path.resolve()


def load_tokenizer_of(model: str | None) -> Tokenizer:
    """The tokenizer of a model; None: of the built-in one."""
    from .core.text.load import load_tokenizer

    return load_tokenizer(model if model is not None else BUILTIN_MODEL)
