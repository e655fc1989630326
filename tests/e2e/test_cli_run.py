"""`dslc run` on the built-in model, and what it refuses before a model is loaded."""

import json
import sys

import pytest

from dslc import cli

PROGRAM = """\
import dslc

@dslc.function
def capital(s, country, shots=1):
    for _ in range(shots):
        s += "Q: What is the capital of France?\\nA: Paris\\n"
    s += f"Q: What is the capital of {country}?\\nA:"
    s += dslc.gen("answer", max_tokens=4, stop="\\n")
    s += " Sure? "
    s += dslc.select("sure", ["yes", "no"])
    return s["sure"]

@dslc.function
def other(s):
    s += "x"

@dslc.function
def failing(s, path):
    s += open(path).read()
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "atlas.py"
    path.write_text(PROGRAM)
    return str(path)


def test_a_program_runs_and_prints_its_text_and_variables(program, capsys):
    options = ["--sampling", "temperature=0", "--dtype", "float32", "--max-running-requests", "4"]
    argv = ["run", f"{program}:capital", "--arg", "country=Italy", "--arg-json", "shots=2", *options]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    answer, sure = found["variables"]["answer"], found["variables"]["sure"]
    shot = "Q: What is the capital of France?\nA: Paris\n"
    assert found["text"] == f"{shot}{shot}Q: What is the capital of Italy?\nA:{answer} Sure? {sure}"
    assert found["ret_value"] == sure in ("yes", "no")
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith(found["text"] + "\n{") and out.endswith(f"returned {sure!r}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "{path}: there are several programs; name one: {path}:capital, {path}:other,"),
        ([":capital"], "{path}:3: capital is missing the argument 'country'"),
        ([":capital", "--arg", "land=Italy"], "{path}:3: capital has no argument 'land'; it takes country, shots"),
        ([":capital", "--arg", "Italy"], "--arg 'Italy': write it as NAME=VALUE"),
        ([":capital", "--arg-json", "country=Italy"], "--arg-json country: 'Italy' is not JSON"),
        ([":other", "--page-size", "0"], "page_size: must be a positive integer, not 0"),
        ([":other", "--model", "/no/such/model"], "/no/such/model: "),
        ([":failing", "--arg", "path=nowhere.txt"], "{path}:19: FileNotFoundError: "),
        ([":other", "--sampling", "temperature=-1"], "temperature: must be at least 0, not -1"),
    ],
)
def test_what_cannot_run_is_one_line(program, capsys, argv, message):
    code = cli.main(["run", program + (argv[0] if argv else ""), *argv[1:]])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert message.format(path=program) in err and err.count("\n") == 1


def test_an_unknown_engine_option_is_bad_usage(program, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", program, "--pages", "3"])
    assert caught.value.code == 2 and "--pages" in capsys.readouterr().err
