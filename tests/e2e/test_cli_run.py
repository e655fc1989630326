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

@dslc.function
def broken(s, country):
    s += country
    s += str(vars())
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
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


ROWS = [{"country": name} for name in ("Italy", "Spain", "Peru", "France", "Italy")]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def read(path):
    return {line["index"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_a_file_of_arguments_gives_a_line_each_and_survives_an_interruption(program, rows, tmp_path, capsys):
    options = ["--args", str(rows), "--dtype", "float32", "--deterministic"]
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    assert cli.main(["run", f"{program}:capital", *options, "--out", str(out), "--sampling", "seed=5"]) == 0
    assert "5 run, 0 there before, 0 failed" in capsys.readouterr().err
    whole = read(out)
    assert sorted(whole) == list(range(5)) and [whole[i]["arguments"]["country"] for i in range(5)][2] == "Peru"
    # Stopped after two results, in the middle of the third: the rest is run, as if nothing had happened.
    lines = out.read_text().splitlines(keepends=True)
    other.write_text("".join(lines[:2]) + lines[2][:30])
    assert cli.main(["run", f"{program}:capital", *options, "--out", str(other)]) == 0
    assert "3 run, 2 there before, 0 failed" in capsys.readouterr().err
    assert len(other.read_text().splitlines()) == 5 and read(other) == whole
    assert cli.main(["run", f"{program}:capital", *options, "--out", str(other)]) == 0
    assert "0 run, 5 there before" in capsys.readouterr().err and read(other) == whole


def test_a_saved_plan_runs_without_its_python_file(program, rows, tmp_path, capsys):
    plan, out, python = tmp_path / "capital.plan", tmp_path / "plan.jsonl", tmp_path / "python.jsonl"
    assert cli.main(["compile", f"{program}:broken", "-o", str(plan)]) == 0
    assert cli.main(["run", str(plan), "--arg", "country=Peru"]) == 1
    assert "needs its Python body" in capsys.readouterr().err
    fixed = tmp_path / "fixed.py"
    fixed.write_text(PROGRAM)
    assert cli.main(["compile", f"{fixed}:capital", "-o", str(plan)]) == 0
    options = ["--args", str(rows), "--dtype", "float32", "--deterministic", "--sampling", "seed=5"]
    assert cli.main(["run", f"{fixed}:capital", *options, "--out", str(python)]) == 0
    fixed.unlink()
    assert cli.main(["run", str(plan), *options, "--out", str(out)]) == 0
    found, expected = read(out), read(python)
    assert found[0].pop("run") != expected[0].pop("run")  # a plan and its source are not taken for the same
    assert [found[i]["text"] for i in range(5)] == [expected[i]["text"] for i in range(5)] and found[0] == expected[0]
    capsys.readouterr()
    data = json.loads(plan.read_text())
    for change, message in [
        ({"tokenizer_hash": "0123"}, "holds ids of the tokenizer 0123, but that of the backend is"),
        ({"version": 99}, f"{plan}: the top level: written in version 99"),
    ]:
        plan.write_text(json.dumps({**data, **change}))
        assert cli.main(["run", str(plan), "--arg", "country=Peru"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[1]", "rows.jsonl:2: must be a JSON object of arguments, not '[1]'"),
        ('{"land": "Peru"}', "rows.jsonl:2: capital has no argument 'land'"),
        ("{}", "rows.jsonl:2: capital is missing the argument 'country'"),
    ],
)
def test_a_wrong_line_of_arguments_is_named(program, tmp_path, capsys, line, message):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"country": "Peru"}\n' + line + "\n")
    assert cli.main(["run", f"{program}:capital", "--args", str(rows), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_a_failed_row_has_its_line_and_the_others_their_results(program, rows, tmp_path, capsys):
    there, out = tmp_path / "note.txt", tmp_path / "out.jsonl"
    there.write_text("hello")
    rows.write_text("".join(json.dumps({"path": path}) + "\n" for path in (str(there), "nowhere.txt")))
    assert cli.main(["run", f"{program}:failing", "--args", str(rows), "--out", str(out)]) == 1
    assert "2 run, 0 there before, 1 failed" in capsys.readouterr().err
    assert read(out)[0]["text"] == "hello" and read(out)[1]["error"]["kind"] == "FileNotFoundError"


def test_results_go_only_into_a_file_of_results(program, rows, tmp_path, capsys):
    out = tmp_path / "notes.txt"
    out.write_text("dear diary\n")
    assert cli.main(["run", f"{program}:capital", "--args", str(rows), "--out", str(out)]) == 1
    assert f"{out}:1: not a result line" in capsys.readouterr().err and out.read_text() == "dear diary\n"
    assert cli.main(["run", f"{program}:capital", "--args", str(rows)]) == 1
    assert "--args FILE and --out FILE go together" in capsys.readouterr().err


MORE = """\
import asyncio
import dataclasses
import enum
import dslc

@dslc.function(outputs=["b"])
def declared(s, country):
    s += f"{country}: "
    s += dslc.gen("a", max_tokens=2)
    s += dslc.gen("b", max_tokens=2)
    s += dslc.gen("c", max_tokens=2)

@dslc.function
def typed(s, country):
    s += f"How many live in {country}? "
    s += dslc.gen("n", type=int, max_tokens=4)

@dataclasses.dataclass
class Town:
    size: int

class Kinds:
    class Mood(enum.Enum):
        GOOD = "good"
        BAD = "bad"

@dslc.function
def read_as(s, country):
    s += f"{country}: " + dslc.gen("mood", type=Kinds.Mood, max_tokens=4) + " "
    s += dslc.gen("town", type=Town, max_tokens=24, finish_valid=True) + dslc.gen("n", type=int, max_tokens=3)
    s += f" {s['mood'].value} {s['town'].size} {s['n'] + 1}"
    return s["n"] + s["town"].size

def make_local():
    class Small(enum.Enum):
        A = "a"
        B = "b"
    return Small

Small = make_local()

@dslc.function
def local(s, country):
    s += country + dslc.gen("n", type=Small, max_tokens=4)

@dslc.function
def listed(s, country):
    s += country + dslc.gen("n", type=list[int], max_tokens=4)

@dslc.function
async def later(s, country):
    s += f"{country}: "
    s += dslc.gen("a", max_tokens=2)
    await asyncio.sleep(0)
    s += "."

def make(count):
    def shout(text):
        print(text)
        return text * count
    return shout

TOOLS = {"shout": make(2)}

@dslc.function
def nameless(s, country):
    s += TOOLS["shout"](country)
"""


@pytest.fixture
def more(tmp_path, program):
    path = tmp_path / "more.py"
    path.write_text(MORE)
    return path


def test_only_declared_outputs_are_run_and_printed(more, tmp_path, capsys):
    options = ["--arg", "country=Peru", "--json", "--dtype", "float32", "--sampling", "temperature=0"]
    assert cli.main(["run", f"{more}:declared", *options, "--trace"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["variables"]) == ["b"] and "total: 2 requests" in err
    assert cli.main(["compile", f"{more}:declared", "-o", str(tmp_path / "d.plan")]) == 0
    assert cli.main(["run", str(tmp_path / "d.plan"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["variables"]["b"] == json.loads(out)["variables"]["b"]


def test_an_async_program_gives_a_line_for_each_row(more, rows, tmp_path, capsys):
    out = tmp_path / "later.jsonl"
    options = ["--dtype", "float32", "--sampling", "temperature=0"]
    assert cli.main(["run", f"{more}:later", "--args", str(rows), "--out", str(out), *options]) == 0
    found = read(out)
    assert [found[i]["text"].split(":")[0] for i in range(5)] == [row["country"] for row in ROWS]
    assert all(line["text"].endswith(".") for line in found.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local", "make_local.<locals>.Small, which a saved plan cannot name"),
        ("listed", "the type <list[int]>"),
        ("nameless", "which a saved plan cannot"),
    ],
)
def test_what_a_plan_cannot_hold_is_not_saved(more, tmp_path, capsys, name, message):
    assert cli.main(["compile", f"{more}:{name}", "-o", str(tmp_path / "p.plan")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "p.plan").exists()


def test_a_saved_plan_gives_values_of_the_types_that_its_file_defines(more, tmp_path, capsys):
    options = ["--arg", "country=Peru", "--json", "--dtype", "float32", "--sampling", "temperature=0"]
    assert cli.main(["run", f"{more}:read_as", *options]) == 0
    expected = json.loads(capsys.readouterr().out)
    plan = tmp_path / "r.plan"
    assert cli.main(["compile", f"{more}:read_as", "-o", str(plan)]) == 0
    assert cli.main(["run", str(plan), "--tools", str(more), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == expected and isinstance(found["ret_value"], int)
    assert cli.main(["run", str(plan), *options]) == 1
    error = capsys.readouterr().err
    assert "--tools" in error and "Kinds.Mood" in error
    assert cli.main(["compile", f"{more}:typed", "-o", str(plan)]) == 0
    assert cli.main(["run", str(plan), *options]) == 0  # a type of Python's own needs no file
    assert isinstance(json.loads(capsys.readouterr().out)["variables"]["n"], int)
