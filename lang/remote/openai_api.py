"""`OpenAI`: OpenAI's API, chat and completions, and every server that speaks it (`base_url=`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.backend import Capabilities
from ...core.errors import RequestError
from ...core.events import FinishReason, Output
from .base import Call, RemoteBackend, Reply
from .extras import client_of, closing, extra
from .faults import Backoff, Fault
from .options import MORE_OPTIONS, common_options
from .structured import choice_of, choice_schema, response_format
from .turns import chat_messages

if TYPE_CHECKING:
    from ...core.request import GenRequest

# Models whose only interface is /completions; any other is a chat model unless `is_chat_model` says otherwise.
COMPLETION_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
MAX_STOPS = 4


class ChatCompletions(RemoteBackend):
    """What `OpenAI` and those that speak like it have in common: options, and the answers' form."""

    model_name: str
    is_chat_model: bool
    limit_name: str  # that of `max_new_tokens` in chat
    extra_options: frozenset[str]
    has_seed = True

    async def answered(self, call: Call, make: Callable[..., Awaitable[Any]], options: dict[str, Any]) -> Reply:
        """Make the call, and read what comes."""
        if call.request.stream:
            parts = await make(**options, stream=True, stream_options={"include_usage": True})
            async with closing(parts):
                return await self._streamed(call, parts)
        return self._whole(call, plain_answer(await make(**options)))

    def options(self, call: Call) -> dict[str, Any]:
        request = call.request
        name = self.capabilities.name
        options, body = common_options(request.sampling, name, self.extra_options)
        if len(request.sampling.stop) > MAX_STOPS:
            raise RequestError(f"{name} takes at most {MAX_STOPS}, not {len(request.sampling.stop)}", field="stop")
        options["model"] = self.model_name
        if self.has_seed:
            options["seed"] = call.seed
        if request.sampling.n != 1:
            options["n"] = request.sampling.n
        if request.sampling.stop:
            options["stop"] = list(request.sampling.stop)
        limit = request.sampling.max_new_tokens
        if request.choices:
            options["response_format"] = response_format(choice_schema(request.choices), "choice")
            limit += 16  # for the JSON around it
        elif request.constraint is not None:
            schema = json.loads(request.constraint.source)
            _refuse_options(request, name)
            options["response_format"] = response_format(schema, "answer")
        options[self.limit_name if self.is_chat_model else "max_tokens"] = limit
        if request.token_texts and not self.is_chat_model:
            options["logprobs"] = 1  # they come with the tokens' texts
        if body:
            options["extra_body"] = body
        return options

    def _whole(self, call: Call, answer: Mapping[str, Any]) -> Reply:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != call.request.sampling.n:
            raise ValueError(f"{call.request.sampling.n} choices were asked for, and it gave {len(choices)}")
        texts = [self._text(choice) for choice in choices]
        reply = self._reply(call, texts, [choice["finish_reason"] for choice in choices], answer)
        tokens = (choices[0].get("logprobs") or {}).get("tokens") if call.request.token_texts else None
        if tokens and "".join(tokens) == texts[0]:
            reply.outputs = (replace(reply.outputs[0], token_texts=tuple(tokens)),)
        return reply

    def _text(self, choice: Mapping[str, Any]) -> str:
        if not self.is_chat_model:
            return str(choice["text"])
        message = choice["message"]
        if message.get("refusal"):
            raise Fault("answer", f"the model refused: {message['refusal']}", is_transient=False)
        return message["content"] or ""

    async def _streamed(self, call: Call, parts: AsyncIterator[Any]) -> Reply:
        count = call.request.sampling.n
        texts, reasons = [""] * count, [None] * count
        last: dict[str, Any] = {}
        async for part in parts:
            answer = plain_answer(part)
            last |= {name: value for name, value in answer.items() if value is not None}
            for choice in answer["choices"]:
                index = choice["index"]
                piece = (choice["delta"].get("content") if self.is_chat_model else choice["text"]) or ""
                texts[index] += piece
                reasons[index] = choice.get("finish_reason") or reasons[index]
                if not call.request.choices:
                    call.tell(piece, index=index)
        if None in reasons:
            raise Fault("cut", "its stream ended before the output did", is_transient=True)
        return self._reply(call, texts, reasons, last)

    def _reply(self, call: Call, texts: Sequence[str], reasons: Sequence[Any], answer: Mapping[str, Any]) -> Reply:
        usage = answer.get("usage") or {}
        total = usage.get("completion_tokens") or 0
        if call.request.choices:
            texts = [choice_of(text, call.request.choices) for text in texts]
        outputs = []
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            tokens = total // len(texts) + (index < total % len(texts))
            outputs.append(Output(index, text, (), (), text, finish_of(reason), num_text_tokens=tokens))
        details = usage.get("prompt_tokens_details") or {}
        return Reply(
            tuple(outputs),
            usage.get("prompt_tokens") or 0,
            details.get("cached_tokens") or 0,
            notes={"provider": self.provider, "model": answer.get("model") or self.model_name,
                   "provider_id": answer.get("id") or ""},
        )  # fmt: skip


class OpenAI(ChatCompletions):
    """A model behind OpenAI's API: `dslc.OpenAI("gpt-4.1-mini")`, or `dslc.OpenAI("qwen", base_url="http://...")`.

    `is_chat_model` chooses between chat turns and completions (None: by the model's name). Chat takes turns only, and
    an assistant turn that begins with text is refused. A JSON schema goes as `response_format`; a `select` is one more
    structured answer (chat). Regexes, grammars and log-probs are refused by name. `extra_options` are sampling options
    beyond OpenAI's that this server takes in the request's body, such as ("top_k", "min_p"). `has_json_schema=False`
    says that it has no structured answers. `client_options` go to `openai.AsyncOpenAI`.

    The key is `api_key`, or the environment variable OPENAI_API_KEY. See `RemoteBackend` for the rest.
    """

    provider = "OpenAI"
    key_name = "OPENAI_API_KEY"

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        has_json_schema: bool = True,
        extra_options: Sequence[str] = (),
        timeout: float = 600.0,
        max_retries: int = 3,
        max_concurrency: int = 64,
        requests_per_minute: int | None = None,
        backoff: Backoff | None = None,
        **client_options: Any,
    ) -> None:
        client = extra("openai", "openai", self.provider)
        self.model_name = model_name
        self.is_chat_model = model_name not in COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.extra_options = frozenset(extra_options)
        for name in self.extra_options - MORE_OPTIONS:
            raise RequestError(f"there is no such option; there are {sorted(MORE_OPTIONS)}", field=name)
        options = {"api_key": api_key, "base_url": base_url, "timeout": timeout, **client_options}
        self._client = client_of(self.provider, client.AsyncOpenAI, max_retries=0, **options)
        super().__init__(
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        self.base_url = str(self._client.base_url).rstrip("/")
        # OpenAI's own models refuse `max_tokens`; most servers that speak its API know nothing else.
        self.limit_name = "max_tokens" if base_url is not None else "max_completion_tokens"
        kind = "chat" if self.is_chat_model else "completions"
        is_structured = has_json_schema and self.is_chat_model
        self._capabilities = Capabilities(
            f"{self.provider} {kind} {model_name}",
            constraints=frozenset({"json_schema"}) if is_structured else frozenset(),
            streaming=True,
            media=frozenset({"image"}) if self.is_chat_model else frozenset(),
            chat=self.is_chat_model,
            choosing=is_structured,
            speculating=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def name_of(self, request: GenRequest) -> str:
        path = "chat/completions" if self.is_chat_model else "completions"
        return f"POST {self.base_url}/{path}, request {request.id}"

    def advice(self, fault: Fault) -> str:
        if fault.kind == "404" and not self.base_url.endswith("/v1"):
            return "; base_url= is where the API begins, which in most servers ends in /v1"
        return ""

    async def disconnect(self) -> None:
        await self._client.close()

    # -- one request

    async def ask(self, call: Call) -> Reply:
        options = self.options(call)
        if self.is_chat_model:
            options["messages"] = chat_messages(call.request, self.capabilities.name)
            make = self._client.chat.completions.create
        else:
            options["prompt"] = "".join([segment.text for segment in call.request.segments])
            make = self._client.completions.create
        return await self.answered(call, make, options)


def plain_answer(found: Any) -> Mapping[str, Any]:
    """A client's answer as plain data. Raises ValueError where the client passed on what is no such answer."""
    if not hasattr(found, "model_dump"):
        raise ValueError(f"{str(found)[:200]!r}")
    answer: Mapping[str, Any] = found.model_dump()
    if not isinstance(answer.get("choices"), list):
        raise ValueError("it has no choices")
    return answer


def finish_of(reason: Any) -> FinishReason:
    """OpenAI's finish reason as ours."""
    if reason == "length":
        return FinishReason("length")
    if reason == "stop":
        return FinishReason("stop")
    raise Fault("answer", f"it ended the output for another reason: {reason!r}", is_transient=False)


def _refuse_options(request: GenRequest, name: str) -> None:
    """A provider writes JSON its own way: what says otherwise is refused; what cannot be told apart is not."""
    assert request.constraint is not None
    for option, value in request.constraint.options:
        raise RequestError(f"{name} has no {option}={value!r}", field="json_schema")
