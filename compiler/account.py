"""The account: tokens, rows and forwards of a run, as a function of its requests and their lengths.

`evaluate(jobs, limits)` plays the serving loop on lengths and token ids alone: no model, no tensor, no clock. On the
jobs of a run that has been (`recording.Recording`) it equals the engine's counters, while the cache fits; on jobs that
are guessed it says what a plan would cost (`cost`). The rules are those of `docs/engine.md`: continuous batching with
chunked and mixed prefill, longest cached prefix first, requests held back while another computes their prefix.

The sharing law falls out of it: tokens computed = nodes of the trie of the prompts + 1 for each request found wholly
cached, a generated run counting as cached but for its last token.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.request import ScoreTrie

MERGE_ROWS = 512  # the last piece of a scored prompt and its trie go into one forward up to this many rows
MAX_TRIE_ROWS = 2048  # of one forward
_ID_BYTES = 4

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a forward, under the names of `EngineConfig`. `logprob_rows`: prompt log-probs of one forward."""

    max_prefill_tokens: int = 16384
    chunked_prefill_size: int = 8192
    max_running_requests: int = 256
    enable_mixed_chunk: bool = True
    disable_radix_cache: bool = False
    schedule_policy: str = "lpm"
    logprob_rows: int = 4096

    @classmethod
    def of(cls, config: Any, vocab_size: int = 0) -> Limits:
        """From an `EngineConfig`, or anything with its fields."""
        rows = max(16, min(4096, 2**25 // vocab_size)) if vocab_size else 4096
        names = [name for name in cls.__dataclass_fields__ if name != "logprob_rows"]
        return cls(**{name: getattr(config, name) for name in names}, logprob_rows=rows)

    @property
    def budget(self) -> int:
        """Prompt tokens of one forward."""
        if self.chunked_prefill_size == -1:
            return self.max_prefill_tokens
        return min(self.max_prefill_tokens, self.chunked_prefill_size)


@dataclass(frozen=True, slots=True)
class Job:
    """One request and what came of it.

    `outputs` holds the ids of each choice, sampled and forced, a trimmed end included. `spans` says for each choice how
    many ids each of its forwards gave (empty: one each); `num_forced_first` ids were there before the first of them,
    and a job whose outputs were all forced runs no forward. It comes when the results of the jobs `after` are in, and
    `wave` results in all; or, with `arrival` not -1, after that many forwards. `namespace` keeps caches apart.
    """

    prompt: Ids
    outputs: tuple[Ids, ...] = ()
    spans: tuple[tuple[int, ...], ...] = ()
    num_forced_first: int = 0
    score: ScoreTrie | None = None
    prompt_logprobs_from: int = -1
    has_logprobs: bool = False
    namespace: str = ""
    after: tuple[int, ...] = ()
    wave: int = 0
    arrival: int = -1

    @property
    def is_forced(self) -> bool:
        """Whether its outputs were forced from beginning to end, without a forward."""
        return self.num_forced_first > 0 and not any(self.spans) and self.num_forced_first == len(self.outputs[0])


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals under the names of `core.backend.Counters`; `max_kv_tokens` is the most KV that running jobs held."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    recomputed_tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    forwards: int = 0
    rows: int = 0
    max_kv_tokens: int = 0
    context_rows: int = 0  # sum over rows of the tokens each attends to

    def differences(self, counters: Any) -> dict[str, tuple[int, int]]:
        """Name -> (mine, theirs) of each total that differs from the engine's counters."""
        names = [n for n in self.__dataclass_fields__ if n not in ("max_kv_tokens", "context_rows")]
        pairs = {name: (getattr(self, name), getattr(counters, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class PrefixSet:
    """Token sequences, and how much of another one they begin: what a cache that never evicts holds."""

    def __init__(self) -> None:
        self._keys: dict[str, list[bytes]] = {}

    def add(self, ids: Sequence[int], namespace: str = "") -> None:
        """Put a sequence in; it stays until it is removed as often."""
        bisect.insort(self._keys.setdefault(namespace, []), key_of(ids))

    def cover(self, ids: Sequence[int], namespace: str = "") -> None:
        """Put a sequence in unless one that begins with it is there."""
        keys, key = self._keys.setdefault(namespace, []), key_of(ids)
        at = bisect.bisect_left(keys, key)
        if at < len(keys) and keys[at].startswith(key):
            return
        keys.insert(at, key)
        while at and key.startswith(keys[at - 1]):
            at -= 1
            del keys[at]

    def remove(self, ids: Sequence[int], namespace: str = "") -> None:
        """Take a sequence out that `add` put in."""
        keys, key = self._keys[namespace], key_of(ids)
        del keys[bisect.bisect_left(keys, key)]

    def longest(self, ids: Sequence[int], namespace: str = "") -> int:
        """How many leading ids some sequence begins with."""
        keys = self._keys.get(namespace)
        if not keys:
            return 0
        key = key_of(ids)
        at = bisect.bisect_left(keys, key)
        return max((common_ids(key, keys[i]) for i in (at - 1, at) if 0 <= i < len(keys)), default=0)

    @property
    def num_tokens(self) -> int:
        """Nodes of the tries of what is in."""
        total = 0
        for keys in self._keys.values():
            for before, key in zip([b"", *keys], keys, strict=False):
                total += len(key) // _ID_BYTES - common_ids(before, key)
        return total


def key_of(ids: Sequence[int]) -> bytes:
    """Ids as bytes: equal, and beginning one another, exactly as the ids are."""
    return array("i", ids).tobytes()


def common_ids(a: bytes, b: bytes) -> int:
    """How many leading ids two keys share."""
    least = min(len(a), len(b))
    if a[:least] == b[:least]:
        return least // _ID_BYTES
    low, high = 0, least  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low // _ID_BYTES


@dataclass(slots=True, eq=False)
class _Seq:
    """One choice of a job under way."""

    job: int
    index: int
    ids: Ids  # prompt and all output
    prompt_len: int
    spans: tuple[int, ...]  # ids that each of its forwards gives
    parts: tuple[tuple[int, int], ...]  # (rows, scored) of each part of its trie
    max_cached: int
    logprobs_from: int
    next_logprob: int
    kv_len: int = 0
    num_tokens: int = 0  # prompt and output so far
    num_spans: int = 0
    num_parts: int = 0
    num_cached: int = 0
    is_done: bool = False


@dataclass(slots=True)
class _Extend:
    seq: _Seq
    start: int
    end: int
    trie_rows: int = 0
    has_trie: bool = False

    @property
    def is_last(self) -> bool:
        return self.end == self.seq.num_tokens

    @property
    def num_rows(self) -> int:
        return self.end - self.start + self.trie_rows


def evaluate(jobs: Sequence[Job], limits: Limits | None = None) -> Usage:
    """The account of these jobs on an engine with these limits, from an empty cache that holds everything.

    Raises ValueError where jobs wait for each other.
    """
    return _Loop(jobs, limits or Limits()).run()


@dataclass(slots=True)
class _Totals:
    cached: int = 0
    prefilled: int = 0
    recomputed: int = 0
    scored: int = 0
    forwards: int = 0
    rows: int = 0
    max_kv: int = 0
    context: int = 0


@dataclass
class _Loop:
    jobs: Sequence[Job]
    limits: Limits
    totals: _Totals = field(default_factory=_Totals)

    def run(self) -> Usage:
        self.cache, self.computing = PrefixSet(), PrefixSet()
        self.waiting: list[_Seq] = []
        self.prefilling: list[_Seq] = []
        self.decoding: list[_Seq] = []
        self.open: dict[int, int] = {}  # job -> its unfinished choices
        self.finished: set[int] = set()
        self.admitted: set[int] = set()
        left = list(range(len(self.jobs)))
        while True:
            left = self._submit(left)
            if not self._step():
                if not left:
                    break
                raise ValueError(f"{len(left)} jobs wait for results that never come, the first is {left[0]}")
        jobs, totals = self.jobs, self.totals
        return Usage(
            requests=len(jobs),
            prompt_tokens=sum(len(job.prompt) for job in jobs if not job.is_forced),
            cached_tokens=totals.cached,
            prefilled_tokens=totals.prefilled,
            recomputed_tokens=totals.recomputed,
            generated_tokens=sum(len(ids) for job in jobs for ids in job.outputs),
            scored_tokens=totals.scored,
            forwards=totals.forwards,
            rows=totals.rows,
            max_kv_tokens=totals.max_kv,
            context_rows=totals.context,
        )

    def _submit(self, left: list[int]) -> list[int]:
        later: list[int] = []
        for number in left:
            job = self.jobs[number]
            if not self._is_due(job):
                later.append(number)
                continue
            if job.is_forced:
                self.finished.add(number)
                continue
            seqs = sequences_of(number, job)
            self.open[number] = len(seqs)
            self.waiting += seqs
        return later

    def _is_due(self, job: Job) -> bool:
        if job.arrival >= 0:
            return self.totals.forwards >= job.arrival
        return len(self.finished) >= job.wave and self.finished.issuperset(job.after)

    def _step(self) -> bool:
        """One turn of the engine. False if there was nothing to launch."""
        limits = self.limits
        extends: list[_Extend] = []
        budget = limits.budget
        for seq in self.prefilling:
            if budget <= 0:
                break
            budget -= self._extend(extends, seq, budget)
        if budget > 0 and self.waiting:
            self._admit(extends, budget)
        decodes = list(self.decoding) if limits.enable_mixed_chunk or not extends else []
        if not decodes and not extends:
            return False
        self._count(decodes, extends)
        for seq in decodes:
            self._advance(seq)
        for extend in extends:
            self._computed(extend)
        return True

    def _count(self, decodes: list[_Seq], extends: list[_Extend]) -> None:
        totals = self.totals
        totals.forwards += 1
        for seq in decodes:
            totals.rows += seq.num_tokens - seq.kv_len
            totals.context += seq.num_tokens
        for extend in extends:
            totals.rows += extend.num_rows
            totals.context += extend.num_rows * (extend.start + extend.end + 1) // 2
        running = [*self.prefilling, *self.decoding]
        totals.max_kv = max(totals.max_kv, sum(seq.num_tokens for seq in running))

    def _extend(self, extends: list[_Extend], seq: _Seq, budget: int) -> int:
        """The next piece of a prompt, as the scheduler cuts it."""
        start, end = seq.kv_len, seq.num_tokens
        remaining = end - start
        whole = self.limits.chunked_prefill_size == -1
        if whole and remaining > budget and extends:
            return 0
        has_trie = bool(seq.parts)
        if has_trie:
            rows = remaining + seq.parts[seq.num_parts][0]
            if remaining > 1 and (rows > MERGE_ROWS or remaining > budget):
                has_trie, end = False, end - 1
        if not whole:
            end = min(end, start + budget)
        if seq.next_logprob < seq.prompt_len:
            first = max(start, seq.next_logprob - 1)
            end = min(end, max(start, first) + self.limits.logprob_rows)
        extend = _Extend(seq, start, end, seq.parts[seq.num_parts][0] if has_trie else 0, has_trie)
        extends.append(extend)
        return extend.num_rows

    def _admit(self, extends: list[_Extend], budget: int) -> None:
        shares = not self.limits.disable_radix_cache
        order = list(self.waiting)
        for seq in order:
            seq.num_cached = self._cached(seq) if shares else 0
        if self.limits.schedule_policy == "lpm" and len(order) <= 1024:
            order.sort(key=lambda seq: (-seq.num_cached, seq.job))
        for seq in order:
            if budget <= 0 or len(self.prefilling) + len(self.decoding) >= self.limits.max_running_requests:
                break
            name = self.jobs[seq.job].namespace
            if (
                shares
                and self.computing.longest(seq.ids[: min(seq.max_cached, seq.num_tokens - 1)], name) > seq.num_cached
            ):
                continue
            self._open(seq, shares)
            used = self._extend(extends, seq, budget)
            if not used:
                break
            budget -= used
        self.waiting = [seq for seq in self.waiting if seq not in self.prefilling]

    def _cached(self, seq: _Seq) -> int:
        limit = min(seq.max_cached, seq.num_tokens - 1)
        return self.cache.longest(seq.ids[:limit], self.jobs[seq.job].namespace)

    def _open(self, seq: _Seq, shares: bool) -> None:
        seq.kv_len = seq.num_cached
        self.prefilling.append(seq)
        if shares:
            self.computing.add(seq.ids[: seq.num_tokens], self.jobs[seq.job].namespace)
        if seq.job in self.admitted:
            self.totals.recomputed += seq.num_tokens - seq.kv_len
        else:
            self.admitted.add(seq.job)
            cached = min(seq.kv_len, seq.prompt_len)
            self.totals.cached += cached
            self.totals.prefilled += seq.prompt_len - cached

    def _computed(self, extend: _Extend) -> None:
        seq = extend.seq
        is_last = extend.is_last
        seq.kv_len = extend.end
        if seq.next_logprob < seq.prompt_len:
            seq.next_logprob = max(seq.next_logprob, min(extend.end + 1, seq.prompt_len))
        self._share(seq)
        if not is_last:
            return
        if not self.limits.disable_radix_cache and not seq.num_parts:
            self.computing.remove(seq.ids[: seq.num_tokens], self.jobs[seq.job].namespace)
        if seq.parts:
            self.totals.scored += seq.parts[seq.num_parts][1]
            seq.num_parts += 1
            if seq.num_parts == len(seq.parts):
                self._finish(seq)
            return
        self.prefilling.remove(seq)
        self.decoding.append(seq)
        self._advance(seq)

    def _advance(self, seq: _Seq) -> None:
        """The forward gave the next ids of an output."""
        if seq.num_spans:
            seq.kv_len = seq.num_tokens
        if seq.num_spans < len(seq.spans):
            seq.num_tokens += seq.spans[seq.num_spans]
            seq.num_spans += 1
        if seq.num_spans >= len(seq.spans):
            self._finish(seq)

    def _finish(self, seq: _Seq) -> None:
        self._share(seq)
        seq.is_done = True
        for group in (self.prefilling, self.decoding):
            if seq in group:
                group.remove(seq)
        self.open[seq.job] -= 1
        if not self.open[seq.job]:
            self.finished.add(seq.job)

    def _share(self, seq: _Seq) -> None:
        if not self.limits.disable_radix_cache:
            self.cache.cover(seq.ids[: seq.kv_len], self.jobs[seq.job].namespace)


def sequences_of(number: int, job: Job) -> list[_Seq]:
    """The choices of a job, as they are queued."""
    num_prompt = len(job.prompt)
    parts = tuple(trie_parts(job.score)) if job.score is not None else ()
    seqs: list[_Seq] = []
    for index, output in enumerate(job.outputs or ((),)):
        spans = job.spans[index] if index < len(job.spans) and job.spans[index] else (1,) * len(output)
        start = num_prompt
        if index == 0 and job.prompt_logprobs_from >= 0:
            start = min(max(job.prompt_logprobs_from, 1), num_prompt)
        known = num_prompt + job.num_forced_first
        limit = known - 1
        if index == 0 and start < num_prompt:
            limit = start - 1
        elif job.has_logprobs:
            limit = num_prompt - 1
        ids = (*job.prompt, *output)
        seq = _Seq(number, index, ids, num_prompt, spans, parts, limit, start, start, num_tokens=known)
        seqs.append(seq)
    return seqs


def trie_parts(score: ScoreTrie, max_rows: int = MAX_TRIE_ROWS) -> Iterable[tuple[int, int]]:
    """(rows, rows) of each forward that scores a trie: its inner nodes, at most `max_rows` unless one needs more."""
    inner: set[Ids] = set()
    has_members = False
    for seq in sorted(set(score.sequences)):
        new = [seq[:end] for end in range(1, len(seq)) if seq[:end] not in inner]
        if has_members and new and len(inner) + len(new) > max_rows:
            yield len(inner), len(inner)
            inner, new = set(), [seq[:end] for end in range(1, len(seq))]
        inner.update(new)
        has_members = True
    yield len(inner), len(inner)
