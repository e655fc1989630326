"""docs/remote.md and docs/testing.md: their Python blocks run, in order, as one file each, against local servers; the
session of docs/repl.md is what `dslc repl` prints."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from support.providers import KEY, OpenAIServer
from support.sglang_server import GenerateServer

import dslc
from dslc.cli import main
from dslc.cli_programs import BUILTIN_MODEL

torch.set_num_threads(1)
DOCS = Path(dslc.__file__).parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PERSON = " Ada\nJob: writes programs\nAge: 36\n"


def answer(prompt):
    return PERSON if isinstance(prompt, str) else "Paris."


def printed_by(page, folder, replaced, capsys, monkeypatch):
    """What the page's blocks print."""
    source = "\n".join(BLOCK.findall((DOCS / page).read_text(encoding="utf-8")))
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    path = folder / page.replace(".md", "_blocks.py")
    path.write_text(source, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    exec(compile(source, str(path), "exec"), {"__name__": "page"})
    return capsys.readouterr().out.splitlines()


def test_remote(tmp_path, capsys, monkeypatch):
    pytest.importorskip("openai")
    assert KEY == "right-key"  # the page's
    with dslc.Engine() as engine, GenerateServer(engine, BUILTIN_MODEL) as endpoint, OpenAIServer(answer) as api:
        places = {"http://localhost:30000": endpoint.url, "http://localhost:8000": api.url}
        lines = printed_by("remote.md", tmp_path, places, capsys, monkeypatch)
    assert re.fullmatch("(bug|billing|other) 1", lines[0])
    assert lines[1:3] == ["Paris.", "{'role': 'assistant', 'content': 'Paris.'}"]
    assert eval(lines[3])["num_tries"] == 1
    assert lines[4] == "connection True True"
    assert lines[5] == "{'name': ' Ada', 'job': ' writes programs', 'age': ' 36'} 1"


def test_testing(tmp_path, capsys, monkeypatch):
    lines = printed_by("testing.md", tmp_path, {}, capsys, monkeypatch)
    assert lines == ["True True", "1 used again, 1 made"]


def test_the_session_of_the_repl(tmp_path, capsys, monkeypatch):
    text = (DOCS / "repl.md").read_text(encoding="utf-8")
    session = re.search(r"<!-- session -->\n```text\n(.*?)```", text, re.DOTALL).group(1)
    lines = re.findall(r"^dslc> (.*)$", session, re.MULTILINE)
    monkeypatch.setenv("DSLC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["repl", "--sampling", "temperature=0"]) == 0
    assert capsys.readouterr().out == session
