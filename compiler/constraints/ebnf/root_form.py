"""Grammars written as `root ::= ...` (llama.cpp's GBNF, as XGrammar and SGLang take it).

    root  ::= "{" ws pair ("," ws pair)* "}"      # a rule reaches up to the next `name ::=`
    pair  ::= string ":" ws value
    ws    ::= [ \\t\\n]{0,4}

Elements: `"text"` and `[a-z]`, `[^"\\\\]` with the escapes \\n \\t \\r \\\\ \\" \\' \\- \\] \\[ \\^ \\xHH \\uHHHH
\\UHHHHHHHH; `.` any character; `name`; `( ... )`; `|`; `*` `+` `?` `{n}` `{n,}` `{n,m}`. The start is
`root`. An empty alternative (or `""`) is the empty text. Lookahead, tags and tokens (`<[7]>`) are refused.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from .. import charset
from ..regex_ast import EPSILON, Chars, literal
from .grammar import MAX_NESTING, Expr, Grammar, Ref, either, grammar_error, rep, seq, term

_FORM = r"""
start: rule*
rule: RULE_NAME "::=" options
options: sequence ("|" sequence)*
sequence: repeated*
repeated: atom QUANTIFIER*
?atom: NAME -> name
     | STRING -> string
     | CHARS -> chars
     | "." -> any
     | "(" options ")" -> group

RULE_NAME.2: /[A-Za-z_][A-Za-z0-9_.\-]*(?=\s*::=)/
NAME: /[A-Za-z_][A-Za-z0-9_.\-]*/
STRING: /"(?:[^"\\\n]|\\.)*"/ | /'(?:[^'\\\n]|\\.)*'/
CHARS: /\[(?:[^\]\\\n]|\\.)*\]/
QUANTIFIER: /[*+?]|\{\s*[0-9]*\s*,?\s*[0-9]*\s*\}/
COMMENT: /#[^\n]*/
%ignore COMMENT
%ignore /\s+/
"""
_BOUNDS = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|([^\\])", re.DOTALL)
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "b": "\b", "a": "\a", "0": "\0"}
_PLAIN = set("\\\"'-]^[/.*+?(){}|$")


@cache
def _parser() -> Any:
    import lark

    return lark.Lark(_FORM, parser="lalr", maybe_placeholders=False)


def read(source: str) -> Grammar:
    """The grammar in `source`. Raises ConstraintError with line and column."""
    import lark

    _check_nesting(source)
    try:
        tree = _parser().parse(source)
    except lark.exceptions.UnexpectedInput as error:
        raise grammar_error(_what(error, source), max(error.line, 0), max(error.column, 0)) from None
    rules: dict[str, Expr] = {}
    lines: dict[str, int] = {}
    for rule in tree.children:
        name = rule.children[0]
        if str(name) in rules:
            raise grammar_error(f"rule {str(name)!r} is defined twice, first on line {lines[name]}", name.line)
        rules[str(name)] = _options(rule.children[1])
        lines[str(name)] = name.line
    if "root" not in rules:
        known = ", ".join(list(rules)[:8])
        raise grammar_error(f"there is no rule 'root', with which texts begin; there are {known or 'no rules'}")
    return Grammar(rules, "root", lines)


def _what(error: Any, source: str) -> str:
    here = source.splitlines()[error.line - 1 : error.line] if error.line > 0 else []
    rest = here[0][max(error.column - 1, 0) :][:24] if here else ""
    if not rest:
        return "the grammar ends in the middle of a rule; close what is open, or end the rule"
    if rest.startswith("("):
        return f"unexpected {rest!r}: lookahead `(=...)` is not supported"
    if rest[0] in "\"'[":
        return f"unexpected {rest!r}: is this text or character class closed on its line?"
    return f'unexpected {rest!r}; known are "text", [a-z], names, ( ), |, *, +, ?, {{n,m}} and # comments'


def _check_nesting(source: str) -> None:
    depth = 0
    for match in re.finditer(
        r"""\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\[(?:[^\]\\\n]|\\.)*\]|[()]""", source
    ):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth > MAX_NESTING:
            raise grammar_error(
                f"nested more than {MAX_NESTING} deep; give inner parts names", source.count("\n", 0, match.start()) + 1
            )


def _options(tree: Any) -> Expr:
    return either([seq(_repeated(part) for part in option.children) for option in tree.children])


def _repeated(tree: Any) -> Expr:
    expr = _atom(tree.children[0])
    for quantifier in tree.children[1:]:
        low, high = _bounds(quantifier)
        expr = rep(expr, low, high)
    return expr


def _bounds(token: Any) -> tuple[int, int | None]:
    if token in ("*", "+", "?"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token]
    match = _BOUNDS.fullmatch(token)
    assert match is not None
    low = int(match[1] or 0)
    high = None if match[2] and not match[3] else int(match[3]) if match[3] else low
    if not (match[1] or match[3]):
        raise grammar_error(f"{token} names no number of times", token.line, token.column)
    if high is not None and high < low:
        raise grammar_error(f"{token} asks for at least {low} and at most {high}", token.line, token.column)
    return low, high


def _atom(tree: Any) -> Expr:
    if tree.data == "group":
        return _options(tree.children[0])
    if tree.data == "any":
        return term(Chars(charset.ANY))
    token = tree.children[0]
    if tree.data == "name":
        return Ref(str(token), token.line)
    if tree.data == "string":
        text = "".join(map(chr, _code_points(token, token[1:-1])))
        return term(literal(text) if text else EPSILON, token.line)
    return term(_chars(token), token.line)


def _code_points(token: Any, body: str) -> list[int]:
    return [code for code, _ in _read_chars(token, body)]


def _read_chars(token: Any, body: str) -> list[tuple[int, bool]]:
    """Code points, each with whether it was written with a backslash."""
    out = []
    for match in _ESCAPE.finditer(body):
        digits = match[1] or match[2] or match[3]
        if digits:
            code = int(digits, 16)
            if code > 0x10FFFF:
                raise grammar_error(f"{match[0]} is no character", token.line, token.column)
        elif match[4] is None:
            code = ord(match[5])
        elif match[4] in _NAMED or match[4] in _PLAIN:
            code = ord(_NAMED.get(match[4], match[4]))
        else:
            raise grammar_error(f"unknown escape {match[0]!r}; write \\\\ for a backslash", token.line, token.column)
        out.append((code, match[5] is None))
    return out


def _chars(token: Any) -> Chars:
    body = token[1:-1]
    negated = body.startswith("^")
    chars = _read_chars(token, body[1:] if negated else body)
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(chars):
        low, (high, _) = chars[at][0], chars[at]
        at += 1
        if at + 1 < len(chars) and chars[at] == (ord("-"), False):
            high = chars[at + 1][0]
            at += 2
            if high < low:
                raise grammar_error(f"the range {chr(low)}-{chr(high)} is backwards", token.line, token.column)
        ranges.append((low, high))
    found = charset.union(*(charset.normalise([pair]) for pair in ranges))
    return Chars(charset.complement(found) if negated else found)
