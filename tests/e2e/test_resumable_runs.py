"""`dslc run --args --out --journal --replay`: whatever interrupts a run, each row has one result line, and it is the
line of a run without interruption; what a journal holds is not made again."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

from dslc import cli

PROGRAM = """\
import dslc

def lookup(word):
    with open({calls!r}, "a") as file:
        file.write(repr(word) + "\\n")
    return {{"length": len(word), "pair": (1, word)}}

@dslc.function
def story(s, name):
    s += f"Once there was {{name}}. "
    s += dslc.gen("first", max_tokens=10, temperature=1)
    found = lookup(s["first"])
    s += f" ({{found['length']}} {{found['pair'][0]}}) "
    s += dslc.gen("second", max_tokens=10, temperature=1)
    s += " The end: "
    s += dslc.select("end", ["good", "bad"])
    return s["end"]
"""
NAMES = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal"]
OPTIONS = ["--dtype", "float32", "--deterministic", "--sampling", "seed=11", "--max-running-requests", "2"]

# Runs the command in a fork of itself and kills it when `watched` has grown by some random bytes, until one ends.
KILLER = """\
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from dslc import cli
import dslc.runtime.engine, dslc.runtime.model_runner
watched, seed, most, argv = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
size = lambda: os.path.getsize(watched) if os.path.exists(watched) else 0
draw, kills = random.Random(seed), 0
while True:
    start = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(cli.main(argv))
    until = size() + draw.choice([1, 1, draw.randrange(1, 1500)]) if kills < most else 1 << 60
    while size() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            print(kills, os.waitstatus_to_exitcode(status))
            sys.exit(0)
        time.sleep(0.0002)
    time.sleep(draw.random() * 0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    calls = tmp_path / "calls.txt"
    (tmp_path / "story.py").write_text(PROGRAM.format(calls=str(calls)))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in NAMES))
    return tmp_path


def command(files, out, *more):
    return ["run", str(files / "story.py"), "--args", str(files / "rows.jsonl"), "--out", str(out), *OPTIONS, *more]


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def by_index(path):
    return sorted(lines(path), key=lambda line: line["index"])


def killed_until_done(argv, watched, seed, most=6):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(watched), str(seed), str(most), *argv],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    kills, code = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0, done.stderr
    return kills, done.stderr


@pytest.fixture
def whole(files):
    """The results of a run that nothing interrupts."""
    out = files / "whole.jsonl"
    assert cli.main(command(files, out)) == 0
    (files / "calls.txt").unlink()
    return by_index(out)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_random_points_no_line_is_lost_or_written_twice(files, whole, seed):
    out = files / "out.jsonl"
    kills, _ = killed_until_done(command(files, out), out, seed)
    assert kills >= 2
    assert Counter(line["index"] for line in lines(out)) == Counter(range(len(NAMES)))
    assert by_index(out) == whole


@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_with_a_journal_nothing_that_was_finished_is_made_again(files, whole, seed):
    out, journal = files / "out.jsonl", files / "run.journal"
    kills, errors = killed_until_done(command(files, out, "--journal", str(journal)), journal, seed)
    assert kills >= 2 and by_index(out) == whole
    gens = Counter(line["gen"] for line in lines(journal) if "gen" in line)
    hosts = Counter(line["host"] for line in lines(journal) if "host" in line)
    assert len(gens) == 3 * len(NAMES) and set(gens.values()) == {1}  # the third is the select
    assert len(hosts) == len(NAMES) and set(hosts.values()) == {1}
    # A call can be made twice only where the kill came between the call and its line.
    assert len(NAMES) <= len((files / "calls.txt").read_text().splitlines()) <= len(NAMES) + kills
    assert " gens and " in errors.splitlines()[-1] and not errors.splitlines()[-1].startswith("journal: 0 gens")


def test_a_finished_journal_answers_everything(files, whole, capfd):
    out, again, journal = files / "out.jsonl", files / "again.jsonl", files / "run.journal"
    assert cli.main(command(files, out, "--journal", str(journal))) == 0
    assert "journal: 0 gens and 0 host results used again, 24 gens computed" in capfd.readouterr().err
    size, calls = journal.stat().st_size, (files / "calls.txt").read_text()
    assert cli.main(command(files, again, "--journal", str(journal), "--trace")) == 0
    err = capfd.readouterr().err
    assert "journal: 24 gens and 8 host results used again, 0 gens computed" in err
    assert "total: 0 requests; " in err and "total: 24 results replayed, nothing computed for them" in err
    assert "note:" not in err
    assert by_index(again) == whole and (files / "calls.txt").read_text() == calls and journal.stat().st_size == size


def test_after_an_edit_only_what_follows_it_is_generated(files, whole, capfd):
    out, edited, journal = files / "out.jsonl", files / "edited.jsonl", files / "run.journal"
    assert cli.main(command(files, out, "--journal", str(journal))) == 0
    source = files / "story.py"
    source.write_text("# moved\n" + source.read_text().replace('" The end: "', '" So it ended: "'))
    capfd.readouterr()
    assert cli.main(command(files, edited, "--replay", str(journal))) == 0
    err = capfd.readouterr().err
    assert "journal: 16 gens and 0 host results used again, 8 gens computed" in err
    assert "replay: select end line 17: 8 computed" in err and err.count("replay:") == 1
    old, new = by_index(out), by_index(edited)
    for before, after in zip(old, new, strict=True):
        for name in ("first", "second"):
            assert after["variables"][name] == before["variables"][name]
        assert after["text"] != before["text"]
    # The same without a record: replaying changed nothing.
    assert cli.main(command(files, files / "plain.jsonl")) == 0
    assert by_index(files / "plain.jsonl") == new
    # Results of another version of the program are not mixed.
    assert cli.main(command(files, out)) == 1
    assert f"{out}:1: of another version of the program" in capfd.readouterr().err


def test_a_changed_sampling_option_is_generated_anew(files, capfd):
    out, other, journal = files / "out.jsonl", files / "other.jsonl", files / "run.journal"
    assert cli.main(command(files, out, "--journal", str(journal))) == 0
    source = files / "story.py"
    source.write_text(source.read_text().replace('"second", max_tokens=10', '"second", max_tokens=11'))
    capfd.readouterr()
    assert cli.main(command(files, other, "--replay", str(journal))) == 0
    err = capfd.readouterr().err
    assert "replay: gen second line 14: 8 computed" in err and "gen first" not in err
    used, computed = map(int, re.search(r"journal: (\d+) gens and 0 host results used again, (\d+)", err).groups())
    # Where the longer limit changed nothing, the select after it has the same prompt.
    assert used + computed == 24 and 8 <= used < 16


def test_what_does_not_fit_together_is_refused(files, capsys):
    out, journal, rows = files / "out.jsonl", files / "run.journal", files / "rows.jsonl"
    assert cli.main(command(files, out, "--journal", str(journal))) == 0
    capsys.readouterr()
    for argv, message in [
        ([*command(files, out), "--sampling", "seed=12"], f"{out}: holds results of a run with the seed 11, not 12"),
        ([*command(files, out), "--sampling", "top_k=3"], f"{out}:1: of another version of the program, or another"),
        ([*command(files, files / "o"), "--journal", str(rows)], f"{rows}:1: not a line of a journal"),
        ([*command(files, files / "o"), "--replay", str(files / "none")], "none: there is no such file"),
        (
            [*command(files, files / "o"), "--journal", str(journal), "--no-deterministic"],
            f"{journal}: recorded with deterministic True, but this run has False; name another file",
        ),
        (
            [*command(files, files / "o"), "--journal", str(journal), "--sampling", "seed=12"],
            f"{journal}: holds results of a run with the seed 11, not 12",
        ),
    ]:
        assert cli.main(argv) == 1
        assert message in capsys.readouterr().err
    text = rows.read_text()
    rows.write_text(text.replace("Cy", "Xi"))
    assert cli.main(command(files, out)) == 1
    assert f"{rows}:3: its result in {out} was made for other arguments" in capsys.readouterr().err
    rows.write_text("".join(text.splitlines(keepends=True)[:2]))
    assert cli.main(command(files, out)) == 1
    assert "holds a result of row" in capsys.readouterr().err


def test_two_runs_never_write_one_file(files, capsys):
    out = files / "out.jsonl"
    script = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", script, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    assert cli.main(command(files, out)) == 1
    assert f"{out}: another run is writing it" in capsys.readouterr().err
    holder.communicate(b"")
    assert cli.main(command(files, out)) == 0


def test_a_plan_calls_the_tools_it_is_given_and_no_others(files, whole, capsys):
    plan, out = files / "story.plan", files / "plan.jsonl"
    assert cli.main(["compile", str(files / "story.py"), "-o", str(plan)]) == 0
    argv = ["run", str(plan), "--args", str(files / "rows.jsonl"), "--out", str(out), *OPTIONS]
    assert cli.main(argv) == 1
    assert f"{plan}: the plan calls __dslc_program__:lookup: name the Python file" in capsys.readouterr().err
    tools = files / "tools.py"
    tools.write_text((files / "story.py").read_text().split("@dslc.function")[0])
    (files / "story.py").unlink()
    assert cli.main([*argv, "--tools", str(tools)]) == 0
    assert [line["text"] for line in by_index(out)] == [line["text"] for line in whole]
    assert len((files / "calls.txt").read_text().splitlines()) == len(NAMES)
