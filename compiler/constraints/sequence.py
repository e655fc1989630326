"""Several constraints one after another, as one automaton, and which bytes belong to which.

A constraint of kind "seq" has a JSON list of parts as its source, each `[kind, source, options]`: "text" is that text,
"until" any text before the first occurrence of that text (which the next part writes), "any" any text, and the others
are constraints of their own. The language is the concatenation. Where a text can be divided in several ways, each part
in turn ends at the leftmost place that lets the rest match.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from ...core.constraint import Constraint
from ...core.errors import ConstraintError
from .char_algebra import difference, union_all
from .char_dfa import CharDfa, from_regex
from .native_walk import Description, Leaf, Moves
from .numbered import LEAF_BITS, SHIFT, NumberedStates
from .regex_ast import ANY_TEXT, cat, literal
from .spelling import ByteDfa
from .token_index import Automaton

MAX_PARTS = 200

Item = tuple[int, int]  # number of a part, and the state of its automaton
Frame = frozenset[Item] | Item  # a set, or (part, context)
Build = Callable[[Constraint], Automaton]


def source_of_parts(parts: Iterable[tuple[str, str, tuple[tuple[str, str], ...]]]) -> str:
    """The source of a constraint of kind "seq"."""
    return json.dumps([[kind, source, dict(options)] for kind, source, options in parts], ensure_ascii=False)


def parts_of(source: str, build: Build) -> list[Automaton]:
    """The automata of the parts. Raises ConstraintError naming the part (counted from 0)."""
    try:
        listed = json.loads(source)
        parts = [(str(kind), str(text), tuple(sorted(dict(options).items()))) for kind, text, options in listed]
    except (ValueError, TypeError, RecursionError):
        raise ConstraintError("the source must be a JSON list of [kind, source, options]", field="seq") from None
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ConstraintError(f"has {len(parts)} parts; there must be 1 to {MAX_PARTS}", field="seq")
    out: list[Automaton] = []
    for number, (kind, text, options) in enumerate(parts):
        if kind == "text":
            out.append(ByteDfa(from_regex(literal(text)), "utf8"))
        elif kind == "until" and text:
            out.append(ByteDfa(_until(text), "utf8"))
        elif kind == "any":
            out.append(ByteDfa(from_regex(ANY_TEXT), "utf8"))
        elif kind in ("regex", "json_schema", "ebnf"):
            try:
                out.append(build(Constraint(kind, text, options)))  # type: ignore[arg-type]
            except ConstraintError as error:
                text = error.message.removeprefix(f"{error.field}: ")
                wrapped = ConstraintError(f"part {number}: {text}", field=error.field)
                wrapped.pointer = error.pointer
                raise wrapped from None
        else:
            raise ConstraintError(f"part {number}: unknown kind {kind!r}", field="seq")
        if out[-1].start < 0:
            raise ConstraintError(f"part {number}: no text matches", field="seq")
    return out


def _until(end: str) -> CharDfa:
    """Texts t such that `end` occurs in t + end at its end only."""
    whole = from_regex(cat([ANY_TEXT, literal(end), ANY_TEXT]))
    # `end` may also begin within t: where it agrees with itself moved by j, t must not end with its first j characters.
    periods = [j for j in range(1, len(end)) if end[j:] == end[: len(end) - j]]
    early = [from_regex(cat([ANY_TEXT, literal(end[:j])])) for j in periods]
    return difference(from_regex(ANY_TEXT), union_all([whole, *early]))


class SequenceMachine(NumberedStates[Frame]):
    """Implements `Automaton`. A state is a set of (part, state): the ways in which the text can be divided so far.

    Within a JSON string of a schema the number before the leaf stands for the part and its context alone.
    """

    def __init__(self, parts: list[Automaton]) -> None:
        super().__init__()
        self.parts = parts
        self._strings: dict[Item, bool] = {}
        self.start = self._state([(0, parts[0].start)])

    def fresh(self) -> SequenceMachine:
        """A machine for the same parts that has read nothing yet."""
        return SequenceMachine([part.fresh() for part in self.parts])

    @property
    def num_states(self) -> int:
        return len(self._frames) + sum(part.num_states for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return 300 * len(self._frames) + 100 * self._num_moves + sum(part.num_bytes for part in self.parts)

    def _state(self, items: Iterable[Item]) -> int:
        closed = self._closed(items)
        if len(closed) == 1:
            ((part, state),) = closed
            if self._is_string(part, state >> SHIFT):
                return self._number((part, state >> SHIFT)) << SHIFT | state & LEAF_BITS
        return self._number(closed) << SHIFT

    def _closed(self, items: Iterable[Item]) -> frozenset[Item]:
        """With the beginnings of parts before which a part may end; without parts that can only end."""
        found: set[Item] = set()
        todo = list(items)
        while todo:
            part, state = todo.pop()
            automaton = self.parts[part]
            ends = part + 1 < len(self.parts) and automaton.accepting(state)
            if ends:
                following = (part + 1, self.parts[part + 1].start)
                if following not in found:
                    todo.append(following)
            if not ends or automaton.moves(state):
                found.add((part, state))
        return frozenset(found)

    def _is_string(self, part: int, context: int) -> bool:
        key = (part, context)
        found = self._strings.get(key)
        if found is None:
            describe = getattr(self.parts[part], "describe", None)
            described = describe(context) if describe is not None else None
            found = self._strings[key] = isinstance(described, Leaf) and described.is_string
        return found

    def _items(self, state: int) -> Iterable[Item]:
        frame = self._frames[state >> SHIFT]
        if isinstance(frame, tuple):
            return ((frame[0], frame[1] << SHIFT | state & LEAF_BITS),)
        return frame

    def _compute_moves(self, state: int) -> dict[int, int]:
        grouped: dict[int, set[Item]] = {}
        for part, inner in self._items(state):
            for byte, after in self.parts[part].moves(inner).items():
                grouped.setdefault(byte, set()).add((part, after))
        known: dict[frozenset[Item], int] = {}
        found: dict[int, int] = {}
        for byte, items in grouped.items():
            key = frozenset(items)
            if key not in known:
                known[key] = self._state(key)
            found[byte] = known[key]
        return found

    def accepting(self, state: int) -> bool:
        last = len(self.parts) - 1
        return any(part == last and self.parts[part].accepting(inner) for part, inner in self._items(state))

    # for the compiled walk

    def describe(self, context: int) -> Description:
        frame = self._frames[context]
        if isinstance(frame, tuple):
            described: Description = self.parts[frame[0]].describe(frame[1])  # type: ignore[attr-defined]
            return described
        return Moves(self.moves(context << SHIFT))

    def leave(self, context: int, outcome: int) -> int:
        frame = self._frames[context]
        assert isinstance(frame, tuple)
        after: int = self.parts[frame[0]].leave(frame[1], outcome)  # type: ignore[attr-defined]
        return self._state([(frame[0], after)])


def divided(automata: list[Automaton], text: str) -> list[str]:
    """The text of each part; of a text that was cut, "" for the parts that it does not reach.

    Raises ValueError for a text that is no beginning of one that matches.
    """
    data = text.encode("utf-8", "surrogatepass")
    for whole in (True, False):
        ends = _Division(automata, data, whole).ends()
        if ends is not None:
            starts = [0, *ends[:-1]]
            return [data[a:b].decode("utf-8", "replace") for a, b in zip(starts, ends, strict=True)]
    raise ValueError(f"{text!r} is not what the parts of the sequence ask for")


class _Division:
    """The leftmost division of a text.

    `whole`: all parts end; otherwise one may be cut, and those behind it are empty.
    """

    def __init__(self, automata: list[Automaton], data: bytes, whole: bool) -> None:
        self.automata, self.data, self.whole = automata, data, whole
        self._failed: set[tuple[int, int]] = set()

    def ends(self) -> list[int] | None:
        """Where each part ends; None if the text cannot be divided."""
        size, count = len(self.data), len(self.automata)
        path: list[list[int]] = [self._candidates(0, 0)]
        chosen: list[int] = []
        while path:
            if not path[-1]:
                path.pop()
                if chosen:
                    self._failed.add((len(chosen), chosen.pop()))
                continue
            end = path[-1].pop(0)
            if end < 0 or (len(path) == count and end == size):
                return [*chosen, *([size] * (count - len(chosen)))]
            if len(path) < count and (len(path), end) not in self._failed:
                chosen.append(end)
                path.append(self._candidates(len(path), end))
        return None

    def _candidates(self, part: int, begin: int) -> list[int]:
        """The places where a part that begins here may end, the leftmost first; then -1 if it may be cut."""
        automaton = self.automata[part]
        state, out = automaton.start, []
        for at in range(begin, len(self.data) + 1):
            if automaton.accepting(state):
                out.append(at)
            if at < len(self.data):
                state = automaton.step(state, self.data[at])
                if state < 0:
                    return out
        return out if self.whole else [*out, -1]


@lru_cache(maxsize=64)
def _automata(source: str) -> list[Automaton]:
    from .compile import build_automaton

    return parts_of(source, build_automaton)


def part_of(text: Any, source: str, number: int, kind: str = "str") -> Any:
    """Part `number` of a sequence's text, as a str, int or float (the Expr function "part").

    None for a number that was cut. Raises ValueError for a text that the sequence does not allow.
    """
    found = divided([automaton.fresh() for automaton in _automata(source)], str(text))[number]
    if kind == "str":
        return found
    try:
        return {"int": int, "float": float}[kind](found)
    except ValueError:
        return None
