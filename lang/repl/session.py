"""A live program: lines that are run one after another against one state, each of which can be taken back.

Each line runs on a copy of the state before it, so taking it back, or stopping it half-way, is going back to that; what
is computed twice comes from the backend's cache. The lines together are a program: it can be shown as IR, and saved.
"""

from __future__ import annotations

import ast
import code
import linecache
import runpy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...compiler.around import Around
from ...compiler.ir import Copy
from ...compiler.passes.base import CompileOptions
from ...core.errors import Aborted, ProgramError
from ...core.events import Event, Failed, Finished, Tokens
from ..display import Piece, pieces_of
from ..executor import Executor
from ..function import Function
from ..hub import Hub
from ..options import run_options
from ..state import ProgramState

if TYPE_CHECKING:
    from types import CodeType

    from ...compiler.ir import Program
    from ...compiler.plan import Plan
    from ...core.backend import Backend, EventSink
    from ...core.request import GenRequest

SHORT_TURN = ">"  # a line that begins so is a turn of the user, and the assistant's answer


class Listening(Around):
    """A backend around another that shows the text of generations as it comes, whatever thread brings it.

    Of several at once, one is shown while it grows, and the others when they may: texts never mix.
    """

    def __init__(self, inner: Backend, show: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._show = show
        self._lock = threading.Lock()
        self._waiting: dict[str, list[str]] = {}  # text that is not shown yet, by request; the first is shown at once
        self._ended: set[str] = set()

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Ask for the tokens of every generation, and show those of first choices."""
        streams = self.capabilities.streaming
        told: dict[str, int] = {}

        def hear(event: Event) -> None:
            name = event.request_id
            if isinstance(event, Tokens):
                if event.index == 0:
                    told[name] = told.get(name, 0) + len(event.text)
                    self._add(name, event.text)
                return
            if isinstance(event, Finished) and event.outputs:
                self._add(name, event.outputs[0].text[told.get(name, 0) :] + "\n")
            if isinstance(event, (Finished, Failed)):
                self._end(name)
            sink(event)

        asked = [replace(r, stream=True) if streams and r.score is None and not r.choices else r for r in requests]
        self.inner.submit(asked, hear)

    def _add(self, name: str, text: str) -> None:
        with self._lock:
            self._waiting.setdefault(name, []).append(text)
            self._flush()

    def _end(self, name: str) -> None:
        with self._lock:
            self._ended.add(name)
            self._flush()

    def _flush(self) -> None:
        """Show what may be shown."""
        while self._waiting:
            first = next(iter(self._waiting))
            pieces, self._waiting[first] = self._waiting[first], []
            if text := "".join(pieces):
                self._show(text)
            if first not in self._ended:
                return
            del self._waiting[first]
        self._ended.clear()


@dataclass(frozen=True, slots=True)
class Made:
    """A generation or choice of a line: its variable (None: it has no name), and the meta info of its first output."""

    var: str | None
    value: Any
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Point:
    """What a session can go back to: the lines so far, the state after them, and Python's names."""

    lines: tuple[str, ...]
    state: ProgramState
    names: dict[str, Any]


class Session:
    """Lines against a live state. `names` are what the lines may use; `show` gets generated text as it comes.

    Not thread-safe: one line at a time.
    """

    def __init__(
        self,
        backend: Backend,
        names: Mapping[str, Any],
        show: Callable[[str], None] = lambda text: None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = Listening(backend, show)
        self.options = run_options(dict(options or {}), None)
        self.branches: dict[str, list[_Point]] = {}
        self.branch = "main"
        self._num_lines = 0
        self._first = dict(names)
        self._files: dict[str, Path] = {}  # which file a name was loaded from
        # Where lines run: one dict for all, so that functions see what later lines set, as in Python's own shell.
        self._globals: dict[str, Any] = {}
        self.reset()

    @property
    def state(self) -> ProgramState:
        return self._points[-1].state

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the current branch."""
        return self._points[-1].lines

    @property
    def names(self) -> dict[str, Any]:
        """What the lines may use, and have set."""
        return self._points[-1].names

    @property
    def executor(self) -> Executor:
        sink = self.state.sink
        assert isinstance(sink, Executor)
        return sink

    def reset(self) -> None:
        """Forget everything but the backend, and its cache."""
        executor = Executor(Hub(self.backend), "repl", self.options)
        self._points = [_Point((), ProgramState(executor), dict(self._first))]
        self.branches, self.branch = {"main": self._points}, "main"
        self._go_back()

    def _go_back(self) -> None:
        """Python's names are those of the point where the session stands."""
        self._globals.clear()
        self._globals.update(self.names)

    # -- lines

    def is_complete(self, source: str) -> bool:
        """Whether a line can be run as it stands, or goes on (an open bracket, a block). Raises SyntaxError."""
        return source.startswith(SHORT_TURN) or code.compile_command(source, "<repl>") is not None

    def run(self, source: str) -> list[Made]:
        """Run a line (or block); returns what it generated. On an error nothing has happened, and it is raised."""
        source = self._written_out(source)
        self._num_lines += 1
        file = f"<repl {self._num_lines}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        compiled = _compiled(source, file)
        before, executor = self.state, self.executor
        num_streams = len(executor.streams)
        state = self._copy(before)
        names = self._globals
        names["s"] = state
        try:
            exec(compiled, names)
            executor.hub.block(executor.rest(), None)
            if names.get("s") is not state:
                raise ProgramError("`s` is the live state: append to it with `s += ...`, do not set it")
            for stream in list(executor.streams.values())[num_streams:]:
                if stream.error is not None:
                    raise stream.error
        except BaseException:
            self._drop(num_streams)
            self._go_back()
            raise
        self._points.append(_Point((*self.lines, source), state, dict(names)))
        return self._made(before, num_streams)

    def _written_out(self, source: str) -> str:
        """The line with its short form written out: `> text` is a turn of the user and the assistant's answer."""
        if not source.startswith(SHORT_TURN):
            return source
        text = source.removeprefix(SHORT_TURN).strip()
        number = 1
        while f"a{number}" in self.executor.streams[self.state.stream].variables:
            number += 1
        return f's += dslc.user({text!r}) + dslc.assistant(dslc.gen("a{number}"))\n'

    def _copy(self, state: ProgramState) -> ProgramState:
        """A state that goes on where this one is; a turn that is open stays open in it."""
        executor, stream = self.executor, self.executor.streams[state.stream]
        number = executor.new_stream()
        executor.emit(Copy(target=number, stream=state.stream, where=None))
        made = ProgramState(executor, number)
        branch = executor.streams[number]
        renamed: dict[int, Any] = {id(op): replace(op, stream=number) for op in stream.regions}
        branch.regions = tuple(renamed.values())
        if branch.open_role is not None:
            branch.open_role.op = renamed[id(branch.open_role.op)]
        made.go_on_with(renamed.get(id(state.open_turn)))
        return made

    def _drop(self, num_streams: int) -> None:
        """End what a line has begun."""
        executor = self.executor
        error = Aborted("the line was stopped")
        for number in list(executor.streams)[num_streams:]:
            stream = executor.streams[number]
            executor.fail_stream(stream, error)
            del executor.streams[number]

    def _made(self, before: ProgramState, num_streams: int) -> list[Made]:
        executor = self.executor
        known = {id(slot) for _, slot in executor.streams[before.stream].marks}
        made: list[Made] = []
        for stream in list(executor.streams.values())[num_streams:]:
            names = {id(slot): name for name, slot in stream.variables.items()}
            for _, slot in stream.marks:
                if id(slot) in known:
                    continue
                known.add(id(slot))
                found = slot.meta[0] if isinstance(slot.meta, list) else slot.meta
                made.append(Made(names.get(id(slot)), slot.value, found() if callable(found) else found or {}))
        return made

    # -- going back and elsewhere

    def undo(self, count: int = 1) -> int:
        """Take lines back; returns how many there were to take."""
        count = min(count, len(self._points) - 1)
        for _ in range(count):
            self._points.pop()
        self._go_back()
        return count

    def fork(self, name: str | None = None) -> str:
        """Go on in a branch of its own; the one that was left stays as it is. Returns its name."""
        name = name or next(f"branch{i}" for i in range(1, 2**31) if f"branch{i}" not in self.branches)
        if name in self.branches:
            raise ProgramError(f"there is a branch {name!r} already: {', '.join(self.branches)}")
        self._points = list(self._points)
        self.branches[name], self.branch = self._points, name
        return name

    def switch(self, name: str) -> None:
        """Go on with another branch. Raises ProgramError if there is none of this name."""
        if name not in self.branches:
            raise ProgramError(f"there is no branch {name!r}: {', '.join(self.branches)}")
        self._points, self.branch = self.branches[name], name
        self._go_back()

    # -- looking

    def variables(self) -> dict[str, Any]:
        """The variables of the state."""
        return self.state.variables()

    def messages(self) -> list[dict[str, Any]]:
        """The chat turns so far."""
        found: list[dict[str, Any]] = self.state.messages()
        return found

    def pieces(self) -> list[Piece]:
        """The text of the state, token by token, with where each came from."""
        return pieces_of(self.state)

    def source(self, folder: Path | None = None) -> str:
        """The lines as a program, for a file in `folder` (None: the working directory). What was loaded from files, it
        imports from them."""
        body = "".join(_indented(line) for line in self.lines) or "    pass\n"
        imports = self._imports((folder or Path()).resolve())
        return f"{imports}import dslc\nfrom dslc import *\n{self._loaded()}\n\n@dslc.function\ndef session(s):\n{body}"

    def _used_files(self) -> dict[Path, list[str]]:
        """The files whose names the lines use, with those names."""
        used: dict[Path, list[str]] = {}
        nodes = [node for line in self.lines for node in ast.walk(ast.parse(line))]
        for name in dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)):
            if name in self._files:
                used.setdefault(self._files[name], []).append(name)
        return used

    def _imports(self, folder: Path) -> str:
        """What a file in `folder` needs in order to import those files."""
        elsewhere = {file.parent for file in self._used_files()} - {folder}
        lines = [f"sys.path.append({str(place)!r})\n" for place in sorted(elsewhere)]
        modules = ["importlib"] if any(not file.stem.isidentifier() for file in self._used_files()) else []
        modules += ["sys"] if lines else []
        return "".join([*(f"import {module}\n" for module in modules), *lines, "\n" if lines or modules else ""])

    def _loaded(self) -> str:
        """The imports from those files."""
        lines = []
        for file, names in self._used_files().items():
            if file.stem.isidentifier():
                lines.append(f"from {file.stem} import {', '.join(names)}\n")
            else:
                lines += [f"{name} = importlib.import_module({file.stem!r}).{name}\n" for name in names]
        return "".join(lines)

    def function(self) -> Function:
        """The lines as a program that can be compiled and run."""
        text = f"def session(s):\n{''.join(map(_indented, self.lines)) or '    pass'}\n"
        self._num_lines += 1
        file = f"<repl session {self._num_lines}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        names = dict(self._first)
        exec(compile(text, file, "exec"), names)
        return Function(names["session"])

    def program(self) -> Program:
        """The lines as IR."""
        return self.function().compile()

    def plan(self) -> Plan:
        """The plan of the lines."""
        tokenizer = self.backend.tokenizer if self.backend.capabilities.token_ids else None
        return self.function().plan(tokenizer, CompileOptions())

    def load(self, path: str) -> list[str]:
        """Run a Python file and take over its names, for all lines, those taken back later too; returns the names of
        its programs. Raises ProgramError where there is no such file, and what the file raises."""
        file = Path(path).resolve()
        if not file.is_file():
            raise ProgramError(f"{path}: there is no such file" if not file.exists() else f"{path}: it is a folder")
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))  # as `python FILE` does: it may import its neighbours
        try:
            values = runpy.run_path(path)
        except SystemExit as error:
            raise ProgramError(f"{path}: it ends the process ({error!r}) instead of defining programs") from None
        found = {name: value for name, value in values.items() if not name.startswith("__")}
        found.pop("s", None)
        for points in self.branches.values():
            for point in points:
                point.names.update(found)
        own = [name for name, value in found.items() if self._first.get(name, found) is not value]
        self._files.update(dict.fromkeys(own, file))
        self._first.update(found)
        self._go_back()
        return [name for name, value in found.items() if isinstance(value, Function)]


def _compiled(source: str, file: str) -> CodeType:
    """One statement, whose value is shown if it is an expression; or several."""
    try:
        return compile(source, file, "single")
    except SyntaxError:
        return compile(source, file, "exec")


def _indented(line: str) -> str:
    """A line or block as part of a body; the rows of a string that goes over several stay as they are."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(line)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            inside.update(range(node.lineno + 1, (node.end_lineno or 0) + 1))
    rows = line.rstrip("\n").split("\n")
    return "".join(
        f"{row}\n" if number in inside else f"    {row}\n" if row.strip() else "\n"
        for number, row in enumerate(rows, 1)
    )
