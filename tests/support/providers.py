"""Local stand-ins for the providers' HTTP APIs: they check every request, answer by rule, and misbehave on demand.

    with OpenAIServer(answer) as server:
        backend = dslc.OpenAI("m", base_url=server.url + "/v1", api_key="key")

`answer(prompt or messages) -> str`. `faults` are names of `FAULTS`, each used for one request.
"""

import asyncio
import json
import re

from aiohttp import web
from support.sglang_server import HttpServer

KEY = "right-key"
FAULTS = ("429", "500", "timeout", "cut", "malformed", "wrong", "derailed")


class ProviderServer(HttpServer):
    def __init__(self, answer, routes):
        super().__init__()
        self.answer = answer if callable(answer) else lambda prompt: answer
        self.requests, self.faults, self.cancelled = [], [], 0
        self.retry_after = None
        self.app.add_routes([web.post(path, self._guarded(handler)) for path, handler in routes.items()])

    def key_of(self, request):
        return request.headers.get("Authorization", "").removeprefix("Bearer ")

    def error(self, status, message):
        headers = {"Retry-After": self.retry_after} if self.retry_after is not None else {}
        body = {"type": "error", "error": {"type": "some_error", "message": message}}
        return web.json_response(body, status=status, headers=headers)

    def _guarded(self, handler):
        async def guarded(request):
            if self.key_of(request) != KEY:
                self.requests.append("wrong key")
                return self.error(401, "no such key")
            body = await request.json()
            self.requests.append(body)
            fault = self.faults.pop(0) if self.faults else None
            try:
                if fault is not None:
                    found = await self.misbehave(fault, request, body)
                    if found is not None:
                        return found
                return await handler(request, body)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return guarded

    async def misbehave(self, fault, request, body):
        if fault in ("429", "500"):
            return self.error(int(fault), "slow down" if fault == "429" else "out of order")
        if fault == "timeout":
            await asyncio.sleep(30)
        if fault == "malformed":
            return web.Response(text='{"choices": [{"ind', content_type="application/json")
        if fault == "wrong":
            return web.json_response({"hello": "world"})
        if fault == "derailed":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"hello": "world"}\n\n')
            await asyncio.sleep(30)
        if fault == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "5000"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"index": 0, "text": "Par')
            request.transport.close()
            return response
        return None

    async def events(self, request, events, done=b"data: [DONE]\n\n", names=False):
        """Server-sent events; "CUT" among them closes the connection."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            if event == "CUT":
                request.transport.close()
                return response
            name = f"event: {event['type']}\n".encode() if names else b""
            await response.write(name + b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0)
        await response.write(done)
        await response.write_eof()
        return response


def tokens_of(text):
    """Words with the space before them, and other white space: their texts together are the text."""
    return re.findall(r" ?\S+|\s", text)


def pieces_of(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def cut_at_stops(text, stops):
    """(text up to the first stop, whether there was one), as the APIs do it."""
    places = [text.index(stop) for stop in stops or () if stop in text]
    return (text[: min(places)], True) if places else (text, False)


class OpenAIServer(ProviderServer):
    """`POST /v1/chat/completions` and `/v1/completions`. A choice's schema is answered by the first that fits."""

    def __init__(self, answer="ok", cuts_streams=False):
        routes = {"/v1/chat/completions": self.chat, "/v1/completions": self.completions}
        super().__init__(answer, routes)
        self.cuts_streams = cuts_streams

    def _texts(self, body, prompt):
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        for _ in range(body.get("n", 1)):
            whole = self.answer(prompt)
            if schema is not None:
                if set(schema.get("properties", ())) == {"choice"} and not whole.startswith("{"):
                    options = schema["properties"]["choice"]["enum"]
                    whole = json.dumps({"choice": next((o for o in options if o in whole), whole)})
                yield whole, "stop"
                continue
            tokens = tokens_of(whole)
            text, stopped = cut_at_stops("".join(tokens[:limit]), body.get("stop"))
            yield text, "stop" if stopped or len(tokens) <= limit else "length"

    async def chat(self, request, body):
        found = list(self._texts(body, body["messages"]))
        base = {"id": "chatcmpl-1", "created": 0, "model": body["model"]}
        usage = self.usage(found)
        if not body.get("stream"):
            choices = [
                {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": r, "logprobs": None}
                for i, (t, r) in enumerate(found)
            ]
            return web.json_response({**base, "object": "chat.completion", "choices": choices, "usage": usage})
        events = []
        for i, (text, reason) in enumerate(found):
            for piece in pieces_of(text):
                events.append({"index": i, "delta": {"content": piece}, "finish_reason": None})
            events.append({"index": i, "delta": {}, "finish_reason": reason})
        chunks = [{**base, "object": "chat.completion.chunk", "choices": [e]} for e in events]
        return await self.events(request, self._cut([*chunks, {**chunks[0], "choices": [], "usage": usage}]))

    async def completions(self, request, body):
        found = list(self._texts(body, body["prompt"]))
        base = {"id": "cmpl-1", "created": 0, "model": body["model"], "object": "text_completion"}
        usage = self.usage(found)
        if not body.get("stream"):
            choices = [
                {"index": i, "text": t, "finish_reason": r, "logprobs": self.logprobs(body, t)}
                for i, (t, r) in enumerate(found)
            ]
            return web.json_response({**base, "choices": choices, "usage": usage})
        chunks = []
        for i, (text, reason) in enumerate(found):
            for piece in pieces_of(text):
                chunks.append({**base, "choices": [{"index": i, "text": piece, "finish_reason": None}]})
            chunks.append({**base, "choices": [{"index": i, "text": "", "finish_reason": reason}]})
        return await self.events(request, self._cut([*chunks, {**base, "choices": [], "usage": usage}]))

    def logprobs(self, body, text):
        if body.get("logprobs") is None:
            return None
        tokens = tokens_of(text)
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        return {"tokens": tokens, "text_offset": offsets, "token_logprobs": [-1.0] * len(tokens), "top_logprobs": None}

    def _cut(self, chunks):
        return [*chunks[:2], "CUT"] if self.cuts_streams else chunks

    def usage(self, found):
        count = sum(len(tokens_of(text)) for text, _ in found)
        return {
            "prompt_tokens": 11, "completion_tokens": count, "total_tokens": 11 + count,
            "prompt_tokens_details": {"cached_tokens": 4},
        }  # fmt: skip


class AnthropicServer(ProviderServer):
    """`POST /v1/messages`, whole or as events."""

    def __init__(self, answer="ok", cuts_streams=False):
        super().__init__(answer, {"/v1/messages": self.messages})
        self.cuts_streams = cuts_streams

    def key_of(self, request):
        return request.headers.get("x-api-key") or super().key_of(request)  # the client's choice changed over time

    async def messages(self, request, body):
        assert body["messages"][0]["role"] == "user" and body["max_tokens"] > 0
        assert all(stop.strip() for stop in body.get("stop_sequences", ()))
        last = body["messages"][-1]
        assert last["role"] == "user" or last["content"] == last["content"].rstrip()
        text, stopped = cut_at_stops(self.answer(body["messages"]), body.get("stop_sequences"))
        schema = body.get("output_config", {}).get("format", {}).get("schema")
        if schema is not None and set(schema.get("properties", ())) == {"choice"}:
            text = json.dumps({"choice": next(o for o in schema["properties"]["choice"]["enum"] if o in text)})
        words = text.split(" ")
        reason = "stop_sequence" if stopped else "end_turn"
        if len(words) > body["max_tokens"]:
            text, reason = " ".join(words[: body["max_tokens"]]), "max_tokens"
        usage = {"input_tokens": 7, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 0}
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1},
        }  # fmt: skip
        matched = body["stop_sequences"][0] if stopped else None
        end = {"stop_reason": reason, "stop_sequence": matched}
        if not body.get("stream"):
            content = [{"type": "text", "text": text}]
            whole = {**message, **end, "content": content, "usage": {**usage, "output_tokens": len(text.split(" "))}}
            return web.json_response(whole)
        events = [{"type": "message_start", "message": message}]
        events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        for piece in pieces_of(text):
            delta = {"type": "text_delta", "text": piece}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        if self.cuts_streams:
            events[4:] = ["CUT"]
        else:
            events.append({"type": "content_block_stop", "index": 0})
            events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": len(text.split(" "))}})
            events.append({"type": "message_stop"})
        return await self.events(request, events, done=b"", names=True)


class VertexServer(ProviderServer):
    """Vertex AI's `:generateContent` and `:streamGenerateContent` of one model."""

    def __init__(self, answer="ok", cuts_streams=False):
        path = "/{version}/publishers/google/models/{call}"
        super().__init__(answer, {path: self.generate})
        self.cuts_streams = cuts_streams

    def key_of(self, request):
        return request.headers.get("x-goog-api-key", "")

    def error(self, status, message):
        headers = {"Retry-After": self.retry_after} if self.retry_after is not None else {}
        body = {"error": {"code": status, "message": message, "status": "SOME"}}
        return web.json_response(body, status=status, headers=headers)

    async def generate(self, request, body):
        config = body["generationConfig"]
        assert body["contents"][0]["role"] == "user"
        text, stopped = cut_at_stops(self.answer(body["contents"]), config.get("stopSequences"))
        if config.get("responseMimeType") == "text/x.enum":
            text = next(o for o in config["responseSchema"]["enum"] if o in text)
        words = text.split(" ")
        reason = "STOP"
        if len(words) > config["maxOutputTokens"] and not stopped:
            text, reason = " ".join(words[: config["maxOutputTokens"]]), "MAX_TOKENS"
        count = config.get("candidateCount", 1)
        usage = {
            "promptTokenCount": 11, "candidatesTokenCount": count * len(text.split(" ")), "cachedContentTokenCount": 4
        }  # fmt: skip
        base = {"modelVersion": request.match_info["call"].split(":")[0], "responseId": "r1", "usageMetadata": usage}

        def candidate(i, part, end=None):
            content = {"role": "model", "parts": [{"text": part}]}
            return {"index": i, "content": content} | ({"finishReason": end} if end else {})

        if request.match_info["call"].endswith(":generateContent"):
            return web.json_response({**base, "candidates": [candidate(i, text, reason) for i in range(count)]})
        events = [{**base, "candidates": [candidate(i, p)]} for i in range(count) for p in pieces_of(text)]
        events += [{**base, "candidates": [candidate(i, "", reason)]} for i in range(count)]
        return await self.events(request, [*events[:2], "CUT"] if self.cuts_streams else events, done=b"")
