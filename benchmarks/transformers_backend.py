"""A backend that calls transformers' `generate` once per generation: what people do without an engine. A baseline.

Each request is one `generate` (greedy or sampled), each choice of a select one forward over prompt + choice, with no
cache between requests and no batching. Constraints are the same automata, as a logits processor.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from dslc.compiler.constraints import compile_constraint
from dslc.core.backend import Capabilities, Counters
from dslc.core.errors import ErrorInfo
from dslc.core.events import Failed, Finished, FinishReason, Output
from dslc.core.text.load import load_tokenizer


class _Mask(LogitsProcessor):
    def __init__(self, matcher, prompt_len, vocab_size):
        self.matcher, self.seen = matcher, prompt_len
        self.row = np.zeros((vocab_size + 31) // 32, np.int32)

    def __call__(self, input_ids, scores):
        for token in input_ids[0, self.seen :].tolist():
            self.matcher.advance(token)
        self.seen = input_ids.shape[1]
        self.matcher.fill_mask(self.row)
        allowed = np.unpackbits(self.row.view(np.uint8), bitorder="little")[: scores.shape[1]].astype(bool)
        return scores.masked_fill(~torch.from_numpy(allowed), float("-inf"))


class _NothingHeld:
    num_tokens = 0


class TransformersBackend:
    """core.backend.Backend on transformers, one call at a time, in the caller's thread."""

    def __init__(self, model_path):
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.tokenizer = load_tokenizer(model_path)
        self.hf_tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.capabilities = Capabilities(
            "transformers", constraints=frozenset({"regex", "json_schema"}), scoring=True, token_ids=True
        )
        self.queue = []
        self.totals = {"prompt_tokens": 0, "prefilled_tokens": 0, "generated_tokens": 0, "forwards": 0, "rows": 0}
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.totals["forwards"] += 1
        self.totals["rows"] += kwargs["input_ids"].shape[1] if "input_ids" in kwargs else args[0].shape[1]

    def submit(self, requests, sink):
        self.queue += [(request, sink) for request in requests]

    def wait(self, ready, timeout=None):
        while self.queue and not ready():
            request, sink = self.queue.pop(0)
            try:
                sink(self._serve(request))
            except Exception as error:
                sink(Failed(request.id, ErrorInfo.of(error)))
        return ready()

    @torch.inference_mode()
    def _serve(self, request):
        started = time.monotonic()
        ids = [token for segment in request.segments for token in (segment.ids or self.tokenizer.encode(segment.text))]
        outputs, scores = (), ()
        if request.score is not None:
            scores = tuple(self._score(ids, sequence) for sequence in request.score.sequences)
            self.totals["prompt_tokens"] += len(ids)
        else:
            outputs = (self._generate(ids, request),)
        now = time.monotonic()
        return Finished(request.id, outputs, len(ids), 0, request.sampling.seed or 0, started, now, now, scores=scores)

    def _score(self, ids, sequence):
        logits = self.model(input_ids=torch.tensor([[*ids, *sequence]])).logits[0, len(ids) - 1 : -1]
        self.totals["prefilled_tokens"] += len(ids) + len(sequence)
        return tuple(logits.log_softmax(-1)[range(len(sequence)), list(sequence)].tolist())

    def _generate(self, ids, request):
        sampling = request.sampling
        processors = []
        if request.constraint is not None:
            compiled = compile_constraint(request.constraint, self.tokenizer.vocabulary)
            processors.append(_Mask(compiled.start(), len(ids), self.tokenizer.vocab_size))
        options = {} if sampling.is_greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
        result = self.model.generate(
            torch.tensor([ids]), max_new_tokens=sampling.max_new_tokens, do_sample=not sampling.is_greedy,
            eos_token_id=list(self.tokenizer.eos_ids), stop_strings=list(sampling.stop) or None,
            tokenizer=self.hf_tokenizer if sampling.stop else None, logits_processor=processors, **options,
        )[0, len(ids) :].tolist()  # fmt: skip
        self.totals["prompt_tokens"] += len(ids)
        self.totals["prefilled_tokens"] += len(ids)
        self.totals["generated_tokens"] += len(result)
        kept = result[:-1] if result and result[-1] in self.tokenizer.eos_ids else result
        text = self.tokenizer.decode(kept)
        ends = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
        tail = ""
        if ends:
            text = text[: min(ends)]
            kept, tail = self._cut(kept, text)
        return Output(0, text, tuple(result), tuple(kept), tail, FinishReason("stop"))

    def _cut(self, ids, text):
        """The leading ids whose text lies inside `text`, and the rest of it."""
        kept = len(ids)
        while kept and not text.startswith(self.tokenizer.decode(ids[:kept])):
            kept -= 1
        return ids[:kept], text[len(self.tokenizer.decode(ids[:kept])) :]

    def abort(self, request_ids):
        self.queue = [(request, sink) for request, sink in self.queue if request.id not in set(request_ids)]

    def pin(self, ids, cache_salt=""):
        """There is no cache to hold anything in."""
        return _NothingHeld()

    def unpin(self, handle):
        pass

    def counters(self):
        return Counters(**self.totals)

    def close(self):
        self.queue.clear()
