"""`dslc repl`: program lines against a live state, in a terminal."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_programs import CliError
from .cli_run import sampling_options
from .core.errors import DslcError

if TYPE_CHECKING:
    from .core.backend import Backend
    from .lang.record import Step
    from .lang.repl.session import Made, Session

HELP = """\
Lines are Python: `s += user("...")`, `s += assistant(gen("answer", max_tokens=32))`, `s["answer"]`, `x = 1`, blocks.
`> text` is short for a turn of the user and the assistant's answer. All of dslc's names are there.

:ir            the lines so far as the compiler's IR        :vars          the variables
:explain       what the compiler knows of each generation   :messages      the chat turns
:tokens        the text, token by token: cached, computed,  :text          the text as it stands
               sampled, forced, chosen                      :counters      the backend's totals
:undo [N]      take back the last line (or N)               :reset         begin anew
:fork [NAME]   go on in a branch                            :switch NAME   go on with another (none: list them)
:step [FILE]   the next step of a recorded run (or: begin)  :quit          leave (or Ctrl-D)
:load FILE     take over a Python file's programs           :save FILE     the lines as a program (.py, .html: a page)
:help          this                                         :save! FILE    the same, over a file that is there
A command may be shortened (`:q`). Ctrl-C stops the generation that runs, and takes its line back."""

# By their module only: `dslc.OpenAI`, and Python's own `json`.
NOT_NAMES = frozenset("json __version__ Runtime Engine RuntimeEndpoint OpenAI Anthropic LiteLLM VertexAI".split())
STYLES = {
    "cached": "blue",
    "prompt": "yellow",
    "sampled": "green",
    "forced": "magenta",
    "chosen": "cyan",
    "text": "dim",
}


def add_repl(verbs: Any) -> None:
    parser = verbs.add_parser(
        "repl",
        help="write a program line by line against a live model",
        description="Run program lines one by one against a live state, with the text as it comes (see docs/repl.md).",
    )
    add = parser.add_argument
    add("--model", metavar="PATH", help="a model folder or hub name (default: the built-in model)")
    add("--endpoint", metavar="URL", help="a server that speaks SGLang's protocol, instead of a model here")
    add("--load", action="append", default=[], metavar="FILE", help="a Python file whose programs are there")
    add(
        "--sampling",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a sampling option of all gens, as in SGLang",
    )
    parser.set_defaults(verb=_repl)


def _repl(arguments: argparse.Namespace) -> int:
    try:
        import prompt_toolkit
        import rich  # noqa: F401
    except ImportError as error:
        raise CliError(f"dslc repl needs the package {error.name!r}: pip install 'dslc[repl]'") from None
    del prompt_toolkit
    options = sampling_options(arguments.sampling)
    if "seed" not in options:
        options["seed"] = int.from_bytes(os.urandom(7), "little")
    backend = _backend(arguments)
    try:
        return Repl(backend, options, arguments.load).run()
    finally:
        backend.close()


def _backend(arguments: argparse.Namespace) -> Backend:
    if arguments.endpoint is not None:
        from . import RuntimeEndpoint

        if arguments.model is not None:
            raise CliError("--model and --endpoint: one of them")
        return RuntimeEndpoint(arguments.endpoint)
    from . import Engine

    engine = Engine(model_path=arguments.model)
    engine.start()  # in a thread of its own: an interrupt never meets a forward
    return engine


class Repl:
    """The terminal of a session: reads lines and commands, shows what comes of them."""

    def __init__(self, backend: Backend, options: dict[str, Any], files: list[str]) -> None:
        from rich.console import Console

        from .lang.repl.session import Session

        self.console = Console(highlight=False, soft_wrap=True)
        package: Any = sys.modules[__package__]
        names = {name: getattr(package, name) for name in package.__all__ if name not in NOT_NAMES}
        names["dslc"] = package
        self.session: Session = Session(backend, names, self._show, options)
        self.files = files
        self._steps: Iterator[Step] = iter(())
        self._saved: set[Path] = set()
        self.is_over = False
        self.commands: dict[str, Callable[[str], None]] = {
            name.removeprefix("_do_"): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }
        self.commands["save!"] = lambda rest: self._save(rest, True)
        self._read = self._terminal() if sys.stdin.isatty() else _plain_lines()

    def run(self) -> int:
        """Until the user leaves."""
        from . import __version__

        self.say(f"dslc {__version__} on {self.session.backend.capabilities.name}; :help says what there is", "bold")
        for file in self.files:
            self._guarded(lambda file=file: self._do_load(file))  # type: ignore[misc]
        while not self.is_over:
            try:
                source = self._source()
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            if source.strip():
                self._guarded(lambda source=source: self._take(source))  # type: ignore[misc]
        return 0

    def _source(self) -> str:
        """A line, or all lines of a block or an open bracket."""
        source = self._read("dslc> ")
        if source.startswith(":"):
            return source
        while True:
            try:
                if self.session.is_complete(source):
                    return source + "\n"
                source += "\n" + self._read("....> ")
            except SyntaxError:
                return source  # running it says what is wrong
            except EOFError:
                return source + "\n"  # what is there is run; the next read ends the session

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do it; show what goes wrong, and go on."""
        try:
            action()
        except KeyboardInterrupt:
            self.say("\nstopped; the state is as it was before this line", "yellow")
        except CliError as error:
            self.say(str(error), "red")
        except (DslcError, OSError) as error:
            self.say(f"{type(error).__name__}: {error}", "red")
        except SystemExit:
            self.is_over = True
        except BaseException as error:
            lines = [*_users_frames(error).format(), *traceback.format_exception_only(error)]
            self.say("".join(lines).rstrip(), "red")
            if isinstance(error, SyntaxError) and (error.filename or "").startswith("<repl"):
                self.say("lines are Python; `> text` asks the model, :help says what else there is", "dim")

    def _take(self, source: str) -> None:
        if not source.startswith(":"):
            with self._showing_values():
                found = self.session.run(source)
            for made in found:
                self._tell(made)
            return
        name, _, rest = source[1:].strip().partition(" ")
        self._command(name)(rest.strip())

    def _command(self, name: str) -> Callable[[str], None]:
        """The command of a name, or of a beginning that no other has. Raises CliError."""
        import difflib

        found = [c for c in self.commands if name and c.startswith(name) and not c.endswith("!")]
        if name in self.commands or len(found) == 1:
            return self.commands[name if name in self.commands else found[0]]
        near = found or difflib.get_close_matches(name, self.commands, 1)
        hint = f"did you mean {' or '.join(f':{other}' for other in sorted(near))}? " if near else ""
        raise CliError(f"there is no :{name}; {hint}:help says what there is")

    # -- showing

    @contextlib.contextmanager
    def _showing_values(self) -> Iterator[None]:
        """The value of an expression is shown; one that belongs into the program is not lost silently."""
        from .lang.exprs import Expression

        def show(value: Any) -> None:
            sys.__displayhook__(value)
            if isinstance(value, Expression):
                self.say("nothing was appended: `s += ...` does that", "dim")

        before, sys.displayhook = sys.displayhook, show
        try:
            yield
        finally:
            sys.displayhook = before

    def say(self, text: str, style: str | None = None) -> None:
        """A line of our own."""
        self.console.print(text, style=style, markup=False)

    def _show(self, text: str) -> None:
        self.console.print(_visible(text), style="green", end="", markup=False)

    def _tell(self, made: Made) -> None:
        """What a generation took: its tokens, and what its prompt had from the cache."""
        info = made.info
        name = made.var or "(no name)"
        parts = []
        if "choices" in info:
            parts.append(f"{name} = {made.value!r}")
        else:
            reason = info.get("finish_reason") or {}
            forced = f", {info['forced_tokens']} of them forced" if info.get("forced_tokens") else ""
            parts.append(f"{name}: {info.get('completion_tokens')} tokens{forced}, ended by {reason.get('type')}")
        prompt, cached = info.get("prompt_tokens", 0), info.get("cached_tokens", 0)
        parts.append(f"prompt {prompt} tokens, {cached} from the cache")
        self.say("; ".join(parts), "dim")

    # -- commands

    def _do_help(self, rest: str) -> None:
        self.say(HELP)

    def _do_quit(self, rest: str) -> None:
        self.is_over = True

    def _do_ir(self, rest: str) -> None:
        from .compiler.printer import print_program

        self.say(print_program(self.session.program(), False).rstrip())

    def _do_explain(self, rest: str) -> None:
        from .compiler.explain import print_explanation

        self.say(print_explanation(self.session.plan(), self.session.backend.tokenizer).rstrip())

    def _do_vars(self, rest: str) -> None:
        variables = self.session.variables()
        for name, value in variables.items():
            self.say(f"{name} = {value!r}")
        if not variables:
            self.say("no variables yet", "dim")

    def _do_messages(self, rest: str) -> None:
        messages = self.session.messages()
        for message in messages:
            self.say(f"{message['role']}: {message['content']}")
        if not messages:
            self.say("no chat turns yet", "dim")

    def _do_text(self, rest: str) -> None:
        self.say(_visible(self.session.state.text()))

    def _do_tokens(self, rest: str) -> None:
        from rich.text import Text

        pieces = [piece for piece in self.session.pieces() if piece.text]
        if not pieces:
            raise CliError("no text yet")
        if self.console.no_color or self.console.color_system is None:
            for kind, run in itertools.groupby(pieces, lambda piece: piece.kind):
                self.say(f"{kind:8}{''.join(piece.text for piece in run)!r}")
        else:
            shown = Text()
            for place, piece in enumerate(pieces):
                style = STYLES[piece.kind]
                shown.append(_visible(piece.text), f"{style} underline" if place % 2 else style)
            self.console.print(shown)
        counts = {kind: sum(piece.kind == kind for piece in pieces) for kind in STYLES}
        legend = Text()
        for kind, count in counts.items():
            if count:
                legend.append(f"{count} {kind}", STYLES[kind])
                legend.append("  ")
        self.console.print(legend)

    def _do_counters(self, rest: str) -> None:
        counters = self.session.backend.counters()
        found = {name: getattr(counters, name) for name in counters.__dataclass_fields__}
        self.say(", ".join(f"{name} {value}" for name, value in found.items() if value) or "nothing yet")

    def _do_undo(self, rest: str) -> None:
        if rest and not rest.isdigit():
            raise CliError(f":undo takes a number of lines, not {rest!r}")
        count = self.session.undo(int(rest or 1))
        self.say(f"{_lines(count)} taken back, {len(self.session.lines)} left", "dim")

    def _do_reset(self, rest: str) -> None:
        self.session.reset()
        self.say("begun anew", "dim")

    def _do_fork(self, rest: str) -> None:
        before = self.session.branch
        self.say(f"on branch {self.session.fork(rest or None)!r}; :switch {before} goes back", "dim")

    def _do_switch(self, rest: str) -> None:
        if rest:
            self.session.switch(rest)
        for name, points in self.session.branches.items():
            mark = "*" if name == self.session.branch else " "
            self.say(f"{mark} {name}: {_lines(len(points) - 1)}")

    def _do_step(self, rest: str) -> None:
        from .lang.record import steps

        if rest:
            self._steps = iter(steps(rest))
        step = next(self._steps, None)
        if step is None:
            raise CliError("no step is left; :step FILE begins with a recording of dslc.record(...)")
        self.say(f"{step.name}, {step.num_tokens} tokens, after {step.prompt[-70:]!r}", "dim")
        self.say(step.output, "green")

    def _do_load(self, rest: str) -> None:
        if not rest:
            raise CliError(":load takes a Python file")
        found = self.session.load(rest)
        uses = ", ".join(f"{name}(s, ...)" for name in found)
        self.say(f"loaded {rest}" + (f": call {uses}" if found else ", which has no program"), "dim")

    def _do_save(self, rest: str) -> None:
        self._save(rest, False)

    def _save(self, rest: str, is_over: bool) -> None:
        path = Path(rest)
        if path.suffix not in (".py", ".html"):
            raise CliError(f":save takes a file to write, .py (the lines) or .html (the state), not {rest!r}")
        if path.exists() and path.resolve() not in self._saved and not is_over:
            raise CliError(f"{rest} is there already; :save! {rest} writes over it")
        if path.suffix == ".html":
            self.session.state.save_html(path)
        else:
            path.write_text(self.session.source(path.resolve().parent), encoding="utf-8")
        self._saved.add(path.resolve())
        self.say(f"written to {rest}", "dim")

    # -- reading

    def _terminal(self) -> Callable[[str], str]:
        """Lines from a terminal: with history, completion and the usual keys."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        from .core.cache_folder import cache_folder

        folder = cache_folder()
        history: Any = InMemoryHistory()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "repl_history").open("a").close()
                history = FileHistory(str(folder / "repl_history"))
            except OSError as error:
                self.say(f"the history is not kept: {error}", "yellow")
        session: Any = PromptSession(
            history=history, completer=self._completer(), complete_while_typing=False, key_bindings=_indenting()
        )

        def read(prompt: str) -> str:
            line: str = session.prompt(prompt)
            return line

        return read

    def _completer(self) -> Any:
        from prompt_toolkit.completion import Completer, Completion

        def found(text: str) -> Iterator[tuple[str, int]]:
            yield from self.completions(text)

        class Names(Completer):
            def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
                for text, start in found(document.text_before_cursor):
                    yield Completion(text, start_position=start)

        return Names()

    def completions(self, text: str) -> Iterator[tuple[str, int]]:
        """(what could stand there, where it begins relative to the cursor): commands, files, variables, names,
        attributes."""
        if text.startswith(":"):
            name, space, rest = text[1:].partition(" ")
            if not space:
                yield from ((f":{c}", -len(text)) for c in sorted(self.commands) if c.startswith(name))
            elif name in ("load", "save", "save!", "step"):
                folder, _, begun = rest.rpartition("/")
                for path in sorted(Path(folder or ".").glob(f"{begun}*")):
                    yield path.name + ("/" if path.is_dir() else ""), -len(begun)
            elif name == "switch":
                yield from ((b, -len(rest)) for b in self.session.branches if b.startswith(rest))
            return
        before, bracket, begun = text.rpartition('s["')
        if bracket and '"' not in begun and not before[-1:].isalnum():
            yield from ((f'{v}"]', -len(begun)) for v in self.session.variables() if v.startswith(begun))
            return
        word = re.search(r"[\w.]*$", text)
        if word is not None and word.group() and not text.startswith(">"):
            import rlcompleter

            completer = rlcompleter.Completer({**self.session.names, "s": self.session.state})
            for number in itertools.count():
                found = completer.complete(word.group(), number)
                if found is None:
                    return
                if "__" not in found or "__" in word.group():
                    yield found.rstrip("( "), -len(word.group())


def _indenting() -> Any:
    """The Tab key before the first letter of a line: its indentation."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings

    keys: Any = KeyBindings()

    @keys.add("tab", filter=Condition(lambda: not get_app().current_buffer.document.text_before_cursor.strip()))  # type: ignore[untyped-decorator]
    def indent(event: Any) -> None:
        event.current_buffer.insert_text("    ")

    return keys


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def _visible(text: str) -> str:
    """Generated text as a terminal can be given it: what would steer the terminal is shown instead."""
    return "".join(chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else c for c in text).replace("\x7f", "\u2421")


def _users_frames(error: BaseException) -> traceback.StackSummary:
    """Where an exception came through the user's lines and files; not through ours."""
    frames = list(traceback.walk_tb(error.__traceback__))
    apart = (__package__, "runpy")
    return traceback.StackSummary.extract(
        iter([(f, line) for f, line in frames if str(f.f_globals.get("__name__")).split(".")[0] not in apart])
    )


def _plain_lines() -> Callable[[str], str]:
    """Lines of a pipe or file, shown after their prompts as a terminal would."""

    def read(prompt: str) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        print(prompt + line, end="", flush=True)
        return line.rstrip("\n")

    return read
