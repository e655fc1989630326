"""Keywords on numbers and strings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from ..char_algebra import ALL, intersect, of_length
from ..char_dfa import CharDfa, from_regex
from ..nfa import TooLarge
from ..regex_ast import ANY_TEXT, cat
from ..regex_syntax import RegexError, parse_regex
from . import read
from .document import Node, schema_error, shown
from .formats import format_language
from .numbers import ALL_NUMBERS, INTEGERS, NO_NUMBERS, bounded, multiples_of

if TYPE_CHECKING:
    from .lower import Lowering


def numbers(node: Node, types: Collection[str], draft: int) -> CharDfa:
    """type, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf."""
    if "number" not in types and "integer" not in types:
        return NO_NUMBERS
    result = ALL_NUMBERS if "number" in types else INTEGERS
    for keyword, is_low in (("minimum", True), ("maximum", False)):
        exclusive = "exclusive" + keyword.capitalize()
        bound = read.number(node, keyword)
        is_open = False
        if draft == 4:
            flag = node.value.get(exclusive, False)
            if not isinstance(flag, bool):
                raise schema_error(f"must be a boolean in draft 4, not {shown(flag)}", node.at(exclusive))
            is_open = flag
        elif (open_bound := read.number(node, exclusive)) is not None:
            result = intersect(result, _half_line(node, exclusive, open_bound, is_low, True))
        if bound is not None:
            result = intersect(result, _half_line(node, keyword, bound, is_low, is_open))
    divisor = read.number(node, "multipleOf")
    if divisor is not None:
        if divisor <= 0:
            raise schema_error(f"must be above 0, not {divisor}", node.at("multipleOf"))
        result = intersect(result, _guarded(node, "multipleOf", lambda: multiples_of(divisor)))
    return result


def _half_line(node: Node, keyword: str, bound: int | Decimal, is_low: bool, is_open: bool) -> CharDfa:
    if is_low:
        return _guarded(node, keyword, lambda: bounded(bound, None, is_open, False))
    return _guarded(node, keyword, lambda: bounded(None, bound, False, is_open))


def _guarded(node: Node, keyword: str, make: Callable[[], CharDfa]) -> CharDfa:
    try:
        return make()
    except TooLarge as error:
        raise schema_error(str(error), node.at(keyword)) from None


def strings(lowering: Lowering, node: Node) -> CharDfa:
    """minLength, maxLength, pattern, format."""
    value = node.value
    result = ALL
    if "pattern" in value:
        result = intersect(result, pattern_language(value["pattern"], node.at("pattern")))
    if "format" in value:
        name = value["format"]
        if not isinstance(name, str):
            raise schema_error(f"must be a string, not {shown(name)}", node.at("format"))
        language = format_language(name) if lowering.options.assert_formats else None
        if language is not None:
            result = intersect(result, language)
    low, high = read.count(node, "minLength"), read.count(node, "maxLength")
    if low is not None or high is not None:
        lengths = of_length(low or 0, high)
        keyword = "maxLength" if high is not None else "minLength"
        result = _guarded(node, keyword, lambda: intersect(result, lengths))
    return result


def pattern_language(pattern: object, pointer: str) -> CharDfa:
    """All strings in which `pattern` (ECMA-262) matches somewhere."""
    if not isinstance(pattern, str):
        raise schema_error(f"must be a string, not {shown(pattern)}", pointer)
    try:
        return _search(pattern)
    except RegexError as error:
        raise schema_error(f"{shown(pattern)}: {error}", pointer) from None
    except TooLarge as error:
        raise schema_error(f"{shown(pattern)} needs too large an automaton ({error})", pointer) from None


@lru_cache(maxsize=512)
def _search(pattern: str) -> CharDfa:
    tree = parse_regex(pattern, "ecma")
    return from_regex(cat([ANY_TEXT, tree, ANY_TEXT]))


def forget_patterns() -> None:
    """Drop the languages of patterns that are kept."""
    _search.cache_clear()


__all__ = ["forget_patterns", "numbers", "pattern_language", "strings"]
