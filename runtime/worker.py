"""The device half of the loop: a batch goes through model and sampler, and its results come back in one host read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.events import TokenLogprob
from ..kernels.token_bitmask import ALL_ALLOWED, mask_words
from .media.features import features_of
from .sampling.batch import SamplingBatch, SamplingRow
from .sampling.logprobs import Logprobs, logsumexp
from .sampling.processors import process_
from .sampling.sampler import Sampler
from .scheduling.batch_builder import BatchBuilder, LogitRows
from .scheduling.results import Results
from .transfer import ToHost, to_device

if TYPE_CHECKING:
    from .batch import ForwardBatch
    from .memory.request_table import ReqToTokenPool
    from .request import Sequence
    from .scheduling.batch import Batch


class Runner(Protocol):
    """What the engine asks of a model: `ModelRunner`, or a stand-in."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Capacity of the KV pool: whole pages."""

    @property
    def req_to_token(self) -> ReqToTokenPool: ...

    def forward(self, fb: ForwardBatch) -> Tensor:
        """Logits of the wanted rows, [R, vocab] float32, in the order of `fb.logits_rows`. Writes the rows' KV."""


@dataclass(slots=True)
class _Wished:
    """Log-probs of some rows on the device, with how many alternatives each row's request asked for."""

    logprobs: Logprobs
    tops: list[int]

    def read(self) -> list[TokenLogprob]:
        return self.logprobs.rows(self.tops)


@dataclass(slots=True)
class InFlight:
    """A launched batch whose results are still on the device."""

    batch: Batch
    ids: ToHost | None = None  # "ids" [S] of batch.sampled
    wished: tuple[list[int], _Wished] | None = None  # indices into batch.sampled
    prompts: dict[int, tuple[range, _Wished]] = field(default_factory=dict)
    edges: dict[int, Tensor] = field(default_factory=dict)

    def read(self) -> Results:
        """Wait for the device and bring everything to the host. Log-probs wait for later launches too."""
        results = Results(self.ids.wait()["ids"].tolist() if self.ids is not None else [])
        if self.wished is not None:
            results.logprobs = dict(zip(self.wished[0], self.wished[1].read(), strict=True))
        for number, (positions, wished) in self.prompts.items():
            results.prompt_logprobs[number] = dict(zip(positions, wished.read(), strict=True))
        for number, values in self.edges.items():
            results.edges[number] = values.tolist()
        return results


@dataclass(frozen=True, slots=True)
class _Special:
    """Which rows of a batch of outputs need more than a draw: a mask, log-probs, a processor. Mostly none."""

    masked: list[int]
    wishing: list[int]
    processed: list[int]

    @classmethod
    def of(cls, seqs: list[Sequence]) -> _Special:
        some = [(i, seq, seq.request.source) for i, seq in enumerate(seqs) if seq.per_token]
        return cls(
            [i for i, seq, _ in some if seq.matcher is not None],
            [i for i, _, source in some if source.logprobs is not None],
            [i for i, _, source in some if source.logit_processor is not None],
        )


class Worker:
    """Launches batches, one at a time. Keeps on the device what the next launch needs: last ids, sampling state.

    `vocab_size` is how many ids can be drawn: models pad their logits beyond the ids that exist.
    """

    def __init__(self, runner: Runner, vocab_size: int, *, deterministic: bool = False) -> None:
        self.runner = runner
        self.device = runner.device
        self.vocab_size = vocab_size
        self.sampler = Sampler(deterministic, runner.device)
        self.deterministic = deterministic
        self.features = features_of(runner)
        self.builder = BatchBuilder(runner.req_to_token.max_running_requests, runner.device)
        self._members: list[Sequence] = []
        self._special = _Special.of([])
        self._prompt_lens = np.zeros(0, dtype=np.int64)  # of the members
        self._sampling = SamplingBatch(vocab_size, runner.device)

    def start_over(self) -> None:
        """Forget whom the last launches were for."""
        self._members, self._prompt_lens = [], self._prompt_lens[:0]

    @torch.inference_mode()
    def launch(self, batch: Batch) -> InFlight:
        """Queue the forward and the sampling of a batch. Reads lengths and rows, no token that was just sampled.

        Raises whatever forward or sampler raise; the device state is then as before.
        """
        fb, where = self.builder.build(batch)
        if self.features is not None:
            self.features.attach(fb, batch)
        logits = self.runner.forward(fb)
        in_flight = InFlight(batch)
        self._prompt_logprobs(in_flight, logits, where)
        self._trie_logprobs(in_flight, logits, where)
        if batch.sampled:
            try:
                self._sample(in_flight, fb, logits, where)
            except BaseException:
                self.start_over()  # half changed: the next makes it anew
                raise
        return in_flight

    def _sample(self, in_flight: InFlight, fb: ForwardBatch, logits: Tensor, where: LogitRows) -> None:
        batch = in_flight.batch
        if where.sampled is not None:
            logits = logits.index_select(0, to_device(where.sampled, logits.device))
        self._keep_members(batch)
        steps, rows = self._steps_and_rows(batch)
        special = self._special
        process = partial(process_, seqs=batch.sampled, at=special.processed) if special.processed else None
        ids = self.sampler.sample(logits[:, : self.vocab_size], self._sampling, self._mask(batch), steps, process)
        self._wished_logprobs(in_flight, logits, ids)
        in_flight.ids = ToHost({"ids": ids})
        self._sampling.append(ids)
        self.builder.last_ids[rows] = ids.clamp(min=0)

    def _keep_members(self, batch: Batch) -> None:
        """Bring the sampling parameters to the rows of this batch, leaving those that stay as they are."""
        wanted, members = batch.sampled, self._members
        jumped: set[Sequence] = set()  # penalties must hear of tokens that were not drawn: such rows are made anew
        if self._sampling.changes_logits:
            jumped = {extend.seq for extend in batch.extends if extend.samples}
        if wanted == members and not jumped:
            return
        still = set(wanted) - jumped if jumped else set(wanted)
        stay = [place for place, seq in enumerate(members) if seq in still]
        kept = [members[place] for place in stay]
        new = wanted[len(stay) :]
        is_in_order = kept == wanted[: len(stay)]
        if not is_in_order:
            known = set(kept)
            new = [seq for seq in wanted if seq not in known]
        if not stay:  # or the last launch left it half changed
            self._sampling = SamplingBatch(self.vocab_size, self.device)
        elif len(stay) < len(members):
            self._sampling.filter(stay)
        if new:
            self._sampling.merge(SamplingBatch.of([_row(seq) for seq in new], self.vocab_size, self.device))
        if not is_in_order:
            place_of = {seq: place for place, seq in enumerate(kept + new)}
            self._sampling.filter([place_of[seq] for seq in wanted])
            self._prompt_lens = np.fromiter([seq.prompt_len for seq in wanted], np.int64, len(wanted))
        else:
            lens = np.array([seq.prompt_len for seq in new], dtype=np.int64)
            self._prompt_lens = np.concatenate([self._prompt_lens[stay], lens])
        self._members = list(wanted)
        self._special = _Special.of(wanted)

    def _steps_and_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How many tokens each sampled sequence has, and its row in the request table."""
        num_decodes = len(batch.decodes)
        chosen = [*range(num_decodes), *(i for i, e in enumerate(batch.extends, num_decodes) if e.samples)]
        lens, rows = batch.lens, batch.rows
        if len(chosen) < len(lens):
            lens, rows = lens[chosen], rows[chosen]
        return to_device(lens - self._prompt_lens, self.device), to_device(rows, self.device)

    def _mask(self, batch: Batch) -> Tensor | None:
        """[S, W] int32: what constraints allow; all bits for a free row. None if nothing is constrained."""
        if not self._special.masked:
            return None
        mask = np.full((len(batch.sampled), mask_words(self.vocab_size)), ALL_ALLOWED, dtype=np.int32)
        for i in self._special.masked:
            row = batch.sampled[i].mask
            if row is not None:
                mask[i] = row
        return to_device(mask, self.device)

    # Log-probs

    def _wished_logprobs(self, in_flight: InFlight, logits: Tensor, ids: Tensor) -> None:
        wishing = self._special.wishing
        if wishing:
            at = to_device(np.array(wishing), logits.device)
            seqs = [in_flight.batch.sampled[i] for i in wishing]
            in_flight.wished = wishing, self._wish(logits.index_select(0, at), ids.index_select(0, at), seqs)

    def _prompt_logprobs(self, in_flight: InFlight, logits: Tensor, where: LogitRows) -> None:
        for number, (row, positions) in where.prompt.items():
            seq = in_flight.batch.extends[number].seq
            ids = to_device(seq.ids(positions.start, positions.stop).astype(np.int64), logits.device)
            rows = logits[row : row + len(positions)]
            in_flight.prompts[number] = positions, self._wish(rows, ids, [seq] * len(positions))

    def _wish(self, logits: Tensor, ids: Tensor, seqs: list[Sequence]) -> _Wished:
        wishes = [seq.request.source.logprobs for seq in seqs]
        tops = [wish.top if wish else 0 for wish in wishes]
        given = [wish.token_ids if wish else () for wish in wishes]
        return _Wished(self.sampler.logprobs(logits, ids, max(tops), given), tops)

    def _trie_logprobs(self, in_flight: InFlight, logits: Tensor, where: LogitRows) -> None:
        for number, (prompt_row, first_row) in where.tries.items():
            trie = in_flight.batch.extends[number].trie
            assert trie is not None
            begin = first_row if prompt_row < 0 else prompt_row
            rows = logits[begin : first_row + len(trie.token_ids)]
            offset = first_row - begin
            parents = [edge.parent + offset if edge.parent >= 0 else 0 for edge in trie.edges]
            at = to_device(np.array(parents, dtype=np.int64), logits.device)
            ids = to_device(np.array([edge.token_id for edge in trie.edges], dtype=np.int64), logits.device)
            in_flight.edges[number] = rows[at, ids] - logsumexp(rows, self.sampler.works_row_by_row(rows))[at]


def _row(seq: Sequence) -> SamplingRow:
    """A sequence as the sampler sees it when it comes (again): all its tokens are known to the host then."""
    request = seq.request
    params = request.source.sampling
    needs_ids = params.repetition_penalty != 1.0
    prompt_ids = request.prompt_ids.tolist() if needs_ids else ()
    if needs_ids and request.media:  # pictures are no tokens
        first = min([placed.picture.id for placed in request.media])
        prompt_ids = [token_id for token_id in prompt_ids if token_id < first]
    counts_ids = needs_ids or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    return SamplingRow(
        params,
        request.seed,
        seq.index,
        prompt_ids=prompt_ids,
        output_ids=tuple(seq.output_ids) if counts_ids else (),
        stop_ids=tuple(seq.stop_ids),
    )
