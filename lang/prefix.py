"""Prefixes held in the backend's cache: computed ahead of a run, or pinned while a batch runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..core.backend import Backend, PinHandle
from ..core.errors import DslcError, RequestError
from ..core.events import Event, Failed, Finished
from ..core.request import GenRequest, Segment
from ..core.sampling import SamplingParams
from .hub import Hub

if TYPE_CHECKING:
    from .function import Function
    from .hub import Task


def cache_prefix(function: Function, backend: Backend) -> int:
    """Prefill the constant beginning of a program's prompts; returns its length in tokens.

    A program whose first token depends on an argument, or that cannot be traced, has none: 0.
    """
    tokenizer = backend.tokenizer if backend.capabilities.token_ids else None
    if tokenizer is None or function.is_async:
        return 0
    try:
        ids = static_prefix(function.plan(tokenizer).static_prefix, tokenizer.encode_prompt(""))
    except DslcError:
        return 0  # not a program that compiles: running it says why
    if not ids:
        return 0
    ended: list[Finished | Failed] = []

    def hear(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            ended.append(event)

    request = GenRequest(
        id=Hub(backend).new_id(),
        segments=(Segment(ids=ids),),
        sampling=SamplingParams(max_new_tokens=0, temperature=0.0),
    )
    backend.submit([request], hear)
    backend.wait(lambda: bool(ended))
    for event in ended:
        if isinstance(event, Failed):
            raise event.error.exception()
    return len(ids)


def static_prefix(ids: Sequence[int], start: Sequence[int]) -> tuple[int, ...]:
    """The constant beginning of prompts as they are sent: with the BOS that streams begin with."""
    if not ids or list(ids[: len(start)]) == list(start):
        return tuple(ids)
    return (*start, *ids)


def pinned(backend: Backend, prefix: Sequence[int], ended: Iterator[Task]) -> Iterator[Task]:
    """The tasks of a batch; once the first has ended, the prefix that all share stays cached until the last has."""
    handle: PinHandle | None = None
    is_tried = not prefix
    try:
        for task in ended:
            if not is_tried:
                is_tried = True
                handle = _pin(backend, prefix)
            yield task
    finally:
        if handle is not None:
            backend.unpin(handle)


def _pin(backend: Backend, prefix: Sequence[int]) -> PinHandle | None:
    try:
        return backend.pin(prefix)
    except RequestError:  # more is pinned than the backend allows: the batch runs without
        return None
