"""Makes the tutorial: docs/tutorial/*.md and examples/notebooks/*.ipynb, from the programs examples/tutorial/*.py.

    python docs/make_tutorial.py            # runs each program and writes both
    python docs/make_tutorial.py --check    # says which are not what their program prints now

A source is a Python program in cells: `# %% [markdown]` opens a cell of text (comment lines), `# %%` one of code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "examples" / "tutorial"
PAGES = ROOT / "docs" / "tutorial"
NOTEBOOKS = ROOT / "examples" / "notebooks"
_MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """One cell: Markdown or code without blank lines around it, and the line of the source where it begins (from 0)."""

    is_code: bool
    text: str
    line: int


def cells(source: str) -> list[Cell]:
    """The cells of a program."""
    marks = list(_MARK.finditer(source))
    if not marks or marks[0].start() != 0:
        raise ValueError("a tutorial program begins with a cell")
    found = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = source[mark.end() : following.start() if following else len(source)]
        lead = len(body) - len(body.lstrip("\n"))
        line = source.count("\n", 0, mark.end()) + lead
        if mark.group(1):
            body = re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)
        found.append(Cell(not mark.group(1), body.strip("\n"), line))
    return found


def run(path: Path) -> list[str]:
    """What each code cell of a program prints, in this process."""
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    printed = []
    for cell in cells(path.read_text("utf-8")):
        if not cell.is_code:
            continue
        tree = ast.parse("\n" * cell.line + cell.text, str(path))  # its lines are those of the file
        out = io.StringIO()
        with contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the built-in model: the first page speaks of it
            exec(compile(tree, str(path), "exec", dont_inherit=True), namespace)
        printed.append(out.getvalue())
    return printed


def run_apart(path: Path) -> list[str]:
    """`run` in a process of its own, as a reader would."""
    done = subprocess.run([sys.executable, __file__, "--run", str(path)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{path.name} failed:\n{done.stderr}")
    printed: list[str] = json.loads(done.stdout)
    return printed


def page(path: Path, printed: list[str]) -> str:
    """The Markdown page: text, code, and what the code prints."""
    outputs = iter(printed)
    parts = []
    for cell in cells(path.read_text("utf-8")):
        if not cell.is_code:
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if output := next(outputs):
            parts.append(f"```text\n{output.rstrip()}\n```")
    source, same = (at.relative_to(ROOT).as_posix() for at in (path, notebook_of(path)))
    parts.append(f"---\n\nThis page is `{source}`, run. The same as a notebook: `{same}`.")
    return "\n\n".join(parts) + "\n"


def notebook(path: Path, printed: list[str]) -> str:
    """The executed notebook (nbformat 4.5)."""
    outputs = iter(printed)
    made: list[dict[str, Any]] = []
    for number, cell in enumerate(cells(path.read_text("utf-8"))):
        made.append({"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": _lines(cell.text)})
        if cell.is_code:
            count = sum(other["cell_type"] == "code" for other in made) + 1
            output = next(outputs)
            shown = [{"name": "stdout", "output_type": "stream", "text": _lines(output)}] if output else []
            made[-1].update(cell_type="code", execution_count=count, outputs=shown)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def page_of(source: Path) -> Path:
    return PAGES / f"{source.stem.replace('_', '-')}.md"


def notebook_of(source: Path) -> Path:
    return NOTEBOOKS / f"{source.stem}.ipynb"


def made_from(source: Path) -> dict[Path, str]:
    """The page and the notebook of a program, by path."""
    printed = run_apart(source)
    return {page_of(source): page(source, printed), notebook_of(source): notebook(source, printed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something differs")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.run)))
        return 0
    with ThreadPoolExecutor(2) as pool:
        made = {at: text for some in pool.map(made_from, sorted(SOURCES.glob("*.py"))) for at, text in some.items()}
    unlike = [at for at, text in made.items() if not at.exists() or at.read_text("utf-8") != text]
    for at in unlike:
        print(f"{at.relative_to(ROOT)}: {'differs' if arguments.check else 'written'}")
        if not arguments.check:
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(made[at], "utf-8")
    return int(bool(unlike) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
