"""How much memory running requests will still ask for: an estimate, corrected by what happens."""

from __future__ import annotations

CLIP_NEW_TOKENS = 4096
INITIAL_RATIO = 0.7
MIN_RATIO = 0.1
DECAY_STEPS = 600
RETRACT_AHEAD = 20  # new tokens per request for which room should be after a retraction


class NewTokenRatio:
    """The share of its token limit that a request is expected to use.

    Starts at 0.7 times `conservativeness`, sinks with each step to a seventh of that, and after a retraction goes up
    to what would have fitted. 1 or more admits only what fits for certain.
    """

    def __init__(self, conservativeness: float = 1.0) -> None:
        self._initial = INITIAL_RATIO * conservativeness
        self._min = MIN_RATIO * conservativeness
        self._decay = (self._initial - self._min) / DECAY_STEPS
        self.value = self._initial

    def step(self) -> None:
        """A step went well."""
        self.value = max(self.value - self._decay, self._min)

    def retracted(self, num_done: int, num_running: int, limit: int) -> None:
        """Memory ran out with `num_done` new tokens made by `num_running` requests that may make `limit` together."""
        self.value = max(self.value, min(1.0, (num_done + RETRACT_AHEAD * num_running) / max(limit, 1)))

    def reset(self) -> None:
        """Nothing is running: what went before says nothing about what comes."""
        self.value = self._initial

    def expect(self, remaining: int) -> int:
        """New tokens expected of a request that may still make `remaining`."""
        return int(min(remaining, CLIP_NEW_TOKENS) * self.value)
