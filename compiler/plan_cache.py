"""Plans kept on disk between processes, so that a program that has not changed is not compiled again.

    cache = PlanCache.default()
    plan = cache.compiled(program, tokenizer, options)

A plan is found by all that it follows from: the program as it was traced (its source, and the values of the globals and
closures that it depends on, are in it), the tokenizer, the options, and the compiler itself. Lines count from the
program's own first line: a program that has only moved in its file is found, and its ops get their new lines. Each
program of a file stands alone, so after an edit only what changed is compiled.

Safe against corruption (a file that does not carry its own hash is taken for absent, and replaced), and against others
using the folder: a file appears whole, under a name that says what it holds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.cache_folder import cache_folder
from ..core.errors import DslcError
from .ir import IR_VERSION, Program
from .plan import PLAN_VERSION, Plan
from .serial import encode_program

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer
    from .passes.base import CompileOptions

MAX_PLANS = 512  # files kept; those not used for the longest time go first
_HASH_LEN = 64
_TOKENIZER_FILES = ("*.json", "*.jinja", "additional_chat_templates/*", "*.model", "*.tiktoken")


class PlanCache:
    """Plans in a folder. `num_hits` and `num_misses` count what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_hits = 0
        self.num_misses = 0

    @classmethod
    def default(cls) -> PlanCache | None:
        """In `$DSLC_CACHE_DIR` or the user's cache folder; None where that is switched off."""
        folder = cache_folder()
        return cls(folder / "plans") if folder is not None else None

    def compiled(self, program: Program, tokenizer: Tokenizer | None, options: CompileOptions | None = None) -> Plan:
        """The plan of a program, from the folder or from the compiler. Raises what `compile_program` raises."""
        from .pipeline import compile_program

        name = tokenizer.hash if tokenizer is not None else "none"
        return self.get(program, name, options, lambda: compile_program(program, tokenizer, None, options))

    def get(self, program: Program, tokenizer: str, options: CompileOptions | None, make: Callable[[], Plan]) -> Plan:
        """The plan kept for these, or what `make` gives, kept. `tokenizer`: its hash, or what `tokenizer_name` says.

        A folder that cannot be written keeps nothing; that is no error.
        """
        path = self.folder / f"{plan_key(program, tokenizer, options)}.plan"
        line = program.where.line if program.where is not None else 0
        file = program.where.file if program.where is not None else ""
        found = _read(path)
        if found is not None:
            try:
                plan = Plan.from_json(json.dumps(moved(found, file, line)))
            except DslcError:
                found = None
            else:
                self.num_hits += 1
                return plan
        self.num_misses += 1
        plan = make()
        try:
            self._write(path, moved(json.loads(plan.to_json()), file, -line))
        except OSError:
            return plan
        return plan

    def _write(self, path: Path, data: Any) -> None:
        body = json.dumps(data).encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        Path(file.name).replace(path)
        self._evict()

    def _evict(self) -> None:
        plans = list(self.folder.glob("*.plan"))
        if len(plans) <= MAX_PLANS:
            return
        used: list[tuple[float, Path]] = []
        for path in plans:
            try:
                used.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another process was quicker
                continue
        for _, path in sorted(used)[:-MAX_PLANS]:
            path.unlink(missing_ok=True)


_in_use: PlanCache | None = None


def use(cache: PlanCache | None) -> None:
    """Let programs of this process look for their plans there first; None: nowhere. The shell's commands do."""
    global _in_use
    _in_use = cache


def compiled(program: Program, tokenizer: Tokenizer | None, options: CompileOptions | None = None) -> Plan:
    """`compile_program`, by way of the cache in use."""
    from .pipeline import compile_program

    if _in_use is not None:
        return _in_use.compiled(program, tokenizer, options)
    return compile_program(program, tokenizer, None, options)


def _read(path: Path) -> Any:
    """The data in a file that carries its own hash; None if it is not there or not whole. Marks it as used."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, body = content[:_HASH_LEN], content[_HASH_LEN + 1 :]
    if hashlib.sha256(body).hexdigest().encode() != head:
        return None
    try:
        os.utime(path)
    except OSError:  # somebody else's folder: read, but not ours to mark
        return json.loads(body)
    return json.loads(body)


def plan_key(program: Program, tokenizer: str, options: CompileOptions | None) -> str:
    """The name of a plan: a hash of everything that it follows from."""
    line = program.where.line if program.where is not None else 0
    file = program.where.file if program.where is not None else ""
    parts = [
        moved(encode_program(program), file, -line), tokenizer, repr(options or None), IR_VERSION, PLAN_VERSION,
        compiler_name(),
    ]  # fmt: skip
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def moved(data: Any, file: str, lines: int) -> Any:
    """JSON data of a program or plan with the places in `file` moved by so many lines."""
    if isinstance(data, dict):
        return {
            key: _moved_place(value, file, lines) if key == "where" else moved(value, file, lines)
            for key, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [moved(item, file, lines) for item in data]
    return data


def _moved_place(place: Any, file: str, lines: int) -> Any:
    if not isinstance(place, list) or not place or place[0] != file:
        return place
    return [place[0], place[1] + lines, *place[2:]]


@functools.cache
def compiler_name() -> str:
    """Names the compiler: changes with the package's version, and with the sources of compiler and tokenizers."""
    root = Path(__file__).parent.parent
    sources = [*(root / "compiler").rglob("*.py"), *(root / "core").rglob("*.py"), root / "__init__.py"]
    parts = []
    for source in sorted(sources):
        stat = source.stat()
        parts.append(f"{source.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tokenizer_name(folder: Path) -> str | None:
    """Names the tokenizer in a model folder by the contents of its files, without loading it; None for no folder."""
    if not folder.is_dir():
        return None
    found = hashlib.sha256(str(folder).encode())  # a built-in chat template goes by the model's name
    for pattern in _TOKENIZER_FILES:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.name.endswith(".index.json"):
                content = path.read_bytes()
                found.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return found.hexdigest()
