"""Compiling for the shell: the tokenizer is loaded, and a pass run, only where the plan is not on disk already."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_programs import BUILTIN_MODEL, CliError, host_names, load_tokenizer_of

if TYPE_CHECKING:
    from .compiler.ir import Program
    from .compiler.passes.base import CompileOptions
    from .compiler.plan import Plan
    from .compiler.plan_cache import PlanCache
    from .core.text.tokenizer import Tokenizer


class Compiling:
    """Programs to plans, for one model and one set of options."""

    def __init__(self, model: str | None, options: CompileOptions) -> None:
        self.model = model
        self.options = options

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded when it is asked for."""
        return load_tokenizer_of(self.model)

    @functools.cached_property
    def cache(self) -> PlanCache | None:
        from .compiler.plan_cache import PlanCache

        return PlanCache.default()

    @functools.cached_property
    def tokenizer_name(self) -> str:
        from .compiler.plan_cache import tokenizer_name

        folder = Path(self.model) if self.model is not None else BUILTIN_MODEL
        return tokenizer_name(folder) or self.tokenizer.hash

    def plan(self, program: Program, tell: Callable[[str, str], None] | None = None) -> Plan:
        """The plan, from disk if it is there; with `tell`, which is called after each pass, from the passes."""
        from .compiler.pipeline import compile_program

        def make() -> Plan:
            return compile_program(program, self.tokenizer, None, self.options, tell)

        if self.cache is None or tell is not None:
            return make()
        return self.cache.get(program, self.tokenizer_name, self.options, make)

    def verify(self, program: Program) -> None:
        """Raise VerifyError where the program breaks a law of the IR, unless that is switched off."""
        from .compiler.verifier import verify

        if "verify" not in self.options.disabled:
            verify(program)

    def stats(self, program: Program, plan: Plan) -> dict[str, str]:
        """Counts of a plan by name, and what a run of it will cost, as far as that is known."""
        from .compiler.budget import budget
        from .compiler.pipeline import plan_stats
        from .core.picture_tokens import picture_tokens

        found = {name: str(count) for name, count in plan_stats(plan).items()}
        cost = budget(plan.program, self.tokenizer, pictures=picture_tokens(self.model))
        for name in ("requests", "prompt_tokens", "computed", "generated_tokens", "scored_tokens", "forwards", "rows"):
            found[f"run_{name}"] = str(getattr(cost, name))
        if self.cache is not None:
            found["plans_from_disk"] = str(self.cache.num_hits)
        return found


@contextlib.contextmanager
def kept_on_disk() -> Iterator[None]:
    """Plans that are made meanwhile are looked for and kept on disk, and so are the constraints found good."""
    from .compiler import checked, plan_cache
    from .core.cache_folder import cache_folder

    checked.use(cache_folder())
    plan_cache.use(plan_cache.PlanCache.default())
    try:
        yield
    finally:
        checked.use(None)
        plan_cache.use(None)


def refuse_unsaveable(program: Program) -> None:
    """Raise CliError where a plan cannot be saved.

    It calls a function that no other process can find by its name. (A type without one is refused by `Plan.to_json`.)
    """
    for name in host_names(program):
        if "<lambda>" in name or "<locals>" in name or "#" in name:
            raise CliError(
                f"{program.where}: {program.title!r} calls {name}, which a saved plan cannot name: define it at the "
                "top of its module"
            )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o666 & ~_umask())  # noqa: PTH101
        Path(file.name).replace(path)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
