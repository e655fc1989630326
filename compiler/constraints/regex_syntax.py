"""Parse a regular expression into a tree: Python's `re` dialect, or ECMA-262's as JSON Schema's `pattern` uses it.

What is parsed means exactly what it means there; everything that is not a regular language, or that looks around, is
refused with its name and position.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from dataclasses import dataclass, replace
from typing import Literal

from . import charset
from .charset import Ranges
from .regex_ast import EPSILON, Anchor, Chars, Regex, alt, cat, repeat

Dialect = Literal["python", "ecma"]

MAX_NESTING = 200
MAX_REPEAT = 2**32 - 1

_CONTROL = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}
_HEX = frozenset("0123456789abcdefABCDEF")


class RegexError(ValueError):
    """A pattern is wrong or uses something unsupported. `position` counts characters of the pattern from 0."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} at position {position}")
        self.position = position


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    multi_line: bool = False
    verbose: bool = False
    ascii: bool = False


def parse_regex(pattern: str, dialect: Dialect = "python") -> Regex:
    """The tree of `pattern`, to be matched against a whole text. Raises RegexError."""
    if dialect == "python":
        _check_python_syntax(pattern)
    parser = _Parser(pattern, dialect)
    tree = parser.alternatives(0)
    if parser.at < len(pattern):
        raise RegexError("unbalanced parenthesis", parser.at)
    return tree


def _check_python_syntax(pattern: str) -> None:
    """Let `re` find syntax errors, so that its messages are the user's messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except re.error as error:
        raise RegexError(error.msg, error.pos or 0) from None
    except OverflowError as error:
        raise RegexError(str(error), 0) from None
    except RecursionError:
        raise RegexError(f"nested more than {MAX_NESTING} deep", 0) from None


class _Parser:
    def __init__(self, pattern: str, dialect: Dialect) -> None:
        self.text = pattern
        self.python = dialect == "python"
        self.at = 0
        self.flags = _Flags()

    def fail(self, what: str, position: int | None = None) -> RegexError:
        return RegexError(what, self.at if position is None else position)

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    # alternatives, sequences, repeats

    def alternatives(self, depth: int) -> Regex:
        if depth > MAX_NESTING:
            raise self.fail(f"nested more than {MAX_NESTING} deep")
        options = [self.sequence(depth)]
        while self.take("|"):
            options.append(self.sequence(depth))
        return alt(options)

    def sequence(self, depth: int) -> Regex:
        parts: list[Regex] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self.flags.verbose and self._skip_verbose():
                continue
            start = self.at
            part = self.atom(depth)
            if part is None:  # a flag group
                continue
            parts.append(self.repeated(part, start))
        return cat(parts)

    def _skip_verbose(self) -> bool:
        if self.text[self.at] in " \t\n\r\f\v":
            self.at += 1
            return True
        if self.text[self.at] == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end + 1
            return True
        return False

    def repeated(self, part: Regex, start: int) -> Regex:
        while True:
            if self.flags.verbose and self.at < len(self.text) and self._skip_verbose():
                continue
            bounds = self._quantifier()
            if bounds is None:
                return part
            if isinstance(part, Anchor):
                raise self.fail("an anchor cannot be repeated", start)
            low, high = bounds
            if self.at < len(self.text) and self.text[self.at] == "+" and self.python:
                raise self.fail("possessive quantifiers are not supported")
            self.take("?")  # lazy: the same language
            part = repeat(part, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for char, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(char):
                return bounds
        match = re.compile(r"\{(\d*)(,?)(\d*)\}", re.ASCII).match(self.text, self.at)
        if match is None or match.group(0) in ("{}", "{,}") or (not self.python and not match.group(1)):
            if self.python and match is not None and match.group(0) == "{,}":
                self.at = match.end()
                return 0, None
            return None  # a literal brace
        low = int(match.group(1) or 0)
        high = (int(match.group(3)) if match.group(3) else None) if match.group(2) else low
        if high is not None and high < low:
            raise self.fail("numbers out of order in {} quantifier")
        if low > MAX_REPEAT or (high or 0) > MAX_REPEAT:
            raise self.fail("the repetition number is too large")
        self.at = match.end()
        return low, high

    # atoms

    def atom(self, depth: int) -> Regex | None:
        start = self.at
        char = self.text[start]
        self.at += 1
        if char == "(":
            return self.group(start, depth)
        if char == "[":
            return Chars(self.char_class(start))
        if char == ".":
            return Chars(self._dot())
        if char == "\\":
            return self.escape(start)
        if char == "^":
            return Anchor("start", not self.flags.multi_line, start)
        if char == "$":
            return Anchor("end", not self.python and not self.flags.multi_line, start)
        if char in "*+?":
            raise self.fail("nothing to repeat", start)
        return self._literal(ord(char))

    def _literal(self, code_point: int) -> Regex:
        return Chars(self._folded(charset.normalise([(code_point, code_point)])))

    def _folded(self, ranges: Ranges) -> Ranges:
        return charset.fold_case(ranges, self.flags.ascii) if self.flags.ignore_case else ranges

    def _dot(self) -> Ranges:
        if self.flags.dot_all:
            return charset.ANY
        ends = charset.of_chars("\n") if self.python else charset.LINE_TERMINATORS
        return charset.complement(ends)

    def group(self, start: int, depth: int) -> Regex | None:
        outer = self.flags
        if self.take("?"):
            if self.peek("P<") or (self.peek("<") and not self.peek("<=") and not self.peek("<!")):
                self.at = self.text.index(">", self.at) + 1 if ">" in self.text[self.at :] else len(self.text)
            elif self.take("#"):
                end = self.text.find(")", self.at)
                if end < 0:
                    raise self.fail("missing ), unterminated comment", start)
                self.at = end + 1
                return None
            elif not self.take(":"):
                self._refuse_group(start)
                if not self._flag_group(start):
                    return None  # flags for the rest of the pattern
        body = self.alternatives(depth + 1)
        if not self.take(")"):
            raise self.fail("missing ), unterminated subpattern", start)
        self.flags = outer
        return body

    def _refuse_group(self, start: int) -> None:
        for sign, name in (
            ("=", "lookahead (?=...)"),
            ("!", "negative lookahead (?!...)"),
            ("<=", "lookbehind (?<=...)"),
            ("<!", "negative lookbehind (?<!...)"),
            ("P=", "backreference (?P=...)"),
            ("(", "conditional group (?(...)...)"),
            (">", "atomic group (?>...)"),
        ):
            if self.peek(sign):
                raise self.fail(f"{name} is not supported", start)

    def _flag_group(self, start: int) -> bool:
        """Read `(?flags)` or `(?flags:`; True if a body follows."""
        match = re.compile(r"([aiLmsux]*)(?:-([imsx]+))?([:)])").match(self.text, self.at)
        if match is None or not (match.group(1) or match.group(2)):
            raise self.fail("unknown group (?...)", start)
        names = {"i": "ignore_case", "s": "dot_all", "m": "multi_line", "x": "verbose", "a": "ascii"}
        if "L" in match.group(1):
            raise self.fail("the locale flag is not supported", start)
        changes = {names[c]: True for c in match.group(1) if c != "u"}
        if "u" in match.group(1):
            changes["ascii"] = False
        changes.update({names[c]: False for c in match.group(2) or ""})
        self.flags = replace(self.flags, **changes)
        self.at = match.end()
        return match.group(3) == ":"

    # escapes and classes

    def escape(self, start: int) -> Regex:
        if self.at >= len(self.text):
            raise self.fail("bad escape (end of pattern)", start)
        char = self.text[self.at]
        if char in "bB":
            raise self.fail(f"word boundary \\{char} is not supported", start)
        if self.python and char in "AZ":
            self.at += 1
            return Anchor("start" if char == "A" else "end", True, start)
        if char in "123456789" and not (self.python and re.compile(r"[1-3][0-7][0-7]").match(self.text, self.at)):
            raise self.fail("backreference is not supported", start)
        if not self.python and self.peek("k<"):
            raise self.fail("backreference is not supported", start)
        ranges, single = self.class_escape(start, in_class=False)
        return Chars(self._folded(ranges)) if single else Chars(ranges)

    def class_escape(self, start: int, in_class: bool) -> tuple[Ranges, bool]:
        """The set an escape stands for, and whether it is a single character. `self.at` is after the backslash."""
        char = self.text[self.at]
        self.at += 1
        if char in "dDwWsS":
            ranges = self._letter_class(char.lower())
            return (charset.complement(ranges) if char.isupper() else ranges), False
        if char in "pP" and not self.python:
            return self._property(start, char == "P"), False
        return charset.normalise([(cp := self._single(char, start, in_class), cp)]), True

    def _letter_class(self, letter: str) -> Ranges:
        if self.python:
            return charset.ASCII_CLASS[letter] if self.flags.ascii else charset.unicode_class(letter)
        return charset.ECMA_SPACE if letter == "s" else charset.ASCII_CLASS[letter]

    def _single(self, char: str, start: int, in_class: bool) -> int:
        if char in _CONTROL:
            return _CONTROL[char]
        if self.python and char == "a":
            return 7
        if char == "b" and in_class:
            return 8
        if char == "x":
            return self._hex(2, start)
        if char == "u":
            return self._unicode_escape(start)
        if char == "U" and self.python:
            return self._hex(8, start)
        if char == "N" and self.python:
            end = self.text.index("}", self.at)
            name = self.text[self.at + 1 : end]
            self.at = end + 1
            return ord(unicodedata.lookup(name))
        if char == "c" and not self.python:
            letter = self.text[self.at : self.at + 1]
            if not (letter.isascii() and letter.isalpha()):
                raise self.fail("bad control escape \\c", start)
            self.at += 1
            return ord(letter) % 32
        if char in "01234567":
            return self._octal(char, start, in_class)
        if char.isascii() and char.isalnum():
            raise self.fail(f"bad escape \\{char}", start)
        return ord(char)

    def _octal(self, char: str, start: int, in_class: bool) -> int:
        if not self.python:
            if char == "0" and not self.text[self.at : self.at + 1].isdigit():
                return 0
            raise self.fail("octal escapes are not supported", start)
        digits = re.compile(r"[0-7]{1,3}").match(self.text, start + 1)
        assert digits is not None
        self.at = digits.end()
        return int(digits.group(0), 8)

    def _hex(self, count: int, start: int) -> int:
        digits = self.text[self.at : self.at + count]
        if len(digits) < count or not _HEX.issuperset(digits):
            raise self.fail("incomplete hexadecimal escape", start)
        self.at += count
        return int(digits, 16)

    def _unicode_escape(self, start: int) -> int:
        if not self.python and self.take("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at : end]
            if end < 0 or not digits or not _HEX.issuperset(digits) or int(digits, 16) > charset.MAX_CODE_POINT:
                raise self.fail("bad escape \\u{...}", start)
            self.at = end + 1
            return int(digits, 16)
        high = self._hex(4, start)
        if not self.python and 0xD800 <= high <= 0xDBFF and self.take("\\u"):
            low = self._hex(4, start)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self.fail("a lone surrogate cannot be matched", start)
            return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
        return high

    def _property(self, start: int, negated: bool) -> Ranges:
        match = re.compile(r"\{([A-Za-z_]+)(?:=([A-Za-z_]+))?\}").match(self.text, self.at)
        if match is None:
            raise self.fail("bad property escape \\p", start)
        self.at = match.end()
        name, value = match.groups()
        if value is not None and name not in ("General_Category", "gc"):
            raise self.fail(f"\\p{{{name}={value}}} is not supported; only general categories are", start)
        ranges = charset.general_category(value or name)
        if ranges is None:
            raise self.fail(f"\\p{{{value or name}}} is not supported; only general categories are", start)
        return charset.complement(ranges) if negated else ranges

    def char_class(self, start: int) -> Ranges:
        """A bracketed class; `self.at` is after the bracket."""
        negated = self.take("^")
        parts: list[Ranges] = []
        first = True
        while True:
            if self.at >= len(self.text):
                raise self.fail("unterminated character set", start)
            if self.peek("]") and not (first and self.python):
                self.at += 1
                break
            first = False
            parts.append(self._class_item(start))
        ranges = self._folded(charset.union(*parts))
        return charset.complement(ranges) if negated else ranges

    def _class_item(self, start: int) -> Ranges:
        begin = self.at
        low, single = self._class_atom()
        if not self.peek("-") or self.text[self.at + 1 : self.at + 2] in ("]", ""):
            return low
        self.at += 1
        high, high_single = self._class_atom()
        if not single or not high_single:
            if self.python:
                raise self.fail("bad character range", begin)
            return charset.union(low, charset.of_chars("-"), high)
        # A surrogate is no character: its set is empty, and a range to or from it is not supported.
        if not low or not high:
            raise self.fail("a range with a surrogate is not supported", begin)
        if high[0][0] < low[0][0]:
            raise self.fail("bad character range", begin)
        return charset.normalise([(low[0][0], high[0][0])])

    def _class_atom(self) -> tuple[Ranges, bool]:
        at = self.at
        if self.at >= len(self.text):
            raise self.fail("unterminated character set")
        char = self.text[at]
        self.at += 1
        if char == "\\":
            if self.at >= len(self.text):
                raise self.fail("bad escape (end of pattern)", at)
            if not self.python and self.text[self.at] == "-":
                self.at += 1
                return charset.of_chars("-"), True
            return self.class_escape(at, in_class=True)
        return charset.normalise([(ord(char), ord(char))]), True


__all__ = ["EPSILON", "Dialect", "RegexError", "parse_regex"]
