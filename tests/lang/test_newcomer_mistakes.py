"""What a newcomer writes wrongly, in a program, in Python, or on the command line: what is said of it."""

import pytest

import dslc
from dslc.cli import main

BACKEND = dslc.ScriptedBackend("Paris")


def of_program(build):
    """A program whose body does one thing."""

    @dslc.function
    def program(s, place="France"):
        build(s)

    return program


def sum_of(s):
    s = s + "text" + dslc.gen("a")


def in_an_f_string(s):
    s += f"Name: {dslc.gen('name')}"


def forgotten(s):
    s + dslc.gen("a")


def nothing(s):
    s += print("x")


IN_BODIES = {
    sum_of: (dslc.ProgramError, r"`s \+ \.\.\.` appends nothing: write `s \+= \.\.\.`"),
    forgotten: (dslc.ProgramError, r"write `s \+= \.\.\.`"),
    in_an_f_string: (
        dslc.ProgramError,
        r"<gen 'name' .*no text that an f-string could hold: append it beside",
    ),
    nothing: (dslc.ProgramError, "None cannot be appended to a program: does what gave it return a value"),
    (lambda s: s.append(5)): (dslc.ProgramError, "an int cannot be appended to a program; convert it to a str"),
    (lambda s: s.append({"a": 1})): (dslc.ProgramError, "a dict cannot be appended"),
    (lambda s: s.append("a" + dslc.gen("a") + 5)): (dslc.ProgramError, "an int cannot be appended"),
    (lambda s: s.append(dslc.select("a", "yes"))): (dslc.RequestError, "choices: must be a list of strings, not 'yes'"),
    (lambda s: s.append(dslc.select("a", [1, 2]))): (dslc.RequestError, r"choices\[0\]: must be a non-empty string"),
    (lambda s: s.append(dslc.gen("a", temperature="hot"))): (dslc.RequestError, "temperature: must be a finite number"),
    (lambda s: s.append(dslc.gen("a", stop=5))): (dslc.RequestError, "stop: must be a str or a list of str, not 5"),
    (lambda s: s.append(dslc.gen("a", regex="[a"))): (
        dslc.ConstraintError,
        r"regex: '\[a': unterminated character set",
    ),
    (lambda s: s.append(dslc.gen("a", json_schema="{"))): (dslc.ConstraintError, "json_schema: not JSON"),
    (lambda s: s.fork(0)): (dslc.ProgramError, r"fork\(\) needs a positive number of branches, not 0"),
    (lambda s: s["never"]): (dslc.UndefinedVariable, "'never' is read before any op sets it; variables so far: none"),
    (lambda s: s.append(dslc.user("a" + dslc.user("b")))): (dslc.ProgramError, "roles do not nest: close the open one"),
}


@pytest.mark.parametrize("build", IN_BODIES)
@pytest.mark.parametrize("compiled", [None, False])
def test_in_a_body_the_error_names_the_line(build, compiled):
    kind, says = IN_BODIES[build]
    with pytest.raises(kind, match=says) as caught:
        of_program(build).run(backend=BACKEND, compiled=compiled)
    assert caught.value.where.file == __file__


def test_of_a_state_that_has_run():
    state = of_program(lambda s: s.append(dslc.gen("answer"))).run(backend=BACKEND)
    with pytest.raises(AttributeError, match=r"no attribute 'answer'; a variable is read as s\['answer'\]"):
        state.answer  # noqa: B018
    with pytest.raises(dslc.UndefinedVariable, match=r"'anwser' is read before.*variables so far: 'answer'"):
        state["anwser"]
    assert not hasattr(state, "_nothing") and not hasattr(state, "nothing")


@pytest.mark.parametrize("wrong", ["http://localhost:30000", dslc.ScriptedBackend, "gpt-4"])
def test_what_is_no_backend(wrong):
    says = r"test_newcomer_mistakes.py:\d+: a backend is an object, such as .*RuntimeEndpoint\(url\), not "
    with pytest.raises(dslc.ProgramError, match=says):
        of_program(lambda s: None).run(backend=wrong)
    with pytest.raises(dslc.ProgramError, match=says):
        dslc.set_default_backend(wrong)


def test_arguments_and_options_of_a_run():
    program = of_program(lambda s: None)
    with pytest.raises(dslc.ArgumentError, match="'temprature'; it takes place; did you mean the option 'temperature'"):
        program.run(temprature=0, backend=BACKEND)
    with pytest.raises(dslc.ArgumentError, match="did you mean 'place'"):
        program.run(plase="Spain", backend=BACKEND)
    with pytest.raises(dslc.ArgumentError, match="takes 1 positional argument, got 2"):
        program.run("a", "b", backend=BACKEND)
    with pytest.raises(dslc.ArgumentError, match=r"batch_kwargs\[0\] must be a dict or a tuple, not 'a'"):
        program.run_batch(["a"], backend=BACKEND)


def test_a_scripted_backend_that_cannot_be():
    for options, says in (
        ({"answer": 5}, "answer: must be a text, a list, a dict or a function, not 5"),
        ({"unlike": ["scores"]}, "unlike: there is no 'scores'; there are scoring, logprobs"),
        ({"media": ["sound"]}, "media: there is no 'sound'; there are image, video"),
    ):
        with pytest.raises(dslc.ConfigError, match=says):
            dslc.ScriptedBackend(**options)


FILES = {
    "prog.py": "import dslc\n\n@dslc.function\ndef ask(s, place):\n    s += place\n\n"
    "@dslc.function\ndef other(s):\n    s += 'x'\n",
    "name.py": "import dslc\nx = nope\n",
    "syntax.py": "import dslc\ndef p(s:\n",
    "imports.py": "import not_a_module\n",
    "none.py": "x = 1\n",
    "rows.jsonl": "{bad\n",
    "text.ir": "hello\n",
}  # fmt: skip

COMMANDS = {
    "run nope.py": "nope.py: there is no such file",
    "run prog": "prog: there is no such file; did you mean prog.py?",
    "compile prog.ask": "prog.ask: there is no such file; did you mean prog.py:ask?",
    "run .": ".: it is a folder; name one of its Python files",
    "run prog.py": "prog.py: there are several programs; name one: prog.py:ask, prog.py:other",
    "run prog.py:nope": "prog.py: 'nope' is not there; the programs are ask, other",
    "run prog.py:ask": "prog.py:3: ask is missing the argument 'place'",
    "run prog.py:ask --arg place": "--arg 'place': write it as NAME=VALUE",
    "run prog.py:ask --arg city=Rome": "ask has no argument 'city'; it takes place",
    "run prog.py:ask --arg-json place={": "--arg-json place: '{' is not JSON",
    "run prog.py:other --sampling stop=end": """a text is written with its quotes: stop='"end"'""",
    "run prog.py:ask --args rows.jsonl": "--args FILE and --out FILE go together",
    "run prog.py:ask --args rows.jsonl --out o.jsonl": "rows.jsonl:1: not JSON",
    "run name.py": "name.py:2: NameError: name 'nope' is not defined",
    "run syntax.py": "syntax.py:2: SyntaxError",
    "run imports.py": "imports.py:1: ModuleNotFoundError: No module named 'not_a_module'",
    "run none.py": "none.py: there is no program in it (a function with @dslc.function)",
    "compile prog.py --emit foo": "--emit: there is no form 'foo'; there are ir, json",
    "compile prog.py --no-pass foo": "there is no pass 'foo'; the passes are verify",
    "compile text.ir": "text.ir:1: column 1: expected `program`",
    "compile prog.py -o nodir/x": "nodir/x: No such file or directory",
    "check nope.py": "nope.py: there is no such file",
    "steps nope.jsonl": "nope.jsonl: there is no such recording",
    "diff a b": "a: there is no such recording",
    "repl --sampling temperature": "--sampling 'temperature': write it as NAME=VALUE",
    "repl --sampling temprature=0": "--sampling temprature: there is no such option; did you mean temperature?",
    "run prog.py:other --sampling xyz=0": "--sampling xyz: there is no such option; there are finish_valid, ",
    "repl --endpoint localhost:9": "base_url: must begin with http:// or https://, not 'localhost:9'",
    "repl --endpoint http://127.0.0.1:9": "no connection: ",
    "repl --model nodir": "nodir: no such folder; give a local folder or a hub id",
    "repl --model m --endpoint http://x": "--model and --endpoint: one of them",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_on_the_command_line(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(command.split(" ")) == 1
    said = capsys.readouterr().err
    assert COMMANDS[command] in said and "Traceback" not in said and said.count("\n") <= 2


USAGE = {
    "": "write a program line by line against a live model",  # the help
    "runn prog.py": "invalid choice: 'runn' (choose from ",
    "run": "the following arguments are required: FILE[:NAME]",
    "run prog.py:ask --temperature 0": "run has no --temperature: an option of sampling is given as --sampling t",
    "run prog.py:ask --top-p=0.5": "--sampling top_p=0.5",
    "repl extra": "repl has no extra; `dslc repl --help` says what there is",
    "check prog.py --context-length x": "argument --context-length: invalid int value: 'x'",
}  # fmt: skip


@pytest.mark.parametrize("command", USAGE)
def test_usage(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and USAGE[command] in said and len(said.splitlines()) < 40
