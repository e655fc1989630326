"""Packages that only some backends need, imported when one is made."""

from __future__ import annotations

import importlib
from typing import Any

from ...core.errors import ConfigError


def extra(module: str, name: str, backend: str) -> Any:
    """The module. Raises ConfigError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{backend} needs the package {module!r}: pip install 'dslc[{name}]' ({error})") from error
