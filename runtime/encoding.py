"""Embeddings and classification: prompts are read, nothing is drawn, and their KV is freed at once.

The encoder is a second, small scheduler beside the one for generation. It runs in the engine's loop, one forward per
turn after the generation's, and takes rows and pages from the same pool. A decoder's long input goes in chunks of
`chunked_prefill_size`; what reads in both directions goes whole.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ContextOverflow, DslcError, EngineError, ModelLoadError, RequestError
from .batch import ForwardBatch, ForwardMode
from .memory.prefix_cache import Namespace
from .transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..core.config import EngineConfig
    from .memory.allocator import IntArray
    from .memory.manager import Lease, MemoryManager
    from .scheduling.results import Tally

Pooling = Literal["last", "cls", "mean", "tokens"]
POOLINGS = ("last", "cls", "mean", "tokens")
NAMESPACE = Namespace("\0encode")  # of leases only: nothing of it enters the prefix cache


@dataclass(slots=True, eq=False)
class Job:
    """One input on its way. `num_done` of its tokens are computed; `rows` are results so far, `result` the last word.

    `result` is [N] for a pooled input, [T, N] for one whose tokens are wanted.
    """

    ids: IntArray
    pooling: Pooling
    num_done: int = 0
    lease: Lease | None = None
    rows: list[Tensor] = field(default_factory=list)
    result: Tensor | None = None
    error: DslcError | None = None

    @property
    def is_over(self) -> bool:
        return self.result is not None or self.error is not None

    def wanted(self, start: int, end: int) -> range:
        """Which of tokens [start, end) have results that count."""
        if self.pooling == "last":
            return range(max(start, len(self.ids) - 1), end)
        return range(start, min(end, 1)) if self.pooling == "cls" else range(start, end)

    def finish(self) -> None:
        """All rows are there."""
        rows = torch.cat(self.rows)
        self.rows.clear()
        self.result = rows if self.pooling == "tokens" else rows[0]
        if self.pooling == "mean":
            self.result = rows.sum(dim=0) / len(self.ids)

    def add(self, rows: Tensor) -> None:
        """Results of some tokens; of a mean only the sum is kept."""
        if len(rows):
            self.rows.append(rows.sum(dim=0, keepdim=True) if self.pooling == "mean" else rows)


class Encoder:
    """Queues jobs and runs them, several in a forward. `submit` is for any thread, the rest for the engine's driver."""

    def __init__(self, runner: Any, memory: MemoryManager, config: EngineConfig, tally: Tally) -> None:
        self.runner = runner
        self.memory = memory
        self.tally = tally
        self.is_whole = bool(getattr(getattr(runner, "model", None), "is_bidirectional", False))
        chunk = config.chunked_prefill_size
        self.budget = config.max_prefill_tokens if chunk < 0 or self.is_whole else chunk
        self.jobs: deque[Job] = deque()
        self._has_dropped = False

    @property
    def num_leases(self) -> int:
        """How many inputs hold rows and pages."""
        return sum(job.lease is not None for job in self.jobs)

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs."""
        self.jobs.extend(jobs)

    def fail_all(self, error: DslcError) -> None:
        """End everything with this error, and free it."""
        while self.jobs:
            job = self.jobs.popleft()
            job.error = error
            self._free(job)

    def drop(self, jobs: list[Job]) -> None:
        """Nobody wants these any more; what they hold is freed before the next forward."""
        for job in jobs:
            job.error = job.error or EngineError("nobody waits for this input any more")
            self._has_dropped = True

    def forget_all(self, error: DslcError) -> None:
        """`fail_all` where the memory is given up as a whole."""
        while self.jobs:
            job = self.jobs.popleft()
            job.error, job.lease = error, None

    def plan(self, *, others_run: bool) -> list[tuple[Job, int, IntArray]]:
        """(job, tokens to compute, their slots) for one forward. A job that can never fit fails."""
        if self._has_dropped:
            for job in self.jobs:
                if job.is_over:
                    self._free(job)
            self.jobs = deque(job for job in self.jobs if not job.is_over)
            self._has_dropped = False
        while self.jobs and self.jobs[0].is_over:
            self.jobs.popleft()
        work: list[tuple[Job, int, IntArray]] = []
        left = self.budget
        for job in self.jobs:
            rest = len(job.ids) - job.num_done
            num = rest if self.is_whole else min(rest, left)
            if num < 1 or (num > left and work):
                break
            slots = self._slots(job, num)
            if slots is None:
                if not work and not others_run:
                    need = f"{len(job.ids)} tokens do not fit into the KV pool"
                    job.error = EngineError(f"{need}; raise max_total_tokens")
                    self._free(job)
                break
            work.append((job, num, slots))
            left -= num
        return work

    def run(self, work: list[tuple[Job, int, IntArray]]) -> None:
        """One forward. Whatever it raises, the jobs in it fail by it."""
        try:
            with torch.inference_mode():
                results = self.runner.forward(self._batch(work)).cpu()
        except Exception as error:
            for job, _, _ in work:
                job.error = EngineError(f"the forward of this input failed: {error!r}")
            return
        at = 0
        for job, num, _ in work:
            count = len(job.wanted(job.num_done, job.num_done + num))
            job.add(results[at : at + count])
            at += count
            job.num_done += num
            if job.num_done == len(job.ids):
                job.finish()
        self.tally.forwards += 1
        self.tally.rows += sum(num for _, num, _ in work)
        self.tally.prefilled_tokens += sum(num for _, num, _ in work)

    def settle(self, work: list[tuple[Job, int, IntArray]]) -> None:
        """Free what is over."""
        for job, _, _ in work:
            if job.is_over:
                self._free(job)
                if job in self.jobs:  # not dropped meanwhile
                    self.jobs.remove(job)

    def _slots(self, job: Job, num: int) -> IntArray | None:
        if job.lease is None:
            job.lease = self.memory.acquire(job.ids, NAMESPACE)
        slots = None if job.lease is None else self.memory.extend([job.lease], [num])
        if slots is None and not job.num_done:
            self._free(job)
        return slots

    def _free(self, job: Job) -> None:
        if job.lease is not None:
            self.memory.release(job.lease)
            job.lease = None

    def _batch(self, work: list[tuple[Job, int, IntArray]]) -> ForwardBatch:
        def tensor(values: Any) -> Tensor:
            return to_device(np.asarray(values, dtype=np.int64), self.runner.device)

        starts = [job.num_done for job, _, _ in work]
        counts = [num for _, num, _ in work]
        ends = [start + num for start, num in zip(starts, counts, strict=True)]
        wanted: list[int] = []
        row = 0
        for (job, num, _), start in zip(work, starts, strict=True):
            wanted += [row + i - start for i in job.wanted(start, start + num)]
            row += num
        return ForwardBatch(
            mode=ForwardMode.EXTEND,
            input_ids=tensor(np.concatenate([j.ids[s:e] for (j, _, _), s, e in zip(work, starts, ends, strict=True)])),
            positions=tensor(np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)])),
            out_slots=tensor(np.concatenate([slots for _, _, slots in work])),
            req_rows=tensor([job.lease.row for job, _, _ in work if job.lease is not None]),
            seq_lens=tensor(ends),
            prefix_lens=tensor(starts),
            extend_lens=tensor(counts),
            seq_lens_cpu=tuple(ends),
            prefix_lens_cpu=tuple(starts),
            extend_lens_cpu=tuple(counts),
            logits_rows=tensor(wanted),
        )


@dataclass(frozen=True, slots=True)
class EncodeDefaults:
    """How vectors are made where a call does not say: by the model's class, or by sentence-transformers' files."""

    pooling: Pooling
    normalize: bool

    @classmethod
    def of(cls, folder: Path, pooling: Pooling) -> EncodeDefaults:
        """Reads modules.json and the pooling's config.json in a model folder, where they are. Raises ModelLoadError."""
        modules = folder / "modules.json"
        if not modules.exists():
            return cls(pooling, True)
        normalize = False
        try:
            for module in json.loads(modules.read_text("utf-8")):
                kind = str(module["type"]).rpartition(".")[2]
                normalize |= kind == "Normalize"
                if kind == "Pooling":
                    fields = json.loads((folder / module["path"] / "config.json").read_text("utf-8"))
                    names: dict[str, Pooling] = {"lasttoken": "last", "cls_token": "cls", "mean_tokens": "mean"}
                    pooling = next(ours for name, ours in names.items() if fields.get(f"pooling_mode_{name}"))
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise ModelLoadError(
                f"the pooling it asks for cannot be read or is unknown ({error!r}); known: last token, CLS, mean",
                path=str(modules),
            ) from error
        return cls(pooling, normalize)


def labels_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """A classifier's labels by number, from config.json's id2label."""
    names = fields.get("id2label")
    if not isinstance(names, dict):
        return tuple(f"LABEL_{i}" for i in range(fields.get("num_labels", 2)))
    return tuple(str(names[key]) for key in sorted(names, key=int))


def pooled(result: Tensor, normalize: bool, dimensions: int | None) -> Tensor:
    """An embedding [N], cut to its first `dimensions` (Matryoshka, arXiv 2205.13147), then made of length 1."""
    if dimensions is not None:
        if not 1 <= dimensions <= result.shape[-1]:
            raise RequestError(f"must be between 1 and {result.shape[-1]}, not {dimensions!r}", field="dimensions")
        result = result[..., :dimensions]
    return F.normalize(result, dim=-1) if normalize else result


def checked_ids(ids: list[int], vocab_size: int, context_length: int, number: int) -> IntArray:
    """An input's ids as an array. Raises RequestError naming the input, ContextOverflow."""
    if not ids:
        raise RequestError("is empty: there is nothing to read", field=f"input_ids[{number}]")
    for i, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise RequestError(
                f"must be a token id below the vocabulary size {vocab_size}, not {token_id!r}",
                field=f"input_ids[{number}][{i}]",
            )
    if len(ids) > context_length:
        raise ContextOverflow(
            f"{len(ids)} tokens are more than the model's {context_length} positions", field=f"input_ids[{number}]"
        )
    return np.array(ids, dtype=np.int64)
