"""The scripted backend of the public API, more strictly: every request must survive serialisation, and be named once.

from support.scripted import ScriptedBackend
"""

from collections.abc import Sequence
from typing import Any

from dslc.core.backend import EventSink
from dslc.core.request import GenRequest, decode, encode
from dslc.lang.scripted import CHATML, SPECIALS, ScriptedPin, ScriptedTokenizer, hashed_score
from dslc.lang.scripted import ScriptedBackend as PublicScriptedBackend

__all__ = [
    "CHATML", "SPECIALS", "ScriptedBackend", "ScriptedPin", "ScriptedTokenizer", "hashed_score",
    "request_ids_and_seeds",
]  # fmt: skip


class ScriptedBackend(PublicScriptedBackend):
    """See the module."""

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        known = {request.id for request in self.requests[-64:]} | self._jobs.keys()
        for request in requests:
            assert request.id not in known
            assert decode(encode(request)) == request, "a request must survive serialisation"
            known.add(request.id)
        super().submit(requests, sink)


def request_ids_and_seeds(backend: ScriptedBackend) -> list[tuple[Any, ...]]:
    """What each request asks for, less its name: for "the same requests were sent"."""
    return sorted(
        (
            repr([i for s in r.segments for i in (s.ids or ScriptedTokenizer().encode(s.text))]),
            repr(r.sampling), repr(r.constraint), repr(r.score), repr(r.logprobs), r.origin.stream if r.origin else "",
            r.origin.instance if r.origin else 0,
        )
        for r in backend.requests
    )  # fmt: skip
