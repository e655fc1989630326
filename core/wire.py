"""Values from plain data: MessagePack, or what JSON gives, checked against the fields of their classes.

msgspec works out what it must know of a class at the first use, and runs Python code meanwhile. Two threads that do so
at once crash the process (msgspec 0.22; seen where that took longer than a turn of a thread, as under tracemalloc). So
here a class is met by one thread first.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_decoders: dict[type[Any], Any] = {}


def decoded(data: bytes, cls: type[T]) -> T:
    """The value of this class in MessagePack bytes.

    Raises msgspec.ValidationError (a ValueError) naming the path of what does not fit.
    """
    value: T = _decoder(cls).decode(data)
    return value


def converted(data: Any, cls: type[T]) -> T:
    """The value of this class in plain dicts, lists, strings and numbers. Raises as `decoded`."""
    import msgspec

    _decoder(cls)
    value: T = msgspec.convert(data, cls)
    return value


def _decoder(cls: type[Any]) -> Any:
    found = _decoders.get(cls)
    if found is None:
        import msgspec

        with _lock:
            found = _decoders.get(cls)
            if found is None:
                found = _decoders[cls] = msgspec.msgpack.Decoder(cls)
    return found
