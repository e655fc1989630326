"""Packages that only some backends need, imported when one is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ...core.errors import ConfigError


def extra(module: str, name: str, backend: str) -> Any:
    """The module. Raises ConfigError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{backend} needs the package {module!r}: pip install 'dslc[{name}]' ({error})") from error


def client_of(backend: str, make: Callable[..., Any], **options: Any) -> Any:
    """A provider's client. Raises ConfigError with what it says where it cannot be made, as without a key."""
    try:
        return make(**options)
    except Exception as error:
        raise ConfigError(f"{backend}: its client cannot be made: {error}") from error
