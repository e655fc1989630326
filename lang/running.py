"""One run of a program, or of a batch: options checked once, plan made once, tasks handed to a hub."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..compiler.budget import refuse_overflow
from ..compiler.passes.base import CompileOptions
from ..core.backend import Backend
from ..core.errors import Aborted, ArgumentError, SourceLoc
from ..core.quick import maker
from . import together
from .aio import LoopHub
from .carrier import CarrierHub, carriers_of
from .defaults import checked_backend, default_backend
from .executor import Executor
from .feed import Feed
from .followed import FollowedExecutor
from .hub import Hub, Task
from .options import RunOptions, checked_outputs, run_options
from .outside import Outside
from .prefix import pinned, static_prefix
from .record import Keeper, recorded
from .state import ProgramState
from .takeover import Batch, Hands
from .walker import never_waits, walk_plan

if TYPE_CHECKING:
    from ..compiler.plan import Plan
    from ..compiler.scheduling.base import Draft, Orders
    from .function import Function


_FEW = frozenset({"backend", "compiled"})  # options that most runs have, or none
MAX_CARRIERS = 64  # threads of a batch whose bodies may block, unless num_threads says otherwise


@dataclass(frozen=True, slots=True)
class Running:
    """What all instances of a run have in common."""

    function: Function
    backend: Backend
    options: RunOptions
    plan: Plan | None
    disabled: tuple[str, ...] = ()  # passes left out
    outputs: tuple[str, ...] | None = None
    orders: Any = None  # of order-free parts, to be replayed: a mapping, or one for each row
    ahead: Plan | None = None  # of a program that is not whole: its body runs, and is checked against this
    is_special: bool = True  # see `_specialise`
    is_direct: bool = False  # the plan waits for nothing

    @classmethod
    def of(cls, function: Function, options: Mapping[str, Any], where: SourceLoc | None) -> Running:
        """From the run's options, named as in `Function.run`. Raises what is wrong with them at the user's line."""
        backend, compiled = options.get("backend"), options.get("compiled")
        compile_options = orders = recording = None
        outputs = function.outputs
        rest = {}
        if not options.keys() <= _FEW:
            rest = {name: value for name, value in options.items() if name not in _FEW}
            if rest.get("stream") and function.is_async:
                raise ArgumentError(f"{function.__name__} is async: it cannot run with stream=True", where=where)
            compile_options, orders = rest.pop("compile_options", None), rest.pop("orders", None)
            given = checked_outputs(rest.pop("outputs", None), where)
            outputs = function.outputs if given is None else given
            recording = rest.pop("record", None)
        if outputs is not None:
            compile_options = replace(compile_options or CompileOptions(), outputs=outputs)
        run = run_options(rest, where)
        target = recorded(checked_backend(backend) if backend is not None else default_backend(), recording)
        if isinstance(target, Keeper):
            run = target.opened(function, run, rest.get("seed") is None)
        plan = function.plan_to_run(target, compiled, compile_options, run.history)
        disabled = compile_options.disabled if compile_options is not None else ()
        ahead = None
        if plan is None and compiled is None and run.history != "render":
            ahead = function.plan_ahead(target, compile_options)
        is_special = (
            outputs is not None or orders is not None or target.capabilities.speculating or isinstance(target, Keeper)
        )
        is_direct = plan is not None and never_waits(plan)
        return _new_running(function, target, run, plan, disabled, outputs, orders, ahead, is_special, is_direct)

    @property
    def known(self) -> Plan | None:
        """What is known of the program beforehand: its plan, or its look-ahead."""
        return self.plan if self.plan is not None else self.ahead

    def task(self, hub: Hub, arguments: dict[str, Any], instance: int = 0, orders: Orders | None = None) -> Task:
        """One instance, as a task of this hub. `orders`: of order-free parts, as the schedule has them."""
        task = Task(*self.made(hub, arguments, instance, orders))
        task.is_direct = self.is_direct
        return task

    def made(
        self, hub: Hub, arguments: dict[str, Any], instance: int = 0, orders: Orders | None = None
    ) -> tuple[Executor, Callable[[], Any]]:
        """The executor of one instance, and what runs it: its plan walked, or its body."""
        plan, function = self.plan, self.function
        executor: Executor
        if self.ahead is not None:
            executor = followed = FollowedExecutor(hub, function.__name__, self.options, instance)
            followed.ahead = function.look_ahead(self.ahead)
        else:
            executor = Executor(hub, function.__name__, self.options, instance, plan)
        if orders is not None or self.is_special:
            self._specialise(executor, arguments, instance, orders)
        if plan is None:
            return executor, lambda: function.body(ProgramState(executor), **arguments)
        may_block = False
        if types := function.types:
            executor.types = types
        if hosts := function.hosts:
            executor.hosts, may_block = hosts, self.may_block
        return executor, lambda: walk_plan(executor, plan, arguments, may_block)

    def _specialise(
        self, executor: Executor, arguments: dict[str, Any], instance: int, orders: Orders | None = None
    ) -> None:
        """What few runs have: orders, outputs, a journal, a backend that writes ahead."""
        if self.orders is not None:
            orders = self.orders if isinstance(self.orders, Mapping) else self.orders[instance]
        if orders:
            executor.orders = orders
        if self.backend.capabilities.speculating:
            executor.speculate(self.function.num_api_spec_tokens)
        if isinstance(self.backend, Keeper):
            executor.journal = self.backend.begun(self.function, instance, arguments)
        if self.outputs is not None:
            executor.outputs = frozenset(self.outputs)

    def run(self, arguments: dict[str, Any]) -> ProgramState:
        """Run to the end; raises what failed."""
        nested = Hub.here(self.backend)
        hub = nested or Hub(self.backend)
        executor, body = self.made(hub, arguments)
        known = self.plan
        if known is None:
            known = self.ahead
        elif self.backend.capabilities.max_context_len is not None:
            self.refuse_overflow()
        if known is not None and nested is None and known.has_branches:
            together.prepare_one(hub, known, self.disabled)
        hub.run_here(executor, body)
        if executor.failure is not None:
            raise executor.failure
        return ProgramState(executor)

    def stream(self, arguments: dict[str, Any]) -> ProgramState:
        """Start in a carrier; the state is read while the program runs."""
        feed = Feed()

        def make(hub: CarrierHub) -> Task:
            task = self.task(hub, arguments)
            task.executor.stream_to(feed)
            task.context = context
            return task

        context = contextvars.copy_context()
        hub, task = carriers_of(self.backend).start(make, self.num_carriers)
        return ProgramState(Outside(hub, task, feed))

    async def arun(self, arguments: dict[str, Any], instance: int = 0) -> ProgramState:
        """Run in the event loop: an async body in the loop itself, any other in a carrier. Never raises what failed."""
        loop = asyncio.get_running_loop()
        carriers = carriers_of(self.backend)
        if self.function.is_async:
            hub = LoopHub(self.backend, carriers.driver, loop)
            executor = Executor(hub, self.function.__name__, self.options, instance)
            if isinstance(self.backend, Keeper):
                self.backend.begun(self.function, instance, arguments)
            await hub.run_body(executor, self.function.body(ProgramState(executor), **arguments))
            return ProgramState(executor)
        ended: asyncio.Future[None] = loop.create_future()

        def tell(task: Task) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(None))

        def make(hub: CarrierHub) -> Task:
            task = self.task(hub, arguments, instance)
            task.on_end = tell
            task.context = context
            return task

        context = contextvars.copy_context()
        carrier, task = carriers.start(make, self.num_carriers)
        try:
            await ended
        except asyncio.CancelledError:
            error = Aborted(f"the program {self.function.__name__!r} was cancelled")
            carrier.post(lambda: carrier.cancel(task, error))
            raise
        return ProgramState(task.executor)

    @property
    def may_block(self) -> bool:
        """Whether a body may keep its thread for long: it runs, and calls what the compiler knows nothing of."""
        return self.function.may_block

    @property
    def num_carriers(self) -> int:
        """Over how many carriers programs are spread: bodies that may block. A plan's calls are made elsewhere."""
        return MAX_CARRIERS if self.plan is None and self.may_block else 1

    def run_batch(
        self,
        rows: Sequence[dict[str, Any]],
        num_threads: Any,
        progress_bar: bool,
        unordered: bool,
        on_error: str,
    ) -> Iterator[ProgramState]:
        """The states of all instances, in order or as they end."""
        self.refuse_overflow()
        draft = together.draft_of([(self, row) for row in rows])
        order = draft.order if draft is not None else range(len(rows))
        chosen = draft.orders if draft is not None and draft.orders else None
        threads = MAX_CARRIERS if num_threads == "auto" else num_threads
        nested = Hub.here(self.backend)
        if self.plan is None and self.may_block and min(threads, len(rows)) > 1:
            ended = self._spread(rows, order, threads, chosen)
        elif nested is not None:
            ended = nested.run_nested(self.task(nested, rows[i], i, chosen[i] if chosen else None) for i in order)
        else:
            ended = self._run_here(rows, order, threads, draft)
        if self.known is not None and len(rows) > 1 and self.backend.tokenizer is not None:
            prefix = static_prefix(self.known.static_prefix, self.backend.tokenizer.encode_prompt(""))
            ended = pinned(self.backend, prefix, ended)
        ended = _with_progress(ended, len(rows), progress_bar)
        return _states(ended, unordered, on_error)

    def refuse_overflow(self) -> None:
        """Raise ContextOverflow, at its line, where no run of the plan can fit the model's context."""
        able = self.backend.capabilities
        if self.plan is not None and able.token_ids and able.max_context_len is not None:
            refuse_overflow(self.plan, self.backend.tokenizer, able.max_context_len)

    def _run_here(
        self, rows: Sequence[dict[str, Any]], order: Sequence[int], threads: int, draft: Draft | None
    ) -> Iterator[Task]:
        """In the caller's thread, and in others while that one is kept; remembers whether it often was."""
        chosen = draft.orders if draft is not None and draft.orders else None

        def make(hub: Hub, i: int) -> Task:
            return self.task(hub, rows[i], i, chosen[i] if chosen else None)

        hub = Hub(self.backend)
        if draft is not None:
            together.prepare(hub, draft)
        if (self.plan is not None and not self.function.hosts) or self.function.never_blocks:
            yield from hub.run(make(hub, i) for i in order)
            return
        hub.hands = Hands(threads) if threads > 1 else None
        batch = Batch(make, order, threads, carriers_of(self.backend), contextvars.copy_context())
        held: list[float] = []
        for task in batch.run(hub):
            held.append(task.held_s)
            yield task
        self.function.note_holds(held)

    def _spread(
        self,
        rows: Sequence[dict[str, Any]],
        order: Sequence[int],
        threads: int,
        chosen: Sequence[Orders] | None,
    ) -> Iterator[Task]:
        """Bodies that may block, over carriers: one that sleeps holds up only those of its own carrier."""
        ended: queue.SimpleQueue[Task] = queue.SimpleQueue()
        carriers = carriers_of(self.backend)
        running: dict[Task, CarrierHub] = {}
        held: list[float] = []
        context = contextvars.copy_context()
        for i in order:

            def make(hub: CarrierHub, i: int = i) -> Task:
                task = self.task(hub, rows[i], i, chosen[i] if chosen else None)
                task.on_end = ended.put
                task.context = context
                return task

            hub, task = carriers.start(make, threads)
            running[task] = hub
        try:
            while running:
                task = ended.get()
                del running[task]
                held.append(task.held_s)
                yield task
            self.function.note_holds(held)
        finally:
            error = Aborted("the batch was left before its end")
            for task, hub in running.items():
                hub.post(functools.partial(hub.cancel, task, error))
            while running:
                running.pop(ended.get(), None)


_new_running = maker(Running)


def _with_progress(ended: Iterator[Task], total: int, is_shown: bool) -> Iterator[Task]:
    if not is_shown:
        yield from ended
        return
    from tqdm import tqdm

    with tqdm(total=total) as bar:
        for task in ended:
            bar.update()
            yield task


def _states(ended: Iterator[Task], unordered: bool, on_error: str) -> Iterator[ProgramState]:
    """States as they end, or in the order of the batch, each as soon as all before it are there."""
    ready: dict[int, Task] = {}
    following = 0
    for task in ended:
        if on_error == "raise" and task.executor.failure is not None:
            raise task.executor.failure
        if unordered:
            yield ProgramState(task.executor)
            continue
        ready[task.executor.instance] = task
        while following in ready:
            yield ProgramState(ready.pop(following).executor)
            following += 1


def states_of(ended: Iterator[Task], on_error: str) -> Iterator[ProgramState]:
    """The states of tasks in the order of their instances; with on_error="raise" the first failure is raised."""
    return _states(ended, False, on_error)
