"""`LiteLLM`: any provider that the LiteLLM library knows, through its OpenAI-like interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...core.backend import Capabilities
from ...core.errors import RequestError
from .base import Call, Reply
from .extras import extra
from .faults import Backoff
from .openai_api import ChatCompletions
from .options import MORE_OPTIONS
from .turns import chat_messages

if TYPE_CHECKING:
    from ...core.request import GenRequest


class LiteLLM(ChatCompletions):
    """A chat model by LiteLLM's name of it: `dslc.LiteLLM("mistral/mistral-small")`.

    As `OpenAI` in chat: turns only, JSON schemas as `response_format` unless `has_json_schema=False`, a `select` as one
    more structured answer. `has_seed=True` sends seeds, which not every provider takes. `call_options` go to each
    `litellm.acompletion`; keys are where LiteLLM looks for them. See `RemoteBackend` for the rest.
    """

    provider = "LiteLLM"

    def __init__(
        self,
        model_name: str,
        *,
        api_key: str | None = None,
        api_base: str | None = None,
        has_json_schema: bool = True,
        has_seed: bool = False,
        extra_options: Sequence[str] = (),
        timeout: float = 600.0,
        max_retries: int = 3,
        max_concurrency: int = 64,
        requests_per_minute: int | None = None,
        backoff: Backoff | None = None,
        **call_options: Any,
    ) -> None:
        self._client = extra("litellm", "litellm", self.provider)
        self.model_name = model_name
        self.is_chat_model = True
        self.limit_name = "max_tokens"
        self.has_seed = has_seed
        self.extra_options = frozenset(extra_options)
        for name in self.extra_options - MORE_OPTIONS:
            raise RequestError(f"there is no such option; there are {sorted(MORE_OPTIONS)}", field=name)
        given = {"api_key": api_key, "api_base": api_base, "timeout": timeout, **call_options}
        self._call_options = {name: value for name, value in given.items() if value is not None}
        self.api_base = api_base
        super().__init__(
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        self._capabilities = Capabilities(
            f"{self.provider} {model_name}",
            constraints=frozenset({"json_schema"}) if has_json_schema else frozenset(),
            streaming=True,
            media=frozenset({"image"}),
            chat=True,
            choosing=has_json_schema,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def name_of(self, request: GenRequest) -> str:
        place = f" to {self.api_base}" if self.api_base else ""
        return f"completion{place}, request {request.id}"

    async def ask(self, call: Call) -> Reply:
        options = self.options(call)
        options["messages"] = chat_messages(call.request, self.capabilities.name)
        options |= {**self._call_options, "num_retries": 0, "max_retries": 0}
        return await self.answered(call, self._client.acompletion, options)
