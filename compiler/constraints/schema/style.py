"""How JSON is laid out: the text between tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Style:
    """`comma` and `colon` are written whole. `gap` is the most whitespace characters allowed, but not asked for, at

    each place where JSON allows some (0: none beyond `comma` and `colon`).
    """

    comma: bytes = b", "
    colon: bytes = b": "
    gap: int = 0


STYLES = {"spaced": Style(), "compact": Style(b",", b":"), "free": Style(b",", b":", 40)}
