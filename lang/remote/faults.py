"""What can go wrong with a request to a server, and whether it may be sent again."""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import DslcError

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
MAX_RETRY_AFTER_S = 120.0


class Fault(Exception):
    """One try of a request failed.

    `kind` is what `RemoteError.field` will be: an HTTP status, "timeout", "connection", "cut", "answer". `retry_after`
    is how many seconds the server asks to wait (None: it does not say).
    """

    def __init__(self, kind: str, message: str, *, is_transient: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.is_transient = is_transient
        self.retry_after = retry_after


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the next try: `base_s` doubled each time up to `max_s`, less up to a half by chance."""

    base_s: float = 0.5
    max_s: float = 30.0

    def delay(self, num_tries: int, fault: Fault) -> float:
        """Seconds after the `num_tries`-th try; what the server asks for, if it does (at most 120 s)."""
        if fault.retry_after is not None:
            return min(fault.retry_after, MAX_RETRY_AFTER_S)
        return float(min(self.max_s, self.base_s * 2 ** (num_tries - 1)) * random.uniform(0.5, 1.0))


def status_fault(status: int, said: str, headers: Mapping[str, str], key_name: str) -> Fault:
    """The fault of an answer with an HTTP status that is no success."""
    hint = ""
    if status == 401:
        hint = f" (the key is api_key= or {key_name})" if key_name else " (the key is api_key=)"
    message = f"it answered {status}: {_shortened(said)}{hint}"
    return Fault(str(status), message, is_transient=status in RETRIED_STATUSES, retry_after=_retry_after(headers))


def fault_of(error: BaseException, key_name: str) -> Fault:
    """The fault behind an exception of a provider's client, or of the HTTP library below it."""
    if isinstance(error, Fault):
        return error
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int) and status >= 400:
        return status_fault(status, _said(error), _headers(error), key_name)
    if isinstance(error, TimeoutError) or kinds & {"APITimeoutError", "TimeoutException", "Timeout"}:
        return Fault("timeout", "it did not answer in time", is_transient=True)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) or "APIResponseValidationError" in kinds:
        return Fault("answer", f"its answer is no JSON: {_shortened(str(error))}", is_transient=False)
    if kinds & {"RemoteProtocolError", "ClientPayloadError", "IncompleteReadError", "ReadError"}:
        return Fault("cut", f"its answer was cut: {_shortened(_with_cause(error))}", is_transient=True)
    if isinstance(error, OSError) or kinds & {"APIConnectionError", "TransportError", "ClientConnectionError"}:
        cause = error.__cause__
        if cause is not None and {"RemoteProtocolError", "ReadError"} & {k.__name__ for k in type(cause).__mro__}:
            return fault_of(cause, key_name)
        return Fault("connection", f"no connection: {_shortened(_with_cause(error))}", is_transient=True)
    if isinstance(error, (KeyError, IndexError, TypeError, AttributeError, ValueError)):
        what = f"{type(error).__name__}: {error}"
        return Fault("answer", f"its answer is not what its protocol says: {_shortened(what)}", is_transient=False)
    return Fault("client", f"{type(error).__name__}: {_shortened(str(error))}", is_transient=False)


def is_ours(error: BaseException) -> bool:
    """Whether an exception says of itself what is wrong: a refusal before anything is sent."""
    return isinstance(error, DslcError)


def _headers(error: BaseException) -> Mapping[str, str]:
    """The headers of an error's answer, where its client keeps them (LiteLLM: apart from the response)."""
    found = getattr(error, "litellm_response_headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    return found or {}


def _said(error: BaseException) -> str:
    """The message in the body of an error's answer, or the body."""
    return _message_in(getattr(error, "body", None)) or getattr(error, "message", "") or str(error)


def message_in_text(text: str) -> str:
    """What an error's body says: the message in its JSON, or the text itself."""
    try:
        return _message_in(json.loads(text)) or text
    except ValueError:
        return text


def _message_in(body: Any) -> str:
    while isinstance(body, dict):
        body = body.get("error", body.get("message", body.get("detail", "")))
    return body if isinstance(body, str) else ""


def _with_cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"{error} ({cause})" if cause is not None and str(cause) not in str(error) else str(error)


def _shortened(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            continue
    return None
