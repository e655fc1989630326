"""A backend around another: every verb is handed on. What watches, records or replays a run begins with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.backend import Backend, Capabilities, Counters, EventSink, PinHandle
    from ..core.request import GenRequest
    from ..core.text.tokenizer import Tokenizer


class Around:
    """`core.backend.Backend` by way of `inner`; a subclass overrides what it changes, mostly `submit`."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        self.inner.submit(requests, sink)

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.inner.tokenizer

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        return self.inner.wait(ready, timeout)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.inner.abort(request_ids)

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> PinHandle:
        return self.inner.pin(ids, cache_salt)

    def unpin(self, handle: PinHandle) -> None:
        self.inner.unpin(handle)

    def counters(self) -> Counters:
        return self.inner.counters()

    def close(self) -> None:
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def prompt_ids(request: GenRequest, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids of a request's prompt; neighbouring text is tokenised as one string, as the engine does.

    Raises ValueError for text without a tokenizer.
    """
    ids: list[int] = []
    text = ""

    def flush() -> None:
        if text:
            if tokenizer is None:
                raise ValueError("a prompt of text has no ids without a tokenizer")
            ids.extend(tokenizer.encode(text))

    for segment in request.segments:
        if segment.ids:
            flush()
            text = ""
            ids += segment.ids
        text += segment.text
    flush()
    return tuple(ids)
