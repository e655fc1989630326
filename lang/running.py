"""One run of a program, or of a batch: options checked once, plan made once, tasks handed to a hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.backend import Backend
from ..core.errors import SourceLoc
from .carrier import CarrierHub, carriers_of
from .defaults import default_backend
from .executor import Executor
from .feed import Feed
from .hub import Hub, Task
from .options import RunOptions, run_options
from .outside import Outside
from .state import ProgramState
from .walker import walk_plan

if TYPE_CHECKING:
    from ..compiler.plan import Plan
    from .function import Function


MAX_CARRIERS = 64  # threads of a batch whose bodies may block, unless num_threads says otherwise


@dataclass(frozen=True)
class Running:
    """What all instances of a run have in common."""

    function: Function
    backend: Backend
    options: RunOptions
    plan: Plan | None

    @classmethod
    def of(cls, function: Function, options: Mapping[str, Any], where: SourceLoc | None) -> Running:
        """From the run's options, named as in `Function.run`. Raises what is wrong with them at the user's line."""
        rest = dict(options)
        backend = rest.pop("backend", None)
        compiled, compile_options = rest.pop("compiled", None), rest.pop("compile_options", None)
        run = run_options(rest, where)
        target = backend if backend is not None else default_backend()
        return cls(function, target, run, function.plan_to_run(target, compiled, compile_options))

    def task(self, hub: Hub, arguments: dict[str, Any], instance: int = 0) -> Task:
        """One instance: its plan walked, or its body run."""
        plan = self.plan
        executor = Executor(hub, self.function.__name__, self.options, instance, plan)
        if plan is not None:
            return Task(executor, lambda: walk_plan(executor, plan, arguments))
        return Task(executor, lambda: self.function.body(ProgramState(executor), **arguments))

    def run(self, arguments: dict[str, Any]) -> ProgramState:
        """Run to the end; raises what failed."""
        hub = Hub(self.backend)
        task = self.task(hub, arguments)
        hub.run_here(task)
        if task.executor.failure is not None:
            raise task.executor.failure
        return ProgramState(task.executor)

    def stream(self, arguments: dict[str, Any]) -> ProgramState:
        """Start in a carrier; the state is read while the program runs."""
        feed = Feed()

        def make(hub: CarrierHub) -> Task:
            task = self.task(hub, arguments)
            task.executor.stream_to(feed)
            return task

        hub, task = carriers_of(self.backend).start(make, MAX_CARRIERS if self.may_block else 1)
        return ProgramState(Outside(hub, task, feed))

    @property
    def may_block(self) -> bool:
        """Whether a body may keep its thread for long: it runs, and calls what the compiler knows nothing of."""
        return self.plan is None and self.function.calls_foreign

    def run_batch(
        self,
        rows: Sequence[dict[str, Any]],
        num_threads: Any,
        progress_bar: bool,
        unordered: bool,
        on_error: str,
    ) -> Iterator[ProgramState]:
        """The states of all instances, in order or as they end."""
        hub = Hub(self.backend)
        order = self._order(rows)
        ended = hub.run(self.task(hub, rows[i], i) for i in order)
        ended = _with_progress(ended, len(rows), progress_bar)
        return _states(ended, unordered, on_error)

    def _order(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """The order of submission: depth first through what the prompts share, as far as the plan knows it."""
        if self.plan is None or len(rows) < 2:
            return range(len(rows))
        from ..compiler.schedule import Instance, Workload, schedule

        plan = self.plan
        return schedule(Workload(tuple(Instance(plan, row) for row in rows)), self.backend.tokenizer).order


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
