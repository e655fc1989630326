"""Every error dslc raises on purpose: what is wrong, where, and what to do about it.

`ErrorInfo` is the form in which an error crosses a process or an event stream; `ErrorInfo.exception()` gives the
exception back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class SourceLoc:
    """A place in the user's source: `file:line`, and the function it stands in."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class DslcError(Exception):
    """Base of all dslc errors. `where` is the user's line, if the error has one."""

    def __init__(self, message: str, *, where: SourceLoc | None = None) -> None:
        self.message = message
        self.where = where
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def at(self, where: SourceLoc | None) -> DslcError:
        """Give the error its place in the user's source, if it has none yet. Returns itself."""
        if self.where is None:
            self.where = where
        return self


def set_place(error: BaseException, where: SourceLoc | None, program: str) -> None:
    """Note on an exception of the user's own code which line of the program it came through; the innermost stays."""
    if where is None or getattr(error, "__dslc_where__", None) is not None:
        return
    error.__dslc_where__ = where  # type: ignore[attr-defined]
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(f"in the program {program!r}, {where}")


def place_of(error: BaseException) -> SourceLoc | None:
    """The line of the program that `set_place` has noted."""
    return getattr(error, "__dslc_where__", None)


class ProgramError(DslcError):
    """A program is wrong, or failed while running: a bad signature, a failed gen, a name read before it exists."""


class ArgumentError(ProgramError, TypeError):
    """A program was called with a missing, unknown or unusable argument."""


class UndefinedVariable(ProgramError, KeyError):
    """`s["x"]` was read where no op has set `x`."""

    __str__ = DslcError.__str__


class TraceError(DslcError):
    """`.compile(strict=True)` met something it cannot follow; the message says what to change."""


class VerifyError(DslcError):
    """A Program breaks a law of the IR. `rule` names the law."""

    def __init__(self, message: str, *, rule: str = "", where: SourceLoc | None = None) -> None:
        self.rule = rule
        super().__init__(f"[{rule}] {message}" if rule else message, where=where)


class IRSyntaxError(DslcError, ValueError):
    """The text or JSON form of a Program does not parse."""


class RequestError(DslcError, ValueError):
    """A request is refused before it reaches a tensor. `field` is the path of the offending field."""

    def __init__(self, message: str, *, field: str = "", where: SourceLoc | None = None) -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message, where=where)


class ContextOverflow(RequestError):
    """The prompt does not fit into the model's context length, or into the KV pool."""


class ConstraintError(RequestError):
    """A regex, schema or grammar is invalid, unsupported, unsatisfiable or too large.

    `field` is the option (`regex`, `json_schema`, ...); `pointer` the JSON pointer of the offending schema keyword.
    """

    def __init__(
        self, message: str, *, field: str = "", pointer: str | None = None, where: SourceLoc | None = None
    ) -> None:
        self.pointer = pointer
        super().__init__(f"at {pointer!r}: {message}" if pointer is not None else message, field=field, where=where)


class ConfigError(DslcError, ValueError):
    """An engine option is unknown or has an impossible value. `field` names it."""

    def __init__(self, message: str, *, field: str = "") -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message)


class ModelLoadError(DslcError):
    """A model folder cannot be loaded. `path` is the offending file or folder."""

    def __init__(self, message: str, *, path: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)


class TemplateError(DslcError, ValueError):
    """A chat template is missing, refused by the sandbox, or failed to render."""


class EngineError(DslcError, RuntimeError):
    """The engine failed while serving a request (the request fails; the engine goes on)."""


class RemoteError(EngineError):
    """A remote backend could not get a result. `field` is the kind of fault: an HTTP status ("429"), "timeout",
    "connection", "cut" (the answer ended too early), "answer" (it is not what the protocol says)."""

    def __init__(self, message: str, *, field: str = "", where: SourceLoc | None = None) -> None:
        self.field = field
        super().__init__(message, where=where)


class EngineClosed(EngineError):
    """The engine was shut down."""


class QueueFull(EngineError):
    """`max_queued_requests` is reached; try again later."""


class DeadlineExceeded(EngineError, TimeoutError):
    """The request's deadline passed before it was finished."""


class Aborted(EngineError):
    """The request was aborted by its owner."""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as a value: the class name, the message, and the fields its class adds. Survives serialisation."""

    kind: str
    message: str
    field: str = ""
    pointer: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Any exception as a value; one that is not ours keeps its class name in the message of an EngineError."""
        if isinstance(error, DslcError):
            return cls(
                type(error).__name__, error.message, getattr(error, "field", ""), getattr(error, "pointer", None)
            )
        return cls("EngineError", f"{type(error).__name__}: {error}")

    def exception(self) -> DslcError:
        """The exception this value stands for. A kind that is not known comes back as an EngineError."""
        error_class = _KINDS.get(self.kind, EngineError)
        error = error_class(self.message)  # the message has its field's name in front already
        for name in ("field", "pointer"):
            setattr(error, name, getattr(self, name))
        return error


def _all_kinds() -> dict[str, type[DslcError]]:
    kinds: dict[str, type[DslcError]] = {}
    todo: list[type[DslcError]] = [DslcError]
    while todo:
        kind = todo.pop()
        kinds[kind.__name__] = kind
        todo.extend(kind.__subclasses__())
    return kinds


_KINDS = _all_kinds()
