"""docs/compiler.md: every dump in it is what the compiler says now. DSLC_WRITE_DOCS=1 writes them."""

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

import dslc
from dslc import cli
from dslc.cli_programs import functions_of, load_tokenizer_of

ROOT = Path(dslc.__file__).parent
PAGE = ROOT / "docs" / "compiler.md"
BLOCK = re.compile(r"^<!-- (run|pass|python|measured)(?:: (.*?))? -->\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(page, tmp_path_factory):
    """A folder with the page's program in it, in which commands run."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "triage.py").write_text(PYTHON.search(page).group(1))
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    os.environ["DSLC_CACHE_DIR"] = str(folder / "cache")
    yield folder
    del os.environ["DSLC_CACHE_DIR"]
    os.chdir(before)
    sys.path[:] = path


def command(line, folder):
    """What a command prints; `2>&1 >/dev/null` and `head -N` behind it mean what they mean in a shell."""
    words, tail = re.fullmatch(r"(.*?)((?: \| | 2>&1 ).*)?", line).groups()
    tail = tail or ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(shlex.split(words)[1:]) == 0, err.getvalue()
    text = err.getvalue() if ">/dev/null" in tail else out.getvalue() + err.getvalue()
    lines = text.replace(f"{folder}/", "").splitlines(keepends=True)
    if found := re.search(r"head -(\d+)", tail):
        lines = lines[: int(found.group(1))]
    return "".join(lines)


def stages(folder, changed):
    """(pass, text after it) in order; the traced program first. `changed`: "old => new" in the program's source."""
    name, source = "triage.py", (folder / "triage.py").read_text()
    if changed:
        old, new = (part.replace("\\n", "\n") for part in changed.split(" => "))
        assert source.count(old) == 1, changed
        name = "changed.py"
        (folder / name).write_text(source.replace(old, new))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["compile", name, "--print-after-all"]) == 0
    found = re.split(r"^# after (\S+)\n", err.getvalue(), flags=re.MULTILINE)[1:]
    return [("", out.getvalue()), *((name, text[:-1]) for name, text in zip(found[::2], found[1::2], strict=True))]


def difference(argument, folder):
    """The lines that a pass changed, with one around them; "pass | old => new" after a change of the program."""
    name, _, changed = argument.partition(" | ")
    known = stages(folder, changed)
    number = next(i for i, (found, _) in enumerate(known) if found == name)
    before, after = (known[i][1].splitlines(keepends=True) for i in (number - 1, number))
    return "".join(list(difflib.unified_diff(before, after, n=1))[2:])


def printed(page, at, folder):
    """What the Python block before this place prints."""
    code = [found.group(1) for found in PYTHON.finditer(page, 0, at)][-1]
    (triage,) = functions_of("triage.py")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {"triage": triage, "tokenizer": load_tokenizer_of(None)})
    return out.getvalue()


def made(page, found, folder):
    kind, argument = found.group(1), found.group(2)
    if kind in ("run", "measured"):
        return command(argument, folder)
    return difference(argument, folder) if kind == "pass" else printed(page, found.start(), folder)


def comparable(kind, text):
    """Measured dumps are compared without what differs from machine to machine: numbers, and generated text."""
    if kind != "measured":
        return text
    lines = [line for line in text.splitlines() if re.match(r"(triage\.py:|  [=+-] |total: |\d+ instances)", line)]
    return re.sub(r"\d+(\.\d+)? (ms|s)( \.\. \d+(\.\d+)? (ms|s))?|\d+(\.\d+)?", "#", "\n".join(lines))


def test_every_dump_is_what_the_compiler_says(page, folder):
    wrong, parts, end = [], [], 0
    for found in BLOCK.finditer(page):
        text = made(page, found, folder).rstrip("\n") + "\n"
        parts += [page[end : found.start(4)], text]
        end = found.end(4)
        if comparable(found.group(1), text) != comparable(found.group(1), found.group(4)):
            wrong.append("".join(difflib.unified_diff(found.group(4).splitlines(True), text.splitlines(True))))
    assert len(parts) >= 2 * 8
    if os.environ.get("DSLC_WRITE_DOCS"):
        PAGE.write_text("".join(parts) + page[end:], encoding="utf-8")
        return
    assert not wrong, "docs/compiler.md is not what the compiler says (DSLC_WRITE_DOCS=1 writes it):\n" + "\n".join(
        wrong
    )


def test_every_program_pass_that_changes_something_has_its_dump(page):
    from dslc.compiler.passes.base import ProgramPass
    from dslc.compiler.pipeline import PASSES

    dumps = {found.group(2).partition(" | ")[0] for found in BLOCK.finditer(page) if found.group(1) == "pass"}
    assert dumps == {item.name for item in PASSES if isinstance(item, ProgramPass)} - {"verify", "constraint-cache"}


def test_every_pass_is_walked_through(page):
    from dslc.compiler.pipeline import PASS_NAMES
    from dslc.compiler.scheduling.make import SCHEDULE_PASSES

    names = [*PASS_NAMES, *(item.name for item in SCHEDULE_PASSES)]
    assert [name for name in names if f"**{name}**" not in page] == []


def test_no_dump_names_a_place_of_this_machine(page):
    assert str(ROOT) not in page and "/tmp/" not in page
