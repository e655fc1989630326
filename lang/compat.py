"""SGLang's names for what dslc calls otherwise, for programs that import them: node names, helpers, `global_config`.

import dslc as sgl
from dslc.lang.compat import SglFunction, SglGen, read_jsonl, dump_state_text
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..compiler.ir import Copy as SglCopy
from ..compiler.ir import Expr as SglVariable
from ..compiler.ir import Fork as SglFork
from ..compiler.ir import Join as SglConcateAndAppend
from ..compiler.ir import Text as SglConstantText
from ..compiler.tracing.symbols import Symbol as SglArgument
from ..core.backend import Backend as BaseBackend
from ..core.sampling import SamplingParams as SglSamplingParams
from . import defaults
from .choices import ChoicesDecision, ChoicesSamplingMethod
from .executor import Executor as StreamExecutor
from .exprs import Expression as SglExpr
from .exprs import ExprList as SglExprList
from .exprs import MediaExpr as SglImage
from .exprs import MediaExpr as SglVideo
from .exprs import RoleEdgeExpr as SglRoleBegin
from .exprs import RoleEdgeExpr as SglRoleEnd
from .function import Function as SglFunction
from .gens import GenExpr as SglGen
from .gens import SelectExpr as SglSelect
from .reasoning import separate_reasoning as SglSeparateReasoning
from .state import ProgramState, ProgramStateGroup

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""  # of SGLang; gen(dtype=...) here has bounded ones (`checks.DTYPE_REGEX`)


class GlobalConfig:
    """The settings of SGLang's `global_config` that mean something here; any other name is refused."""

    @property
    def default_backend(self) -> BaseBackend | None:
        """The backend of programs that name none."""
        return defaults.current()

    @default_backend.setter
    def default_backend(self, backend: BaseBackend | None) -> None:
        defaults.set_default_backend(backend)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "default_backend":
            raise AttributeError(f"global_config has no {name!r} here: give options to run(...) or dslc.Engine(...)")
        object.__setattr__(self, name, value)


global_config = GlobalConfig()


def read_jsonl(filename: str | Path) -> Iterator[Any]:
    """The JSON value of each line of a file; empty lines and lines that begin with # are left out."""
    with Path(filename).open(encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                yield json.loads(line)


def dump_state_text(filename: str | Path, states: Iterable[ProgramState | str], mode: str = "w") -> None:
    """Write the text of each state to a file, under a heading with its number. A failed state gives its error."""
    with Path(filename).open(mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            if isinstance(state, ProgramState):
                error = state.error()
                text = state.text() if error is None else f"[failed: {error}]"
            else:
                text = state
            file.write(f"{'=' * 40} {i} {'=' * 40}\n{text}\n{'=' * 80}\n\n")


__all__ = [
    "REGEX_BOOL", "REGEX_FLOAT", "REGEX_INT", "REGEX_STR", "BaseBackend", "ChoicesDecision", "ChoicesSamplingMethod",
    "GlobalConfig", "ProgramState", "ProgramStateGroup", "SglArgument", "SglConcateAndAppend", "SglConstantText",
    "SglCopy", "SglExpr", "SglExprList", "SglFork", "SglFunction", "SglGen", "SglImage", "SglRoleBegin", "SglRoleEnd",
    "SglSamplingParams", "SglSelect", "SglSeparateReasoning", "SglVariable", "SglVideo", "StreamExecutor",
    "dump_state_text", "global_config", "read_jsonl",
]  # fmt: skip
