"""Sources in C or C++ to a shared library, built once per machine with the compiler that is there.

What is built is kept in the cache folder, by a hash of sources, compiler, flags and processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .cache_folder import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMPILERS = {"c": ("CC", "cc", "gcc", "clang"), "c++": ("CXX", "c++", "g++", "clang++")}


def is_switched_off() -> bool:
    """Whether DSLC_NATIVE=0 asks for Python and torch instead of what is built here."""
    return os.environ.get("DSLC_NATIVE", "1") == "0"


def library_folder() -> Path | None:
    """Where libraries are kept that take seconds to build: $DSLC_NATIVE_DIR, else the cache folder; None: nowhere."""
    given = os.environ.get("DSLC_NATIVE_DIR")
    return Path(given).expanduser() if given else cache_folder()


def compiler(language: Literal["c", "c++"] = "c") -> str | None:
    """The compiler that would be used: $CC or $CXX, else the first of the usual names that is there."""
    variable, *names = _COMPILERS[language]
    for name in (os.environ.get(variable), *names):
        if name and (found := shutil.which(name.split()[0])):
            return found
    return None


def build(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    folder: Path,
    *,
    language: Literal["c", "c++"] = "c",
    included: Sequence[Path] = (),
    timeout_s: float = 120,
) -> Path:
    """The library `name` made of `sources` in `folder`/native; nothing is done if it is there already.

    `included` are further files that the sources read. Raises OSError without a compiler, SubprocessError if it fails.
    """
    which = compiler(language)
    if which is None:
        raise OSError(f"no {'C' if language == 'c' else 'C++'} compiler found")
    content = b"".join(path.read_bytes() for path in (*sources, *included))
    where: tuple[object, ...] = (which, tuple(flags), platform.machine(), platform.system())
    if "-march=native" in flags:
        where += (_processor(),)
    path = folder / "native" / f"{name}-{hashlib.sha256(content + repr(where).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            subprocess.run(
                [which, *flags, "-o", str(made), *map(str, sources)], check=True, capture_output=True, timeout=timeout_s
            )
            made.replace(path)  # atomic: another process may be at the same
    return path


def _processor() -> str:
    """What the processor can do, where the system tells: a home folder may be shared by machines that differ."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
            told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        return "".join(sorted(set(told)))
    except OSError:
        return platform.processor()
