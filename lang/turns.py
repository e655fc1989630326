"""Chat turns for backends that take messages instead of a prompt: a provider's chat API writes them out by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import RequestError
from ..core.request import Message, Segment

if TYPE_CHECKING:
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
        return (_message("user", stream.text()),)
    if open_turn is None or open_turn.op.role != "assistant":
        place = "outside of the chat turns" if open_turn is None else f"in a turn of {open_turn.op.role!r}"
        raise RequestError(f"{name} takes chat turns: a gen {place} cannot be sent; put it in assistant(...)")
    content = stream.text_from(open_turn.text_start)
    expected = sum(len(m["content"]) + sum(map(len, plain_turn(m["role"]))) for m in stream.messages)
    expected += len(plain_turn("assistant")[0]) + len(content)
    if expected != stream.text_len:
        raise RequestError(
            f"{name} takes chat turns: text outside of them cannot be sent; put it in system(...), user(...) or "
            "assistant(...)"
        )
    closed = tuple([_message(message["role"], message["content"]) for message in stream.messages])
    return (*closed, _message("assistant", content)) if content else closed


def _message(role: str, text: str) -> Message:
    return Message(role, (Segment(text=text),) if text else ())
