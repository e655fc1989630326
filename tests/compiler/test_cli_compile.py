"""`dslc compile`: what it prints, and one line with a place for everything that can be wrong. (`dslc run` is tested
with the engine.)"""

import json
import subprocess
import sys

import pytest

from dslc import cli
from dslc.compiler.parser import parse_program
from dslc.compiler.plan import Plan
from dslc.compiler.serial import from_json

PROGRAM = """\
import dslc

HINT = "Be brief."

@dslc.function
def triage(s, ticket):
    s += dslc.system(HINT)
    s += dslc.user(f"Ticket: {ticket}")
    s += dslc.assistant(dslc.select("label", ["bug", "other"]))
    if s["label"] == "bug":
        s += dslc.assistant(dslc.gen("why", max_tokens=8))

@dslc.function
def opaque(s):
    s += "Time: "
    s += str(vars())

if __name__ == "__main__":
    raise SystemExit("the entry point was run")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "support_desk.py"
    path.write_text(PROGRAM)
    return str(path)


def run(capsys, *argv):
    code = cli.main(["compile", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_ir_of_one_program(program, capsys):
    code, out, err = run(capsys, f"{program}:triage")
    assert (code, err) == (0, "")
    parsed = parse_program(out)
    assert parsed.title == "triage" and 'select "label" ["bug", "other"]' in out
    assert f"# {program}:9" in run(capsys, f"{program}:triage", "--lines")[1]


def test_all_programs_of_a_file_and_their_breaks(program, capsys):
    code, out, err = run(capsys, program)
    assert code == 0 and out.count("program ") == 2
    assert err.startswith(f"{program}:16: the rest of 'opaque' runs in Python: call of ")


def test_json_reloads_and_compiles_again(program, capsys, tmp_path):
    _, ir, _ = run(capsys, f"{program}:triage")
    _, text, _ = run(capsys, f"{program}:triage", "--emit", "json")
    assert from_json(text) == parse_program(ir)
    for name, content in (("saved.json", text), ("saved.ir", ir)):
        (tmp_path / name).write_text(content)
        assert run(capsys, str(tmp_path / name))[:2] == (0, ir)


def test_a_plan_is_printed_and_written(program, capsys, tmp_path):
    code, out, _ = run(capsys, f"{program}:triage", "--emit", "plan,lowered")
    assert code == 0 and out.startswith("plan triage\n") and "tokens 1 " in out and "trie of 2 choices" in out
    target = tmp_path / "triage.plan"
    assert run(capsys, f"{program}:triage", "-o", str(target))[:2] == (0, "")
    plan = Plan.from_json(target.read_text())
    assert str(plan) + "\n" + out.split("\n\n", 1)[1] == out


def test_passes_can_be_watched_and_left_out(program, capsys):
    _, _, err = run(capsys, f"{program}:triage", "--print-after-all", "--no-pass", "fold-text", "--stats")
    shown = [line[8:] for line in err.splitlines() if line.startswith("# after ")]
    assert shown[0] == "verify" and "fold-text" not in shown and "tokenize-constants" in shown
    assert "triage: selects_prepared 1\n" in err


def test_only_some_passes(program, capsys):
    only = ["--pass", "verify", "--pass", "fold-text"]
    _, out, err = run(capsys, f"{program}:triage", "--print-after-all", "--emit", "plan", *only)
    assert [line[8:] for line in err.splitlines() if line.startswith("# after ")] == ["verify", "fold-text"]
    assert "passes verify fold-text\n" in out and "tokens 1 " not in out
    assert run(capsys, f"{program}:triage", "--pass", "fold")[0] == 1


SMALL = """\
import dslc

@dslc.function
def small(s, q):
    s += f"Q: {q} A: "
    s += dslc.gen("a", max_tokens=4, regex="[a-z]+")
"""
GOLDEN = {
    "ir": """\
program small(q) {
  %0 = arg "q"
  %1 = concat "Q: " %0 " A: "
  text %1
  %2 = gen "a" sampling=(max_new_tokens=4) constraint=regex("[a-z]+")
}
""",
    "dot": """\
digraph "small" {
  node [shape=box, fontname="monospace"];
  op0 [label="%0 = arg \\"q\\"", tooltip="small.py:3"];
  op1 [label="%1 = concat \\"Q: \\" %0 \\" A: \\"", tooltip="small.py:5"];
  op0 -> op1 [style=dashed];
  op0 -> op1 [label="%0"];
  op2 [label="text %1", tooltip="small.py:5"];
  op1 -> op2 [style=dashed];
  op1 -> op2 [label="%1"];
  op3 [label="%2 = gen \\"a\\" sampling=(max_new_tokens=4) constraint=regex...", tooltip="small.py:6"];
  op2 -> op3 [style=dashed];
}
""",
    "json": None,
    "html": None,
}


def test_golden_forms(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)
    found = {form: run(capsys, "small.py", "--emit", form) for form in GOLDEN}
    assert all((code, err) == (0, "") for code, _, err in found.values())
    texts = {form: out.replace(f"{tmp_path}/", "") for form, (_, out, _) in found.items()}
    assert {form: texts[form] for form in ("ir", "dot")} == {form: GOLDEN[form] for form in ("ir", "dot")}
    data = json.loads(texts["json"])
    assert (data["format"], data["title"]) == ("dslc.program", "small") and data["params"] == [{"name": "q"}]
    assert [(op["op"], op["where"]) for op in data["body"]] == [
        ("arg", ["small.py", 3, "small"]),
        ("expr", ["small.py", 5, "small"]),
        ("text", ["small.py", 5, "small"]),
        ("gen", ["small.py", 6, "small"]),
    ]
    assert from_json(texts["json"]) == parse_program(texts["ir"])
    assert texts["html"].count('class="op') == 4 and "prompt <b>" in texts["html"]
    assert run(capsys, "small.py", "--emit", "ir,json,dot,html,plan")[1].startswith(GOLDEN["ir"] + "\n{")


def test_a_plan_is_explained(program, capsys):
    code, out, _ = run(capsys, f"{program}:triage", "--explain")
    assert code == 0 and out.startswith("triage: 1 gens, 1 selects; at most 8 new tokens")
    assert f'{program}:9: select "label"\n  + its first ' in out and "depends on the argument 'ticket'" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{dir}/none.py"], "{dir}/none.py: there is no such file"),
        (["{program}:nothing"], "{program}: 'nothing' is not there; the programs are triage, opaque"),
        (["{program}:HINT"], "{program}: 'HINT' is a str, not a program; the programs are triage, opaque"),
        (["{program}", "--emit", "poetry"], "--emit: there is no form 'poetry'; there are ir, json,"),
        (["{program}", "--no-pass", "fold"], "disabled: there is no pass 'fold'; did you mean 'fold-text'?"),
        (["{program}:opaque", "--strict"], "{program}:16: "),
        (["{program}:triage", "--stats", "--model", "{dir}/none"], "{dir}/none: there is no such folder"),
    ],
)
def test_a_wrong_command_is_one_line(program, tmp_path, capsys, argv, message):
    code, out, err = run(capsys, *(word.format(dir=tmp_path, program=program) for word in argv))
    assert (code, out) == (1, "")
    assert err.startswith(message.format(dir=tmp_path, program=program)) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef (", "{path}:2: SyntaxError: invalid syntax"),
        ("\nimport json\njson.loads('{')", "{path}:3: JSONDecodeError: Expecting property name"),
        ("x = 1", "{path}: there is no program in it"),
        ("import dslc\n@dslc.function\ndef f(t): pass", "{path}:2: the first parameter of the program f must be 's'"),
        ("import dslc\n@dslc.function\ndef f(s):\n    s += s['x']", "{path}:4: 'x' is read before any op sets it"),
        ("import dslc\n@dslc.function\ndef f(s):\n    s += dslc.select('x', [])", "{path}:4: choices"),
        ("import dslc\n@dslc.function\ndef f(s):\n    s += dslc.gen('x', regex='[a')", "{path}:4: regex"),
    ],
)
def test_a_wrong_program_is_one_line_with_its_place(tmp_path, monkeypatch, capsys, source, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "bad.py"
    path.write_text(source)
    code, out, err = run(capsys, str(path))
    assert (code, out) == (1, "")
    assert err.startswith(message.format(path=path)), err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.ir", "program p() {\n  sing\n}", "{path}:2: column 3: unknown op 'sing'"),
        ("bad.json", "{}", "{path}: the top level: this is not a 'dslc.program'"),
        ("wrong.ir", "program p() {\n  text %1\n}", "{path}:2: [defined-before-use] text: %1 is used before any op"),
    ],
)
def test_a_wrong_ir_file_is_one_line_with_its_place(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    code, _, err = run(capsys, str(path))
    assert code == 1 and err.startswith(message.format(path=path)) and err.count("\n") == 1


def test_help_and_compile_load_no_torch(program):
    script = (
        "import sys; from dslc import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"assert cli.main(['compile', {program + ':triage'!r}, '--emit', 'plan']) == 0\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "compile" in done.stdout and "run" in done.stdout


def test_version(capsys):
    import dslc

    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.strip() == dslc.__version__
