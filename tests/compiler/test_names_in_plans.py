"""Functions of Python itself have names that another process finds; what a plan may call without and with a file; what
a journal does not hold, as it would have to be made again."""

import datetime
import json
import os
import random
import time

import dslc
from dslc.cli_programs import host_names, host_objects
from dslc.compiler.journal import HostJournal, JournalFile, Record


@dslc.function
def of_python(s, q):
    s += f"{random.choice(['x', 'y'])} {time.time()} {os.path.join(q, 'b')} {json.dumps([q])} {os.environ.get('NOPE')}"  # noqa: PTH118
    s += str(datetime.date.today())
    s += str({"a": 1}.get(q, 0)) + str(isinstance(q, str))


NAMES = [
    "random:choice", "time:time", "posixpath:join", "json:dumps", "os:environ", "datetime:date.today", "builtins:str",
    "builtins:isinstance",
]  # fmt: skip


def test_functions_of_python_are_found_by_name(tmp_path):
    names = host_names(of_python.compile())
    assert sorted(names) == sorted(NAMES)
    assert sorted(host_objects(names, None)) == ["builtins:isinstance", "builtins:str", "json:dumps"]
    file = tmp_path / "tools.py"
    file.write_text("import random, time, os, datetime\n")
    found = host_objects(names, file)
    assert [name for name in names if name not in found] == []
    assert found["datetime:date.today"]() == datetime.date.today()
    assert found["os:environ"] is os.environ


def test_a_file_that_imports_nothing_lets_nothing_be_called(tmp_path):
    file = tmp_path / "tools.py"
    file.write_text("import random\n")
    found = host_objects(["os:system", "subprocess:run", "random:choice"], file)
    assert "os:system" not in found and "subprocess:run" not in found and "random:choice" in found


def test_calls_that_change_what_they_get_are_made_again(tmp_path):
    calls = []

    def push(items, value):
        calls.append(value)
        items.append(value)
        return len(items)

    def told(value):
        calls.append(value)
        return value

    path = tmp_path / "journal"
    for expected in (["a", "b", "c"], ["a", "c"]):
        calls.clear()
        record = Record.load(path)
        file = JournalFile(path, record, 1, {})
        journal = HostJournal(record, file, "program", 0)
        items = ["first"]
        assert journal.call("m:push", (items, "a"), {}, lambda items=items: push(items, "a")) == 2
        assert items == ["first", "a"]
        assert journal.call("m:told", ("b",), {}, lambda: told("b")) == "b"
        target = type("Target", (), {})()
        assert journal.call("m:set", (target, "c"), {}, lambda: told("c")) == "c"
        file.close()
        assert calls == expected
