"""The tutorial: whoever copies what its pages print gets what they print (docs/make_tutorial.py writes them). And the
examples, run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support.forked_runs import ForkedRuns

import dslc

ROOT = Path(dslc.__file__).resolve().parent
sys.path.insert(0, str(ROOT / "docs"))
import make_tutorial as tutorial  # noqa: E402

SOURCES = sorted(tutorial.SOURCES.glob("*.py"))
PAGES = sorted(tutorial.PAGES.glob("*.md"))
READ = [ROOT / "README.md", ROOT / "docs" / "index.md", *PAGES, ROOT / "docs" / "sglang.md"]  # in the order of the site
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def copied(page):
    """What a reader copies out of a page into a file, and what it should print."""
    blocks = BLOCK.findall(page.read_text("utf-8"))
    return "\n\n".join(text for kind, text in blocks if kind == "python"), "".join(
        text for kind, text in blocks if kind == "text"
    )


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def runs():
    with ForkedRuns() as made:
        yield made


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_what_is_copied_from_a_page_prints_what_the_page_says(page, runs, tmp_path):
    code, expected = copied(page)
    (tmp_path / "copied.py").write_text(code)
    status, printed, said = runs.run(tmp_path / "copied.py", tmp_path)
    assert status == 0, said
    assert lines_of(printed) == lines_of(expected) and lines_of(expected)


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


# What each example prints: the shape of it, as far as a very small model keeps to one.
SHAPES = {
    "character_extraction": r"(\{.*\}\n)+Character\(name='\w+', age=\d+, mood=<Mood\.[A-Z]+: '\w+'>\)\n",
    "demo": r"One ticket(.*\n)+label +team +urgency +result\n((bug|billing|other) .*\n){32}\n32 tickets (.*\n)+",
    "document_qa": r"(.*\? .* \(\d+ of \d+ prompt tokens cached\)\n){3}",
    "expert_answer": r"(.*\n)+Now answer as .+ would: What is the capital of Italy\?(.*\n)+",
    "few_shot_qa": r"(.*\? \w+\n){4}",
    "json_by_regex": r"\{'name': '[A-Z]\w+', 'country': '[A-Z]\w+', 'population': \d+\}\n",
    "json_by_schema": r"\{\"name\": .*\}\nCity\(name='.*', country='.*', size='(small|large)'\)\n",
    "llm_judge": r"\['\d', '\d', '\d'\] [\d.]+ (good|fair|poor)\n",
    "multi_turn_chat": r"user +My name is Emma\.\nassistant .*\nuser +What is my name\?\nassistant .*\n",
    "multiple_choice": r"(.*\? [AB]  \[-\d.\d+, -\d.\d+\]\n){3}",
    "parallel_encoding": r"Read the notes(.*\n)+Note 3: .*\nQuestion: .*\nAnswer:.*\n",
    "react": r"Question: .*\nThought 1:.*\nAction 1: (Search|Finish)\[.*\]\n(.*\n)+Answer: .*\n",
    "self_consistency": r"\[('.*'(, )?){8}\]\n\('.*', \d\)\n",
    "skeleton_of_thought": r"Question: .*\nPoints, one a line:\n(.*\n)+",
    "streaming_logprobs": r"(.*\n)+-\d+\.\d\d over \d+ tokens\n",
    "tip_suggestion": r"Here are two tips (.*\n)+Tip 1:.*\nTip 2:.*\nIn summary.*\n",
    "tool_call": r"\{\"name\": \"(calculate|capital)\", \"arguments\": \{.*\}\} -> .*\n.*\n",
    "tool_use": r"(.*\? (calculator|search engine)\(.*\) = .*: .*\n){2}",
    "tree_of_thought": r"\[.*\] \[\[.*\], \[.*\]\] \[\['\d', '\d'\], \['\d', '\d'\]\]\nQuestion: .*\nThe best.*\n",
    "typed_extraction": r"(\w+, (happy|sad|calm), a (child|grown-up), -?\d+ years to a hundred\n){2}",
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_example_runs_as_it_is(name, runs, tmp_path):
    status, printed, said = runs.run(ROOT / "examples" / f"{name}.py", tmp_path)
    assert status == 0, said
    assert re.fullmatch(SHAPES[name], printed), printed


def test_every_example_is_run_and_listed_and_says_what_it_teaches():
    files = {path.stem: path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py")}
    assert files.keys() - {"picture_comparison"} == SHAPES.keys()  # that one needs a model that sees
    listed = re.findall(r"\[(\w+)\]\((\w+)\.py\)", (ROOT / "examples" / "README.md").read_text("utf-8"))
    assert sorted(listed) == sorted((name, name) for name in files)
    for name, text in files.items():
        assert name == "demo" or "\nTeaches: " in text
        assert len(text.splitlines()) <= 80


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_links_lead_somewhere(page):
    """mkdocs checks those of the site."""
    found = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert len(found) > 10
    assert [at for at in found if not (ROOT / page).parent.joinpath(at).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # torch is unpacked, and a wheel built
def test_in_a_fresh_environment(tmp_path):
    """A wheel of this package in a new virtual environment, away from the sources, runs every page."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, str(ROOT)], check=True)
    wrong = {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for page in READ:
        code, expected = copied(page)
        (tmp_path / "copied.py").write_text(code)
        done = subprocess.run(
            [str(python), "copied.py"], cwd=tmp_path, capture_output=True, text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode or lines_of(done.stdout) != lines_of(expected):
            wrong[page.stem] = done.stdout + done.stderr
    assert not wrong
