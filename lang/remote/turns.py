"""Chat turns in the forms of the providers' APIs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import RequestError

if TYPE_CHECKING:
    from ...core.request import GenRequest


def chat_messages(request: GenRequest, name: str) -> list[dict[str, Any]]:
    """The turns as OpenAI's messages. Raises RequestError for an assistant turn that is to be continued."""
    if request.messages and request.messages[-1].role == "assistant":
        tail = request.messages[-1].text[-40:]
        raise RequestError(
            f"{name} cannot go on with an assistant turn that has begun (it ends in {tail!r}): a gen must come first "
            "in assistant(...); with @function(num_api_spec_tokens=...) one call can serve the whole turn"
        )
    return [{"role": message.role, "content": message.text} for message in request.messages]
