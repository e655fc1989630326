"""core.text costs nothing until it is used: no third-party package is imported with it."""

import subprocess
import sys
from pathlib import Path

import dslc


def test_importing_core_text_loads_the_standard_library_only():
    names = sorted(path.stem for path in Path(dslc.__file__).parent.joinpath("core", "text").glob("*.py"))
    assert {"hf", "template", "stops"} <= set(names)
    modules = ["dslc.core.text", *(f"dslc.core.text.{name}" for name in names if name != "__init__")]
    code = (
        "import importlib, sys\n"
        "roots = lambda: {name.partition('.')[0] for name in sys.modules}\n"
        "before = roots()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted(roots() - before - set(sys.stdlib_module_names) - {'dslc'}))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
