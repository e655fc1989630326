"""What a run fixes for all its gens, as one frozen value: sampling defaults, the seed, log-prob wishes, bounds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.request import LogprobWish
from ..core.sampling import SamplingParams

Overrides = tuple[tuple[str, Any], ...]
History = Literal["append", "render"]

_MAX_KNOWN = 1024


@dataclass(frozen=True)
class RunOptions:
    """Made by `run` and `run_batch`; read by the executor for every request.

    `deadline` is a time of `time.monotonic`, `token_budget` how many tokens a program may generate in all.
    """

    sampling: Overrides
    seed: int
    logprobs: LogprobWish | None = None
    stream: bool = False
    history: History = "append"
    deadline: float | None = None
    token_budget: int | None = None
    _merged: dict[Overrides, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def merged(self, overrides: Overrides, seed: int) -> SamplingParams:
        """The run's defaults with a gen's own options over them; `seed` where neither gives one.

        Raises RequestError for an impossible combination.
        """
        known = self._merged.get(overrides)
        if known is None:
            known = {**dict(self.sampling), **dict(overrides)}
            SamplingParams(**known).verify()
            if len(self._merged) < _MAX_KNOWN:
                self._merged[overrides] = known
        if "seed" in known:
            return SamplingParams(**known)
        return SamplingParams(**known, seed=seed)

    def seed_of(self, instance: int, path: str, occurrence: int) -> int:
        """The seed of one request: a hash of (run seed, batch index, stream path, occurrence in that stream).

        So it depends on the program alone, never on the order in which requests are sent.
        """
        text = f"{self.seed}/{instance}/{path}/{occurrence}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
