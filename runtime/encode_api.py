"""`encode` and `score` of an engine: what is not generation, under SGLang's names."""

from __future__ import annotations

import asyncio
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import RequestError
from ..core.events import Event, Failed, Finished
from ..core.request import GenRequest, ScoreTrie, Segment
from .encoding import POOLINGS, EncodeDefaults, Encoder, Job, Pooling, checked_ids, pooled
from .generate import lists_of_ids

if TYPE_CHECKING:
    from ..core.backend import EventSink

Result = dict[str, Any]
_ids = itertools.count()


class EncodeAPI(ABC):
    """Embeddings, classification and scores, in terms of the engine it is mixed into."""

    task: str  # generate, embed, classify, classify_tokens: what the model's head is for
    labels: tuple[str, ...]  # of a classifier, by number
    encode_defaults: EncodeDefaults
    encoder: Encoder
    input_limits: tuple[int, int]  # vocabulary, positions

    @abstractmethod
    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None: ...

    @abstractmethod
    def submit_jobs(self, jobs: list[Job]) -> None:
        """Queue inputs for the encoder, and wake whoever drives."""

    @abstractmethod
    def drop_jobs(self, jobs: list[Job]) -> None:
        """Nobody wants these any more."""

    @abstractmethod
    def abort(self, request_ids: Sequence[str]) -> None: ...

    @abstractmethod
    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool: ...

    @abstractmethod
    def encode_prompt(self, text: str) -> list[int]: ...

    def encode(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Result | list[Result]:
        """Read prompts with an embedding model, a classifier or a reward model. One gives a dict, several a list.

        A result has `meta_info` (prompt_tokens) and, by the model's head: `embedding`, a list of floats, pooled by
        `pooling` ("last" token, "cls" the first, "mean", or "tokens": one per token) and of length 1 if `normalize`,
        both as the model's files say where not given, cut to `dimensions` before; or `logits` and `label`, of a token
        classifier one for each token. Raises RequestError, ContextOverflow, EngineError.
        """
        jobs, is_one = self._jobs_of(prompt, input_ids, pooling, dimensions)
        self._finish(jobs)
        results = [self._result(job, normalize, dimensions) for job in jobs]
        return results[0] if is_one else results

    async def async_encode(
        self, prompt: str | list[str] | None = None, input_ids: Any = None, **options: Any
    ) -> Result | list[Result]:
        """`encode` without blocking the event loop."""
        return await asyncio.to_thread(self.encode, prompt, input_ids, **options)

    def score(
        self,
        query: str | list[int],
        items: str | list[str] | list[list[int]],
        label_token_ids: list[int] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
    ) -> list[list[float]]:
        """For each item, how likely each of `label_token_ids` is right after query + item (`item_first`: item + query).

        All items stand in one forward as branches after the query: an item sees the query and itself, from the position
        where the query ends. Scores are probabilities among all tokens, with `apply_softmax` among the labels only.
        With a classifier (a reranker, a reward model) there are no label tokens: the scores are its logits, or with
        `apply_softmax` their softmax. Raises RequestError.
        """
        texts: list[Any] = [items] if isinstance(items, str) else list(items)
        if not texts:
            raise RequestError("is empty: there is nothing to score", field="items")
        if self.task != "generate":
            return self._classified(query, texts, label_token_ids, apply_softmax, item_first)
        if not label_token_ids:
            raise RequestError("must name one token id or more", field="label_token_ids")
        head = self._ids(query, first=not item_first)
        tails = [self._ids(item, first=item_first) for item in texts]
        labels = tuple(label_token_ids)
        tries: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]
        if item_first:
            alone: tuple[tuple[int, ...], ...] = tuple([(label,) for label in labels])
            tries = [((*tail, *head), alone) for tail in tails]
        else:
            tries = [(tuple(head), tuple([(*tail, label) for tail in tails for label in labels]))]
        logs = [value for scores in self._scored(tries) for value in scores]
        rows = [logs[i : i + len(labels)] for i in range(0, len(logs), len(labels))]
        return [_shares(row) if apply_softmax else [math.exp(value) for value in row] for row in rows]

    async def async_score(self, *args: Any, **options: Any) -> list[list[float]]:
        """`score` without blocking the event loop."""
        return await asyncio.to_thread(self.score, *args, **options)

    def _classified(
        self, query: Any, items: list[Any], labels: list[int] | None, apply_softmax: bool, item_first: bool
    ) -> list[list[float]]:
        if self.task != "classify":
            raise RequestError(f"needs a language model or a sequence classifier, this model is for {self.task}")
        if labels:
            raise RequestError("are for language models; a classifier has its own labels", field="label_token_ids")
        head = self._ids(query, first=not item_first)
        tails = [self._ids(item, first=item_first) for item in items]
        found = self.encode(input_ids=[[*tail, *head] if item_first else [*head, *tail] for tail in tails])
        assert isinstance(found, list)
        return [_shares(result["logits"]) if apply_softmax else result["logits"] for result in found]

    def _ids(self, text: str | list[int], first: bool) -> list[int]:
        if not isinstance(text, str):
            return list(text)
        return self.encode_prompt(text) if first else self.encode_continuation(text)

    @abstractmethod
    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that stands after others: no BOS."""

    def _scored(self, tries: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]) -> list[list[float]]:
        """For each (prompt, sequences) the log-prob of the last token of each sequence."""
        ended: dict[str, Finished | Failed] = {}

        def sink(event: Event) -> None:
            if isinstance(event, (Finished, Failed)):
                ended[event.request_id] = event

        requests = [
            GenRequest(id=f"score-{next(_ids)}", segments=(Segment(ids=prompt),), score=ScoreTrie(sequences))
            for prompt, sequences in tries
        ]
        try:
            self.submit(requests, sink)
            self.wait(lambda: len(ended) == len(requests))
        finally:
            self.abort([request.id for request in requests if request.id not in ended])
        found = []
        for request in requests:
            event = ended[request.id]
            if isinstance(event, Failed):
                raise event.error.exception()
            found.append([values[-1] for values in event.scores])
        return found

    def _jobs_of(
        self, prompt: Any, input_ids: Any, pooling: Pooling | None, dimensions: int | None
    ) -> tuple[list[Job], bool]:
        if self.task == "generate":
            raise RequestError(
                "the model has a vocabulary head; Engine(..., is_embedding=True) reads it as an embedder"
            )
        if (prompt is None) == (input_ids is None):
            raise RequestError("give either prompt or input_ids", field="prompt")
        if pooling is not None and (pooling not in POOLINGS or self.task != "embed"):
            raise RequestError(
                f"must be one of {', '.join(POOLINGS)}, of an embedding model; not {pooling!r}", field="pooling"
            )
        if dimensions is not None and self.task != "embed":
            raise RequestError("means nothing for a classifier", field="dimensions")
        if prompt is not None:
            if not isinstance(prompt, (str, list, tuple)):
                raise RequestError(f"must be a string or a list of strings, not {prompt!r}", field="prompt")
            is_one = isinstance(prompt, str)
            texts: list[Any] = [prompt] if is_one else list(prompt)
            inputs = [self.encode_prompt(text) for text in texts]
        else:
            inputs, is_one = lists_of_ids(input_ids)
        if not inputs:
            raise RequestError(
                "is empty: there is nothing to read", field="prompt" if input_ids is None else "input_ids"
            )
        kind = pooling or self.encode_defaults.pooling
        return [Job(checked_ids(ids, *self.input_limits, number), kind) for number, ids in enumerate(inputs)], is_one

    def _finish(self, jobs: list[Job]) -> None:
        try:
            self.submit_jobs(jobs)
            self.wait(lambda: all(job.is_over for job in jobs))
        finally:
            self.drop_jobs([job for job in jobs if not job.is_over])
        for job in jobs:
            if job.error is not None:
                raise job.error

    def _result(self, job: Job, normalize: bool | None, dimensions: int | None) -> Result:
        assert job.result is not None
        meta = {"prompt_tokens": len(job.ids)}
        if self.task == "embed":
            is_unit = self.encode_defaults.normalize if normalize is None else normalize
            return {"embedding": pooled(job.result, is_unit, dimensions).tolist(), "meta_info": meta}
        best = job.result.argmax(dim=-1).tolist()
        names = [self.labels[i] for i in best] if isinstance(best, list) else self.labels[best]
        key = "labels" if isinstance(best, list) else "label"
        return {"logits": job.result.tolist(), key: names, "meta_info": meta}


def _shares(logs: Sequence[float]) -> list[float]:
    """Softmax."""
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return [weight / sum(weights) for weight in weights]
