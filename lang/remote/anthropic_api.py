"""`Anthropic`: the Messages API of Anthropic."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ...core.backend import Capabilities
from ...core.errors import RequestError
from ...core.events import FinishReason, Output
from .base import Call, RemoteBackend, Reply
from .extras import client_of, extra
from .faults import Backoff, Fault
from .local_stops import LocalStops
from .options import common_options
from .structured import choice_of, choice_schema, object_at_root
from .turns import content_of

if TYPE_CHECKING:
    from ...core.request import GenRequest


class Anthropic(RemoteBackend):
    """A model behind Anthropic's Messages API: `dslc.Anthropic("claude-...")`.

    An assistant turn that begins with text is continued, where the model allows it. A JSON schema goes as
    `output_config`; a `select` is one more structured answer. There are no seeds, penalties or log-probs; `n` outputs
    are as many calls. A stop string of nothing but white space, which the API refuses, is found here in the answer.
    `client_options` go to `anthropic.AsyncAnthropic`. The key is `api_key`, or ANTHROPIC_API_KEY in the environment.
    See `RemoteBackend` for the rest.
    """

    provider = "Anthropic"
    key_name = "ANTHROPIC_API_KEY"

    def __init__(
        self,
        model_name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 3,
        max_concurrency: int = 64,
        requests_per_minute: int | None = None,
        backoff: Backoff | None = None,
        **client_options: Any,
    ) -> None:
        client = extra("anthropic", "anthropic", self.provider)
        self.model_name = model_name
        options = {"api_key": api_key, "base_url": base_url, "timeout": timeout, **client_options}
        self._client = client_of(self.provider, client.AsyncAnthropic, max_retries=0, **options)
        super().__init__(
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        self.base_url = str(self._client.base_url).rstrip("/")
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
        return f"POST {self.base_url}/v1/messages, request {request.id}"

    async def disconnect(self) -> None:
        await self._client.close()

    # -- one request

    async def ask(self, call: Call) -> Reply:
        options = self._options(call.request)
        count = call.request.sampling.n
        if count == 1:
            return await self._ask_once(call, options, 0)
        await self._ask_missing(call, options)
        replies = [call.answered[index] for index in range(count)]
        whole = replies[0]
        whole.outputs = tuple([output for reply in replies for output in reply.outputs])
        whole.num_prompt_tokens = sum(reply.num_prompt_tokens for reply in replies)
        whole.num_cached_tokens = sum(reply.num_cached_tokens for reply in replies)
        whole.notes["num_calls"] = count
        return whole

    async def _ask_missing(self, call: Call, options: dict[str, Any]) -> None:
        """The outputs that are not there yet, a call each. All have ended before the first fault is raised, so that no
        call goes on beside a further try, and what was answered is not asked for again."""

        async def ask(index: int) -> None:
            call.answered[index] = await self._ask_once(call, options, index)

        missing = [index for index in range(call.request.sampling.n) if index not in call.answered]
        for error in await asyncio.gather(*map(ask, missing), return_exceptions=True):
            if error is not None:
                raise error

    def _options(self, request: GenRequest) -> dict[str, Any]:
        name = self.capabilities.name
        sampling = request.sampling
        found, body = common_options(sampling, name, more=frozenset({"top_k"}), taken=frozenset())
        if found["temperature"] == 1.0:
            del found["temperature"]  # the API's own; some models take no other, and refuse the option
        body |= found
        system, messages = split_system(request, name)
        options: dict[str, Any] = {"model": self.model_name, "messages": messages}
        limit = sampling.max_new_tokens
        if system:
            options["system"] = system
        if stops := [stop for stop in sampling.stop if stop.strip()]:
            options["stop_sequences"] = stops
        if request.choices:
            body["output_config"] = _schema_format(choice_schema(request.choices))
            limit += 16  # for the JSON around it
        elif request.constraint is not None:
            for option, value in request.constraint.options:
                raise RequestError(f"{name} has no {option}={value!r}", field="json_schema")
            body["output_config"] = _schema_format(object_at_root(json.loads(request.constraint.source)))
        if "output_config" in body and messages[-1]["role"] == "assistant":
            raise RequestError(
                f"{name} cannot begin a structured answer with text: the gen must come first in its turn"
            )
        options["max_tokens"] = limit
        if body:
            options["extra_body"] = body
        return options

    async def _ask_once(self, call: Call, options: dict[str, Any], index: int) -> Reply:
        request = call.request
        reader = _Answer(call, index, LocalStops([stop for stop in request.sampling.stop if not stop.strip()]))
        if not request.stream or request.choices:
            found = await self._client.messages.create(**options)
            if not hasattr(found, "model_dump"):
                raise ValueError(f"{str(found)[:200]!r}")
            answer = found.model_dump()
            reader.begin(answer)
            reader.add("".join(block["text"] for block in answer["content"] if block["type"] == "text"))
            reader.end(answer["stop_reason"], answer["stop_sequence"], answer["usage"])
            return reader.reply(self)
        events = await self._client.messages.create(**options, stream=True)
        try:
            async for event in events:
                reader.take(event.model_dump())
                if reader.is_cut:
                    break
        finally:
            await events.close()
        return reader.reply(self)


class _Answer:
    """One answer as it comes: its text cut at the stops that the API did not take, its usage, its end."""

    def __init__(self, call: Call, index: int, stops: LocalStops) -> None:
        self._call = call
        self._index = index
        self._stops = stops
        # The API takes no white space at the end of a turn that is to be continued: it is sent without, and the answer
        # brings it, or not.
        request = call.request
        last = request.messages[-1].text if request.messages[-1].role == "assistant" else ""
        self._space = last[len(last.rstrip()) :]
        self._reason: Any = None
        self._matched: Any = None
        self._usage: dict[str, Any] = {}
        self._message: dict[str, Any] = {}

    @property
    def is_cut(self) -> bool:
        return self._stops.matched is not None

    def begin(self, message: dict[str, Any]) -> None:
        self._message = message
        self._usage |= message.get("usage") or {}

    def take(self, event: dict[str, Any]) -> None:
        """One event of a stream."""
        kind = event["type"]
        if kind == "message_start":
            self.begin(event["message"])
        elif kind == "content_block_delta" and event["delta"]["type"] == "text_delta":
            self.add(event["delta"]["text"])
        elif kind == "message_delta":
            self.end(event["delta"]["stop_reason"], event["delta"].get("stop_sequence"), event.get("usage") or {})

    def add(self, text: str) -> None:
        if self._space and text:
            given, self._space = self._space, ""
            text = text.removeprefix(given)
        certain = self._stops.feed(text)
        if not self._call.request.choices:
            self._call.tell(certain, index=self._index)

    def end(self, reason: Any, matched: Any, usage: dict[str, Any]) -> None:
        self._reason, self._matched = reason, matched
        self._usage |= {name: value for name, value in usage.items() if value is not None}

    def reply(self, backend: Anthropic) -> Reply:
        """What it comes to. Raises Fault where it ended too early, or for another reason than an end of text."""
        if self.is_cut:
            finish = FinishReason("stop", self._stops.matched)
        elif self._reason is None:
            raise Fault("cut", "its stream ended before the output did", is_transient=True)
        elif self._reason in ("end_turn", "stop_sequence"):
            finish = FinishReason("stop", self._matched)
        elif self._reason == "max_tokens":
            finish = FinishReason("length")
        else:
            raise Fault("answer", f"it ended the output for another reason: {self._reason!r}", is_transient=False)
        rest = self._stops.finish()
        text = self._stops.text
        choices = self._call.request.choices
        if choices:
            text = choice_of(text, choices)
        elif rest:
            self._call.tell(rest, index=self._index)
        used = self._usage
        cached = used.get("cache_read_input_tokens") or 0
        prompt = (used.get("input_tokens") or 0) + cached + (used.get("cache_creation_input_tokens") or 0)
        tokens = used.get("output_tokens") or 0
        notes: dict[str, Any] = {
            "provider": backend.provider,
            "model": self._message.get("model") or backend.model_name,
            "provider_id": self._message.get("id") or "",
        }
        if self.is_cut:
            notes["stopped_here"] = True
        output = Output(self._index, text, (), (), text, finish, num_text_tokens=tokens)
        return Reply((output,), prompt, cached, notes=notes)


def split_system(request: GenRequest, name: str) -> tuple[str, list[dict[str, Any]]]:
    """(the system text, the other turns). Raises RequestError for a system turn that does not come first, and for
    roles that the API does not know."""
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    for message in request.messages:
        if message.role == "system":
            if messages:
                raise RequestError(f"{name} takes a system turn at the beginning only")
            system.append(message.text)
        elif message.role in ("user", "assistant"):
            messages.append({"role": message.role, "content": content_of(message, name, _picture)})
        else:
            raise RequestError(f"{name} has no turns of {message.role!r}")
    if not messages:
        raise RequestError(f"{name} needs a turn of the user before a gen")
    if messages[-1]["role"] == "assistant" and isinstance(messages[-1]["content"], str):
        messages[-1]["content"] = messages[-1]["content"].rstrip()
    return "\n\n".join(system), messages


def _picture(kind: str, data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _schema_format(schema: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "schema": schema}}
