"""`VertexAI`: Gemini models on Google's Vertex AI, through the Google Gen AI client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.backend import Capabilities
from ...core.errors import RequestError
from ...core.events import FinishReason, Output
from .anthropic_api import split_system
from .base import Call, RemoteBackend, Reply
from .extras import client_of, closing, extra
from .faults import Backoff, Fault
from .options import PENALTIES, common_options

if TYPE_CHECKING:
    from ...core.request import GenRequest

_ENDS = {"STOP": "stop", "MAX_TOKENS": "length"}


class VertexAI(RemoteBackend):
    """A Gemini model: `dslc.VertexAI("gemini-2.5-flash", project=..., location=...)`.

    The client finds project, location and credentials in Google's environment variables where they are not given;
    `api_key` is Vertex AI's express mode. A JSON schema goes as `response_json_schema`; a `select` as an answer of the
    type "text/x.enum". Log-probs, regexes and an assistant turn that begins with text are refused by name.
    `safety_settings` are the client's. `base_url` is another address of the API. See `RemoteBackend` for the rest.
    """

    provider = "VertexAI"
    key_name = "GOOGLE_API_KEY"

    def __init__(
        self,
        model_name: str,
        safety_settings: Any = None,
        *,
        project: str | None = None,
        location: str | None = None,
        api_key: str | None = None,
        credentials: Any = None,
        base_url: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 3,
        max_concurrency: int = 64,
        requests_per_minute: int | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        genai = extra("google.genai", "vertexai", self.provider)
        self._types = genai.types
        self.model_name = model_name
        self._safety_settings = safety_settings
        http = {"timeout": int(timeout * 1000)} | ({"base_url": base_url} if base_url else {})
        self._client = client_of(
            self.provider,
            genai.Client,
            vertexai=True,
            project=project,
            location=location,
            api_key=api_key,
            credentials=credentials,
            http_options=self._types.HttpOptions(**http),
        )
        super().__init__(
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        self.base_url = base_url or "Vertex AI"
        self._capabilities = Capabilities(
            f"{self.provider} {model_name}",
            constraints=frozenset({"json_schema"}),
            streaming=True,
            media=frozenset({"image"}),
            chat=True,
            choosing=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def name_of(self, request: GenRequest) -> str:
        return f"generateContent at {self.base_url}, request {request.id}"

    async def disconnect(self) -> None:
        await self._client.aio.aclose()

    # -- one request

    async def ask(self, call: Call) -> Reply:
        request = call.request
        arguments = self._arguments(call)
        make = self._client.aio.models
        if not request.stream or request.choices:
            reader = _Answer(call)
            reader.take((await make.generate_content(**arguments)).model_dump(mode="json"))
            return reader.reply(self)
        reader = _Answer(call)
        parts = await make.generate_content_stream(**arguments)
        async with closing(parts):
            async for part in parts:
                reader.take(part.model_dump(mode="json"))
        return reader.reply(self)

    def _arguments(self, call: Call) -> dict[str, Any]:
        request, sampling, name = call.request, call.request.sampling, self.capabilities.name
        config, body = common_options(sampling, name, more=frozenset({"top_k"}), taken=PENALTIES)
        config |= body
        system, messages = split_system(request, name)
        if messages[-1]["role"] == "assistant":
            raise RequestError(
                f"{name} cannot go on with an assistant turn that has begun: a gen must come first in assistant(...)"
            )
        config |= {"max_output_tokens": sampling.max_new_tokens, "candidate_count": sampling.n}
        config["seed"] = call.seed % 2**31  # the API's are of 32 bits
        if sampling.stop:
            config["stop_sequences"] = list(sampling.stop)
        if system:
            config["system_instruction"] = system
        if self._safety_settings is not None:
            config["safety_settings"] = self._safety_settings
        if request.choices:
            config["response_mime_type"] = "text/x.enum"
            config["response_schema"] = {"type": "STRING", "enum": list(request.choices)}
        elif request.constraint is not None:
            for option, value in request.constraint.options:
                raise RequestError(f"{name} has no {option}={value!r}", field="json_schema")
            config["response_mime_type"] = "application/json"
            config["response_json_schema"] = json.loads(request.constraint.source)
        contents = [
            {"role": "user" if turn["role"] == "user" else "model", "parts": _parts(turn["content"])}
            for turn in messages
        ]
        return {
            "model": self.model_name,
            "contents": contents,
            "config": self._types.GenerateContentConfig(**config),
        }


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A turn's content as Gemini's parts."""
    if isinstance(content, str):
        return [{"text": content}]
    return [
        {"text": part["text"]}
        if part["type"] == "text"
        else {"inline_data": {"mime_type": part["source"]["media_type"], "data": part["source"]["data"]}}
        for part in content
    ]


class _Answer:
    """One answer as it comes: the texts of its candidates, why they ended, and what they took."""

    def __init__(self, call: Call) -> None:
        count = call.request.sampling.n
        self._call = call
        self._texts = [""] * count
        self._reasons: list[Any] = [None] * count
        self._last: dict[str, Any] = {}

    def take(self, answer: Mapping[str, Any]) -> None:
        """A whole answer, or a part of one."""
        self._last |= {name: value for name, value in answer.items() if value is not None}
        for place, candidate in enumerate(answer.get("candidates") or ()):
            index = candidate.get("index") or place
            parts = (candidate.get("content") or {}).get("parts") or ()
            text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
            self._texts[index] += text
            self._reasons[index] = candidate.get("finish_reason") or self._reasons[index]
            if not self._call.request.choices:
                self._call.tell(text, index=index)

    def reply(self, backend: VertexAI) -> Reply:
        """What it comes to. Raises Fault where it ended too early, or for another reason than an end of text."""
        blocked = (self._last.get("prompt_feedback") or {}).get("block_reason")
        if blocked:
            raise Fault("answer", f"it blocked the prompt: {blocked}", is_transient=False)
        if None in self._reasons:
            if not self._last.get("candidates"):
                raise ValueError("it has no candidates")
            raise Fault("cut", "its stream ended before the output did", is_transient=True)
        for reason in self._reasons:
            if reason not in _ENDS:
                raise Fault("answer", f"it ended the output for another reason: {reason!r}", is_transient=False)
        choices = self._call.request.choices
        for text in self._texts:
            if choices and text not in choices:
                what = f"one of {list(choices)} was asked for, and it gave {text!r}"
                raise Fault("answer", what, is_transient=False)
        usage = self._last.get("usage_metadata") or {}
        total = (usage.get("candidates_token_count") or 0) + (usage.get("thoughts_token_count") or 0)
        count = len(self._texts)
        outputs = []
        for index, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True)):
            finish = FinishReason("stop" if reason == "STOP" else "length")
            tokens = total // count + (index < total % count)
            outputs.append(Output(index, text, (), (), text, finish, num_text_tokens=tokens))
        return Reply(
            tuple(outputs),
            usage.get("prompt_token_count") or 0,
            usage.get("cached_content_token_count") or 0,
            notes={
                "provider": backend.provider,
                "model": self._last.get("model_version") or backend.model_name,
                "provider_id": self._last.get("response_id") or "",
            },
        )
