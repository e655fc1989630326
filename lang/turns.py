"""Chat turns for backends that take messages instead of a prompt: a provider's chat API writes them out by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import RequestError
from ..core.media import PLACEHOLDERS
from ..core.request import Message, Segment

if TYPE_CHECKING:
    from ..core.request import MediaRef
    from .executor import Executor
    from .stream import Stream


def plain_turn(role: str) -> tuple[str, str]:
    """What stands before and after a turn in a state's text, where only the provider knows the template."""
    return f"{role.upper()}:", "\n"


def turns(executor: Executor, stream: Stream) -> tuple[Message, ...]:
    """The stream as chat turns: an open assistant turn with content is the last, to be continued.

    A stream without turns is one turn of the user. Raises RequestError for what no chat API takes: text outside of the
    turns, a gen in another's turn.
    """
    name = executor.backend.capabilities.name
    open_turn = stream.open_role
    if not stream.messages and open_turn is None:
        return (Message("user", _content(stream, 0, stream.text_len)),)
    if open_turn is None or open_turn.op.role != "assistant":
        place = "outside of the chat turns" if open_turn is None else f"in a turn of {open_turn.op.role!r}"
        raise RequestError(f"{name} takes chat turns: a gen {place} cannot be sent; put it in assistant(...)")
    content = stream.text_from(open_turn.text_start)
    at = 0
    closed: list[Message] = []
    for message in stream.messages:
        before, after = plain_turn(message["role"])
        start, end = at + len(before), at + len(before) + len(message["content"])
        closed.append(Message(message["role"], _content(stream, start, end)))
        at = end + len(after)
    if at + len(plain_turn("assistant")[0]) + len(content) != stream.text_len:
        raise RequestError(
            f"{name} takes chat turns: text outside of them cannot be sent; put it in system(...), user(...) or "
            "assistant(...)"
        )
    if content:
        closed.append(Message("assistant", _content(stream, open_turn.text_start, stream.text_len)))
    return tuple(closed)


def _content(stream: Stream, start: int, end: int) -> tuple[Segment, ...]:
    """The stream's text between two places, with the media that stand there in the place of what shows them."""
    found: list[Segment] = []
    text = stream.text()
    for place, ref in _media(stream):
        if start <= place < end:
            if text[start:place]:
                found.append(Segment(text=text[start:place]))
            found.append(Segment(media=ref))
            start = place + len(PLACEHOLDERS[ref.kind])
    if text[start:end]:
        found.append(Segment(text=text[start:end]))
    return tuple(found)


def _media(stream: Stream) -> list[tuple[int, MediaRef]]:
    """Where in the text the stream's pictures and videos stand; a stream without a tokenizer holds text and media."""
    at = 0
    found: list[tuple[int, MediaRef]] = []
    for segment in stream.segments:
        if segment.media is not None:
            found.append((at, segment.media))
            at += len(PLACEHOLDERS[segment.media.kind])
        at += len(segment.text)
    return found
