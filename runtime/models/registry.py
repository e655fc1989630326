"""Which class runs which architecture: found by scanning this package for `EntryClass`.

A module of the package names its model class (or a list of them) as `EntryClass`; the class name is the architecture
of config.json. `DSLC_EXTERNAL_MODEL_PACKAGE` may name one more package to scan; its classes take precedence.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from ...core.errors import ModelLoadError
from .base import CausalLM
from .heads import headed

if TYPE_CHECKING:
    from pathlib import Path

EXTERNAL_PACKAGE_VARIABLE = "DSLC_EXTERNAL_MODEL_PACKAGE"


def model_class(architecture: str, path: Path | str = "") -> type[CausalLM]:
    """The class of an architecture. Raises ModelLoadError listing the known ones; `path` is the config it stands in."""
    known = known_models()
    if architecture not in known and (cls := headed(architecture, known)) is not None:
        return cls
    if architecture not in known:
        raise ModelLoadError(
            f"architecture {architecture!r} is not known; known: {', '.join(sorted(known))}. "
            f"A package named by {EXTERNAL_PACKAGE_VARIABLE} can add others",
            path=str(path),
        )
    return known[architecture]


def known_models() -> dict[str, type[CausalLM]]:
    """All architectures by name, the external package's included."""
    own = __name__.rpartition(".")[0]
    external = os.environ.get(EXTERNAL_PACKAGE_VARIABLE, "")
    return {**_scan(own), **(_scan(external) if external else {})}


@lru_cache(maxsize=8)
def _scan(package_name: str) -> dict[str, type[CausalLM]]:
    """The EntryClasses of a package's modules. One that cannot be imported is warned of, and left out."""
    package = importlib.import_module(package_name)
    found: dict[str, type[CausalLM]] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package_name}."):
        try:
            module = importlib.import_module(info.name)
        except Exception as error:  # one broken family must not take the others with it
            warnings.warn(f"model module {info.name} is left out: {type(error).__name__}: {error}", stacklevel=2)
            continue
        entry = getattr(module, "EntryClass", ())
        for cls in entry if isinstance(entry, (list, tuple)) else (entry,):
            if not (isinstance(cls, type) and issubclass(cls, CausalLM)):
                raise TypeError(f"{info.name}.EntryClass must hold subclasses of CausalLM, not {cls!r}")
            if found.setdefault(cls.__name__, cls) is not cls:
                raise ValueError(
                    f"{info.name}: architecture {cls.__name__!r} is also in {found[cls.__name__].__module__}"
                )
    return found
