"""What a budget is made of: intervals, and what a path of a program has come to, in intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .prompts import UNKNOWN

INF = math.inf


@dataclass(frozen=True, slots=True)
class Span:
    """From `least` to `most`, both included; `most` is inf where nothing bounds it."""

    least: float = 0
    most: float = 0

    def __add__(self, other: Span) -> Span:
        return Span(self.least + other.least, self.most + other.most)

    def hull(self, other: Span) -> Span:
        """The least span that holds both."""
        return Span(min(self.least, other.least), max(self.most, other.most))

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:.0f}"
        return f"{self.least:.0f} to {self.most:.0f}" if self.most < INF else f"at least {self.least:.0f}"


ZERO = Span()
ANY = Span(0, INF)


@dataclass(slots=True)
class Value:
    """A value: known, or text of so many bytes (a list: its items together)."""

    known: Any = UNKNOWN
    size: Span = ANY


@dataclass(slots=True)
class Stream:
    """`tokens` are those settled or bound to be; `text` the bytes that are not tokenised yet."""

    tokens: Span = ZERO
    text: Span = ZERO
    known: str | None = ""  # the pending text, where it is known
    depth: float = 0  # requests so far, one after the other, at least
    asked: float = 0  # their prompts' tokens, at least
    guess: float = 0  # tokens, if what is unknown is short
    kept: float = 0  # of them, those in the cache
    all_bytes: Span = ZERO
    variables: dict[str, Value] = field(default_factory=dict)

    def copy(self) -> Stream:
        return replace(self, variables=dict(self.variables))

    def hull(self, other: Stream) -> Stream:
        merged = Stream(
            self.tokens.hull(other.tokens), self.text.hull(other.text),
            self.known if self.known == other.known else None,
            min(self.depth, other.depth), min(self.asked, other.asked), max(self.guess, other.guess),
            min(self.kept, other.kept), self.all_bytes.hull(other.all_bytes),
        )  # fmt: skip
        for var in self.variables.keys() | other.variables.keys():
            a, b = self.variables.get(var, Value()), other.variables.get(var, Value())
            same = a.known is not UNKNOWN and b.known is not UNKNOWN and a.known == b.known
            merged.variables[var] = Value(a.known if same else UNKNOWN, a.size.hull(b.size))
        return merged


@dataclass(slots=True)
class State:
    """What a path has come to."""

    streams: dict[int, Stream] = field(default_factory=lambda: {0: Stream()})
    requests: Span = ZERO
    prompts: Span = ZERO
    computed: Span = ZERO
    generated: Span = ZERO
    scored: Span = ZERO
    forwards: Span = ZERO  # if nothing runs beside anything else
    rows: Span = ZERO
    deepest: float = 0  # requests of the longest chain, at least: what stands beside it may be in common with it
    asked: float = 0  # prompt tokens of such a chain
    kv: float = 0

    def copy(self) -> State:
        return replace(self, streams={number: stream.copy() for number, stream in self.streams.items()})

    def hull(self, other: State) -> State:
        numbers = self.streams.keys() & other.streams.keys()
        return State(
            {number: self.streams[number].hull(other.streams[number]) for number in numbers},
            self.requests.hull(other.requests), self.prompts.hull(other.prompts), self.computed.hull(other.computed),
            self.generated.hull(other.generated), self.scored.hull(other.scored), self.forwards.hull(other.forwards),
            self.rows.hull(other.rows), min(self.deepest, other.deepest), min(self.asked, other.asked),
            max(self.kv, other.kv),
        )  # fmt: skip


def hull_of(states: Sequence[State]) -> State | None:
    merged = None
    for state in states:
        merged = state if merged is None else merged.hull(state)
    return merged


def widen(state: State) -> None:
    """Nothing bounds any more what comes."""
    for name in ("requests", "prompts", "computed", "generated", "scored", "forwards", "rows"):
        setattr(state, name, Span(getattr(state, name).least, INF))
    for stream in state.streams.values():
        stream.tokens, stream.text = Span(stream.tokens.least, INF), Span(stream.text.least, INF)
        stream.known, stream.all_bytes = None, ANY
        stream.variables = dict.fromkeys(stream.variables, Value())


def known_value(value: Any) -> Value:
    if value is UNKNOWN:
        return Value()
    if isinstance(value, str):
        size = len(value.encode(errors="replace"))
        return Value(value, Span(size, size))
    if isinstance(value, (list, tuple)):
        return Value(list(value), sum_of(known_value(item).size for item in value))
    size = len(str(value))
    return Value(value, Span(size, size))


def sum_of(spans: Any) -> Span:
    total = ZERO
    for span in spans:
        total += span
    return total
