"""Sets of numbers as languages of their shortest plain spellings: `0`, `-12`, `0.25`; no exponent, no `-0`, no `1.0`.

Every finite decimal has exactly one such spelling, so that intersection and complement of languages are those of sets.
`spelled` adds the spellings with trailing zeros, for writing.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

import numpy as np

from ..char_algebra import concat, difference, from_texts, intersect, union
from ..char_dfa import CharDfa, class_map, from_regex, tidy
from ..nfa import TooLarge
from ..regex_syntax import parse_regex

MAX_DIGITS = 400  # of a bound; the largest double has 309
MAX_MODULUS = 4_000  # automata of that many states are joined one behind the other: about a second

_DIGITS = "0123456789"


def _regex(pattern: str) -> CharDfa:
    return from_regex(parse_regex(pattern))


ALL_NUMBERS = difference(_regex(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?"), from_texts(["-0"]))
INTEGERS = _regex(r"0|-?[1-9][0-9]*")
NO_NUMBERS = from_texts([])
_ZERO = from_texts(["0"])


_PLAIN = 10**15


def spelling_of(value: int | Decimal) -> str:
    """The one spelling of a number. Raises TooLarge for more than MAX_DIGITS digits."""
    if type(value) is int and -_PLAIN < value < _PLAIN:
        return str(value)
    number = Decimal(value)
    if number and (number.adjusted() > MAX_DIGITS or -int(number.as_tuple().exponent) > MAX_DIGITS):
        raise TooLarge(f"a number with more than {MAX_DIGITS} digits")
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def numbers_of(values: list[int | Decimal]) -> CharDfa:
    """The finite set of `values`."""
    return from_texts([spelling_of(v) for v in values])


@lru_cache(maxsize=1024)
def bounded(
    low: int | Decimal | None, high: int | Decimal | None, low_open: bool = False, high_open: bool = False
) -> CharDfa:
    """All numbers between the bounds, which belong to the set unless they are open. Raises TooLarge."""
    result = ALL_NUMBERS
    if low is not None:
        result = intersect(result, _above(spelling_of(low), low_open))
    if high is not None:
        below = spelling_of(-Decimal(high))
        result = intersect(result, _negated(_above(below, high_open)))
    return result


def _above(bound: str, is_open: bool) -> CharDfa:
    """Numbers greater than `bound`, or equal to it unless `is_open`."""
    if bound.startswith("-"):
        # x > -b: not (x <= -b), that is not (-x >= b).
        return difference(ALL_NUMBERS, _negated(_at_least(bound[1:], is_open=not is_open)))
    return _at_least(bound, is_open)


def _negated(numbers: CharDfa) -> CharDfa:
    """The set of -x for x in the set."""
    minus = numbers.class_of(ord("-"))
    positive = tidy(
        numbers.bounds, numbers.classes, numbers.delta, numbers.labels, int(numbers.delta[numbers.start, minus])
    )
    others = difference(numbers, union(_with_minus(positive), _ZERO))
    flipped = union(_with_minus(others), positive)
    return union(flipped, _ZERO) if numbers.matches("0") else flipped


def _with_minus(dfa: CharDfa) -> CharDfa:
    """The texts of `dfa` with a minus before them."""
    return concat(from_texts(["-"]), dfa)


@lru_cache(maxsize=512)
def _at_least(bound: str, is_open: bool) -> CharDfa:
    """Non-negative numbers at least (or, if open, above) the non-negative `bound`.

    States: (i, eq | gt | lt) after i digits of the whole part, compared with as many of the bound's; longer; behind
    the point, how many digits are equal so far; above, where anything may follow.
    """
    whole, _, fraction = bound.partition(".")
    n, m = len(whole), len(fraction)
    eq, gt, lt = ([1 + (n + 1) * k + i for i in range(n + 1)] for k in range(3))
    longer, above = 3 * n + 4, 3 * n + 5
    behind = [3 * n + 6 + j for j in range(m + 1)]
    delta = np.zeros((3 * n + 7 + m, 12), np.int32)
    labels = np.zeros(len(delta), np.int32)
    digit = [1 + d for d in range(10)]
    for i, char in enumerate(whole):
        d = int(char)
        delta[eq[i], digit] = [lt[i + 1]] * d + [eq[i + 1]] + [gt[i + 1]] * (9 - d)
        delta[gt[i], digit], delta[lt[i], digit] = gt[i + 1], lt[i + 1]
    delta[[eq[n], gt[n], lt[n], longer]] = longer
    delta[above, digit] = above
    delta[[gt[n], longer], 11] = above
    delta[eq[n], 11] = behind[0]
    delta[[lt[n], above], 11] = 0
    for j, char in enumerate(fraction):
        d = int(char)
        delta[behind[j], digit] = [0] * d + [behind[j + 1]] + [above] * (9 - d)
    delta[behind[m], digit] = above
    delta[:, 0] = 0
    labels[[gt[n], longer, above]] = 1
    labels[behind[m] if m else eq[n]] = not is_open
    return intersect(ALL_NUMBERS, tidy(*_ALPHABET, delta, labels, eq[0]))


# Classes 1..10 are the digits, 11 the point.
_ALPHABET = class_map([((c, c),) for c in (*range(0x30, 0x3A), 0x2E)])


@lru_cache(maxsize=512)
def multiples_of(divisor: int | Decimal) -> CharDfa:
    """All multiples of a positive number. Raises TooLarge if it has too many significant digits."""
    sign, digits, exponent = Decimal(divisor).normalize().as_tuple()
    del sign
    modulus, power = int("".join(map(str, digits))), int(exponent)
    places = max(-power, 0)
    if modulus > MAX_MODULUS or modulus * (places + 2) > 8 * MAX_MODULUS or power > MAX_DIGITS:
        raise TooLarge(
            f"{divisor} has too many remainders to keep count of: its digits, without zeros at the end, are those of a "
            f"number of up to {MAX_MODULUS}"
        )
    digit_language = _divisible_digits(modulus, places, max(power, 0))
    signed = union(digit_language, _with_minus(digit_language))
    return intersect(ALL_NUMBERS, signed)


def _divisible_digits(modulus: int, places: int, zeros: int) -> CharDfa:
    """Unsigned decimals x with x * 10**places divisible by `modulus`; without places, by modulus * 10**zeros.

    States: the remainder while reading the whole part; behind the point, (places read, remainder).
    """
    layers = 1 + (places + 1 if places else 0)
    remainders = np.arange(modulus)
    delta = np.zeros((2 + layers * modulus, 12), np.int32)
    labels = np.zeros(2 + layers * modulus, np.int32)
    start = 1 + layers * modulus

    for layer in range(layers):
        rows = 1 + layer * modulus + remainders
        for d in range(10):
            if layer == 0:
                delta[rows, 1 + d] = 1 + (remainders * 10 + d) % modulus
            elif layer < layers - 1:
                delta[rows, 1 + d] = 1 + (layer + 1) * modulus + (remainders * 10 + d) % modulus
        if layer == 0 and places:
            delta[rows, 11] = 1 + modulus + remainders
        left = places - max(layer - 1, 0)
        labels[rows] = (remainders * pow(10, left, modulus) % modulus == 0) | (modulus == 1)
    for d in range(10):
        delta[start, 1 + d] = 1 + d % modulus
    unsigned = tidy(*_ALPHABET, delta, labels, start)
    if not zeros:
        return unsigned
    # Divisible by modulus * 10**zeros: zero, or a multiple of the modulus followed by that many zeros.
    multiple = intersect(unsigned, _regex("[1-9][0-9]*"))
    return union(_ZERO, concat(multiple, from_texts(["0" * zeros])))


def spelled(numbers: CharDfa) -> CharDfa:
    """How numbers may be written: integers and finite sets in one spelling only, others also with trailing zeros."""
    if numbers.is_finite:
        return numbers
    found = _spelled.get(numbers.key)
    if found is None:
        whole, fractions = intersect(numbers, INTEGERS), difference(numbers, INTEGERS)
        found = numbers
        if not fractions.is_empty:
            found = union(numbers, union(concat(whole, _POINT_ZEROS), concat(fractions, _ZEROS)))
        if len(_spelled) >= 512:
            _spelled.clear()
        _spelled[numbers.key] = found
    return found


_spelled: dict[bytes, CharDfa] = {}
_ZEROS = _regex("0+")
_POINT_ZEROS = _regex(r"\.0+")
