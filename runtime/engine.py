"""The engine: requests in, events out. `step` is the whole serving loop.

Threads: `submit` and `abort` only put messages into a mailbox. Whoever holds the driver's lock steps: a thread blocked
in `wait`, or the engine's own thread once something streams or an event loop waits (`start`). Never two at once.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..compiler.constraints.engines import constraint_engine
from ..core.backend import Capabilities, Counters, EventSink
from ..core.config import EngineConfig
from ..core.errors import Aborted, EngineClosed, EngineError, ErrorInfo, RequestError
from ..core.events import Event, Failed
from .collector import without_old_objects
from .encode_api import EncodeAPI
from .encoding import EncodeDefaults, Encoder, Job, labels_of
from .generate import GenerateAPI
from .grammar_queue import GrammarQueue
from .intake import Intake, constraints_compiled
from .mailbox import Mailbox
from .media.library import library_of
from .memory.allocator import PageAllocator
from .memory.eviction import eviction_policy
from .memory.manager import MemoryManager
from .memory.prefix_cache import ChunkCache, Namespace, PinHandle, PrefixCache
from .memory.radix import RadixCache
from .sampling.random import splitmix64
from .scheduling.messages import Cancel, Submit
from .scheduling.policies import Priority, schedule_policy
from .scheduling.results import Resolver
from .scheduling.scheduler import Scheduler
from .trace import Cancelled, StepTrace, Turn
from .worker import InFlight, Worker

if TYPE_CHECKING:
    from ..core import backend
    from ..core.request import GenRequest
    from ..core.text.tokenizer import Tokenizer
    from .scheduling.batch import Batch
    from .scheduling.messages import Message
    from .worker import Runner

log = logging.getLogger(__name__)

RETRY_S = 0.1  # between the steps of the engine's own thread when one raised
MAX_PINNED_SHARE = 0.5  # of the pool: what is pinned can neither be evicted nor used


class Engine(GenerateAPI, EncodeAPI):
    """A model being served in this process: `core.backend.Backend`, and SGLang's `generate` (see `GenerateAPI`).

    `Engine(**options)` takes the fields of `EngineConfig`; without `model_path` it runs the built-in model. Raises
    ConfigError for an unknown option or impossible value, ModelLoadError for a model that cannot be loaded. Use as a
    context manager, or call `close`.
    """

    def __init__(self, **options: Any) -> None:
        from ..core.text.load import load_tokenizer, read_eos_ids
        from .loader import check_vocabulary
        from .model_config import recommended_sampling
        from .model_runner import ModelRunner

        config = EngineConfig.of(**options)
        runner = ModelRunner(config)
        if config.skip_tokenizer_init:
            self._assemble(config, runner, None, read_eos_ids(runner.folder))
        else:
            if config.tokenizer_path is not None:
                tokenizer = load_tokenizer(config.tokenizer_path, config.revision)
            else:
                tokenizer = load_tokenizer(runner.folder)
            check_vocabulary(tokenizer, runner.vocab_size, config.tokenizer_path or str(runner.folder))
            self._assemble(config, runner, tokenizer, tokenizer.eos_ids)
        if config.sampling_defaults == "model":
            self.default_sampling = recommended_sampling(runner.folder)

    @classmethod
    def of_parts(
        cls,
        config: EngineConfig,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        *,
        overlap: bool | None = None,
        check_when_idle: bool = False,
    ) -> Engine:
        """An engine around a runner that is there already. Without a tokenizer it takes and gives ids only.

        `overlap` forces the overlapped order (launch N, then resolve N-1) on or off; `check_when_idle` runs
        `check_integrity` whenever nothing is left to do.
        """
        engine = cls.__new__(cls)
        engine._assemble(config, runner, tokenizer, tokenizer.eos_ids if tokenizer is not None else ())
        if overlap is not None:
            engine.overlap = overlap
        engine.check_when_idle = check_when_idle
        return engine

    def _assemble(
        self, config: EngineConfig, runner: Runner, tokenizer: Tokenizer | None, eos_ids: tuple[int, ...]
    ) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self.runner = runner
        policy = schedule_policy(config.schedule_policy, seed=config.random_seed or 0)
        if config.enable_priority_scheduling and policy.name != Priority.name:
            policy = Priority(policy)
        eviction = eviction_policy(config.radix_eviction_policy)
        cache: PrefixCache = ChunkCache(config.page_size)
        if not config.disable_radix_cache:
            max_pinned = int(runner.num_tokens * MAX_PINNED_SHARE)
            cache = RadixCache(config.page_size, eviction, max_pinned_tokens=max_pinned)
        allocator = PageAllocator(runner.num_tokens // config.page_size, config.page_size)
        memory = MemoryManager(runner.req_to_token, allocator, cache)
        resolver = Resolver(tokenizer, config.stream_interval)
        # Ids without a token (models pad their logits) and tokens without logits are no part of the vocabulary.
        vocab_size = runner.vocab_size if tokenizer is None else min(runner.vocab_size, tokenizer.vocab_size)
        self.scheduler = Scheduler(config, memory, policy, resolver, runner.vocab_size)
        self.worker = Worker(runner, vocab_size, deterministic=config.deterministic)
        self.intake = Intake.of(
            tokenizer,
            vocab_size,
            runner.context_length,
            runner.num_tokens,
            config.grammar_backend,
            config.enable_custom_logit_processor,
            config.jump_forward,
            library_of(runner),
            eos_ids,
        )
        self.media = self.intake.media
        # A forward on the CPU is over when its launch returns: overlap would only waste rows of ended requests, and to
        # make ready what later masks need would cost here what it saves there.
        self.looks_ahead = runner.device.type != "cpu"
        self.overlap = self.looks_ahead and not config.disable_overlap_schedule
        self._make_encoder(config, runner, memory)
        self.check_when_idle = False
        self.trace: StepTrace | None = None
        self.run_seed = int.from_bytes(os.urandom(7), "little") if config.random_seed is None else config.random_seed
        self.step_started_at: float | None = None
        self._in_flight: InFlight | None = None
        self._mailbox = Mailbox()
        self._drive = threading.Lock()  # held by whoever steps
        self._state = threading.Lock()  # held while scheduler and cache change, not during a forward
        self._thread: threading.Thread | None = None
        self._num_unseeded = 0
        self._compiled_before = constraints_compiled()
        self._grammars = GrammarQueue()
        self._is_closed = False

    def _make_encoder(self, config: EngineConfig, runner: Runner, memory: MemoryManager) -> None:
        model = getattr(runner, "model", None)
        self.task = getattr(model, "task", "generate")
        self.labels, self.encode_defaults = (), EncodeDefaults("last", True)
        offset = 0
        if model is not None and self.task != "generate":
            self.encode_defaults = EncodeDefaults.of(model.config.path, model.pooling)
            self.labels = labels_of(model.config.fields)
            offset = model.position_offset
        self.encoder = Encoder(runner, memory, config, self.scheduler.tally)
        self.input_limits = self.intake.vocab_size, self.intake.context_length - offset

    # The loop

    def step(self) -> bool:
        """One turn: take messages, launch, resolve. False if there was nothing to do. Only for the driver."""
        self.step_started_at = now = time.monotonic()
        due: InFlight | None = None
        messages: list[Message] = []
        try:
            if self._grammars.next_deadline <= now:
                self._grammars.expire(now)
            with self._state:
                messages = self._mailbox.take(now)
                self.scheduler.receive(messages, now)
                batch = self.scheduler.next_batch(in_flight=self._in_flight is not None)
            if self.trace is not None:
                self.trace.record(self.scheduler.step, messages, batch)
            launched = self._launch(batch)
            if launched is not None and self.looks_ahead:
                with self._state:
                    self.scheduler.resolver.look_ahead(self.scheduler, launched.batch, now)
            due, self._in_flight = (self._in_flight, launched) if self.overlap else (launched, None)
            if due is not None:
                self._resolve(due)
            has_encoded = bool(self.encoder.jobs) and self._encode(batch is not None)
        except BaseException as error:  # a bug, or Ctrl-C in the thread that drives
            has_encoded = False
            self._crash(error, messages)
            if not isinstance(error, Exception):
                self.step_started_at = None
                raise
        has_work = self.scheduler.has_work
        if not has_work and self.check_when_idle and self._in_flight is None:
            self.check_integrity()
        self._dispatch()
        self.step_started_at = None
        return has_work or has_encoded or due is not None or self._in_flight is not None

    def _launch(self, batch: Batch | None) -> InFlight | None:
        """Launch; on a failure take it back, and end the request whose forward fails even alone."""
        if batch is None:
            return None
        try:
            return self.worker.launch(batch)
        except Exception as error:
            with self._state:
                requests = {seq.request.id: seq.request for seq in batch.seqs}
                if len(batch.seqs) > 1:
                    log.warning("a forward of %d requests failed (%r); running them one by one", len(requests), error)
                    self.scheduler.undo(batch)
                    return None
                for request in requests.values():
                    info = ErrorInfo("EngineError", f"the forward of this request failed: {error!r}")
                    self.scheduler.fail(request, info, keep=False)
        return None

    def _encode(self, others_run: bool) -> bool:
        """One forward of the encoder; whether it had anything to do."""
        with self._state:
            work = self.encoder.plan(others_run=others_run or self.scheduler.has_work)
        if work:
            self.encoder.run(work)
        with self._state:
            self.encoder.settle(work)
        self._mailbox.notify()
        return bool(work) or bool(self.encoder.jobs)

    def _resolve(self, due: InFlight) -> None:
        try:
            results = due.read()
        except Exception as error:
            info = ErrorInfo("EngineError", f"reading the results of a forward failed: {error!r}")
            with self._state:
                for seq in due.batch.seqs:
                    self.scheduler.fail(seq.request, info, keep=False)
            return
        with self._state:
            self.scheduler.resolve(due.batch, results, time.monotonic())

    def _dispatch(self) -> None:
        """Hand out the events collected in this turn, then wake whoever waits for them."""
        outbox = self.scheduler.outbox
        if not outbox:
            return
        num_told = 0
        try:
            for request, event in outbox:
                num_told += 1
                try:
                    request.sink(event)
                except Exception:
                    log.exception("the sink of request %r raised; the request is aborted", request.id)
                    self._mailbox.put(Cancel(request.id, ErrorInfo("Aborted", "its event sink raised")))
        finally:  # if Ctrl-C comes in between, the rest is told in the next turn
            del outbox[:num_told]
            self._mailbox.notify()

    def _crash(self, error: BaseException, messages: Iterable[Message]) -> None:
        """The loop itself failed: end every request by name of the fault, and go on.

        Where the memory does not add up afterwards, because the fault came in the middle of a change (Ctrl-C may come
        anywhere), all that is cached or pinned is dropped.
        """
        log.error("the engine's loop failed; all requests in flight end with an error", exc_info=error)
        info = ErrorInfo("EngineError", f"the engine's loop failed: {error!r}")
        self._in_flight = None
        with self._state:
            try:
                self.encoder.fail_all(EngineError(info.message))
                self.scheduler.fail_all(info, messages)
                self.scheduler.check_integrity(self.encoder.num_leases)
            except Exception as second:
                log.error("the memory does not add up after that: the cache starts anew (%r)", second)
                self.encoder.forget_all(EngineError(info.message))
                self.scheduler.start_over(info)
                self.worker.start_over()
        self._dispatch()

    def replay(self, turns: Sequence[Turn]) -> StepTrace:
        """Play recorded turns again on this fresh engine of the same configuration; returns the trace of it.

        Decisions are a function of messages and step numbers, so the traces are equal. The results go nowhere.
        """
        self.trace = StepTrace()
        with self._drive:
            for turn in turns:
                while self.scheduler.step < turn.step - 1:
                    self.step()
                for told in turn.messages:
                    if isinstance(told, Cancelled):
                        self._mailbox.put(Cancel(told.request_id, told.error))
                    else:
                        request = self.intake.admit(told.source, told.seed, lambda event: None, 0.0)
                        self._mailbox.put(Submit(request))
            while self.step():
                pass
        return self.trace

    # Backend: requests

    @property
    def capabilities(self) -> Capabilities:
        """What programs may ask of this engine."""
        has_text = self._tokenizer is not None and self.config.grammar_backend != "none"
        return Capabilities(
            name="dslc",
            constraints=constraint_engine(self.config.grammar_backend).kinds if has_text else frozenset(),
            scoring=True,
            logprobs=True,
            streaming=True,
            token_ids=True,
            media=self.intake.media.kinds if self.intake.media is not None else frozenset(),
            healing=has_text and self.config.grammar_backend in ("auto", "automaton"),
            reasoning=has_text and self.config.grammar_backend in ("auto", "automaton"),
            max_context_len=self.intake.context_length,
            kv_tokens=self.intake.pool_tokens,
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, as transformers' tokenizer gives them: special tokens parsed, BOS added.

        Raises ContextOverflow for a text that cannot fit, RequestError without a tokenizer.
        """
        if self._tokenizer is None:
            raise RequestError("this engine has no tokenizer; give input_ids", field="prompt")
        self.intake.check_chars(text, "prompt")
        return self._tokenizer.encode_prompt(text)

    def submit(self, requests: Sequence[GenRequest], sink: EventSink) -> None:
        """Check and queue requests; see `Backend.submit`.

        Tokenising is done in the calling thread, and compiling too if it is quick; other constraints are compiled
        elsewhere, and pictures processed; such requests come to the scheduler when that is done.
        """
        for source in requests:
            if self._is_closed:
                raise EngineClosed("the engine is closed")
            now = time.monotonic()
            try:
                if self.task != "generate":
                    raise RequestError(f"the model has no vocabulary, its head is to {self.task}; use encode or score")
                seed = self._draw_seed(source)
                if self.intake.takes_long(source):
                    prepare = partial(self._prepare, source, seed, sink, now)
                    deadline = self.intake.deadline(source, now)
                    self._grammars.put(source.id, prepare, partial(self._tell, sink), deadline)
                    self._mailbox.notify()  # whoever sleeps looks at the deadline
                    continue
                self._prepare(source, seed, sink, now)()
            except Exception as error:
                sink(Failed(source.id, ErrorInfo.of(error)))

    def _prepare(self, source: GenRequest, seed: int, sink: EventSink, now: float) -> Callable[[], None]:
        """Check a request and compile its constraint; what is returned hands it to the scheduler."""
        request = self.intake.admit(source, seed, sink, now)
        return lambda: self._mailbox.put(Submit(request), deadline=request.deadline)

    def _tell(self, sink: EventSink, event: Event) -> None:
        """An event from outside the loop; whoever waits for it looks again."""
        sink(event)
        self._mailbox.notify()

    def _draw_seed(self, source: GenRequest) -> int:
        """Unseeded requests draw theirs from the run's seed, one after the other."""
        if source.sampling.seed is not None:
            return source.sampling.seed
        with self._state:
            self._num_unseeded += 1
            return splitmix64(splitmix64(self.run_seed % 2**64) ^ self._num_unseeded) >> 1

    def submit_jobs(self, jobs: list[Job]) -> None:
        """Queue inputs to be encoded."""
        with self._state:
            if self._is_closed:
                raise EngineClosed("the engine is closed")
            self.encoder.submit(jobs)
        self._mailbox.notify()

    def drop_jobs(self, jobs: list[Job]) -> None:
        """Nobody waits for these inputs any more."""
        if jobs:
            with self._state:
                self.encoder.drop(jobs)

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that stands after others: no BOS, special tokens not parsed."""
        if self._tokenizer is None:
            raise RequestError("this engine has no tokenizer; give ids", field="prompt")
        self.intake.check_chars(text, "prompt")
        return self._tokenizer.encode(text)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests with `Failed(Aborted)`; unknown and finished ids are ignored.

        Waits for no lock: it may be called while the garbage is collected, in the middle of anything.
        """
        for request_id in request_ids:
            error = ErrorInfo.of(Aborted("aborted by its owner"))
            if not self._grammars.fail(request_id, error):
                self._mailbox.put(Cancel(request_id, error))
        if self._drive.acquire(blocking=False):  # nobody drives: free their memory now
            try:
                if self._state.acquire(blocking=False):
                    try:
                        self._receive_messages()
                    finally:
                        self._state.release()
                    self._dispatch()
            finally:
                self._drive.release()
        self._mailbox.notify()

    def _take_messages(self) -> None:
        with self._state:
            self._receive_messages()
        self._dispatch()

    def _receive_messages(self) -> None:
        now = time.monotonic()
        messages = self._mailbox.take(now)
        self.scheduler.receive(messages, now)
        if self.trace is not None:
            self.trace.record(self.scheduler.step + 1, messages, None)

    # Backend: driving

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block until `ready()` or the timeout; drives the loop meanwhile if nobody else does. Returns `ready()`.

        Raises EngineClosed if the engine closes before it is ready.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not ready():
            seen = self._mailbox.version
            if until is not None and time.monotonic() >= until:
                return False
            if self._is_closed and not self._drive.locked():
                if ready():
                    break
                raise EngineClosed("the engine was closed while something waited for it")
            if self._drive.acquire(blocking=False):
                try:
                    self._drive_until(ready, until)
                finally:
                    self._drive.release()
                    self._mailbox.notify()
            else:
                self._mailbox.wait_for_change(seen, until)
        return True

    def _drive_until(self, ready: Callable[[], bool], until: float | None) -> None:
        while not (ready() or self._is_closed or (until is not None and time.monotonic() >= until)):
            seen = self._mailbox.version
            if not self.step() and not ready():
                self._sleep(seen, until)

    def _sleep(self, seen: int, until: float | None) -> None:
        """The driver has nothing to do until something comes, or a deadline passes."""
        compiled_by = self._grammars.next_deadline
        if compiled_by < math.inf:
            until = compiled_by if until is None else min(until, compiled_by)
        self._mailbox.wait_for_change(seen, until, drives=True)

    def start(self) -> None:
        """Have the engine's own thread drive from now on: something streams, or an event loop must not be blocked."""
        with self._state:
            if self._is_closed:
                raise EngineClosed("the engine is closed")
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dslc-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a thread must not be in a forward when the interpreter goes

    def _run(self) -> None:
        with without_old_objects(), self._drive:
            while not self._is_closed:
                seen = self._mailbox.version
                try:
                    has_work = self.step()
                except BaseException:  # even one that is no Exception: others would wait for ever
                    log.exception("a step raised in the engine's own thread, which goes on")
                    self._mailbox.wait_for_change(self._mailbox.version, time.monotonic() + RETRY_S)
                    continue
                if not has_work:
                    self._sleep(seen, None)

    # Backend: the rest

    def pin(self, ids: Sequence[int], cache_salt: str = "") -> backend.PinHandle:
        """Keep the cached part of this prefix until `unpin`. RequestError beyond half of the pool."""
        with self._state:
            return self.scheduler.memory.cache.pin(ids, Namespace(cache_salt))

    def unpin(self, handle: backend.PinHandle) -> None:
        """Release a pin. RequestError if it is not held."""
        with self._state:
            if not isinstance(handle, PinHandle):
                raise EngineError(f"{handle!r} is no pin of this engine")
            self.scheduler.memory.cache.unpin(handle)

    def counters(self) -> Counters:
        """Exact totals since the engine was made."""
        with self._state:
            tally = self.scheduler.tally
            tally.evicted_tokens = self.scheduler.memory.cache.stats.evicted_tokens
            tally.constraints_compiled = constraints_compiled() - self._compiled_before
            features = self.worker.features
            return replace(tally.snapshot(), encoded_media=features.num_encoded if features is not None else 0)

    def flush_cache(self) -> int:
        """Drop everything from the prefix cache that no request or pin holds; returns the tokens freed."""
        with self._state:
            return self.scheduler.memory.flush()

    def get_server_info(self) -> dict[str, Any]:
        """The configuration, the sizes that followed from it, how forwards are run, and what is in use now."""
        with self._state:
            memory, scheduler = self.scheduler.memory, self.scheduler
            sizes = {
                "max_total_num_tokens": self.intake.pool_tokens,
                "context_length": self.intake.context_length,
                "vocab_size": self.intake.vocab_size,
                "device": str(self.worker.device),
                "num_running_reqs": len(scheduler.running),
                "num_waiting_reqs": scheduler.num_waiting,
                "free_tokens": memory.allocator.num_free_tokens,
                "evictable_tokens": memory.cache.evictable_tokens,
                "protected_tokens": memory.cache.protected_tokens,
                "new_token_ratio": scheduler.new_token_ratio,
            }
        options = {name: getattr(self.config, name) for name in EngineConfig.__dataclass_fields__}
        how = getattr(self.runner, "how_forwards_run", {})
        return {**options, **sizes, **how, "run_seed": self.run_seed}

    @property
    def stalled_s(self) -> float:
        """Seconds that the step under way has taken so far; 0 between steps. A watchdog's measure."""
        started = self.step_started_at
        return 0.0 if started is None else time.monotonic() - started

    def check_integrity(self) -> None:
        """Raise MemoryAccountError or EngineError unless pages, rows and queues add up."""
        with self._state:
            self.scheduler.check_integrity(self.encoder.num_leases)

    def close(self) -> None:
        """Fail what is in flight with EngineClosed, end the engine's thread, free the memory. May be called twice."""
        with self._state:
            if self._is_closed:
                return
            self._is_closed = True
            thread = self._thread
        atexit.unregister(self.close)
        self._grammars.close(ErrorInfo.of(EngineClosed("the engine was closed")))
        self._mailbox.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._drive:
            if self._in_flight is not None:
                self._resolve(self._in_flight)
                self._in_flight = None
            self._mailbox.close()
            self._take_messages()
            closed = ErrorInfo.of(EngineClosed("the engine was closed"))
            with self._state:
                self.encoder.fail_all(EngineClosed("the engine was closed"))
                for request in list(self.scheduler.requests.values()):
                    self.scheduler.fail(request, closed, keep=False)
            self._dispatch()
            del self.runner, self.worker.runner, self.encoder.runner  # weights and KV pool
        self._mailbox.notify()

    def shutdown(self) -> None:
        """SGLang's name of `close`."""
        self.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
