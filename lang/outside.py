"""A running program seen from outside: what the state of `run(stream=True)` reads from, in any thread or event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..compiler.ir import AnyOp, Ref, Role, Scope
from ..core.errors import Aborted, ProgramError, SourceLoc
from .feed import Chunk, Feed

if TYPE_CHECKING:
    from .carrier import CarrierHub
    from .executor import Executor
    from .gens import GenExpr, SelectExpr
    from .hub import Task


T = TypeVar("T")
LOOK_S = 0.05  # between two questions whether the program has ended meanwhile


class Outside:
    """Stands in for the executor of a program that another thread runs. Reading waits; appending is refused."""

    is_tracing = False

    def __init__(self, hub: CarrierHub, task: Task, feed: Feed) -> None:
        self._hub = hub
        self._task = task
        self._feed = feed
        self.instance = task.executor.instance

    @property
    def executor(self) -> Executor:
        """That of the program; to be read when it has ended."""
        return self._task.executor

    @property
    def is_ended(self) -> bool:
        """Whether the program has ended."""
        return self._feed.is_ended

    def while_running(self, look: Callable[[Executor], T]) -> T | None:
        """What `look` finds in the program's executor, called in the program's thread; None once the program has ended.

        Raises what `look` raises.
        """
        found: Future[T] = Future()

        def call() -> None:
            try:
                found.set_result(look(self._task.executor))
            except BaseException as error:
                found.set_exception(error)

        self._hub.post(call)
        while not self.is_ended:
            if wait([found], LOOK_S).done:
                return found.result()
        return None

    # -- reading

    @property
    def orders(self) -> Mapping[str, tuple[int, ...]]:
        return self._task.executor.orders

    def get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        self._feed.value(var)
        return self._task.executor.get(stream, var, where)

    def raw(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        self._feed.value(var)
        return self._task.executor.raw(stream, var, where)

    def has(self, stream: int, var: str, where: SourceLoc | None) -> bool:
        self._feed.wait_for_end()
        return self._task.executor.has(stream, var, where)

    def text(self, stream: int, where: SourceLoc | None) -> str:
        self._feed.wait_for_end()
        return self._task.executor.text(stream, where)

    def sync(self, stream: int, where: SourceLoc | None) -> None:
        self._feed.wait_for_end()
        self._task.executor.sync(stream, where)

    def messages(self, stream: int, where: SourceLoc | None) -> list[dict[str, Any]]:
        self._feed.wait_for_end()
        return self._task.executor.messages(stream, where)

    def meta_info(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        self._feed.value(var)
        return self._task.executor.meta_info(stream, var, where)

    def error(self) -> BaseException | None:
        self._feed.wait_for_end()
        return self._task.executor.error()

    def names(self, stream: int) -> list[str]:
        self._feed.wait_for_end()
        return self._task.executor.names(stream)

    @property
    def ret_value(self) -> Any:
        self._feed.wait_for_end()
        return self._task.executor.ret_value

    def value_of(self, ref: Ref, where: SourceLoc | None) -> Any:
        self._feed.wait_for_end()
        return self._task.executor.value_of(ref, where)

    def chunks(self, stream: int, var: str | None, where: SourceLoc | None) -> Iterator[Chunk]:
        return self._feed.chunks(var, self.cancel)

    def async_chunks(self, stream: int, var: str | None, where: SourceLoc | None) -> AsyncIterator[Chunk]:
        return self._feed.async_chunks(var, self.cancel)

    async def async_get(self, stream: int, var: str, where: SourceLoc | None) -> Any:
        await self._feed.async_value(var)
        return self._task.executor.get(stream, var, where)

    async def async_sync(self, stream: int, where: SourceLoc | None) -> None:
        await self._feed.async_wait_for_end()
        self._task.executor.sync(stream, where)

    def cancel(self) -> None:
        """End the program; what it has in flight is aborted."""
        error = Aborted(f"the program {self._task.executor.title!r} was cancelled")
        self._hub.post(lambda: self._hub.cancel(self._task, error))

    # -- appending

    def _refuse(self, where: SourceLoc | None) -> NoReturn:
        title = self._task.executor.title
        raise ProgramError(f"the program {title!r} runs by itself: nothing can be appended from outside", where=where)

    def emit(self, op: AnyOp) -> None:
        self._refuse(op.where)

    def append_gen(self, stream: int, expr: GenExpr[Any]) -> None:
        self._refuse(expr.where)

    def append_select(self, stream: int, expr: SelectExpr) -> None:
        self._refuse(expr.where)

    def append_text(self, stream: int, text: str, where: SourceLoc | None) -> None:
        self._refuse(where)

    def enter(self, op: Role | Scope) -> None:
        self._refuse(op.where)

    def leave(self, op: Role | Scope) -> None:
        self._refuse(op.where)

    def new_ref(self) -> Ref:
        return Ref(-1)

    def new_stream(self) -> int:
        self._refuse(None)

    def unordered(self, stream: int, separator: str, parts: Any, where: SourceLoc | None) -> Any:
        self._refuse(where)

    def opaque(self, reason: str, where: SourceLoc | None) -> None:
        return None

    def call(self, body: Callable[..., Any], state: Any, args: Any, kwargs: Any) -> Any:
        self._refuse(None)
