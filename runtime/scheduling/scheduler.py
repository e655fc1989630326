"""Which requests run, and what each forward computes. Knows lengths, rows and pages; never a tensor.

A turn is `receive` (messages), `next_batch` (decide and lease memory), then `resolve` with the tokens of that batch, or
of the one before (overlap). Everything a `Request` or `Sequence` becomes, it becomes here.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import DslcError, EngineError, ErrorInfo, QueueFull, RequestError
from ...core.events import Failed, Finished, Preempted, Queued
from ..memory.groups import shared_prefixes
from ..request import Request, Sequence, Stage
from .admission import CLIP_NEW_TOKENS, NewTokenRatio
from .batch import Batch, Extend
from .in_flight import PrefillTrie
from .messages import Submit
from .policies import Aging, Now, RoutingKey
from .results import Resolver

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...core.config import EngineConfig
    from ...core.events import Event
    from ..batch import PrefixGroup
    from ..memory.manager import MemoryManager
    from ..memory.prefix_cache import Probe
    from .messages import Message
    from .policies import Policy
    from .results import Results, Tally

RETRY_STEPS = 64  # try admission again after so many steps without any change: the expected lengths have sunk
MERGE_ROWS = 512  # the last piece of a scored prompt and its trie go into one forward up to this many rows
MAX_LOGIT_ELEMENTS = 2**25  # of prompt log-probs in one forward
MIN_GROUP_LEN = 16  # tokens of a shared prefix worth telling the attention about


class Scheduler:
    """Continuous batching over one MemoryManager. Not thread-safe: one driver at a time.

    `outbox` collects (request, event) pairs for whoever drives; `tally` counts.
    """

    def __init__(
        self, config: EngineConfig, memory: MemoryManager, policy: Policy, resolver: Resolver, vocab_size: int
    ) -> None:
        self.config = config
        self.memory = memory
        self.aging = Aging(policy)
        self.resolver = resolver
        self.tally: Tally = resolver.tally
        self.outbox: list[tuple[Request, Event]] = resolver.outbox
        self.requests: dict[str, Request] = {}
        self.waiting: list[Sequence] = []  # in order of arrival
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.step = 0
        self._preempts = policy.name == "priority"
        self._preempt_from = config.priority_scheduling_preemption_threshold
        self._urgency = -1 if config.schedule_low_priority_values_first else 1
        self._routes = RoutingKey.name in (policy.name, getattr(policy, "within", policy).name)
        self._shares = not config.disable_radix_cache
        self._computing = PrefillTrie(config.page_size)
        self._ratio = NewTokenRatio(config.schedule_conservativeness)
        self._suspects: deque[Sequence] = deque()
        self._jumped: list[Sequence] = []  # decoding, but more than their last token is to be computed
        self._num_arrivals = 0
        self._num_queued = 0  # requests whose first choice waits
        self._is_stale = False  # decoding and prefilling hold sequences that are done
        self._has_left = False  # waiting does
        self._grouped: tuple[list[Sequence], tuple[PrefixGroup, ...]] = ([], ())  # of the last batch
        self._changes = 0  # of whatever admission depends on
        self._tried_at = (-1, -RETRY_STEPS)  # (changes, step) of the last round that admitted nothing
        self._logprob_rows = max(16, min(4096, MAX_LOGIT_ELEMENTS // vocab_size))
        whole = config.chunked_prefill_size == -1
        self._chunked = not whole
        self._budget = config.max_prefill_tokens
        if not whole:
            self._budget = min(self._budget, config.chunked_prefill_size)

    # Messages

    def receive(self, messages: Iterable[Message], now: float) -> None:
        """Take in what happened outside since the last turn, in order."""
        for message in messages:
            if isinstance(message, Submit):
                self._take(message.request, now)
            else:
                request = self.requests.get(message.request_id)
                if request is not None:
                    self.fail(request, message.error)

    def _take(self, request: Request, now: float) -> None:
        limit = self.config.max_queued_requests
        if request.id in self.requests:
            error: DslcError = RequestError(f"a request {request.id!r} is running", field="id")
        elif limit is not None and self._num_queued >= limit:
            error = QueueFull(f"{limit} requests are waiting already (max_queued_requests)")
        else:
            self._num_arrivals += 1
            request.arrival, request.queued_at = self._num_arrivals, now
            self.requests[request.id] = request
            self.waiting += request.sequences
            self._num_queued += 1
            for seq in request.sequences:
                seq.arrival, seq.queued_step = request.arrival, self.step
                seq.priority = self._urgency * request.source.priority
            self._changes += 1
            self.tally.requests += 1
            self.outbox.append((request, Queued(request.id, now)))
            self.resolver.begin(self, request, now)
            return
        request.is_over = True
        self.outbox.append((request, Failed(request.id, ErrorInfo.of(error))))

    # One turn

    def next_batch(self, *, in_flight: bool = False) -> Batch | None:
        """Decide the next launch and lease its memory, or None if there is nothing to launch now.

        `in_flight`: an earlier batch is not resolved yet. Then nobody is retracted, and what needs its results waits.
        """
        self.step += 1
        self._drop_done()
        self._extend_jumped()
        if self._suspects:
            return None if in_flight else self._lone_batch()
        extends = self._plan_extends(in_flight)
        if extends is None:
            return None
        decodes = self._ready_decodes() if self.config.enable_mixed_chunk or not extends else []
        while decodes or extends:
            batch = self._lease(decodes, extends)
            if batch is not None:
                return self._launched(batch)
            if extends and (decodes or len(extends) > 1):
                extends.pop()
            elif in_flight:
                return None
            else:
                self._make_room(decodes, extends)
        return None

    def _ready_decodes(self) -> list[Sequence]:
        """Those whose next input is on the device, and that need neither the host to see it nor an end."""
        return [
            seq
            for seq in self.decoding
            if not seq.in_flight or (not seq.needs_host and len(seq.output_ids) + seq.in_flight < seq.max_output)
        ]

    def _extend_jumped(self) -> None:
        """Sequences whose new forced tokens go through the model before they draw again; they are short, so first."""
        if not self._jumped:
            return
        jumped = [seq for seq in self._jumped if seq.stage is Stage.DECODE]
        self._jumped.clear()
        for seq in jumped:
            seq.stage = Stage.PREFILL
        self.prefilling = jumped + self.prefilling
        self._is_stale = True
        self._drop_done()

    def _plan_extends(self, in_flight: bool) -> list[Extend] | None:
        """The next pieces of prompts that have begun, then of newly admitted ones, within the budget of tokens.

        None if somebody is to be preempted, which has to wait for what is in flight.
        """
        extends: list[Extend] = []
        budget = self._budget
        for seq in self.prefilling:
            if budget <= 0:
                return extends
            budget -= self._add_extend(extends, seq, budget)
        if budget > 0 and self.waiting and not self._admit(extends, budget, in_flight):
            return None
        return extends

    def _add_extend(self, extends: list[Extend], seq: Sequence, budget: int) -> int:
        """Append the next piece of a sequence, of at most `budget` tokens; returns its rows."""
        request = seq.request
        if seq.in_flight:
            return 0
        start, end = seq.kv_len, seq.num_tokens
        remaining = end - start
        if not self._chunked and remaining > budget and extends:
            return 0
        trie = None
        if request.trie is not None:
            trie = request.trie.parts[request.trie.num_done]
            rows = remaining + len(trie.token_ids)
            if remaining > 1 and (rows > MERGE_ROWS or remaining > budget):
                trie, end = None, end - 1  # the prompt first; its last token runs with the trie
        if self._chunked:
            end = _uncut(request, start, min(end, start + budget))
        if seq.jump_forward == "step" and seq.forced_runs:
            end = min(end, max(start + 1, seq.prompt_len + seq.forced_runs[-1][0]))
        logprobs_from = end
        if seq.next_logprob < seq.num_tokens:
            logprobs_from = max(start, seq.next_logprob - 1)
            end = min(end, max(start, logprobs_from) + self._logprob_rows)
            logprobs_from = min(logprobs_from, end)
        is_last = end == seq.num_tokens
        samples = is_last and request.trie is None and seq.max_output > 0 and seq.ending is None
        extend = Extend(seq, start, end, samples, logprobs_from, is_last, trie)
        extends.append(extend)
        return extend.num_rows

    # Admission

    def _admit(self, extends: list[Extend], budget: int, in_flight: bool) -> bool:
        """Lease what the next in line need and plan their first pieces. False: first resolve, then preempt."""
        tried, at = self._tried_at
        if tried == self._changes and self.step - at < RETRY_STEPS:
            return True
        if not self.memory.table.num_free_rows and not self._preempts:
            return True
        self._probe_waiting()
        running_keys = [seq.routing_key for seq in (*self.prefilling, *self.decoding)] if self._routes else []
        waiting = self.waiting
        order, num_aged = self.aging.arrange(waiting, Now(self.step, running_keys))
        reserved = self._reserved_tokens()
        num_passed, resolve_first = 0, False  # the admitted are among the first num_passed of the queue
        for place, index in enumerate(order):
            seq = waiting[index]
            if budget <= 0:
                break
            if self._waits_for_prefix(seq):
                if place < num_aged:
                    break
                continue
            while not self._open(seq, reserved):
                victim = self._less_urgent(seq)
                resolve_first = victim is not None and in_flight
                if victim is None or in_flight:
                    break
                # A new list: the order goes by the numbers of the old one, where the victim may still stand if it was
                # admitted in this very round.
                self.waiting = [other for other in self.waiting if other.stage is Stage.WAITING]
                self.retract(victim)
                extends[:] = [extend for extend in extends if extend.seq is not victim]
                reserved = self._reserved_tokens()
            if seq.lease is None:
                break
            num_passed = max(num_passed, index + 1)
            seq.has_waited |= place < num_aged
            reserved += seq.num_tokens - seq.kv_len + self._expected(seq)
            self.aging.admitted(seq.arrival, seq.num_tokens - seq.kv_len + seq.expected_len)
            used = self._add_extend(extends, seq, budget)
            if not used:
                break  # a whole prompt that does not fit into this forward: it is the next one's first
            budget -= used
        if num_passed:
            if self.waiting is not waiting:
                num_passed = len(self.waiting)
            self.waiting[:num_passed] = [seq for seq in self.waiting[:num_passed] if seq.stage is Stage.WAITING]
            self._tried_at = (-1, -RETRY_STEPS)
        elif not resolve_first:
            self._tried_at = (self._changes, self.step)
        return not resolve_first

    def _less_urgent(self, seq: Sequence) -> Sequence | None:
        """The running sequence that gives way to this one: only under the priority policy, only of a priority lower by
        the threshold, and none that has waited its time."""
        if not self._preempts:
            return None
        below = seq.priority - self._preempt_from
        lower = [other for other in self.running if other.priority <= below and not other.has_waited]
        return min(lower, key=_expendable, default=None)

    def _probe_waiting(self) -> None:
        if self._shares and self.aging.wants_prefixes(len(self.waiting)):
            is_current = self.memory.cache.is_current
            for seq in self.waiting:
                if seq.probe is None or not is_current(seq.probe):
                    self._look_up(seq)

    def _probe(self, seq: Sequence) -> Probe:
        """How many tokens of a waiting sequence are cached now."""
        probe = seq.probe
        return probe if probe is not None and self.memory.cache.is_current(probe) else self._look_up(seq)

    def _look_up(self, seq: Sequence) -> Probe:
        ids = seq.ids(0, seq.max_cached)
        probe = seq.probe = self.memory.cache.probe(ids, seq.request.namespace, seq.probe)
        return probe

    def _waits_for_prefix(self, seq: Sequence) -> bool:
        """Whether somebody is just computing more of its prefix than is cached."""
        if not self._shares or not len(self._computing):
            return False
        ids = seq.ids(0, seq.max_cached + 1)
        return self._computing.holds_back(ids, self._probe(seq).num_tokens, seq.request.namespace)

    def _reserved_tokens(self) -> int:
        """Tokens that those admitted will still need: rest of the prompt, and expected output."""
        total = sum(seq.num_tokens - seq.kv_len + self._expected(seq) for seq in self.prefilling)
        left = [seq.max_output - len(seq.output_ids) for seq in self.decoding]
        if max(left, default=0) > CLIP_NEW_TOKENS:
            left = [min(tokens, CLIP_NEW_TOKENS) for tokens in left]
        return total + int(sum(left) * self._ratio.value) + len(left) * self.config.page_size

    def _expected(self, seq: Sequence) -> int:
        """Further tokens it will need, with a page's worth of rounding."""
        if seq.request.trie is not None:
            return max(len(part.token_ids) for part in seq.request.trie.parts) + self.config.page_size
        return self._ratio.expect(seq.max_output - len(seq.output_ids)) + self.config.page_size

    def _open(self, seq: Sequence, reserved: int) -> bool:
        """Lease a row and the cached prefix, if what it needs fits beside what is reserved. Alone it always fits."""
        if self.memory.num_leases:
            needed = seq.num_tokens + self._expected(seq)
            if self._shares:
                probe = self._probe(seq)
                needed += self.memory.cache.evictable_part(probe) - probe.num_tokens
            if needed > self.memory.available_tokens - reserved:
                return False
        hints = seq.request.source.hints
        ids = seq.ids(0, seq.max_cached + 1)
        lease = self.memory.acquire(ids, seq.request.namespace, next_use=hints.next_use if hints else -1)
        if lease is None:
            return False
        seq.lease, seq.row, seq.probe = lease, lease.row, None
        self._num_queued -= not seq.index
        seq.kv_len = seq.kv_ready = lease.num_cached
        seq.stage = Stage.PREFILL
        self.prefilling.append(seq)
        if self._shares:
            self._computing.add(seq, seq.ids(), seq.request.namespace)
        self._count_admission(seq)
        return True

    def _count_admission(self, seq: Sequence) -> None:
        request, tally = seq.request, self.tally
        if request.num_cached_tokens < 0:
            request.num_cached_tokens = min(seq.kv_len, seq.prompt_len)  # the rest is output that was forced
            tally.prompt_tokens += seq.prompt_len
            tally.cached_tokens += request.num_cached_tokens
            tally.prefilled_tokens += seq.prompt_len - request.num_cached_tokens
        else:
            tally.recomputed_tokens += seq.num_tokens - seq.kv_len
        seq.has_run = True

    # Leasing memory for a launch

    def _lease(self, decodes: list[Sequence], extends: list[Extend]) -> Batch | None:
        """A batch with slots for all its rows; None, and nothing changed, if memory does not suffice."""
        num_decodes, num = len(decodes), len(decodes) + len(extends)
        rows = np.empty(num, dtype=np.int64)
        counts = np.ones(num, dtype=np.int64)
        rows[:num_decodes] = [seq.row for seq in decodes]
        for i, extend in enumerate(extends, num_decodes):
            rows[i], counts[i] = extend.seq.row, extend.num_rows
        slots = self.memory.extend_rows(rows, counts)
        if slots is None:
            return None
        return Batch(self.step, decodes, extends, rows, self.memory.lengths[rows], slots)

    def _launched(self, batch: Batch) -> Batch:
        """Bring the lengths forward: the host need not see a token for that."""
        batch.groups = self._groups(batch.seqs, changed=bool(batch.extends))
        self._ratio.step()
        for seq in batch.decodes:
            seq.kv_len += 1
            seq.in_flight += 1
        for extend in batch.extends:
            seq = extend.seq
            seq.kv_len = extend.start + extend.num_rows
            seq.in_flight += extend.is_last
            if extend.samples:
                seq.stage = Stage.DECODE
                self.decoding.append(seq)
                self._is_stale = True
        tally = self.tally
        tally.forwards += 1
        tally.rows += len(batch.slots)
        return batch

    def _groups(self, seqs: list[Sequence], changed: bool) -> tuple[PrefixGroup, ...]:
        """Which of them start in the same pages; worked out anew when the batch, or a prefix in it, is another."""
        if changed or seqs != self._grouped[0]:
            nodes = [seq.lease.node if seq.lease else None for seq in seqs]
            self._grouped = seqs, shared_prefixes(nodes, MIN_GROUP_LEN)
        return self._grouped[1]

    def _make_room(self, decodes: list[Sequence], extends: list[Extend]) -> None:
        """Retract one sequence, or fail the only one there is: it has the pool to itself and finds no page in it."""
        holders = [seq for seq in (*self.prefilling, *self.decoding) if seq.lease is not None]
        if len(holders) == 1:
            pinned = self.memory.cache.pinned_tokens
            error = EngineError(f"no KV memory is left for one request alone; {pinned} tokens are pinned")
            self.fail(holders[0].request, ErrorInfo.of(error))
            victim = holders[0]
        else:
            victim = min(holders, key=_expendable)
            limit = sum(seq.max_output for seq in self.decoding)
            self._ratio.retracted(sum(len(seq.output_ids) for seq in self.decoding), len(self.decoding), limit)
            self.retract(victim)
        decodes[:] = [seq for seq in decodes if seq is not victim]
        extends[:] = [extend for extend in extends if extend.seq is not victim]

    def retract(self, seq: Sequence) -> None:
        """Take its memory back and queue it again, with the output it has; what it computed stays cached if it can."""
        if seq.in_flight:
            raise EngineError(f"{seq!r} has a token in flight and cannot be retracted")
        request = seq.request
        self._close(seq, keep=True)
        seq.stage = Stage.WAITING
        self._drop_done()
        insort(self.waiting, seq, key=lambda one: (one.arrival, one.index))
        self._num_queued += not seq.index
        request.num_preemptions += 1
        self.tally.preemptions += 1
        self.outbox.append((request, Preempted(request.id, seq.num_tokens)))

    # Results

    def resolve(self, batch: Batch, results: Results, now: float) -> None:
        """Take in what a launched batch gave: tokens, stops, log-probs; insert, finish and free."""
        self.resolver.resolve(self, batch, results, now)

    def share(self, seq: Sequence) -> None:
        """Put what a running sequence has computed into the prefix cache, for others."""
        if seq.lease is not None and seq.kv_ready > seq.lease.num_shared:
            source = seq.request.source
            next_use = source.hints.next_use if source.hints else -1
            start = seq.lease.num_shared
            ids = seq.ids(start, seq.kv_ready)
            self.memory.commit(seq.lease, ids, start=start, priority=seq.priority, next_use=next_use)
            self._changes += 1

    def jump(self, seq: Sequence) -> None:
        """Tokens were appended to a sequence that did not come from a draw: the next launch computes them all."""
        if seq.stage is Stage.DECODE:
            self._jumped.append(seq)

    def truncate(self, seq: Sequence, length: int) -> None:
        """Give back the scratch slots behind `length`."""
        if seq.lease is not None:
            self.memory.truncate(seq.lease, length)
            seq.kv_len = length

    def prefilled(self, seq: Sequence) -> None:
        """All tokens of a sequence but the last sampled are computed and shared."""
        self._computing.remove(seq)
        self._changes += 1

    def close(self, seq: Sequence, *, keep: bool = True) -> None:
        """A sequence is over: give back all it holds. With `keep` its computed tokens stay cached."""
        if seq.stage is Stage.WAITING:
            self._has_left = True
            self._num_queued -= not seq.index
        self._close(seq, keep=keep)
        seq.stage = Stage.DONE
        seq.matcher = seq.mask = None

    def _close(self, seq: Sequence, *, keep: bool) -> None:
        self._computing.remove(seq)
        if seq.lease is not None:
            source = seq.request.source
            next_use = source.hints.next_use if source.hints else -1
            start = seq.lease.num_shared
            ids = seq.ids(start, seq.kv_ready) if keep and self._shares else None
            self.memory.release(seq.lease, ids, start=start, priority=seq.priority, next_use=next_use)
        seq.lease, seq.row, seq.probe = None, -1, None
        seq.kv_len = seq.kv_ready = 0
        self._is_stale = True
        self._changes += 1

    def fail(self, request: Request, error: ErrorInfo, *, keep: bool = True) -> None:
        """End a request without a result, wherever it stands. Without `keep` nothing it computed stays cached."""
        if request.is_over:
            return
        for seq in request.sequences:
            if seq.stage is not Stage.DONE:
                self.close(seq, keep=keep)
        self.finish_request(request, Failed(request.id, error))

    def finish_request(self, request: Request, event: Event) -> None:
        """Its last event."""
        self.outbox.append((request, event))
        request.is_over = True
        self.requests.pop(request.id, None)
        if not self.requests:
            self._ratio.reset()

    def _drop_done(self) -> None:
        if self._is_stale:
            prefill, decode = Stage.PREFILL, Stage.DECODE
            self.prefilling = [seq for seq in self.prefilling if seq.stage is prefill]
            self.decoding = [seq for seq in self.decoding if seq.stage is decode]
            self._is_stale = False
        if self._has_left:
            self.waiting = [seq for seq in self.waiting if seq.stage is Stage.WAITING]
            self._has_left = False

    # Faults

    def fail_all(self, error: ErrorInfo, messages: Iterable[Message]) -> None:
        """End every request after a fault in the loop, those in the messages of its turn included."""
        for request, event in self.outbox:
            if isinstance(event, (Failed, Finished)):  # the fault may have come right after its last event was made
                request.is_over = True
                if self.requests.get(request.id) is request:
                    del self.requests[request.id]
        for message in messages:
            if isinstance(message, Submit) and not message.request.is_over:
                self.requests.setdefault(message.request.id, message.request)
        for request in list(self.requests.values()):
            self.fail(request, error, keep=False)

    def start_over(self, error: ErrorInfo) -> None:
        """End whatever is left and begin with empty memory: for when a fault has left it in disorder."""
        for request in list(self.requests.values()):
            for seq in request.sequences:
                seq.lease, seq.stage = None, Stage.DONE
            self.finish_request(request, Failed(request.id, error))
        self.memory.start_over()
        self._computing = PrefillTrie(self.config.page_size)
        for queue in (self.waiting, self.prefilling, self.decoding, self._suspects, self._jumped):
            queue.clear()
        self._grouped = [], ()
        self._num_queued = 0
        self._changes += 1

    def undo(self, batch: Batch) -> None:
        """The forward of a batch failed: as if it had not been launched. Its sequences then run one by one."""
        starts = [len_ - 1 for len_ in batch.lens[: len(batch.decodes)].tolist()] + [e.start for e in batch.extends]
        for seq in batch.decodes + [extend.seq for extend in batch.extends if extend.is_last]:
            seq.in_flight -= 1
        for seq, start in zip(batch.seqs, starts, strict=True):
            if seq.lease is not None:
                self.memory.truncate(seq.lease, start)
                seq.kv_len = start
        self._drop_done()
        for extend in batch.extends:
            if extend.seq.stage is Stage.DECODE:
                extend.seq.stage = Stage.PREFILL
                self.prefilling.append(extend.seq)
                self._is_stale = True
        self._drop_done()
        self._suspects.extend(seq for seq in batch.seqs if seq.lease is not None)

    @property
    def is_isolating(self) -> bool:
        """Whether sequences of a failed batch are being run one by one, to find the one that fails."""
        return bool(self._suspects)

    def _lone_batch(self) -> Batch | None:
        """The next suspect alone: if its forward fails too, the fault is its own."""
        while self._suspects:
            seq = self._suspects.popleft()
            if seq.lease is None or seq.in_flight:
                continue
            extends: list[Extend] = []
            if seq.stage is Stage.PREFILL:
                self._add_extend(extends, seq, self._budget)
            decodes = [seq] if seq.stage is Stage.DECODE else []
            batch = self._lease(decodes, extends)
            if batch is None:
                self.retract(seq)
                continue
            return self._launched(batch)
        return None

    # State

    @property
    def new_token_ratio(self) -> float:
        """The share of their limits that requests are expected to use."""
        return self._ratio.value

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def num_waiting(self) -> int:
        """Sequences that are queued."""
        self._drop_done()
        return len(self.waiting)

    @property
    def running(self) -> list[Sequence]:
        """All sequences that hold memory."""
        return [seq for seq in (*self.prefilling, *self.decoding) if seq.lease is not None]

    def check_integrity(self, other_leases: int = 0) -> None:
        """Raise MemoryAccountError or EngineError unless pages, rows, queues and lengths agree.

        `other_leases` are held by others than this scheduler.
        """
        self._drop_done()
        self.memory.check_integrity()
        running = self.running
        if len(running) + other_leases != self.memory.num_leases or len({seq.row for seq in running}) != len(running):
            raise EngineError(f"{len(running)} sequences run, {self.memory.num_leases - other_leases} leases are out")
        for seq in running:
            if seq.lease is None or seq.kv_len != int(self.memory.lengths[seq.row]) or seq.kv_ready > seq.kv_len:
                raise EngineError(f"{seq!r} disagrees with its row of {int(self.memory.lengths[seq.row])} tokens")
        known = {id(seq) for request in self.requests.values() for seq in request.sequences}
        queued = [*self.waiting, *running]
        lost = [seq for r in self.requests.values() for seq in r.sequences if seq.stage is not Stage.DONE]
        once = {id(seq) for seq in queued}
        if len(once) < len(queued):
            raise EngineError("a sequence is queued twice")
        if once != {id(seq) for seq in lost} or not once <= known:
            raise EngineError(f"{len(lost)} sequences are unfinished, {len(queued)} are queued or running")
        if self._num_queued != sum(seq.index == 0 for seq in self.waiting):
            raise EngineError(f"{self._num_queued} requests are said to be queued")
        if not self.requests and (len(self._computing) or self.memory.num_leases > other_leases):
            raise EngineError("nothing runs, but memory or prefixes are still held")


def _uncut(request: Request, start: int, end: int) -> int:
    """`end`, but not inside a picture whose rows see each other: before it, or behind it where it comes first.

    So a forward may have a picture's rows more than its budget. A piece may *begin* inside such a picture: what is
    cached of it was computed with all of it.
    """
    for placed in request.media:
        if placed.picture.processed.is_whole and placed.start < end < placed.end:
            return placed.start if placed.start > start else placed.end
    return end


def _expendable(seq: Sequence) -> tuple[bool, int, int, int, int]:
    """Who is retracted first: who has not waited long, then the lowest priority, the least output, the latest."""
    return seq.has_waited, seq.priority, len(seq.output_ids), -seq.arrival, -seq.index
