"""The REPL on a backend whose answers are fixed: what lines and commands do, and what is said of mistakes.

The first part types into a pipe, in this process; the second into a pseudo-terminal, with the keys of a person.
tests/e2e/test_repl.py has a session with a model.
"""

import io
import os
import re
import runpy
import sys

import pexpect
import pytest

import dslc
from dslc.cli_repl import Repl

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r")
PROGRAM = """\
import dslc
from helpers import shout

CITY = "Rome"


@dslc.function
def ask(s, place):
    s += dslc.user(shout(f"What is the capital of {place}?"))
    s += dslc.assistant(dslc.gen("capital", max_tokens=16))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a file of programs, which imports its neighbour."""
    (tmp_path / "prog.py").write_text(PROGRAM)
    (tmp_path / "helpers.py").write_text("def shout(text):\n    return text.upper()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("helpers", "prog"):  # of other tests
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("helpers", "prog"):
        sys.modules.pop(name, None)


@pytest.fixture
def typed(monkeypatch, capsys, folder):
    """`typed(line, ...)` is what a session of these lines prints after each of them."""

    def session(*lines, files=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        backend = dslc.ScriptedBackend({"ITALY": "Rome.", "": "Paris."}, choose="yes")
        assert Repl(backend, {"seed": 1}, list(files)).run() == 0
        printed = capsys.readouterr().out
        parts = re.split(r"^(?:dslc|\.\.\.\.)> .*\n", printed, flags=re.MULTILINE)[1:]
        return [part.strip("\n") for part in parts]

    return session


def test_functions_see_what_later_lines_set_and_append_to_the_live_state(typed):
    found = typed(
        "def add(q):", "    s.append(user(q) + assistant(gen(name)))", "", "name = 'x'", "add('hi')", ":vars",
        "def again(q):", "    global s", "    s += user(q) + assistant(gen('y'))", "", "again('hm')", ":vars",
    )  # fmt: skip
    assert found[5] == "x = 'Paris.'" and found[-1] == "x = 'Paris.'\ny = 'Paris.'"


def test_what_a_line_set_is_taken_back_with_it(typed):
    found = typed("a = 1", "a = 2", ":undo", "a", "a = 5; 1 / 0", "a", ":fork b", "a = 3", ":switch main", "a")
    assert found[2] == "1 line taken back, 1 left" and found[3] == "1" and found[5] == "1" and found[-1] == "1"
    assert "ZeroDivisionError" in found[4]


def test_undo_after_a_fork_leaves_the_other_branch_alone(typed):
    found = typed(
        "> one?", "> two?", ":fork", "> three?", ":undo 2", ":vars", ":switch main", ":vars", ":undo 9", ":vars"
    )
    assert found[4] == "2 lines taken back, 1 left" and found[5] == "a1 = 'Paris.'"
    assert found[6] == "* main: 2 lines\n  branch1: 1 line" and found[7] == "a1 = 'Paris.'\na2 = 'Paris.'"
    assert found[8] == "2 lines taken back, 0 left" and found[9] == "no variables yet"


def test_what_is_loaded_stays_whatever_is_taken_back(typed):
    found = typed("x = 1", ":load prog.py", "ask(s, 'Italy')", ":undo 2", "ask(s, CITY)", ":messages")
    assert found[1] == "loaded prog.py: call ask(s, ...)"
    assert found[-1] == "user: WHAT IS THE CAPITAL OF ROME?\nassistant: Paris."


BROKEN = {
    "import dslc\n\nx = nope\n": ("broken.py", "line 3", "NameError: name 'nope' is not defined"),
    "def f(:\n": ("broken.py", "line 1", "SyntaxError"),
    "import no_such_module\n": ("broken.py", "line 1", "ModuleNotFoundError"),
    "import sys\nsys.exit(3)\n": ("ProgramError: broken.py: it ends the process (SystemExit(3))",),
    "import dslc\n\n\n@dslc.function\ndef f(a):\n    pass\n": ("broken.py:4", "must be 's', not 'a'"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_with_an_error_is_named_with_its_line(text, typed, folder):
    (folder / "broken.py").write_text(text)
    said, after = typed(":load broken.py", "1 + 1")
    assert all(part in said for part in BROKEN[text]) and "cli_repl" not in said and "runpy" not in said
    assert after == "2"


def test_a_saved_session_imports_what_it_loaded(typed, folder):
    (folder / "else").mkdir()
    text = 's += """a\n  b\n\n   c"""'
    found = typed(":load prog.py", "ask(s, CITY)", *text.split("\n"), ":save out.py", ":save else/out.py", ":ir")
    assert [part for part in found if "written to" in part] == ["written to out.py", "written to else/out.py"]
    assert r'text "a\n  b\n\n   c"' in found[-1]
    for path in ("out.py", "else/out.py"):
        session = runpy.run_path(path)["session"]
        state = session.run(backend=dslc.ScriptedBackend("Paris."))
        assert state.messages()[0]["content"] == "WHAT IS THE CAPITAL OF ROME?"
        assert state.text().endswith("a\n  b\n\n   c")
        assert "sys.path" in (folder / path).read_text() or path == "out.py"


def test_save_does_not_write_over_a_file_unasked(typed, folder):
    found = typed("> hi", ":save prog.py", ":save! prog.py", "> again", ":save prog.py", ":save notes.txt", ":save")
    assert "prog.py is there already; :save! prog.py writes over it" in found[1]
    assert found[2] == found[4] == "written to prog.py"
    assert ":save takes a file to write, .py (the lines) or .html (the state), not 'notes.txt'" in found[5]
    assert "again" in (folder / "prog.py").read_text()


MISTAKES = {
    "What is the capital?": ("SyntaxError", "`> text` asks the model, :help says what else there is"),
    "load prog.py": ("SyntaxError", "lines are Python"),
    'gen("a")': ("nothing was appended: `s += ...` does that",),
    's + gen("a")': ("<repl 1>:1: `s + ...` appends nothing",),
    "s = 3": ("do not set it",),
    's += f"{gen(1)}"': ("<repl 1>:1: the name of a variable must be a str",),
    "s.a1": ("AttributeError", "a variable is read as s['a1']"),
    's["a1"]': ("<repl 1>:1: 'a1' is read before any op sets it",),
    "s += 5": ("an int cannot be appended",),
    "undefined": ("<repl 1>", "NameError: name 'undefined' is not defined"),
    ":tokns": ("there is no :tokns; did you mean :tokens? :help says what there is",),
    ":s": ("there is no :s; did you mean :save or :step or :switch?",),
    ":": ("there is no :; :help says",),
    ":undo two": (":undo takes a number of lines, not 'two'",),
    ":switch there": ("there is no branch 'there': main",),
    ":fork main": ("there is a branch 'main' already",),
    ":load": (":load takes a Python file",),
    ":load nope.py": ("nope.py: there is no such file",),
    ":load .": (".: it is a folder",),
    ":step": ("no step is left; :step FILE begins",),
    ":step nope.jsonl": ("nope.jsonl: there is no such recording",),
    ":save nodir/x.py": ("No such file or directory: 'nodir/x.py'",),
    ":tokens": ("no text yet",),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_and_changes_nothing(line, typed):
    said, variables, lines = typed(line, ":vars", ":switch")
    assert all(part in said for part in MISTAKES[line]), said
    assert "cli_repl" not in said and "session.py" not in said and "dslc/lang" not in said
    assert variables == "no variables yet"
    assert lines == ("* main: 1 line" if line.startswith("gen(") else "* main: 0 lines")


def test_commands_may_be_shortened(typed):
    found = typed("> hi", ":v", ":mess", ":q", "1 / 0")
    assert found[1] == "a1 = 'Paris.'" and found[2] == "user: hi\nassistant: Paris." and len(found) == 4


def test_tokens_without_colours_name_their_kinds(typed):
    found = typed("> hi", ":tokens")[1].splitlines()
    assert [line.split()[0] for line in found[:-1]] == ["prompt", "sampled", "text"]
    assert found[1] == "sampled 'Paris.'" and re.fullmatch(r"\d+ prompt  \d+ sampled  \d+ text", found[2 + 1].strip())


def test_what_would_steer_the_terminal_is_shown_instead(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("> hi\n:tokens\n:text\n"))
    Repl(dslc.ScriptedBackend("a\x1b[2Jb\x07"), {"seed": 1}, []).run()
    printed = capsys.readouterr().out
    assert "a␛[2Jb␇" in printed and "\x1b" not in printed and "\x07" not in printed


def test_a_block_that_the_input_ends_in_is_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("for i in range(2):\n    print('round', i)"))
    Repl(dslc.ScriptedBackend("x"), {}, []).run()
    assert "round 0\nround 1" in capsys.readouterr().out


# -- a terminal

CODE = """
import sys, dslc
from dslc.cli_repl import Repl
sys.exit(Repl(dslc.ScriptedBackend({"long": "word " * 20, "": "Paris."}, choose="yes"), {"seed": 1}, []).run())
"""


class Terminal:
    """A session of the REPL in a terminal."""

    def __init__(self, folder, columns=100, **environment):
        environment = {
            **os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "DSLC_CACHE_DIR": str(folder / "cache"), "TERM": "xterm",
            **environment,
        }  # fmt: skip
        self.child = pexpect.spawn(
            sys.executable, ["-c", CODE], env=environment, cwd=str(folder), timeout=60, dimensions=(40, columns),
            encoding="utf-8",
        )  # fmt: skip
        self.child.delaybeforesend = None
        self.raw = ""
        self.ready()

    def ready(self):
        """What was printed up to the next prompt (where the terminal is told of pasted text), as text."""
        self.child.expect_exact("\x1b[?2004h")
        self.raw = self.child.before
        return CONTROL.sub("", self.raw)

    def type(self, line):
        """Type a line; what it printed, less the echo of the keys."""
        self.child.sendline(line)
        self.child.expect_exact("\x1b[?2004l")
        return self.ready()

    def leave(self):
        """Ctrl-D; the exit code."""
        self.child.sendcontrol("d")
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def terminal(tmp_path):
    made = Terminal(tmp_path)
    yield made
    made.child.close(force=True)


def test_the_keys_of_a_person(terminal, tmp_path):
    type, child = terminal.type, terminal.child
    type("for i in range(2):")  # a block, given up half-way
    child.send("    s += 'x'")
    child.sendcontrol("c")
    terminal.ready()
    assert "main: 0 lines" in type(":switch")
    child.send("half a line")
    child.sendcontrol("c")
    terminal.ready()
    assert "main: 0 lines" in type(":switch")
    type("if True:")  # a block with the Tab key as indentation, ended by an empty line
    child.send("\ts += 'tabbed'")
    type("")
    assert "tabbed" in (type(""), type(":text"))[1]
    child.send(":mes\t")  # completion of commands, names, attributes
    child.expect("ages")
    assert "no chat turns yet" in type("")
    child.send("answer = ScriptedB\t")
    child.expect("ackend")
    type("('x')")
    child.send("s.mess\t")
    child.expect("ages")
    assert "[]" in type("")
    type("> hi")
    child.send("\x1b[A")  # history: the last line, once more
    child.expect("> hi")
    assert "a2: " in type("")
    pasted = "s += user('one')\ns += assistant(gen('pasted'))"
    child.send(f"\x1b[200~{pasted}\x1b[201~")
    assert "pasted: " in type("")
    assert "\x1b[32m" in (type(":tokens"), terminal.raw)[1]
    assert terminal.leave() == 0
    again = Terminal(tmp_path)
    again.child.send("\x1b[A\x1b[A")  # the history of the last session
    again.child.expect("pasted")
    again.child.sendcontrol("c")
    again.ready()
    assert again.leave() == 0


def test_a_narrow_terminal_and_no_colours(tmp_path):
    narrow = Terminal(tmp_path, 30, NO_COLOR="1")
    text = narrow.type("> a long answer")
    assert "word " * 20 in re.sub(r"\s+", " ", text) and "ended by stop" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", narrow.raw)
    assert "sampled 'word " in narrow.type(":tokens")
    assert narrow.leave() == 0


def test_a_history_that_cannot_be_kept_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    terminal = Terminal(tmp_path, DSLC_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert "the history is not kept: " in terminal.raw
    assert "2" in terminal.type("1 + 1") and terminal.leave() == 0
