"""`dslc repl` in a pseudo-terminal, on the built-in model: what a person types, and what they see.

tests/lang/test_repl_lines.py has what needs no model: mistakes, files, keys.
"""

import os
import re
import sys

import pexpect
import pytest

from dslc.cli_programs import BUILTIN_MODEL

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r")


class Terminal:
    """A session of `dslc repl` in a terminal of 160 columns."""

    def __init__(self, folder, *arguments):
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PROMPT_TOOLKIT_NO_CPR": "1", "DSLC_CACHE_DIR": str(folder / "cache"),
            "TERM": "xterm",
        }  # fmt: skip
        code = "import sys; from dslc.cli import main; sys.exit(main(sys.argv[1:]))"
        command = ["-c", code, "repl", "--sampling", "temperature=0", *arguments]
        self.child = pexpect.spawn(
            sys.executable, command, env=environment, cwd=str(folder), timeout=60, dimensions=(60, 160),
            encoding="utf-8",
        )  # fmt: skip
        self.child.delaybeforesend = None
        self.folder = folder
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


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = Terminal(tmp_path_factory.mktemp("repl"))
    yield made
    made.child.close(force=True)


@pytest.fixture
def terminal(shared):
    """A session that has just begun, in a terminal that all tests share."""
    shared.type(":reset")
    return shared


def cached(text):
    return [int(n) for n in re.findall(r"(\d+) from the cache", text)]


def test_a_session_of_twenty_commands(terminal):
    type, tmp_path = terminal.type, terminal.folder
    (tmp_path / "prog.py").write_text(
        "import dslc\n\n\n@dslc.function\ndef ask(s, place):\n"
        "    s += dslc.user(f'What is the capital of {place}?')\n"
        "    s += dslc.assistant(dslc.gen('capital', max_tokens=16))\n"
    )
    # 1-3: two turns; the second finds the first in the cache, and says so
    first = type("> What is the capital of France?")
    assert "The capital of France is Paris." in first and len(cached(first)) == 1
    second = type("> And of Italy?")
    assert "Rome" in second and cached(second)[0] >= 20
    messages = type(":messages")
    assert "user: What is the capital of France?" in messages and "assistant: The capital of Italy is Rome." in messages
    # 4-6: Python lines, reading a variable, its value shown
    assert "a1: 8 tokens" in first
    assert "'The capital of France is Paris.'" in type('s["a1"]')
    type("count = 2")
    assert "4" in type("count + 2")
    # 7-8: a block, ended by an empty line
    type("for i in range(count):")
    type("    s += user(str(i)) + assistant(select(f'n{i}', ['one', 'two']))")
    block = type("")
    assert "n0 = " in block and "n1 = " in block
    # 9-12: looking
    assert re.search(r"n1 = '(one|two)'", type(":vars"))
    assert 'role "assistant" { %0 = gen "a1" }' in type(":ir")
    assert 'gen "a1"' in type(":explain")
    type(":undo 3")
    type("> And of Italy?")  # again: the cache has what was taken back
    tokens = type(":tokens")
    assert re.search(r"[1-9]\d* cached", tokens) and re.search(r"[1-9]\d* sampled", tokens)
    assert "\x1b[34m" in terminal.raw or "\x1b[4;34m" in terminal.raw  # what came from the cache is blue
    assert "\x1b[32m" in terminal.raw or "\x1b[4;32m" in terminal.raw  # what was sampled is green
    type('s += user("?") + assistant(select("n0", ["one", "two"]))')
    # 13-14: back
    assert "1 line taken back" in type(":undo")
    assert "n0" not in type(":vars")
    # 15-17: branches
    assert "on branch 'branch1'" in type(":fork")
    type('s += user("Why?")')
    assert "Why?" not in type(":switch main") and "Why?" not in type(":messages")
    assert "Why?" in (type(":switch branch1"), type(":messages"))[1]
    # 18-19: files
    assert "call ask(s, ...)" in type(":load prog.py")
    assert "Madrid" in type('ask(s, "Spain")')
    assert "written to out.py" in type(":save out.py") and "written to out.html" in type(":save out.html")
    assert 'class="tok sampled"' in (tmp_path / "out.html").read_text()
    type('state = ask.run("Rome", backend=dslc.ScriptedBackend("a town"), record="run.jsonl")')
    assert "ask[0] gen 1" in type(":step run.jsonl") and "a town" in terminal.raw
    assert "no step is left" in type(":step")
    # 20: anew
    type(":reset")
    assert "no variables yet" in type(":vars") and "no chat turns yet" in type(":messages")


def test_an_interrupt_stops_the_generation_and_nothing_else(terminal):
    type = terminal.type
    type("> What is the capital of France?")
    terminal.child.sendline('s += user("Count.") + assistant(gen("long", max_tokens=1500, ignore_eos=True))')
    terminal.child.expect(r"\x1b\[32m.+\x1b\[0m")  # some of it is there
    terminal.child.sendintr()
    assert "stopped; the state is as it was before this line" in terminal.ready()
    assert "long" not in type(":vars") and "a1 = " in type(":vars")
    again = type("> And of Italy?")
    assert "Rome" in again and cached(again)[0] >= 20
    terminal.child.sendcontrol("c")  # at the prompt: a new line
    terminal.ready()
    assert "a2 = " in type(":vars")


@pytest.mark.slow
def test_a_model_and_files_are_given_on_the_command_line(tmp_path):
    (tmp_path / "prog.py").write_text("import dslc\n\n\n@dslc.function\ndef ask(s):\n    s += 'x'\n")
    terminal = Terminal(tmp_path, "--model", str(BUILTIN_MODEL), "--load", "prog.py")
    assert "x" in (terminal.type("ask(s)"), terminal.type(":text"))[1]
    terminal.child.sendline(":quit")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 0
