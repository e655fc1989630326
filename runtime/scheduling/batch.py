"""What the scheduler decides for one launch: which sequences add which positions. No tensor, no token value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..batch import PrefixGroup
    from ..memory.allocator import IntArray
    from ..request import Sequence
    from ..scoring import TriePart


class Extend(NamedTuple):
    """Tokens [start, end) of a sequence are computed, then the rows of `trie`.

    `samples`: the last row's logits give the next token. `logprobs_from`: of the rows from this position on, the
    log-prob of the following prompt token is wanted (`end` if of none). `is_last`: nothing of the sequence can be
    launched before the host has read this one's results.
    """

    seq: Sequence
    start: int
    end: int
    samples: bool
    logprobs_from: int
    is_last: bool
    trie: TriePart | None = None

    @property
    def num_rows(self) -> int:
        return self.end - self.start + (len(self.trie.token_ids) if self.trie else 0)


@dataclass(slots=True)
class Batch:
    """One launch. Made by the scheduler; read by the launch side, then by `Scheduler.resolve`.

    First the decodes: each adds its last sampled token at position lens[i] - 1. Then the extends. `rows` [B] are their
    rows in the request table, `lens` [B] their lengths with the new tokens (trie rows included), `slots` [T] the pool
    slots of all new tokens in this order.
    """

    step: int
    decodes: list[Sequence]
    extends: list[Extend]
    rows: IntArray
    lens: IntArray
    slots: IntArray
    groups: tuple[PrefixGroup, ...] = ()  # sequences whose first tokens lie in the same pages
    sampled: list[Sequence] = field(init=False)  # in the order of their sampled ids

    def __post_init__(self) -> None:
        self.sampled = self.decodes + [extend.seq for extend in self.extends if extend.samples]

    @property
    def seqs(self) -> list[Sequence]:
        return self.decodes + [extend.seq for extend in self.extends]

    def __str__(self) -> str:
        """The decision as one line, as it stands in a step trace."""
        decodes = " ".join(f"{seq.request.id}/{seq.index}" for seq in self.decodes)
        extends = " ".join(
            f"{e.seq.request.id}/{e.seq.index}[{e.start}:{e.end}]" + (f"+{len(e.trie.token_ids)}" if e.trie else "")
            for e in self.extends
        )
        return f"{self.step}: decode {decodes or '-'}; extend {extends or '-'}; slots {self.slots.tolist()}"
