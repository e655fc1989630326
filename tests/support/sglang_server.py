"""SGLang's native HTTP protocol over an engine of ours, and over answers that a test writes, in a thread.

    with GenerateServer(engine, tokenizer_path) as server:
        backend = dslc.RuntimeEndpoint(server.url)
        server.requests      # the JSON of every POST /generate, in order

`faults` is a list of functions `await fault(request, body) -> response or None`, each used once, before the engine is
asked. It says that it speaks dslc's extension unless `plain=True`.
"""

import asyncio
import json
import threading

from aiohttp import web

from dslc.core.constraint import Constraint
from dslc.core.events import Failed, Finished, Tokens
from dslc.core.request import GenRequest, LogprobWish, Segment
from dslc.core.sampling import SamplingParams

TEXT_NAMES = ("regex", "json_schema", "ebnf")


class HttpServer:
    """An aiohttp application in a thread of its own, on a free port of this machine."""

    def __init__(self):
        self.app = web.Application(client_max_size=2**26)
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._start())
        self._ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self._runner.cleanup())
        self.loop.close()

    async def _start(self):
        self._runner = web.AppRunner(self.app, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()


class GenerateServer(HttpServer):
    def __init__(self, engine, tokenizer_path, plain=False, api_key=None, incremental=False):
        super().__init__()
        self.engine, self.tokenizer_path, self.plain, self.api_key = engine, str(tokenizer_path), plain, api_key
        self.incremental = incremental
        self.requests, self.faults, self.aborted, self.flushes = [], [], [], 0
        self.app.add_routes(
            [
                web.get("/get_model_info", self.model_info),
                web.get("/get_server_info", self.server_info),
                web.get("/health", self.health),
                web.post("/flush_cache", self.flush),
                web.post("/abort_request", self.abort),
                web.post("/generate", self.generate),
            ]
        )

    def _check_key(self, request):
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise web.HTTPUnauthorized(text=json.dumps({"error": "Unauthorized"}))

    async def model_info(self, request):
        self._check_key(request)
        return web.json_response(
            {"model_path": self.tokenizer_path, "tokenizer_path": self.tokenizer_path, "is_generation": True}
        )

    async def server_info(self, request):
        self._check_key(request)
        info = {"context_length": self.engine.capabilities.max_context_len, "version": "0.5.6"}
        if self.incremental:
            info["stream_output"] = True
        if not self.plain:
            able = self.engine.capabilities
            info |= {"dslc_version": "0.1.0", "dslc_healing": able.healing, "dslc_reasoning": able.reasoning}
            info["dslc_constraints"] = sorted(able.constraints)
        return web.json_response(info)

    async def health(self, request):
        return web.Response(text="")

    async def flush(self, request):
        self.flushes += 1
        self.engine.flush_cache()
        return web.Response(text="Cache flushed.\n")

    async def abort(self, request):
        self.aborted.append((await request.json())["rid"])
        return web.Response(text="")

    async def generate(self, request):
        self._check_key(request)
        body = await request.json()
        self.requests.append(body)
        if self.faults:
            response = await self.faults.pop(0)(request, body)
            if response is not None:
                return response
        many = bool(body["input_ids"]) and isinstance(body["input_ids"][0], list)
        try:
            asked = [self._request(body, i) for i in range(len(body["input_ids"]))] if many else [self._request(body)]
        except ValueError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        events = asyncio.Queue()

        def hear(event):
            self.loop.call_soon_threadsafe(events.put_nowait, event)

        ids = [r.id for r in asked]
        self.engine.start()
        self.engine.submit(asked, hear)
        try:
            if body.get("stream"):
                return await self._stream(request, asked[0], events)
            found, failed = {}, None
            while len(found) < len(asked):
                event = await events.get()
                if isinstance(event, (Finished, Failed)):
                    found[event.request_id] = event
                    failed = event if isinstance(event, Failed) else failed
        except BaseException:
            self.engine.abort(ids)
            raise
        if failed is not None:
            return web.json_response({"error": {"message": failed.error.message}}, status=400)
        answers = [
            self._answer(source, found[source.id], output) for source in asked for output in found[source.id].outputs
        ]
        return web.json_response(answers if many or asked[0].sampling.n > 1 else answers[0])

    def _request(self, body, place=None):
        params = dict(body["sampling_params"])
        ours = body.get("dslc", {})
        constraint = None
        for name in TEXT_NAMES:
            if name in params:
                constraint = Constraint(name, params.pop(name))
        if "constraint" in ours:
            constraint = Constraint(
                ours["constraint"]["kind"],
                ours["constraint"]["source"],
                tuple(map(tuple, ours["constraint"]["options"])),
            )
        params["seed"] = params.pop("sampling_seed", None)
        if "logit_bias" in params:
            params["logit_bias"] = {int(k): v for k, v in params["logit_bias"].items()}
        params |= {name: ours[name] for name in ("jump_forward", "finish_valid") if name in ours}
        ids = body["input_ids"] if place is None else body["input_ids"][place]
        wish = None
        self.start = body.get("logprob_start_len", -1)
        if body.get("return_logprob"):
            wish = LogprobWish(self.start, body.get("top_logprobs_num", 0), tuple(body.get("token_ids_logprob", ())))
        return GenRequest(
            id=body["rid"] if place is None else body["rid"][place],
            segments=(Segment(ids=tuple(ids)),),
            sampling=SamplingParams(**params),
            constraint=constraint,
            logprobs=wish,
            stream=bool(body.get("stream")),
            healed=ours.get("healed", ""),
            reasoning=tuple(ours["reasoning"]) if "reasoning" in ours else None,
        )

    def _answer(self, source, event, output, num_ids=0):
        meta = {
            "id": source.id, "prompt_tokens": event.num_prompt_tokens, "completion_tokens": len(output.token_ids),
            "cached_tokens": event.num_cached_tokens, "finish_reason": output.finish_reason.as_dict(),
        }  # fmt: skip
        if source.logprobs is not None:
            meta |= self._logprobs("output", output.logprobs[num_ids:], source)
            if source.logprobs.prompt_start >= 0:
                first, *rest = event.prompt_logprobs
                meta |= self._logprobs("input", [first, *rest], source)
                meta["input_token_logprobs"][0][0] = None  # as SGLang: the first has nothing before it
        if not self.plain:
            meta["dslc"] = {
                "forced_runs": output.forced_runs, "is_complete": output.is_complete, "seed": event.seed
            }  # fmt: skip
        return {"text": output.text, "output_ids": list(output.token_ids), "meta_info": meta}

    @staticmethod
    def _logprobs(side, entries, source):
        found = {f"{side}_token_logprobs": [[e.logprob, e.token_id, None] for e in entries]}
        if source.logprobs.top:
            found[f"{side}_top_logprobs"] = [[[p, i, None] for i, p in e.top] or None for e in entries]
        if source.logprobs.token_ids:
            found[f"{side}_token_ids_logprobs"] = [[[p, i, None] for i, p in e.chosen] or None for e in entries]
        return found

    async def _stream(self, request, source, events):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        texts, ids, logprobs = {}, {}, {}
        while True:
            event = await events.get()
            if isinstance(event, Tokens):
                i = event.index
                texts[i] = texts.get(i, "") + event.text
                ids.setdefault(i, []).extend(event.token_ids)
                logprobs.setdefault(i, []).extend(event.logprobs)
                meta = {"id": source.id, "prompt_tokens": 0, "completion_tokens": len(ids[i]), "finish_reason": None}
                if source.logprobs is not None:
                    new = event.logprobs if self.incremental else logprobs[i]
                    meta |= self._logprobs("output", new, source)
                answer = {"text": texts[i], "output_ids": list(ids[i]), "meta_info": meta, "index": i}
                if self.incremental:
                    answer |= {"text": event.text, "output_ids": list(event.token_ids)}
                await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
            elif isinstance(event, Failed):
                await response.write(
                    b"data: " + json.dumps({"error": {"message": event.error.message}}).encode() + b"\n\n"
                )
                break
            elif isinstance(event, Finished):
                for output in event.outputs:
                    answer = {**self._answer(source, event, output), "index": output.index}
                    if self.incremental:
                        i = output.index
                        answer |= {"text": output.text[len(texts.get(i, "")) :]}
                        answer |= {"output_ids": list(output.token_ids[len(ids.get(i, ())) :])}
                        if source.logprobs is not None:
                            rest = output.logprobs[len(ids.get(i, ())) :]
                            answer["meta_info"] |= self._logprobs("output", rest, source)
                    await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
                break
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response
