"""`RuntimeEndpoint`: a server that speaks SGLang's native protocol, as a backend.

Prompts go as token ids, made here with the server's own tokenizer, so a program sends what it would send to an engine
in its process; a `select` is scored by log-probs in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...compiler.around import prompt_ids
from ...core.backend import Capabilities
from ...core.errors import ConfigError, ModelLoadError, RemoteError
from ...core.text.load import load_tokenizer
from . import wire
from .base import Call, RemoteBackend, Reply
from .extras import extra
from .faults import Backoff, Fault, message_in_text, status_fault

if TYPE_CHECKING:
    from ...core.request import GenRequest
    from ...core.text.tokenizer import Tokenizer

NO_SUCH_SERVER = (
    "; is it a server that speaks SGLang's protocol, and its address without a path? One that speaks OpenAI's is "
    'dslc.OpenAI("its model\'s name", base_url="http://.../v1")'
)
_LOGPROBS = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


class RuntimeEndpoint(RemoteBackend):
    """A running SGLang server (or dslc's own), by its address: `dslc.RuntimeEndpoint("http://localhost:30000")`.

    `api_key` goes as a bearer token. `verify` is a file of certificates to trust, or False for none to be checked.
    `chat_template_name` is a built-in template's name or a file, instead of the model's own. `tokenizer` is the
    server's tokenizer, or the folder or hub name of its model, where it cannot be read from the path that the server
    gives. See `RemoteBackend` for the rest. Raises RemoteError where no such server answers, ModelLoadError where its
    tokenizer cannot be read.
    """

    provider = "RuntimeEndpoint"

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
        *,
        tokenizer: Tokenizer | str | None = None,
        timeout: float = 600.0,
        max_retries: int = 3,
        max_concurrency: int = 256,
        requests_per_minute: int | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"must begin with http:// or https://, not {base_url!r}", field="base_url")
        self._http = extra("aiohttp", "remote", self.provider)
        super().__init__(
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._verify = verify
        self._session: Any = None
        try:
            self.model_info = self._call("GET", "/get_model_info")
            self._server_info = self._call("GET", "/get_server_info")
            self._tokenizer = self._load_tokenizer(tokenizer, chat_template_name)
        except BaseException:
            self.close()
            raise
        self._is_dslc = "dslc_version" in self._server_info
        self._is_incremental = bool(
            self._server_info.get("incremental_streaming_output") or self._server_info.get("stream_output")
        )
        self._capabilities = self._able()

    def _able(self) -> Capabilities:
        length = self._server_info.get("context_length") or self._server_info.get("max_req_input_len")
        kinds = ("regex", "json_schema", "ebnf", "seq") if self._is_dslc else ("regex", "json_schema", "ebnf")
        return Capabilities(
            f"{self.provider}({self.base_url})",
            constraints=frozenset(self._server_info.get("dslc_constraints", kinds)),
            scoring=True,
            logprobs=True,
            streaming=True,
            token_ids=True,
            max_context_len=length if isinstance(length, int) else None,
            healing=bool(self._server_info.get("dslc_healing")),
            reasoning=bool(self._server_info.get("dslc_reasoning")),
        )

    def _load_tokenizer(self, given: Tokenizer | str | None, template: str | None) -> Tokenizer:
        if given is not None and not isinstance(given, str):
            return given
        path = given or self.model_info.get("tokenizer_path") or self.model_info.get("model_path")
        if not isinstance(path, str):
            raise ModelLoadError(f"{self.base_url} does not say which tokenizer it has; give tokenizer=")
        try:
            return load_tokenizer(path, chat_template=template)
        except ModelLoadError as error:
            error.message += f" (the tokenizer that {self.base_url} names; tokenizer= gives another place)"
            raise

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    # -- the server's other verbs

    def get_server_info(self) -> dict[str, Any]:
        """What the server says about itself."""
        found: dict[str, Any] = self._call("GET", "/get_server_info")
        return found

    def flush_cache(self) -> Any:
        """Empty the server's prefix cache."""
        return self._call("POST", "/flush_cache", is_json=False)

    def is_healthy(self) -> bool:
        """Whether the server answers to `/health`."""
        try:
            self._call("GET", "/health", is_json=False)
        except RemoteError:
            return False
        return True

    def _call(self, method: str, path: str, is_json: bool = True) -> Any:
        """One call outside of any request; not retried. Raises RemoteError."""
        limit = min(self.timeout, 60.0)

        async def ask() -> Any:
            async with self._open(method, path, None, timeout=limit) as response:
                text = await response.text()
                return json.loads(text) if is_json else text

        try:
            return self._loop.run(ask())
        except Exception as error:
            fault = self._fault(error, limit)
            hint = NO_SUCH_SERVER if path == "/get_model_info" and fault.kind in ("404", "405", "answer") else ""
            hint = "; is a server running there?" if fault.kind == "connection" else hint
            raise RemoteError(
                f"{self.provider}: {method} {self.base_url}{path}: {fault.message}{hint}", field=fault.kind
            ) from error

    # -- HTTP

    @contextlib.asynccontextmanager
    async def _open(self, method: str, path: str, body: Any, timeout: float | None = None) -> AsyncIterator[Any]:
        """An answer whose status is a success. Raises Fault for others."""
        if self._session is None:
            self._session = self._new_session()
        limit = self._http.ClientTimeout(total=timeout)
        async with self._session.request(method, self.base_url + path, json=body, timeout=limit) as response:
            if response.status >= 400:
                said = message_in_text(await response.text())
                raise status_fault(response.status, said, response.headers, "")
            yield response

    def _new_session(self) -> Any:
        ssl: Any = True
        if self._verify is False:
            ssl = False
        elif isinstance(self._verify, str):
            import ssl as certificates

            ssl = certificates.create_default_context(cafile=self._verify)
        connector = self._http.TCPConnector(limit=0, ssl=ssl)
        return self._http.ClientSession(connector=connector, headers=self._headers)

    async def disconnect(self) -> None:
        if self._session is not None:
            await self._session.close()

    def name_of(self, request: GenRequest) -> str:
        return f"POST /generate, request {request.id}"

    # -- one request

    async def ask(self, call: Call) -> Reply:
        request = call.request
        ids = prompt_ids(request, self._tokenizer)
        if request.score is not None:
            return await self._score(call, ids)
        body = wire.payload(request, ids, call.seed, self._is_dslc, self.capabilities.name)
        if call.num_tries > 1:
            body["rid"] = f"{request.id}-try{call.num_tries}"
        try:
            answers = await (self._stream(call, body) if request.stream else self._whole(body))
        except asyncio.CancelledError:
            self._give_up(body["rid"])
            raise
        outputs = tuple(
            [wire.output_of(index, answer, request, self._tokenizer) for index, answer in enumerate(answers)]
        )
        meta = answers[0]["meta_info"]
        return Reply(
            outputs,
            meta["prompt_tokens"],
            meta.get("cached_tokens") or 0,
            (meta.get("dslc") or {}).get("seed"),
            wire.prompt_logprobs_of(meta, request),
        )

    def _give_up(self, rid: str) -> None:
        """Tell the server that nobody waits any more; whether it hears does not matter."""

        async def tell() -> None:
            with contextlib.suppress(Exception):
                async with self._open("POST", "/abort_request", {"rid": rid}, timeout=5.0):
                    pass

        if not self._is_closed:
            self._keep(tell())

    async def _whole(self, body: Any) -> list[Mapping[str, Any]]:
        async with self._open("POST", "/generate", body) as response:
            found = json.loads(await response.text())
        answers = found if isinstance(found, list) else [found]
        for answer in answers:
            wire.finish_of(answer["meta_info"])
        return answers

    async def _stream(self, call: Call, body: Any) -> list[Mapping[str, Any]]:
        """The answers at the end of a stream; its pieces are told as they come."""
        wanted = call.request.sampling.n
        known: dict[int, _Growing] = {}
        async with self._open("POST", "/generate", body) as response:
            async for data in server_sent(response.content.iter_any()):
                if data == "[DONE]":
                    break
                answer = json.loads(data)
                if "error" in answer:
                    raise Fault("answer", f"it broke off: {message_in_text(data)}", is_transient=False)
                index = answer.get("index", 0)
                known.setdefault(index, _Growing(self._is_incremental)).add(call, index, answer)
        if len(known) < wanted or not all(growing.is_finished for growing in known.values()):
            raise Fault("cut", "its stream ended before the output did", is_transient=True)
        return [known[index].answer for index in sorted(known)]

    async def _score(self, call: Call, prompt: tuple[int, ...]) -> Reply:
        request = call.request
        assert request.score is not None
        sequences = wire.maximal(request.score.sequences)
        body = wire.score_payload(request, prompt, sequences)
        if call.num_tries > 1:
            body["rid"] = [f"{rid}-try{call.num_tries}" for rid in body["rid"]]
        try:
            answers = await self._whole(body)
        except asyncio.CancelledError:
            for rid in body["rid"]:
                self._give_up(rid)
            raise
        if len(answers) != len(sequences):
            raise ValueError(f"{len(sequences)} prompts were sent, and it gave {len(answers)} answers")
        known: dict[tuple[int, ...], tuple[float, ...]] = {}
        for sequence, answer in zip(sequences, answers, strict=True):
            scores = wire.scores_of(answer, sequence)
            known.update((sequence[:k], scores[:k]) for k in range(1, len(sequence) + 1))
        cached = min(answer["meta_info"].get("cached_tokens") or 0 for answer in answers)
        return Reply(
            num_prompt_tokens=len(prompt),
            num_cached_tokens=min(cached, len(prompt)),
            scores=tuple([known[sequence] for sequence in request.score.sequences]),
        )


class _Growing:
    """One output of a stream, as the server tells of it: the whole so far each time, or what is new.

    What could be the beginning of a stop string is not told before the output ends: the server cuts it off there.
    """

    def __init__(self, is_incremental: bool) -> None:
        self._is_incremental = is_incremental
        self._text = ""
        self._ids: list[int] = []
        self._entries: dict[str, list[Any]] = {}
        self._num_chars = self._num_ids = 0  # told
        self.answer: dict[str, Any] = {}
        self.is_finished = False

    def add(self, call: Call, index: int, answer: dict[str, Any]) -> None:
        meta = answer["meta_info"]
        if self._is_incremental:
            self._text += answer["text"]
            self._ids += answer.get("output_ids") or []
            meta = {**meta, **self._all_entries(meta)}
        else:
            self._text = answer["text"]
            self._ids = list(answer.get("output_ids") or [])
        self.answer = {**answer, "text": self._text, "output_ids": self._ids, "meta_info": meta}
        if meta.get("finish_reason") is not None:
            wire.finish_of(meta)
            self.is_finished = True
        held = 0 if self.is_finished else _held(self._text, call.request.sampling.stop)
        certain = self._text[: len(self._text) - held]
        new, ids = certain[self._num_chars :], tuple(self._ids[self._num_ids :])
        self._num_chars, self._num_ids = max(self._num_chars, len(certain)), len(self._ids)
        call.tell(new, ids, index, wire.output_logprobs(meta, call.request)[-len(ids) :] if ids else ())

    def _all_entries(self, meta: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The log-probs so far, of a server that tells what is new, or of one that tells all of them each time."""
        for name in _LOGPROBS:
            if (entries := meta.get(name)) is not None:
                known = self._entries.get(name, [])
                self._entries[name] = entries if len(entries) == len(self._ids) else known + entries
        return self._entries


def _held(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end begin a stop string."""
    return max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)


async def server_sent(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    rest = b""
    async for chunk in chunks:
        rest += chunk
        *events, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines).decode()
