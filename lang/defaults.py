"""The default backend: set by the user, or made on first use by the factory that the package's face registers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

from ..core.backend import Backend
from ..core.errors import ProgramError
from .locate import caller

_lock = threading.Lock()
_backend: Backend | None = None
_factory: Callable[[], Backend] | None = None


def register_factory(factory: Callable[[], Backend]) -> None:
    """Say how to make a backend when none was set (once, by the package's face)."""
    global _factory
    _factory = factory


def set_default_backend(backend: Backend | None) -> None:
    """Programs run on this backend unless `run(backend=...)` names another; None goes back to none."""
    global _backend
    _backend = None if backend is None else checked_backend(backend)


def checked_backend(backend: Any) -> Backend:
    """The backend. Raises ProgramError for what is none, such as the address of one."""
    if isinstance(backend, type) or not hasattr(backend, "submit"):
        raise ProgramError(
            "a backend is an object, such as dslc.Engine(model_path=...) or dslc.RuntimeEndpoint(url), "
            f"not {backend!r}",
            where=caller(),
        )
    made: Backend = backend
    return made


def current() -> Backend | None:
    """The backend that was set, if any."""
    return _backend


def default_backend() -> Backend:
    """The default backend. The first time without one, the built-in model's engine is made, with a warning."""
    global _backend
    with _lock:
        if _backend is None:
            if _factory is None:
                raise ProgramError("no backend is set: call dslc.set_default_backend(dslc.Engine(...)) first")
            where = caller()
            warnings.warn_explicit(
                "no backend was set, so programs run on the built-in model dslc-tiny; "
                "dslc.set_default_backend(dslc.Engine(model_path=...)) sets another",
                UserWarning,
                where.file if where is not None else "dslc",
                where.line if where is not None else 0,
            )
            _backend = _factory()
        return _backend


def _call(name: str, backend: Backend | None) -> Any:
    target = backend if backend is not None else default_backend()
    verb = getattr(target, name, None)
    if verb is None:
        raise ProgramError(f"the backend {target.capabilities.name!r} has no {name}")
    return verb()


def flush_cache(backend: Backend | None = None) -> Any:
    """Empty the backend's prefix cache."""
    return _call("flush_cache", backend)


def get_server_info(backend: Backend | None = None) -> Any:
    """What the backend says about itself."""
    return _call("get_server_info", backend)
