"""history="render": the conversation is rendered anew at each turn, for chat templates that rewrite earlier turns.

Naive version: render, tokenise, send. It reads special tokens out of what users wrote, so contents are found again in
the rendered text and tokenised as plain text. The prefix cache makes the unchanged beginning cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.ir import Role
from ..core.errors import TemplateError
from .steps import append_special
from .stream import OpenRole, Stream

if TYPE_CHECKING:
    from ..core.text.template import ChatTemplate
    from ..core.text.tokenizer import Tokenizer
    from .executor import Executor


def enter(executor: Executor, stream: Stream, op: Role, template: ChatTemplate) -> None:
    """Begin a turn: the turns so far as the template writes them now, then the beginning of this one."""
    assert executor.tokenizer is not None
    is_answer = op.role == "assistant"
    if stream.messages or is_answer:
        try:
            text = template.render(stream.messages, add_generation_prompt=is_answer)
        except TemplateError as error:
            raise error.at(op.where) from None
        _replace(stream, executor.tokenizer, text)
    if not is_answer:
        append_special(executor, stream, template.append_fragments(stream.roles)[0])
    stream.open_role = OpenRole(op, stream.text_len, "")


def leave(executor: Executor, stream: Stream, template: ChatTemplate) -> None:
    """End a turn, whose message is the last of the stream's: all turns as the template writes them now."""
    assert executor.tokenizer is not None
    try:
        text = template.render(stream.messages)
    except TemplateError:  # not a conversation yet (a system message alone); the next turn renders it, or says why not
        append_special(executor, stream, template.append_fragments(stream.roles)[1])
        return
    _replace(stream, executor.tokenizer, text)


def _replace(stream: Stream, tokenizer: Tokenizer, text: str) -> None:
    """Make `text` the whole of the stream."""
    common = _common(stream.text(), text)
    stream.scopes = tuple([(op, min(start, common)) for op, start in stream.scopes])
    stream.segments = []
    stream.run, stream.fixed = [], 0
    stream.pieces = []
    stream.text_len = 0
    stream.log = None if stream.log is None else []
    at = 0
    for start, end in _contents(stream.messages, text):
        stream.append_special(text[at:start], tokenizer)
        stream.append_text(text[start:end])
        at = end
    stream.append_special(text[at:], tokenizer)


def _contents(messages: Sequence[dict[str, Any]], text: str) -> list[tuple[int, int]]:
    """Where the contents of the messages stand in the rendered text, as far as they do, in order."""
    found: list[tuple[int, int]] = []
    at = 0
    for message in messages:
        content = str(message["content"])
        for form in (content, content.strip()):
            start = text.find(form, at) if form else -1
            if start >= 0:
                at = start + len(form)
                found.append((start, at))
                break
    return found


def _common(a: str, b: str) -> int:
    """The length of the common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
