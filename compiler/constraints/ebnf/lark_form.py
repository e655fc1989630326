"""Grammars in lark's form (as llguidance takes them): `start: ...` with UPPERCASE terminals.

All of lark's rule syntax is read: `|`, `[ ]`, `( )`, `?` `*` `+` `~ n..m`, "text"i, /regex/i, "a".."z", templates,
`%import common.X`, `%ignore`, `%extend`, `%override`; aliases, priorities and `?`, `!`, `_` before names do not change
the language. A terminal is a language, not a token: nothing asks for the longest match, or for a space between two
words. Ignored terminals may stand before each terminal and at the end. lark's own messages are the user's messages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .. import charset
from ..regex_ast import EPSILON, Chars, Regex, literal
from ..regex_ast import alt as regex_alt
from ..regex_ast import cat as regex_cat
from ..regex_ast import repeat as regex_repeat
from ..regex_syntax import RegexError, parse_regex
from .grammar import MAX_NESTING, Expr, Grammar, Ref, Term, either, grammar_error, rep, seq, term

MAX_INSTANCES = 2000  # of templates
MAX_TEMPLATE_DEPTH = 60

# The inside of common.ESCAPED_STRING looks back. This is what it stands for: a text up to the first quote that no
# backslash escapes.
_LOOKS_BACK = r"/(?<!\\)(\\\\)*?/"
_INSIDE_STRING = r'(?:[^"\\\n]|\\[^\n])*'
_PLACE = re.compile(r",?\s*(?:at|in)? line (\d+),? (?:column|col) (\d+)(?: in <grammar>)?:?")
_LINE = re.compile(r" \(line (\d+)(?:, column \d+)?\)")


def read(source: str) -> Grammar:
    """The grammar in `source`. Raises ConstraintError with line and column as far as lark knows them."""
    import lark
    from lark.load_grammar import load_grammar

    _check_nesting(source)
    try:
        loaded, _ = load_grammar(source, "<grammar>", [], False)  # type: ignore[no-untyped-call]
    except lark.exceptions.LarkError as error:
        _fail(str(error), source)
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError, IndexError, OSError) as error:
        raise grammar_error(f"lark cannot read the grammar: {type(error).__name__}: {error}") from None
    except RecursionError:
        raise grammar_error("nested too deep; give inner parts names") from None
    reader = _Reader(loaded)
    try:
        return reader.grammar(source)
    except RecursionError:
        raise grammar_error("nested too deep; give inner parts names") from None


def _fail(message: str, source: str) -> NoReturn:
    found = _PLACE.search(message)
    line, column = (int(found[1]), int(found[2])) if found else (0, 0)
    text = " ".join(_PLACE.sub("", message, count=1).split("\n")[0].split()).rstrip(": ")
    here = source.splitlines()[line - 1 : line] if line else []
    shown = f" before {here[0][max(column - 1, 0) :][:24]!r}" if here and column and here[0][column - 1 :] else ""
    hint = "; is this `root ::= ...` form? Then every rule needs `::=`" if "::=" in source else ""
    used = re.search(r"[Rr]ule '?(\w+)'? used but not defined", text)
    if used and not line:
        line = next((i + 1 for i, row in enumerate(source.splitlines()) if re.search(rf"\b{used[1]}\b", row)), 0)
    raise grammar_error(f"{text}{shown}{hint}", line, column)


def _check_nesting(source: str) -> None:
    depth = 0
    for match in re.finditer(r'//[^\n]*|#[^\n]*|"(?:[^"\\\n]|\\.)*"|/(?!/)(?:[^/\\\n]|\\.)*/|[(){}\[\]]', source):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_NESTING:
            raise grammar_error(
                f"nested more than {MAX_NESTING} deep; give inner parts names", source.count("\n", 0, match.start()) + 1
            )


class _Reader:
    """One grammar as lark has loaded it, in the course of being read."""

    def __init__(self, loaded: Any) -> None:
        self.terminals: dict[str, Any] = {str(name): tree for name, (tree, _) in loaded.term_defs}
        self.trees: dict[str, tuple[tuple[str, ...], Any]] = {
            str(name): (tuple(map(str, params)), tree) for name, params, tree, _ in loaded.rule_defs
        }
        self.ignored = [str(name) for name in loaded.ignore]
        self.regexes: dict[str, Regex] = {}
        self.rules: dict[str, Expr] = {}
        self.lines: dict[str, int] = {}
        self.gap: Expr | None = None
        self.todo: list[tuple[str, Any, dict[str, Any]]] = []
        self.depth_of: dict[str, int] = {}

    def grammar(self, source: str) -> Grammar:
        for number, row in enumerate(source.splitlines(), 1):
            if found := re.match(r"\s*[?!]*(\w+)\s*(?:\{[^}]*\})?(?:\.-?\d+)?\s*:", row):
                self.lines.setdefault(found[1], number)
        if "start" not in self.trees:
            known = ", ".join(list(self.trees)[:8])
            raise grammar_error(f"there is no rule 'start', with which texts begin; there are {known or 'no rules'}")
        if self.ignored:
            gap = regex_repeat(regex_alt(self.terminal(name) for name in self.ignored), 0, None)
            self.gap = term(gap)
        self.todo = [(name, tree, {}) for name, (params, tree) in self.trees.items() if not params]
        while self.todo:
            name, tree, given = self.todo.pop()
            if len(self.rules) > MAX_INSTANCES + len(self.trees):
                raise grammar_error(f"templates make more than {MAX_INSTANCES} rules", self.lines.get(name, 0))
            self.rules[name] = self.rule(tree, given, name)
        start = "start"
        if self.gap is not None:
            start = "start and what is ignored"
            self.rules[start] = seq([Ref("start"), self.gap])
        return Grammar(self.rules, start, self.lines)

    # rules

    def rule(self, tree: Any, given: Mapping[str, Any], owner: str) -> Expr:
        """An expression of rules; `given` are the arguments of the template in which it stands."""
        kind = getattr(tree, "data", None)
        if kind is None:
            return self.symbol(tree, given)
        parts = tree.children
        if kind == "expansions":
            return either([self.rule(part, given, owner) for part in parts])
        if kind == "expansion":
            return seq([self.rule(part, given, owner) for part in parts])
        if kind in ("value", "alias"):
            return self.rule(parts[0], given, owner)
        if kind == "expr":
            low, high = _times(parts[1:], self.lines.get(owner, 0))
            return rep(self.rule(parts[0], given, owner), low, high)
        if kind == "maybe":
            return rep(self.rule(parts[0], given, owner), 0, 1)
        if kind in ("literal", "range"):
            return self.spaced(self.regex(tree, owner), owner)
        if kind == "template_usage":
            return self.instance(parts, given, owner)
        raise grammar_error(f"{kind} is not supported", self.lines.get(owner, 0))

    def symbol(self, symbol: Any, given: Mapping[str, Any]) -> Expr:
        name = str(symbol.name)
        if name in given:
            return given[name]  # type: ignore[no-any-return]
        if name in self.terminals:
            return self.spaced(self.terminal(name), name)
        if name not in self.trees:
            raise grammar_error(f"{name!r} is used but not defined")
        return Ref(name, self.lines.get(name, 0))

    def spaced(self, regex: Regex, owner: str) -> Expr:
        found: Term = term(regex, self.lines.get(owner, 0))
        return found if self.gap is None else seq([self.gap, found])

    def instance(self, parts: Any, given: Mapping[str, Any], owner: str) -> Expr:
        """A template with arguments: a rule of its own for each list of arguments."""
        template = str(parts[0].name)
        params, tree = self.trees[template]
        arguments = [self.rule(part, given, owner) for part in parts[1:]]
        name = f"{template}{{{', '.join(map(repr, arguments))}}}"
        if name not in self.depth_of:
            depth = self.depth_of[name] = self.depth_of.get(owner, 0) + 1
            if depth > MAX_TEMPLATE_DEPTH or len(name) > 100_000:
                raise grammar_error(f"template {template!r} goes on without end", self.lines.get(template, 0))
            self.todo.append((name, tree, dict(zip(params, arguments, strict=True))))
        return Ref(name, self.lines.get(template, 0))

    # terminals

    def terminal(self, name: str) -> Regex:
        if name not in self.regexes:
            tree = self.terminals.get(name)
            if tree is None:
                raise grammar_error(f"terminal {name} is declared, but has no text here; define it as a regex or text")
            self.regexes[name] = self.regex(tree, name)
        return self.regexes[name]

    def regex(self, tree: Any, owner: str) -> Regex:
        kind = getattr(tree, "data", None)
        if kind is None:
            return self.terminal(str(tree.name))
        parts = tree.children
        if kind == "expansions":
            return regex_alt(self.regex(part, owner) for part in parts)
        if kind == "expansion":
            if len(parts) == 2 and str(_only(parts[1])) == _LOOKS_BACK:
                return parse_regex(_INSIDE_STRING)
            return regex_cat(self.regex(part, owner) for part in parts)
        if kind in ("value", "alias"):
            return self.regex(parts[0], owner)
        if kind == "expr":
            low, high = _times(parts[1:], self.lines.get(owner, 0))
            return regex_repeat(self.regex(parts[0], owner), low, high)
        if kind == "maybe":
            return regex_repeat(self.regex(parts[0], owner), 0, 1)
        if kind == "literal":
            return _literal(parts[0], self.lines.get(owner, 0))
        if kind == "range":
            low_text, high_text = (_text(part) for part in parts)
            return Chars(charset.normalise([(ord(low_text), ord(high_text))]))
        raise grammar_error(f"{kind} is not supported in a terminal", self.lines.get(owner, 0))


def _only(tree: Any) -> Any:
    """The literal that a `value` tree consists of."""
    while getattr(tree, "data", None) in ("value", "literal") and len(tree.children) == 1:
        tree = tree.children[0]
    return tree


def _times(parts: Any, line: int) -> tuple[int, int | None]:
    operator = str(parts[0])
    if operator in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[operator]
    low, high = int(parts[1]), int(parts[2] if len(parts) > 2 else parts[1])
    if not 0 <= low <= high:
        raise grammar_error(f"~ {low}..{high}: the first must be at least 0 and at most the second", line)
    return low, high


def _text(token: Any) -> str:
    """The text of a string token: quotes off, escapes read as Python has them."""
    body = str(token)
    return str(ast.literal_eval("u" + body[: body.rindex('"') + 1].replace("\n", "\\n")))


def _literal(token: Any, line: int) -> Regex:
    text = str(token)
    end = text.rindex('"' if text[0] == '"' else "/")
    flags = text[end + 1 :]
    if "l" in flags:
        raise grammar_error(f"{text}: the flag l (locale) is not supported", line)
    if text[0] == '"' and "i" not in flags:
        return literal(_text(token))
    pattern = re.escape(_text(token)) if text[0] == '"' else text[1:end].replace("\\/", "/")
    if not pattern:
        return EPSILON
    flags = "".join(sorted(set(flags) - {"u"}))
    try:
        return parse_regex(f"(?{flags}:{pattern})" if flags else pattern)
    except RegexError as error:
        raise grammar_error(f"{text}: {error}", line) from None
