"""Chat turns in the forms of the providers' APIs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import RequestError

if TYPE_CHECKING:
    from ...core.request import GenRequest, MediaRef, Message

_FORMATS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


def chat_messages(request: GenRequest, name: str) -> list[dict[str, Any]]:
    """The turns as OpenAI's messages. Raises RequestError for an assistant turn that is to be continued."""
    if request.messages and request.messages[-1].role == "assistant":
        tail = request.messages[-1].text[-40:]
        raise RequestError(
            f"{name} cannot go on with an assistant turn that has begun (it ends in {tail!r}): a gen must come first "
            "in assistant(...); with @function(num_api_spec_tokens=...) one call can serve the whole turn"
        )

    def picture(kind: str, data: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}

    return [{"role": m.role, "content": content_of(m, name, picture)} for m in request.messages]


def content_of(
    message: Message, name: str, picture: Callable[[str, str], dict[str, Any]]
) -> str | list[dict[str, Any]]:
    """A turn's content: its text, or with pictures a list of parts; `picture(media type, base64)` makes one of them."""
    if all(segment.media is None for segment in message.content):
        return message.text
    parts: list[dict[str, Any]] = []
    for segment in message.content:
        if segment.media is None:
            parts.append({"type": "text", "text": segment.text})
        else:
            parts.append(picture(media_type(segment.media, name), base64.b64encode(segment.media.data).decode()))
    return parts


def media_type(ref: MediaRef, name: str) -> str:
    """The media type of a picture. Raises RequestError for a format that providers do not take."""
    for start, kind in _FORMATS:
        if ref.data.startswith(start):
            return kind
    raise RequestError(f"{name} takes pictures as PNG, JPEG, GIF or WebP", field="image")
