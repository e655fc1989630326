"""Plans on disk: what is found is what would be compiled; an edit compiles what changed; damage is no harm."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from support.programs import programs
from support.scripted import ScriptedTokenizer

from dslc import cli
from dslc.compiler import checked
from dslc.compiler.constraints import check_constraint
from dslc.compiler.ir import walk
from dslc.compiler.passes.base import CompileOptions
from dslc.compiler.pipeline import compile_program
from dslc.compiler.plan_cache import PlanCache, plan_key, tokenizer_name
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

SOURCE = """\
import dslc

HINT = "Be brief."

@dslc.function
def first(s, q):
    s += HINT + f" {q}"
    s += dslc.gen("a", max_tokens=8, regex="[a-z]+")

@dslc.function
def second(s, q):
    s += "Choose: "
    s += dslc.select("b", ["yes", "no"])

@dslc.function
def third(s, q):
    s += f"JSON: {q}"
    s += dslc.gen("c", json_schema='{"type": "integer"}', max_tokens=9)
"""


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "three.py"
    path.write_text(SOURCE)

    def run(*more):
        """(printed plans, plans found on disk) of one command."""
        assert cli.main(["compile", str(path), "--emit", "plan", "--lines", "--stats", *more]) == 0
        out, err = capsys.readouterr()
        return out, int([line for line in err.splitlines() if "plans_from_disk" in line][-1].split()[-1])

    return path, run


def test_after_an_edit_only_what_changed_is_compiled(shell):
    path, run = shell
    plain, found = run()
    assert found == 0 and run() == (plain, 3)
    path.write_text(SOURCE.replace("Choose: ", "Pick: "))
    edited, found = run()
    assert found == 2 and edited != plain and run() == (edited, 3)
    path.write_text(SOURCE.replace("Be brief.", "Be kind."))  # a global that one of them depends on
    assert run()[1] == 2
    path.write_text(SOURCE)
    assert run() == (plain, 3)
    assert run("--no-pass", "fold-text")[1] == 0 and run("--no-pass", "fold-text")[1] == 3


def test_a_program_that_has_moved_is_found_with_its_new_lines(shell, capsys):
    path, run = shell
    run()
    path.write_text("# one\n# two\n" + SOURCE)
    moved, found = run()
    assert found == 3
    (path.parent / "cache").rename(path.parent / "gone")
    assert run() == (moved, 0)
    assert cli.main(["compile", f"{path}:first", "--explain"]) == 0
    assert f'{path}:10: gen "a"' in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 300, "cut", "flip", "version"])
def test_what_is_damaged_is_compiled_anew_and_replaced(shell, damage):
    path, run = shell
    plain, _ = run()
    for file in (path.parent / "cache" / "plans").glob("*.plan"):
        content = file.read_bytes()
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "flip":
            content = content.replace(b'"version": ', b'"version":  ', 1)
        elif damage == "version":  # whole, but not readable by this compiler
            import hashlib

            body = content[65:].replace(b'"format": "dslc.plan"', b'"format": "other"', 1)
            content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        else:
            content = damage
        file.write_bytes(content)
    assert run() == (plain, 0)
    assert run() == (plain, 3)


def test_a_folder_that_cannot_be_used_is_no_error(shell, monkeypatch, tmp_path):
    path, run = shell
    plain, _ = run()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "file"))
    assert run() == (plain, 0)
    assert cli.main(["compile", str(path), "-o", str(tmp_path / "p")]) == 0


@settings(max_examples=60, deadline=None)
@given(programs())
def test_what_is_found_is_what_is_compiled(program):
    import tempfile

    tokenizer = ScriptedTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        cache = PlanCache(Path(folder))
        plan = compile_program(program, tokenizer)
        assert cache.compiled(program, tokenizer) == plan == cache.compiled(program, tokenizer)
        assert (cache.num_misses, cache.num_hits) == (1, 1)
        again = cache.compiled(program, tokenizer)
        assert [op.where for op in walk(again.program.body)] == [op.where for op in walk(plan.program.body)]


def test_the_key_holds_everything_that_a_plan_follows_from(tmp_path, monkeypatch):
    from dslc.compiler import plan_cache
    from dslc.compiler.parser import parse_program

    program = parse_program('program p() { text "a"; %1 = gen "x" }', "p.ir")
    keys = {
        plan_key(program, "t", None),
        plan_key(parse_program('program p() { text "b"; %1 = gen "x" }', "p.ir"), "t", None),
        plan_key(program, "u", None),
        plan_key(program, "t", CompileOptions(disabled=("fold-text",))),
    }
    monkeypatch.setattr(plan_cache, "compiler_name", lambda: "another")
    assert len(keys | {plan_key(program, "t", None)}) == 5
    (tmp_path / "tokenizer.json").write_text("{}")
    before = tokenizer_name(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert before != tokenizer_name(tmp_path) != tokenizer_name(tmp_path / "none") is None


def _compile_many(folder, order):
    tokenizer = ScriptedTokenizer()
    cache = PlanCache(Path(folder))
    from dslc.compiler.parser import parse_program

    for number in order:
        program = parse_program(f'program p() {{ text "a{number}"; %1 = gen "x" }}')
        if cache.compiled(program, tokenizer) != compile_program(program, tokenizer):
            os._exit(1)


def test_several_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    orders = [list(range(40)), list(range(39, -1, -1)), list(range(0, 40, 2)) * 2]
    workers = [context.Process(target=_compile_many, args=(tmp_path, order)) for order in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(list(tmp_path.glob("*.plan"))) == 40 and not list(tmp_path.glob("*.new"))


def test_only_so_many_plans_are_kept_and_those_in_use_stay(tmp_path, monkeypatch):
    from dslc.compiler import plan_cache

    monkeypatch.setattr(plan_cache, "MAX_PLANS", 4)
    cache, tokenizer = PlanCache(tmp_path), ScriptedTokenizer()
    from dslc.compiler.parser import parse_program

    for number in range(8):
        for asked in (0, number):
            cache.compiled(parse_program(f'program p() {{ text "a{asked}"; %1 = gen "x" }}'), tokenizer)
        for file in tmp_path.glob("*.plan"):  # a clock too coarse to tell them apart would make this vague
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))
    assert len(list(tmp_path.glob("*.plan"))) == 4
    assert cache.num_misses == 8


def test_constraints_found_good_are_not_read_again(tmp_path, monkeypatch):
    good, bad = Constraint("regex", "[a-z]+"), Constraint("regex", "[a-z")
    try:
        checked.use(tmp_path)
        check_constraint(good)
        with pytest.raises(ConstraintError):
            check_constraint(bad)
        checked.use(tmp_path)
        assert checked.is_good(good) and not checked.is_good(bad)
        assert not checked.is_good(Constraint("json_schema", "[a-z]+"))
        (tmp_path / "checked").write_bytes((tmp_path / "checked").read_bytes()[:30])
        checked.use(tmp_path)
        assert not checked.is_good(good)
        checked.use(None)
        assert not checked.is_good(good)
    finally:
        checked.use(None)


def test_a_known_program_loads_neither_tokenizer_nor_automata(shell):
    path, _ = shell
    script = (
        "import sys; from dslc import cli\n"
        f"assert cli.main(['compile', {str(path)!r}, '--emit', 'plan']) == 0\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'msgspec'} & sys.modules.keys()\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        found.append((done.stdout, json.loads(done.stderr.replace("'", '"'))))
    assert found[0][0] == found[1][0] and "tokenizers" in found[0][1] and found[1][1] == []


def test_a_run_finds_the_plans_of_earlier_ones(shell, capsys, monkeypatch):
    from dslc.compiler import pipeline

    path, _ = shell
    made = []
    compile_program = pipeline.compile_program
    monkeypatch.setattr(pipeline, "compile_program", lambda *given: made.append(given) or compile_program(*given))
    texts = []
    for _ in range(2):
        options = ["--dtype", "float32", "--sampling", "temperature=0"]
        assert cli.main(["run", f"{path}:second", "--arg", "q=x", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(made) == 1
