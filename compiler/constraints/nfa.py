"""From a regex tree to an automaton without empty moves, whose states are the places of the characters in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import charset
from .charset import Ranges
from .effort import spend
from .regex_ast import Alt, Anchor, Cat, Chars, Regex, Repeat, has_anchor, nonempty, nullable
from .regex_syntax import RegexError

MAX_POSITIONS = 60_000
MAX_FOLLOWERS = 8_000_000


class TooLarge(ValueError):
    """An automaton would exceed its budget; the message says which."""


@dataclass(frozen=True, slots=True)
class Nfa:
    """Position p reads one character of `sets[chars[p]]` and goes to the positions in `follow[p]`.

    The last one, `len(chars)`, stands for the end of the text.
    """

    sets: tuple[Ranges, ...]
    chars: tuple[int, ...]
    follow: tuple[tuple[int, ...], ...]
    start: tuple[int, ...]


class _Builder:
    """Thompson's construction; `moves[s]` are empty moves, `anchors[s]` those that need an end of the text."""

    def __init__(self) -> None:
        self.moves: list[list[int]] = []
        self.anchors: dict[int, tuple[Anchor, int]] = {}
        self.reads: dict[int, tuple[int, int]] = {}  # state -> (set, target)
        self.sets: dict[Ranges, int] = {}

    def state(self) -> int:
        if len(self.moves) > 3 * MAX_POSITIONS:
            raise TooLarge(f"more than {MAX_POSITIONS} positions once repeats are written out")
        self.moves.append([])
        return len(self.moves) - 1

    def add(self, node: Regex, begin: int) -> int:
        """Wire `node` to start at `begin`; returns the state where it ends."""
        if isinstance(node, Chars):
            end = self.state()
            reader = self.state()
            self.moves[begin].append(reader)
            self.reads[reader] = (self.sets.setdefault(node.ranges, len(self.sets)), end)
            return end
        if isinstance(node, Cat):
            for part in node.parts:
                begin = self.add(part, begin)
            return begin
        if isinstance(node, Alt):
            ends = [self.add(option, begin) for option in node.options]
            end = self.state()
            for e in ends:
                self.moves[e].append(end)
            return end
        if isinstance(node, Anchor):
            end = self.state()
            self.anchors[begin_of := self.state()] = (node, end)
            self.moves[begin].append(begin_of)
            return end
        return self.add_repeat(node, begin)

    def add_repeat(self, node: Repeat, begin: int) -> int:
        item, low, high = node.item, node.low, node.high
        if nullable(item) and not has_anchor(item):
            item, low = nonempty(item), 0
        for _ in range(low - 1 if high is None and low else low):
            begin = self.add(item, begin)
        end = self.state()
        if high is None:  # the last obligatory copy, or an optional one, loops
            inner = self.state()
            self.moves[begin].append(inner)
            after = self.add(item, inner)
            self.moves[after] += [inner, end]
            if low == 0:
                self.moves[begin].append(end)
            return end
        for _ in range(high - low):
            self.moves[begin].append(end)
            begin = self.add(item, begin)
        self.moves[begin].append(end)
        return end


def count_positions(node: Regex) -> int:
    """How many characters the tree has once its repeats are written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Cat):
        return sum(count_positions(p) for p in node.parts)
    if isinstance(node, Alt):
        return sum(count_positions(o) for o in node.options)
    if isinstance(node, Repeat):
        return count_positions(node.item) * max(node.high if node.high is not None else node.low, 1)
    return 0


def text_lengths(node: Regex) -> tuple[int, float]:
    """Bounds on the lengths of texts: none is shorter than the first, none longer than the second."""
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Repeat):
        low, high = text_lengths(node.item)
        return low * node.low, (high * node.high if node.high is not None else math.inf if high else 0)
    if isinstance(node, Anchor):
        return 0, 0
    parts = [text_lengths(part) for part in (node.parts if isinstance(node, Cat) else node.options)]
    combine_low, combine_high = (sum, sum) if isinstance(node, Cat) else (min, max)
    return combine_low(low for low, _ in parts), combine_high(high for _, high in parts)


def build_nfa(node: Regex) -> Nfa:
    """The automaton of `node`. Raises TooLarge, and RegexError for an anchor that does not stand at an end."""
    if (size := count_positions(node)) > MAX_POSITIONS:
        raise TooLarge(f"{size} positions once repeats are written out, more than {MAX_POSITIONS}")
    spend(4 * size)
    builder = _Builder()
    begin = builder.state()
    end = builder.add(node, begin)
    position = {state: i for i, state in enumerate(builder.reads)}
    accept = len(position)
    sets = tuple(builder.sets)
    if any(not anchor.strict for anchor, _ in builder.anchors.values()):
        _refuse_inner_anchors(builder, sets, end)

    num_followers = 0

    def closure(state: int, *, at_start: bool) -> tuple[int, ...]:
        """Positions reachable by empty moves; behind an end anchor only the end itself counts."""
        found: set[int] = set()
        seen: set[tuple[int, bool]] = set()
        todo = [(state, False)]
        while todo:
            entry = todo.pop()
            if entry in seen:
                continue
            seen.add(entry)
            s, at_end = entry
            if s == end:
                found.add(accept)
            if s in position and not at_end:
                found.add(position[s])
            if s in builder.anchors:
                anchor, target = builder.anchors[s]
                if anchor.kind == "end":
                    todo.append((target, True))
                elif at_start:
                    todo.append((target, at_end))
            todo.extend((target, at_end) for target in builder.moves[s])
        nonlocal num_followers
        num_followers += len(found)
        if num_followers > MAX_FOLLOWERS:
            raise TooLarge(f"more than {MAX_FOLLOWERS} pairs of positions that follow one another")
        return tuple(sorted(found))

    closures: dict[int, tuple[int, ...]] = {}
    follow = []
    for _, target in builder.reads.values():
        if target not in closures:
            closures[target] = closure(target, at_start=False)
        follow.append(closures[target])
    chars = tuple(which for which, _ in builder.reads.values())
    return Nfa(sets, chars, tuple(follow), closure(begin, at_start=True))


def _refuse_inner_anchors(builder: _Builder, sets: tuple[Ranges, ...], end: int) -> None:
    """Raise for an anchor that may hold beside a newline inside the text: after one, or before one."""
    newline = [charset.contains(ranges, 10) for ranges in sets]
    after = {target for which, target in builder.reads.values() if newline[which]}
    todo = list(after)
    while todo:  # states at which the character before may be a newline
        s = todo.pop()
        held = builder.anchors.get(s)
        if held is not None and held[0].kind == "start" and not held[0].strict:
            raise RegexError("with (?m), ^ is only supported at the start of the pattern", held[0].position)
        for t in [*builder.moves[s], *([held[1]] if held else [])]:
            if t not in after:
                after.add(t)
                todo.append(t)
    for anchor, target in builder.anchors.values():
        if anchor.kind == "start" or anchor.strict:
            continue
        seen, todo = {target}, [target]
        while todo:
            s = todo.pop()
            if s in builder.reads and newline[builder.reads[s][0]]:
                raise RegexError("$ before what may be a newline is not supported; write \\Z", anchor.position)
            inner = builder.anchors.get(s)
            for t in [*builder.moves[s], *([inner[1]] if inner else [])]:
                if t not in seen:
                    seen.add(t)
                    todo.append(t)
