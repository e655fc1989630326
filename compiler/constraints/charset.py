"""Sets of Unicode code points as sorted, disjoint, non-adjacent inclusive ranges. Surrogates belong to no set."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

import numpy as np

Ranges = tuple[tuple[int, int], ...]

MAX_CODE_POINT = 0x10FFFF
ANY: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))
EMPTY: Ranges = ()


def normalise(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Any ranges as a set; surrogates are dropped."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if out and lo <= out[-1][1] + 1:
            if hi > out[-1][1]:
                out[-1] = (out[-1][0], hi)
        else:
            out.append((lo, hi))
    merged = tuple(out)
    if any(hi >= 0xD800 and lo <= 0xDFFF for lo, hi in merged):
        return intersect(merged, ANY)
    return merged


def of_chars(text: str) -> Ranges:
    """The set of the characters of `text`."""
    return normalise((ord(c), ord(c)) for c in text)


def union(*sets: Ranges) -> Ranges:
    return normalise(r for ranges in sets for r in ranges)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        lo, hi = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if lo <= hi:
            out.append((lo, hi))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def complement(a: Ranges) -> Ranges:
    out: list[tuple[int, int]] = []
    start = 0
    for lo, hi in a:
        if lo > start:
            out.append((start, lo - 1))
        start = hi + 1
    if start <= MAX_CODE_POINT:
        out.append((start, MAX_CODE_POINT))
    return intersect(tuple(out), ANY)


def contains(a: Ranges, code_point: int) -> bool:
    return any(lo <= code_point <= hi for lo, hi in a)


def minterms(sets: Iterable[Ranges]) -> list[Ranges]:
    """The coarsest partition of the union of `sets` such that each set is a union of parts."""
    distinct = list(dict.fromkeys(sets))
    edges: list[tuple[int, int, int]] = []
    for i, ranges in enumerate(distinct):
        for lo, hi in ranges:
            edges.append((lo, i, 1))
            edges.append((hi + 1, i, -1))
    edges.sort(key=lambda e: e[0])
    parts: dict[int, list[tuple[int, int]]] = {}
    members, start = 0, 0
    for at, i, sign in edges:
        if members and at > start:
            parts.setdefault(members, []).append((start, at - 1))
        members += sign << i
        start = at
    return [normalise(ranges) for ranges in parts.values()]


# Letters, digits and spaces all lie below this; later planes hold unassigned and private code points, and a few
# variation selectors that belong to none of the three (a test scans all of Unicode).
_SCAN_END = 0x40000


@cache
def unicode_class(letter: str) -> Ranges:
    """Python's Unicode `\\d`, `\\w` or `\\s`, for "d", "w" or "s"."""
    return normalise((m.start(), m.end() - 1) for m in re.finditer(rf"\{letter}+", _scanned()))


@cache
def _scanned() -> str:
    """Each character at its own place, with NUL for the surrogates: made in one piece, for one by one takes long."""
    points = np.arange(_SCAN_END, dtype="<u4")
    points[0xD800:0xE000] = 0
    return points.tobytes().decode("utf-32-le")


ASCII_CLASS: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "w": normalise([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]),
    "s": normalise([(0x09, 0x0D), (0x20, 0x20)]),
}
# ECMA-262 `\s`: WhiteSpace and LineTerminator.
ECMA_SPACE: Ranges = normalise(
    (
        (0x09, 0x0D),
        (0x20, 0x20),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
        (0xFEFF, 0xFEFF),
    )
)
LINE_TERMINATORS: Ranges = normalise([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)])


@cache
def _case_classes() -> dict[int, tuple[int, ...]]:
    """For every cased code point, all code points that `re` holds equal to it when case is ignored."""
    leader: dict[int, int] = {}

    def find(cp: int) -> int:
        while (up := leader.get(cp, cp)) != cp:
            cp = up
        return cp

    for cp in range(0x1F000):
        char = chr(cp)
        lower, upper = char.lower(), char.upper()
        # Same simple lower case; or same simple upper case (Kelvin sign, long s, final sigma, ...).
        for other in (lower, upper.lower() if len(upper) == 1 else ""):
            if len(other) == 1 and other != char:
                a, b = find(cp), find(ord(other))
                leader[max(a, b)] = min(a, b)
    leader[find(0x130)] = find(ord("i"))  # `re` lowers U+0130 to i; str.lower() makes two characters of it
    classes: dict[int, list[int]] = {}
    for cp in {*leader, *leader.values()}:
        classes.setdefault(find(cp), []).append(cp)
    return {cp: tuple(members) for members in classes.values() if len(members) > 1 for cp in members}


def fold_case(ranges: Ranges, ascii_only: bool) -> Ranges:
    """The set of all code points that equal one of `ranges` when case is ignored."""
    out = list(ranges)
    if ascii_only:
        out += [(lo + 32, hi + 32) for lo, hi in intersect(ranges, ((0x41, 0x5A),))]
        out += [(lo - 32, hi - 32) for lo, hi in intersect(ranges, ((0x61, 0x7A),))]
        return normalise(out)
    classes = _case_classes()
    small = sum(hi - lo + 1 for lo, hi in ranges) < len(classes)
    cased = (cp for lo, hi in ranges for cp in range(lo, hi + 1)) if small else iter(classes)
    for cp in cased:
        if cp in classes and (small or contains(ranges, cp)):
            out += [(other, other) for other in classes[cp]]
    return normalise(out)


_CATEGORY_NAMES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt", "Cased_Letter": "LC",
    "Modifier_Letter": "Lm", "Other_Letter": "Lo", "Mark": "M", "Nonspacing_Mark": "Mn", "Spacing_Mark": "Mc",
    "Enclosing_Mark": "Me", "Number": "N", "Decimal_Number": "Nd", "Letter_Number": "Nl", "Other_Number": "No",
    "Punctuation": "P", "Connector_Punctuation": "Pc", "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps",
    "Close_Punctuation": "Pe", "Initial_Punctuation": "Pi", "Final_Punctuation": "Pf", "Other_Punctuation": "Po",
    "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc", "Modifier_Symbol": "Sk", "Other_Symbol": "So",
    "Separator": "Z", "Space_Separator": "Zs", "Line_Separator": "Zl", "Paragraph_Separator": "Zp", "Other": "C",
    "Control": "Cc", "Format": "Cf", "Private_Use": "Co", "Unassigned": "Cn",
}  # fmt: skip


@cache
def _categories() -> dict[str, Ranges]:
    """Code points by two-letter general category."""
    found: dict[str, list[tuple[int, int]]] = {}
    start, current = 0, unicodedata.category("\0")
    for cp in range(1, MAX_CODE_POINT + 2):
        category = unicodedata.category(chr(cp)) if cp <= MAX_CODE_POINT else ""
        if category != current:
            found.setdefault(current, []).append((start, cp - 1))
            start, current = cp, category
    return {name: normalise(ranges) for name, ranges in found.items()}


@cache
def general_category(name: str) -> Ranges | None:
    """The set of a Unicode general category under its short or long name; None for a name that is not one."""
    if name == "Any":
        return ANY
    short = _CATEGORY_NAMES.get(name, name)
    if short not in _CATEGORY_NAMES.values():
        return None
    if short == "LC":
        return union(*(_categories()[c] for c in ("Lu", "Ll", "Lt")))
    return union(*(ranges for category, ranges in _categories().items() if category.startswith(short)))
