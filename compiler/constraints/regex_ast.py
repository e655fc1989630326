"""Regular expressions as trees, with the algebra that the parser and the schema compiler need.

Build trees with the functions here, not with the classes: they keep trees small (units are dropped, characters merged,
repeats of repeats folded).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from . import charset
from .charset import Ranges


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of the set. The empty set matches nothing."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Cat:
    """The parts in order; no parts: the empty string."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """Any one of at least two options."""

    options: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` at least `low` and at most `high` (None: any number of) times."""

    item: Regex
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The place before the first or after the last character. `position` is where it stands in the pattern.

    One that is not `strict` also matches next to a newline: Python's `$` before the last one, with `(?m)` before or
    after any. `nfa` refuses those where that could matter.
    """

    kind: Literal["start", "end"]
    strict: bool
    position: int


Regex: TypeAlias = "Chars | Cat | Alt | Repeat | Anchor"

EPSILON = Cat(())
NEVER = Chars(())
ANY_TEXT = Repeat(Chars(charset.ANY), 0, None)


def literal(text: str) -> Regex:
    """Exactly `text`. Surrogates cannot be written as UTF-8, so a text with one matches nothing."""
    return cat(Chars(charset.of_chars(c)) for c in text)


def cat(parts: Iterable[Regex]) -> Regex:
    flat: list[Regex] = []
    for part in parts:
        if part == NEVER:
            return NEVER
        if isinstance(part, Cat):
            flat.extend(part.parts)
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Cat(tuple(flat))


def alt(options: Iterable[Regex]) -> Regex:
    flat: dict[Regex, None] = {}
    chars: list[Ranges] = []
    for option in options:
        for part in option.options if isinstance(option, Alt) else (option,):
            if isinstance(part, Chars):
                chars.append(part.ranges)
            else:
                flat[part] = None
    merged = charset.union(*chars)
    if merged:
        flat[Chars(merged)] = None
    if not flat:
        return NEVER
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def repeat(item: Regex, low: int, high: int | None) -> Regex:
    if item == NEVER:
        return EPSILON if low == 0 else NEVER
    if item == EPSILON or high == 0:
        return EPSILON
    if (low, high) == (1, 1):
        return item
    if isinstance(item, Repeat):
        # (X{a,b}){low,high} counts any number in [a*n, b*n] for some n; one range if neighbouring ones touch.
        a, b = item.low, item.high
        touches = b is None or high == low or b * max(low, 1) + 1 >= a * (max(low, 1) + 1)
        from_zero = low > 0 or a <= 1
        if touches and from_zero:
            return repeat(item.item, a * low, None if b is None or high is None else b * high)
    return Repeat(item, low, high)


def nullable(node: Regex) -> bool:
    """Whether the empty string matches. Anchors count as empty."""
    if isinstance(node, Chars):
        return False
    if isinstance(node, Cat):
        return all(nullable(p) for p in node.parts)
    if isinstance(node, Alt):
        return any(nullable(o) for o in node.options)
    if isinstance(node, Repeat):
        return node.low == 0 or nullable(node.item)
    return True


def has_anchor(node: Regex) -> bool:
    if isinstance(node, Cat):
        return any(has_anchor(p) for p in node.parts)
    if isinstance(node, Alt):
        return any(has_anchor(o) for o in node.options)
    if isinstance(node, Repeat):
        return has_anchor(node.item)
    return isinstance(node, Anchor)


def nonempty(node: Regex) -> Regex:
    """The same language without the empty string. `node` has no anchors."""
    if not nullable(node):
        return node
    if isinstance(node, Alt):
        return alt(nonempty(o) for o in node.options)
    if isinstance(node, Repeat):
        return repeat(nonempty(node.item), max(node.low, 1) if not nullable(node.item) else 1, node.high)
    assert isinstance(node, Cat)
    if not node.parts:
        return NEVER
    head, tail = node.parts[0], cat(node.parts[1:])
    return alt([cat([nonempty(head), tail]), nonempty(tail)])
