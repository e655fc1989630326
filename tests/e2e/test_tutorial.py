"""The tutorial: whoever copies what its pages print gets what they print. docs/make_tutorial.py writes them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import dslc

ROOT = Path(dslc.__file__).resolve().parent
sys.path.insert(0, str(ROOT / "docs"))
import make_tutorial as tutorial  # noqa: E402

SOURCES = sorted(tutorial.SOURCES.glob("*.py"))
PAGES = sorted(tutorial.PAGES.glob("*.md"))
READ = [ROOT / "docs" / "index.md", *PAGES, ROOT / "docs" / "sglang.md"]  # in the order of the site
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def copied(page):
    """What a reader copies out of a page into a file, and what it should print."""
    blocks = BLOCK.findall(page.read_text("utf-8"))
    return "\n\n".join(text for kind, text in blocks if kind == "python"), "".join(
        text for kind, text in blocks if kind == "text"
    )


def printed_by(python, page, folder):
    code, expected = copied(page)
    (folder / "copied.py").write_text(code)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" or python == sys.executable
    }
    done = subprocess.run(
        [str(python), "copied.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines, [line for line in expected.splitlines() if line.strip()]


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_what_is_copied_from_a_page_prints_what_the_page_says(page, tmp_path):
    found, expected = printed_by(sys.executable, page, tmp_path)
    assert found == expected and expected


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_page_and_notebook_are_made_from_the_program(source):
    """Both hold the program's cells in order; the notebook holds what the page says it prints."""
    page = tutorial.page_of(source).read_text("utf-8")
    notebook = nbformat.read(tutorial.notebook_of(source), as_version=4)
    nbformat.validate(notebook)
    printed = [
        "".join(cell.outputs[0].text if cell.outputs else "") for cell in notebook.cells if cell.cell_type == "code"
    ]
    assert tutorial.page(source, printed) == page
    assert tutorial.notebook(source, printed) == tutorial.notebook_of(source).read_text("utf-8")


def test_every_program_has_its_page_and_no_page_is_left_over():
    assert [tutorial.page_of(source) for source in SOURCES] == PAGES and len(SOURCES) >= 10
    assert sorted(tutorial.NOTEBOOKS.glob("*.ipynb")) == [tutorial.notebook_of(source) for source in SOURCES]


def test_the_site_leaves_no_page_out():
    """Every page of docs/ is in the navigation, and every public name in the API reference."""
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert listed == {at.relative_to(ROOT / "docs").as_posix() for at in (ROOT / "docs").rglob("*.md")}
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    found = set(re.findall(r"^::: ([\w.]+)$", reference, re.MULTILINE))
    for name in dir(dslc):
        value = getattr(dslc, name)
        if name.startswith("_") or isinstance(value, type(dslc)):
            continue
        kind = value if isinstance(value, (type, type(build_nothing))) else type(value)
        assert f"{kind.__module__}.{kind.__qualname__}" in found, name


def build_nothing():
    """A function, for its type."""


@pytest.mark.slow
def test_in_a_fresh_environment(tmp_path):
    """A wheel of this package in a new virtual environment, away from the sources, runs every page."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, str(ROOT)], check=True)
    wrong = {}
    for page in READ:
        found, expected = printed_by(python, page, tmp_path)
        if found != expected:
            wrong[page.stem] = found
    assert not wrong
