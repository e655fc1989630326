"""What the rules of all ops share: text checks, the end of a run, errors with their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import DslcError, EngineError, ProgramError, SourceLoc
from .exprs import not_text
from .stream import Stream

if TYPE_CHECKING:
    from .executor import Executor


class Cancelled(EngineError):
    """A branch was ended because another branch of its fork failed (its `__cause__`)."""


def cancelled(stream: Stream, failed: Stream, why: BaseException) -> Cancelled:
    """The error of a branch beside one that failed."""
    error = Cancelled(f"branch {stream.path} was cancelled, because branch {failed.path} failed: {why}")
    error.__cause__ = why
    return error


def root_of(error: BaseException) -> BaseException:
    """The error itself, or what made another branch fail and so cancelled this one."""
    while isinstance(error, Cancelled) and error.__cause__ is not None:
        error = error.__cause__
    return error


def placed(error: BaseException, where: SourceLoc | None) -> BaseException:
    """The error with its place in the user's source, if it has none."""
    return error.at(where) if isinstance(error, DslcError) else error


def check_text(value: Any, where: SourceLoc | None) -> str:
    """`value`, if it is a str. Raises ProgramError at the user's line."""
    if isinstance(value, str):
        return value
    raise ProgramError(not_text(value), where=where)


def append_special(executor: Executor, stream: Stream, text: str) -> None:
    """Template text, after the run so far was looked at for special tokens."""
    warn_of_specials(executor, stream)
    stream.append_special(text, executor.tokenizer)


def close_run(executor: Executor, stream: Stream) -> None:
    """Tokenise what is pending."""
    if stream.run:
        warn_of_specials(executor, stream)
        stream.close_run(executor.tokenizer)


def warn_of_specials(executor: Executor, stream: Stream) -> None:
    """Say once for each line that wrote a special token's text as plain text."""
    run = stream.run
    if executor.tokenizer is None or not run or (len(run) == 1 and run[0][1] is None):
        return  # what has no line was not written by the user
    if executor.tokenizer.find_special(run[0][0] if len(run) == 1 else "".join([text for text, _ in run])) is None:
        return
    for text, where in stream.run:
        found = executor.tokenizer.find_special(text) if where is not None else None
        if found is not None:
            executor.hub.warn(
                f"{where}: the text holds {found!r}, taken as plain text; dslc.special(...) parses special tokens",
                key=(where, found),
            )
