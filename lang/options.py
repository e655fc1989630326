"""What a run fixes for all its gens, as one frozen value: sampling defaults, the seed, log-prob wishes, bounds."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.errors import ArgumentError, SourceLoc
from ..core.quick import copier, maker
from ..core.request import LogprobWish
from ..core.sampling import SamplingParams
from .checks import LOGPROB_NAMES, Overrides, logprob_wish, sampling_overrides

History = Literal["append", "render"]

_with_seed = copier(SamplingParams, "seed")
_MAX_KNOWN = 1024
_EIGHT = struct.Struct("<8Q")  # a blake2b digest
_SEEDS = random.Random()  # of runs without a seed of their own; begun by the operating system
os.register_at_fork(after_in_child=_SEEDS.seed)


@dataclass(frozen=True, slots=True)
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
    _merged: dict[Overrides, SamplingParams] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_bounded(self) -> bool:
        """Whether the run may take only so long, or so many tokens."""
        return self.deadline is not None or self.token_budget is not None

    @property
    def is_plain(self) -> bool:
        """Whether the run asks for nothing besides the texts: no bounds, no log-probs."""
        return self.logprobs is None and self.deadline is None and self.token_budget is None

    def merged(self, overrides: Overrides, seed: int) -> SamplingParams:
        """The run's defaults with a gen's own options over them; `seed` where neither gives one.

        Raises RequestError for an impossible combination.
        """
        known = self._merged.get(overrides)
        if known is None:
            known = SamplingParams(**{**dict(self.sampling), **dict(overrides)})
            known.verify()
            if len(self._merged) < _MAX_KNOWN:
                self._merged[overrides] = known
        return known if known.seed is not None else _with_seed(known, seed)

    def seeds_of(self, instance: int, path: str, block: int) -> tuple[int, ...]:
        """`block`, then the seeds of 8 requests in order: one hash of (run seed, batch index, stream path, which 8).

        So a request's seed depends on the program alone, never on the order in which requests are sent.
        """
        return block, *_EIGHT.unpack(hashlib.blake2b(f"{self.seed}/{instance}/{path}/{block}".encode()).digest())


_new_options = maker(RunOptions)


# Options of run() that are defaults for its gens, under SGLang's names; gen() calls two of them otherwise.
SAMPLING_NAMES = frozenset(
    {
        "max_new_tokens", "min_new_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p",
        "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "logit_bias",
        "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "jump_forward", "finish_valid",
        "token_healing",
    }
)  # fmt: skip
RUN_NAMES = frozenset(
    {
        *SAMPLING_NAMES, *LOGPROB_NAMES, "backend", "stream", "use_thread", "seed", "timeout", "token_budget",
        "history", "compiled", "compile_options", "outputs", "orders", "record",
    }
)  # fmt: skip


def new_seed() -> int:
    """The seed of a run that was given none."""
    return _SEEDS.getrandbits(63)


def checked_outputs(outputs: Any, where: SourceLoc | None) -> tuple[str, ...] | None:
    """The names of `outputs=`. Raises ArgumentError for what is no list of names."""
    if outputs is None:
        return None
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise ArgumentError(f"outputs must be a list of variables' names, not {outputs!r}", where=where)
    return tuple(dict.fromkeys(outputs))


def run_options(options: Mapping[str, Any], where: SourceLoc | None) -> RunOptions:
    """From the options of `run(...)` by name. Raises RequestError or ArgumentError for a bad one."""
    if not options or options.keys() == {"use_thread"}:
        return _new_options((), _SEEDS.getrandbits(63), _merged={})
    sampling = sampling_overrides({name: options[name] for name in SAMPLING_NAMES if name in options}, where)
    asked, start, top, with_text, token_ids = (options.get(name) for name in LOGPROB_NAMES)
    wish = logprob_wish(asked, start, top, with_text, token_ids, where)
    seed, timeout, budget = options.get("seed"), options.get("timeout"), options.get("token_budget")
    history = options.get("history", "append")
    if seed is None:
        seed = _SEEDS.getrandbits(63)
    elif type(seed) is not int:
        raise ArgumentError(f"seed must be an integer, not {seed!r}", where=where)
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}", where=where)
    if budget is not None and not (type(budget) is int and budget > 0):
        raise ArgumentError(f"token_budget must be a positive number of tokens, not {budget!r}", where=where)
    if history not in ("append", "render"):
        raise ArgumentError(f"history must be 'append' or 'render', not {history!r}", where=where)
    if history == "render" and options.get("stream"):
        raise ArgumentError("history='render' rewrites earlier text, so it cannot be streamed", where=where)
    deadline = None if timeout is None else time.monotonic() + timeout
    return RunOptions(sampling, seed, wish, bool(options.get("stream")), history, deadline, budget)
