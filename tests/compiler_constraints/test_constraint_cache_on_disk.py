"""Automata are kept on disk: made once, whole or not at all, bounded, and nothing else comes out of a file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.constraint_samples import random_schema
from support.constraint_support import mask_of, small_vocabulary

from dslc.compiler.constraints import compile as compiling
from dslc.compiler.constraints import compile_constraint
from dslc.compiler.constraints.automata import Automata
from dslc.compiler.constraints.compile import ConstraintCache, build_automaton
from dslc.compiler.constraints.matcher import AutomatonConstraint
from dslc.compiler.constraints.persist import NotSaved, automaton_from_bytes, automaton_to_bytes
from dslc.compiler.constraints.store import Store, cache_folder
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

SCHEMA = Constraint("json_schema", json.dumps({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9},
    "b": {"type": "array", "items": {"enum": [1, "x"]}, "uniqueItems": True}}, "required": ["b"]}))  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("dslc.compiler.constraints.automata.KEPT_SECONDS", 0.0)  # keep all
    return tmp_path


def language(automaton, length: int = 3) -> list[str]:
    """Texts the automaton reads first, with what may end: the same for the same language."""
    out, todo = [], [(b"", automaton.start)]
    while todo and len(out) < 400:
        text, state = todo.pop(0)
        out.append(f"{text!r} {automaton.accepting(state)}")
        todo += [(text + bytes([byte]), after) for byte, after in sorted(automaton.moves(state).items())[:4]]
    return out


def test_saved_and_loaded_automata_read_the_same():
    import random

    rng = random.Random(2)
    sources = [SCHEMA, Constraint("regex", "(ab|[c-f]{2,9}é)*"), Constraint("json_schema", "true")]
    sources += [Constraint("json_schema", json.dumps(random_schema(rng))) for _ in range(40)]
    compared = 0
    for constraint in sources:
        try:
            made = build_automaton(constraint)
        except ConstraintError:
            continue
        again = automaton_from_bytes(automaton_to_bytes(made))
        assert language(again) == language(made), constraint.source
        compared += 1
    assert compared > 30


def test_a_second_process_builds_nothing(tmp_path: Path):
    script = (
        "from dslc.compiler.constraints import automata; automata.KEPT_SECONDS = 0.0\n"
        "from dslc.compiler.constraints.compile import automata_counters, check_constraint\n"
        "from dslc.core.constraint import Constraint\n"
        f"check_constraint(Constraint('json_schema', {SCHEMA.source!r}))\n"
        "check_constraint(Constraint('regex', '[a-z]{1,50}'))\n"
        "check_constraint(Constraint('regex', '[a-z]{1,50}'))\n"
        "print(automata_counters())"
    )
    environment = {**os.environ, "DSLC_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert "built=2, loaded=0, remembered=1" in said[0]
    assert "built=0, loaded=2, remembered=1" in said[1]


def test_one_program_compiled_twice_builds_its_automata_once(folder: Path):
    vocabularies = small_vocabulary(1), small_vocabulary(2)
    constraint = Constraint("regex", "[a-z]{3}(only|here)")
    before = compiling.automata_counters().built
    first = compile_constraint(constraint, vocabularies[0])
    assert compile_constraint(constraint, vocabularies[0]) is first
    assert compile_constraint(constraint, vocabularies[1]) is not first
    assert compiling.automata_counters().built == before + 1


def test_a_damaged_file_is_said_removed_and_made_anew(folder: Path, caplog: pytest.LogCaptureFixture):
    built = []

    def build(constraint: Constraint):
        built.append(constraint)
        return build_automaton(constraint)

    Automata(build).get(SCHEMA)
    (path,) = (folder / "constraints").iterdir()
    whole = path.read_bytes()
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        b"",
        bytes([whole[0] ^ 1]) + whole[1:],
        whole[:-9] + b"x" * 9,
    ):
        path.write_bytes(damaged)
        caplog.clear()
        assert language(Automata(build).get(SCHEMA)) == language(build_automaton(SCHEMA))
        assert str(path) in caplog.text and "damaged" in caplog.text
        assert path.read_bytes() != damaged
    assert len(built) == 6
    Automata(build).get(SCHEMA)
    assert len(built) == 6


def test_a_file_yields_automata_only():
    class Evil:
        def __reduce__(self):
            return os.getenv, ("HOME",)

    for value in (Evil(), ("regex", Evil(), "utf8"), {"a": 1}, ("regex", 3, "utf8"), print):
        with pytest.raises(NotSaved):
            automaton_from_bytes(pickle.dumps(value))


def test_the_folder_is_bounded_in_bytes_and_drops_the_least_recently_used(tmp_path: Path):
    store = Store(tmp_path / "s", max_bytes=10_000)
    for i in range(12):
        store.put(f"name {i}", bytes([i]) * 1500)
        os.utime(store._path(f"name {i}"), (i, i))
        if i >= 2:
            assert store.get("name 2") == b"\2" * 1500  # used again: not among the oldest
    kept = [i for i in range(12) if store.get(f"name {i}") is not None]
    assert 2 in kept and 11 in kept and 0 not in kept
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 10_000


def test_many_writers_leave_whole_files(tmp_path: Path):
    store, payloads = Store(tmp_path / "s"), [bytes([i]) * 50_000 for i in range(8)]
    seen: list[bytes | None] = []

    def work(i: int) -> None:
        for _ in range(20):
            store.put("same", payloads[i])
            seen.append(store.get("same"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= set(payloads) and not any(path.suffix == ".part" for path in store.folder.iterdir())


def test_the_folder_can_be_chosen_and_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    for off in ("off", "none", "0", ""):
        monkeypatch.setenv("DSLC_CACHE_DIR", off)
        assert cache_folder() is None
    built = []
    Automata(lambda constraint: built.append(constraint) or build_automaton(constraint)).get(SCHEMA)
    assert len(built) == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("not a folder")
    store = Store(tmp_path / "file")
    for _ in range(3):
        store.put("a", b"x")
    assert caplog.text.count("not kept") == 1


def test_many_constraints_in_a_row_stay_within_the_bound():
    cache, vocabulary = ConstraintCache(max_bytes=400_000), small_vocabulary(3)
    most = 0
    for i in range(400):
        schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 5 + i % 50}}}
        made = cache.get(Constraint("json_schema", json.dumps(schema)), vocabulary)
        assert isinstance(made, AutomatonConstraint)
        mask_of(made.start(), vocabulary.size)
        most = max(most, cache.counters.num_bytes)
    assert cache.counters.evicted > 50 and cache.counters.compiled == 400
    assert most <= 450_000
