"""Packages that only some backends need, imported when one is made."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
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


@contextlib.asynccontextmanager
async def closing(parts: Any) -> AsyncIterator[None]:
    """The stream of a client, whose connection is given back whatever becomes of the reading."""
    try:
        yield
    finally:
        close = getattr(parts, "close", None) or getattr(parts, "aclose", None)
        if close is not None:
            await close()
