"""What a schedule pass is, what it may know, and what it adds to. `pipeline.SCHEDULE_PASSES` holds them in order.

A Draft is the decisions about the programs now in flight; passes fill it in, one decision each. None of them changes an
output: they decide what is computed once, in which order, and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..cost import CostModel
from ..fields import new_streams
from ..ir import Expr, Fork, walk

if TYPE_CHECKING:
    from ...core.text.tokenizer import Tokenizer
    from ..plan import Plan
    from ..schedule import Workload

Orders = Mapping[str, tuple[int, ...]]  # of order-free parts: "stream path/occurrence" -> a permutation
UNORDERED = "unordered"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of where the workload runs: its tokenizer, the tokens its KV pool holds (None: unknown), the
    sampling defaults of the run, and what things cost. `compares`: choices are made by that, not by rule."""

    tokenizer: Tokenizer | None = None
    kv_tokens: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    cost: CostModel = field(default_factory=CostModel)
    compares: bool = True


@dataclass(frozen=True, slots=True)
class Draft:
    """The decisions so far.

    `need` is how many tokens of KV the whole workload may take (inf: unknown). `order` is that of submission. `orders`
    are those of order-free parts, for each instance, and `num_gained` the prompt tokens that they save. `is_common`:
    equal requests in flight are made once. `limit`: how many instances to have in flight at first (None: all), as their
    own KV may take `capacity` tokens together. `sends_hints`: requests say what of their KV is needed again. `by_path`:
    those of the ready requests go first after which most is still to come.
    """

    workload: Workload
    machine: Machine
    need: float
    order: tuple[int, ...]
    orders: tuple[Orders, ...] = ()
    num_gained: int = 0
    is_common: bool = False
    limit: int | None = None
    capacity: float = 0
    sends_hints: bool = False
    by_path: bool = False

    @property
    def fits(self) -> bool:
        """Whether all that the workload computes stays in the cache, in whatever order it runs."""
        return self.machine.kv_tokens is not None and self.need <= self.machine.kv_tokens


@dataclass(frozen=True, slots=True)
class SchedulePass:
    """Adds a decision to the draft of a schedule. Pure; no output depends on it."""

    name: str
    promise: str
    run: Callable[[Draft], Draft]


def plans_of(workload: Workload) -> list[Plan]:
    """Each plan of the workload once."""
    return list({id(instance.plan): instance.plan for instance in workload.instances}.values())


def has_forks(plan: Plan) -> bool:
    """Whether the program has branches that run beside each other."""
    return any(isinstance(op, Fork) or new_streams(op) for op in walk(plan.program.body))


def has_order_free_parts(plan: Plan) -> bool:
    """Whether the program has parts that its author declared order-free."""
    return any(isinstance(op, Expr) and op.fn == UNORDERED for op in walk(plan.program.body))


def size_of(value: Any) -> int:
    """How much text an argument brings, roughly."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    return 4
