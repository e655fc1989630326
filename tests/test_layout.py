"""The rooms: what is packaged, which way imports go, and how little `import dslc` loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "compiler", "lang", "kernels", "runtime")
# Which rooms a room may import, besides itself. Of the compiler, `runtime` may use the constraints alone.
DOORS = {
    "core": set(),
    "compiler": {"core"},
    "lang": {"compiler", "core"},
    "kernels": set(),
    "runtime": {"kernels", "core", "compiler.constraints"},
}
HEAVY = ("torch", "transformers", "numpy", "tokenizers", "jinja2", "msgspec", "lark", "aiohttp")


def _modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def _imported(path):
    """Absolute dotted names (below the root package) that a file imports from our own package."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            assert node.level - 1 <= len(package), f"{path}:{node.lineno} climbs out of the package"
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*module, alias.name]) for alias in node.names] if not node.module else [".".join(module)]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                assert name.split(".")[0] != "dslc", f"{path}:{node.lineno} imports {name}; use a relative import"


@pytest.mark.parametrize("room", ROOMS)
def test_doors_open_one_way(room):
    allowed = {room, *DOORS[room]}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules(room)
        for line, name in _imported(path)
        if not any(name == door or name.startswith(door + ".") for door in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_packages_listed_are_the_folders():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"dslc"} | {
        "dslc." + ".".join(init.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert listed == found
    folders_with_code = {path.parent for room in ROOMS for path in _modules(room)}
    assert all((folder / "__init__.py").exists() for folder in folders_with_code)


def test_top_level_is_the_promised_one():
    for name in ("lang", "runtime", "compiler", "kernels", "examples", "tests", "docs", "pyproject.toml", "README.md"):
        assert (ROOT / name).exists(), name


def _loaded_by(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_loads_nothing_heavy():
    loaded = _loaded_by("import dslc; dslc.gen; dslc.function; dslc.select")
    assert not loaded & set(HEAVY)


def test_core_and_compiler_load_nothing_heavy():
    rooms = "import dslc.core.request, dslc.core.events, dslc.core.backend, dslc.core.config, dslc.compiler.ir"
    assert not _loaded_by(rooms) & set(HEAVY)
