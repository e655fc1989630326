"""SGLang's `generate` and `async_generate` over any backend that can submit, wait and drive itself."""

from __future__ import annotations

import asyncio
import itertools
import queue
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..core.constraint import Constraint
from ..core.errors import DslcError, EngineClosed, RequestError
from ..core.events import Event, Failed, Finished, Prefilled, TokenLogprob, Tokens
from ..core.request import GenRequest, LogprobWish, Segment
from ..core.sampling import SAMPLING_FIELDS, SamplingParams
from .media.prompts import with_images

if TYPE_CHECKING:
    from ..core.backend import EventSink
    from ..core.text.tokenizer import Tokenizer
    from .media.library import MediaLibrary

Result = dict[str, Any]
SamplingOptions = SamplingParams | dict[str, Any] | None
CONSTRAINT_KEYS = ("regex", "json_schema", "ebnf")
_ids = itertools.count()


@dataclass(slots=True)
class _Job:
    """One request of a call, and what has come of it."""

    request: GenRequest
    texts: defaultdict[int, str] = field(default_factory=partial(defaultdict, str))  # by choice, as streamed so far
    ids: defaultdict[int, list[int]] = field(default_factory=partial(defaultdict, list))
    told: defaultdict[int, dict[str, list[Any]]] = field(default_factory=partial(defaultdict, dict))  # log-probs so far
    prefilled: Prefilled | None = None
    last: Finished | Failed | None = None

    def take(self, event: Event) -> bool:
        """Note an event; whether it brought tokens or the end."""
        if isinstance(event, Tokens):
            self.texts[event.index] += event.text
            self.ids[event.index] += event.token_ids
            return True
        if isinstance(event, (Finished, Failed)):
            self.last = event
            return True
        if isinstance(event, Prefilled):
            self.prefilled = event
        return False


class GenerateAPI(ABC):
    """The calls people know, in terms of the `Backend` verbs of the class it is mixed into.

    `default_sampling` are parameters for calls that do not say (`EngineConfig.sampling_defaults`).
    """

    default_sampling: Mapping[str, float] = MappingProxyType({})

    media: MediaLibrary | None = None  # where the model takes pictures

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer | None: ...

    @abstractmethod
    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None: ...

    @abstractmethod
    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool: ...

    @abstractmethod
    def abort(self, request_ids: Sequence[str]) -> None: ...

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def encode_prompt(self, text: str) -> list[int]: ...

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: SamplingOptions | list[SamplingOptions] = None,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int]] | None = None,
        stream: bool = False,
        *,
        return_text_in_logprobs: bool = False,
        rid: str | list[str] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        routing_key: str = "",
        custom_logit_processor: str | None = None,
        image_data: Any = None,
    ) -> Result | list[Result] | Iterator[Result]:
        """Continue prompts. One prompt with n = 1 gives a dict, several (or n > 1) a list, in order.

        `prompt` is text (special tokens in it are parsed, BOS added as the tokenizer does), or `input_ids` are final:
        lists, arrays or tensors of ids.
        `sampling_params`: a SamplingParams, or a dict of its fields (`sampling_seed` is another name of `seed`) with
        at most one of `regex`, `json_schema`, `ebnf`; one for all prompts or one for each. Each result has `text`,
        `output_ids` and `meta_info`: id, finish_reason, prompt_tokens, completion_tokens, cached_tokens, e2e_latency
        (seconds), seed, forced_tokens (how many were not sampled), is_complete (whether the text met its constraint
        where it ended; None without one), and with `return_logprob` the log-probs as (log-prob, id, text or None).

        `image_data` are pictures, each as `dslc.image` takes it, for the places of the model's placeholder token: for
        one prompt a picture or a list, for several a list with an entry for each.
        `custom_logit_processor` is the name of a registered one (`sampling.processors`); its arguments are the
        `custom_params` among the sampling parameters. `routing_key` is read by the policy of that name.
        `stream=True` gives an iterator of such dicts, cumulative, with `index` where there are several.
        Raises RequestError (a bad option), ConstraintError, ContextOverflow, QueueFull, DeadlineExceeded, EngineError.
        """
        jobs, is_one = self._jobs(
            prompt, sampling_params, input_ids, return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob,
            _Shared(
                return_text_in_logprobs, rid, priority, cache_salt, timeout_s, stream, routing_key,
                custom_logit_processor, image_data,
            ),
        )  # fmt: skip
        if stream:
            return self._stream(jobs, is_one)
        self._complete(jobs)
        return self._all_results(jobs, is_one)

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: SamplingOptions | list[SamplingOptions] = None,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int]] | None = None,
        stream: bool = False,
        *,
        return_text_in_logprobs: bool = False,
        rid: str | list[str] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        timeout_s: float | None = None,
        routing_key: str = "",
        custom_logit_processor: str | None = None,
        image_data: Any = None,
    ) -> Result | list[Result] | AsyncIterator[Result]:
        """`generate` for an event loop, which is never blocked by a forward. With `stream=True` awaiting it gives an
        async iterator. Cancelling aborts the requests.
        """
        # Tokenising a long prompt takes its time: not in the event loop.
        jobs, is_one = await asyncio.to_thread(
            self._jobs,
            prompt, sampling_params, input_ids, return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob,
            _Shared(
                return_text_in_logprobs, rid, priority, cache_salt, timeout_s, stream, routing_key,
                custom_logit_processor, image_data,
            ),
        )  # fmt: skip
        if stream:
            return self._async_stream(jobs, is_one)
        async for _ in self._async_events(jobs):
            pass
        return self._all_results(jobs, is_one)

    # Running

    def _complete(self, jobs: list[_Job]) -> None:
        by_id = {job.request.id: job for job in jobs}
        ended: list[_Job] = []  # appended to by any thread
        failed: list[_Job] = []

        def sink(event: Event) -> None:
            job = by_id[event.request_id]
            job.take(event)
            if job.last is event:
                (failed if isinstance(event, Failed) else ended).append(job)

        try:
            self.submit([job.request for job in jobs], sink)
            self.wait(lambda: len(ended) == len(jobs) or bool(failed))
        finally:
            self._abort_rest(jobs)

    def _abort_rest(self, jobs: list[_Job]) -> None:
        unfinished = [job.request.id for job in jobs if job.last is None]
        if unfinished:
            self.abort(unfinished)

    def _stream(self, jobs: list[_Job], is_one: bool) -> Iterator[Result]:
        inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        by_id = {job.request.id: (i, job) for i, job in enumerate(jobs)}
        num_left = len(jobs)
        self.start()
        try:
            self.submit([job.request for job in jobs], inbox.put)
            while num_left:
                event = inbox.get()
                number, job = by_id[event.request_id]
                if job.take(event):
                    num_left -= job.last is not None
                    yield from self._chunks(number, job, event, is_one)
        finally:
            self._abort_rest(jobs)

    async def _async_stream(self, jobs: list[_Job], is_one: bool) -> AsyncIterator[Result]:
        async with aclosing(self._async_events(jobs)) as events:
            async for number, job, event in events:
                for chunk in self._chunks(number, job, event, is_one):
                    yield chunk

    async def _async_events(self, jobs: list[_Job]) -> AsyncGenerator[tuple[int, _Job, Event], None]:
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        by_id = {job.request.id: (i, job) for i, job in enumerate(jobs)}

        def sink(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        is_left = False
        num_left = len(jobs)

        def submit() -> None:
            self.submit([job.request for job in jobs], sink)
            if is_left:  # cancelled meanwhile, when there was perhaps nothing to abort yet
                self._abort_rest(jobs)

        self.start()
        try:
            await asyncio.to_thread(submit)  # it tokenises, and compiles constraints
            while num_left:
                event = await inbox.get()
                number, job = by_id[event.request_id]
                if job.take(event):
                    num_left -= job.last is not None
                    yield number, job, event
                if isinstance(event, Failed):
                    return
        finally:
            is_left = True
            self._abort_rest(jobs)

    # Results

    def _all_results(self, jobs: list[_Job], is_one: bool) -> Result | list[Result]:
        for job in jobs:
            if isinstance(job.last, Failed):
                raise job.last.error.exception()
        results = [result for job in jobs for result in self._results(job)]
        if any(job.last is None for job in jobs):
            raise EngineClosed("the engine ended before the request did")
        return results[0] if is_one else results

    def _results(self, job: _Job) -> list[Result]:
        last = job.last
        if not isinstance(last, Finished):
            return []
        results = []
        for output in last.outputs:
            meta = self._meta(job, last, len(output.token_ids), output.finish_reason.as_dict())
            meta["e2e_latency"] = last.finished_at - last.queued_at
            meta["seed"] = last.seed
            meta["forced_tokens"], meta["is_complete"] = output.num_forced_tokens, output.is_complete
            wish = job.request.logprobs
            if wish is not None:
                for name, tokens in (("input", last.prompt_logprobs), ("output", output.logprobs)):
                    meta |= {f"{name}_{key}": rows for key, rows in self._logprobs(wish, tokens).items()}
            results.append({"text": output.text, "output_ids": list(output.token_ids), "meta_info": meta})
        return results

    def _chunks(self, number: int, job: _Job, event: Event, is_one: bool) -> Iterator[Result]:
        n = job.request.sampling.n
        if isinstance(event, Failed):
            raise event.error.exception()
        if isinstance(event, Tokens):
            meta = self._meta(job, job.prefilled, len(job.ids[event.index]), None)
            if job.request.logprobs is not None:  # each is worked out once, however many chunks it is told in
                told = job.told[event.index]
                for key, rows in self._logprobs(job.request.logprobs, event.logprobs).items():
                    told.setdefault(key, []).extend(rows)
                    meta |= {f"input_{key}": [], f"output_{key}": list(told[key])}
            chunk = {"text": job.texts[event.index], "output_ids": list(job.ids[event.index]), "meta_info": meta}
            yield chunk if is_one else {**chunk, "index": number * n + event.index}
            return
        for choice, result in enumerate(self._results(job)):
            yield result if is_one else {**result, "index": number * n + choice}

    @staticmethod
    def _meta(
        job: _Job, prompt: Prefilled | Finished | None, num_output: int, reason: dict[str, Any] | None
    ) -> dict[str, Any]:
        meta: dict[str, Any] = {"id": job.request.id, "finish_reason": reason, "completion_tokens": num_output}
        if prompt is not None:
            meta["prompt_tokens"], meta["cached_tokens"] = prompt.num_prompt_tokens, prompt.num_cached_tokens
        return meta

    def _logprobs(self, wish: LogprobWish, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Log-probs of tokens as (log-prob, id, text or None), by the ends of their names."""

        def triple(token_id: int, value: float | None) -> tuple[float | None, int, str | None]:
            tokenizer = self.tokenizer if wish.with_text else None
            if tokenizer is None or token_id >= tokenizer.vocab_size:  # padding of the logits has no text
                return value, token_id, None
            return value, token_id, tokenizer.decode([token_id], False)

        found: dict[str, list[Any]] = {"token_logprobs": [triple(token.token_id, token.logprob) for token in tokens]}
        if wish.top:
            found["top_logprobs"] = [[triple(*pair) for pair in token.top] or None for token in tokens]
        if wish.token_ids:
            found["token_ids_logprobs"] = [[triple(*pair) for pair in token.chosen] or None for token in tokens]
        return found

    # Requests

    def _jobs(
        self,
        prompt: str | list[str] | None,
        sampling_params: SamplingOptions | list[SamplingOptions],
        input_ids: list[int] | list[list[int]] | None,
        return_logprob: bool | list[bool],
        logprob_start_len: int | list[int] | None,
        top_logprobs_num: int | list[int] | None,
        token_ids_logprob: list[int] | list[list[int]] | None,
        shared: _Shared,
    ) -> tuple[list[_Job], bool]:
        prompts, is_one = self._prompts(prompt, input_ids)
        if shared.image_data is not None:
            prompts = with_images(prompts, shared.image_data, is_one, self.media)
        num = len(prompts)
        params = _each(sampling_params, num, "sampling_params", list)
        wants = _each(return_logprob, num, "return_logprob", list)
        starts = _each(logprob_start_len, num, "logprob_start_len", list)
        tops = _each(top_logprobs_num, num, "top_logprobs_num", list)
        chosen = _ids_for_each(token_ids_logprob, num)
        rids = _each(shared.rid, num, "rid", list)
        jobs = []
        for i, segments in enumerate(prompts):
            sampling, constraint = split_sampling(params[i], self.default_sampling)
            wish = None
            if wants[i]:
                start = -1 if starts[i] is None else starts[i]
                wish = LogprobWish(start, tops[i] or 0, tuple(chosen[i] or ()), shared.with_text)
            request = GenRequest(
                id=rids[i] if rids[i] is not None else f"gen-{next(_ids)}",
                segments=segments,
                sampling=sampling,
                constraint=constraint,
                logprobs=wish,
                stream=shared.stream,
                cache_salt=shared.cache_salt,
                priority=shared.priority,
                timeout_s=shared.timeout_s,
                routing_key=shared.routing_key,
                logit_processor=shared.custom_logit_processor,
            )
            jobs.append(_Job(request))
        if len({job.request.id for job in jobs}) != num:
            raise RequestError("the ids of the requests must differ", field="rid")
        return jobs, is_one and jobs[0].request.sampling.n == 1

    def _prompts(
        self, prompt: str | list[str] | None, input_ids: list[int] | list[list[int]] | None
    ) -> tuple[list[tuple[Segment, ...]], bool]:
        if (prompt is None) == (input_ids is None):
            raise RequestError("give either prompt or input_ids", field="prompt")
        if input_ids is not None:
            all_ids, is_one = lists_of_ids(input_ids)
            return [(Segment(ids=tuple(ids)),) for ids in all_ids], is_one
        if not isinstance(prompt, (str, list, tuple)):
            raise RequestError(f"must be a string or a list of strings, not {prompt!r}", field="prompt")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise RequestError(f"must be a string, not {text!r}", field=f"prompt[{i}]")
        return [(Segment(ids=tuple(self.encode_prompt(text))),) for text in texts], isinstance(prompt, str)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Options that are the same for all prompts of a call."""

    with_text: bool
    rid: str | list[str] | None
    priority: int
    cache_salt: str
    timeout_s: float | None
    stream: bool
    routing_key: str
    custom_logit_processor: str | None
    image_data: Any


def _each(value: Any, num: int, name: str, kind: type) -> list[Any]:
    if not isinstance(value, kind):
        return [value] * num if name != "rid" or value is None or num == 1 else [f"{value}-{i}" for i in range(num)]
    if len(value) != num:  # type: ignore[arg-type]
        raise RequestError(f"has {len(value)} entries for {num} prompts", field=name)  # type: ignore[arg-type]
    return list(value)  # type: ignore[call-overload, no-any-return]


def lists_of_ids(input_ids: Any) -> tuple[list[list[Any]], bool]:
    """The prompts in `input_ids`, and whether it is one: lists, or arrays and tensors. Raises RequestError."""
    given = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
    if isinstance(given, (list, tuple)):
        many = bool(given) and not isinstance(given[0], int)
        found = [ids.tolist() if hasattr(ids, "tolist") else ids for ids in (given if many else [given])]
        if all(isinstance(ids, (list, tuple)) for ids in found):
            return [list(ids) for ids in found], not many
    raise RequestError(f"must be a list of token ids, or of such lists, not {input_ids!r:.80}", field="input_ids")


def _ids_for_each(token_ids: Any, num: int) -> list[Any]:
    """`token_ids_logprob` for each of `num` prompts: one list for all, or a list with an entry for each."""
    if token_ids is None:
        return [None] * num
    if not isinstance(token_ids, (list, tuple)):
        raise RequestError(f"must be a list of token ids, not {token_ids!r:.80}", field="token_ids_logprob")
    if not any(ids is None or isinstance(ids, (list, tuple)) for ids in token_ids):
        return [token_ids] * num
    if len(token_ids) != num:
        raise RequestError(f"has {len(token_ids)} entries for {num} prompts", field="token_ids_logprob")
    for number, ids in enumerate(token_ids):
        if ids is not None and not isinstance(ids, (list, tuple)):
            raise RequestError(f"must be a list of token ids, not {ids!r:.80}", field=f"token_ids_logprob[{number}]")
    return list(token_ids)


def split_sampling(options: SamplingOptions, defaults: Mapping[str, float]) -> tuple[SamplingParams, Constraint | None]:
    """SGLang's dict of sampling parameters as our two values; `defaults` are for what a dict, or None, does not say.

    Raises RequestError for an unknown name.
    """
    if isinstance(options, SamplingParams):
        return options, None
    if options is not None and not isinstance(options, Mapping):
        raise RequestError(f"must be a dict or a SamplingParams, not {options!r:.80}", field="sampling_params")
    given = {**defaults, **{name: value for name, value in (options or {}).items() if value is not None}}
    if "sampling_seed" in given:
        given["seed"] = given.pop("sampling_seed")
    sources = {name: given.pop(name) for name in CONSTRAINT_KEYS if name in given}
    if len(sources) > 1:
        raise RequestError(f"give one of {', '.join(sources)}", field="sampling_params")
    for name in given:
        if name not in SAMPLING_FIELDS:
            known = ", ".join(sorted(SAMPLING_FIELDS | set(CONSTRAINT_KEYS)))
            raise RequestError(f"unknown; known are {known}", field=f"sampling_params.{name}")
    try:
        params = replace(SamplingParams(), **given)
    except DslcError:
        raise
    except (TypeError, ValueError) as error:
        raise RequestError(str(error), field="sampling_params") from None
    for kind, source in sources.items():
        return params, Constraint(kind, _source(kind, source))  # type: ignore[arg-type]
    return params, None


def _source(kind: str, source: Any) -> str:
    if kind == "json_schema":
        from ..compiler.constraints import source_of_schema

        return source_of_schema(source)
    if not isinstance(source, str):
        raise RequestError(f"must be a string, not {source!r}", field=f"sampling_params.{kind}")
    return source
