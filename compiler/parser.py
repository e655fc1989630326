"""The text form of a Program, read back: `parse_program(print_program(p)) == p`. The grammar is in `docs/ir.md`.

Recursive descent over a list of tokens, one rule per kind of field (`_FIELD`). Each op's `where` is its place in the
IR text, so that errors about a parsed program point there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import IRSyntaxError, SourceLoc
from ..core.request import LogprobWish
from .fields import FIELDS, POSITIONAL, FieldInfo, Kind
from .ir import EXPR_FUNCTIONS, OP_CLASSES, AnyOp, Case, Const, ConstraintSpec, Operand, Param, Program, Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.constraint import ConstraintKind

MAX_DEPTH = 200  # of regions and of nested operands
CONSTRAINT_KINDS: tuple[ConstraintKind, ...] = ("regex", "json_schema", "ebnf", "seq")

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*)
      | (?P<end>[\n;])
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<ref>%[0-9]+)
      | (?P<number>-?(?:[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|inf\b))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[\[\](){}=,*])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPED = {'"': '"', "\\": "\\", "n": "\n", "t": "\t", "r": "\r"}
_LITERALS: dict[str, Const] = {
    "true": True,
    "false": False,
    "none": None,
    "inf": float("inf"),
    "nan": float("nan"),
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # string, ref, number, name, a mark itself, "end" (of a statement) or "eof"
    text: str
    line: int
    column: int


def parse_program(text: str, filename: str = "<ir>") -> Program:
    """The Program written in `text`. Raises IRSyntaxError with line and column."""
    parser = _Parser(text, filename)
    program = parser.program()
    parser.skip_ends()
    parser.expect("eof")
    return program


def parse_ops(text: str, filename: str = "<ir>") -> tuple[AnyOp, ...]:
    """A region's ops alone, separated by newlines or `;`. Raises IRSyntaxError with line and column."""
    parser = _Parser(text, filename)
    ops = parser.statements(0, "eof")
    parser.expect("eof")
    return ops


def _scan(text: str, filename: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, line, line_start = 0, 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        column = at - line_start + 1
        if match is None:
            raise IRSyntaxError(f"column {column}: unexpected {text[at]!r}", where=SourceLoc(filename, line))
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(match[0] if kind == "mark" else kind, match[0], line, column))
        at = match.end()
        if match[0] == "\n":
            line, line_start = line + 1, at
    tokens.append(_Token("eof", "", line, at - line_start + 1))
    return tokens


class _Parser:
    def __init__(self, text: str, filename: str) -> None:
        self.filename = filename
        self.tokens = _scan(text, filename)
        self.at = 0
        self.depth = 0

    # Tokens

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at += token.kind != "eof"
        return token

    def expect(self, kind: str, what: str = "") -> _Token:
        if self.next.kind != kind:
            self.fail(f"expected {what or _shown(kind)}, found {_found(self.next)}")
        return self.take()

    def accept(self, kind: str) -> bool:
        if self.next.kind != kind:
            return False
        self.take()
        return True

    def skip_ends(self) -> None:
        while self.accept("end"):
            pass

    def fail(self, message: str, token: _Token | None = None) -> Any:
        token = token or self.next
        raise IRSyntaxError(f"column {token.column}: {message}", where=SourceLoc(self.filename, token.line))

    def go_deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")

    @property
    def at_keyword(self) -> bool:
        return self.next.kind in ("name", "string") and self.tokens[self.at + 1].kind == "="

    @property
    def at_end(self) -> bool:
        return self.next.kind in ("end", "{", "}", "eof") or self.at_keyword

    # Program

    def program(self) -> Program:
        self.skip_ends()
        first = self.next
        if self.expect("name", "`program`").text != "program":
            self.fail(f"expected `program`, found {_found(first)}", first)
        title = self.name()
        params = self.params()
        num_tokens: int | None = None
        guards: tuple[tuple[str, Any], ...] = ()
        while self.at_keyword:
            keyword = self.take()
            self.expect("=")
            if keyword.text == "num_api_spec_tokens":
                num_tokens = self.integer()
            elif keyword.text == "guards":
                guards = self.pairs()
                if any(not isinstance(value, str) for _, value in guards):
                    self.fail("a guard's fingerprint is a string", keyword)
            else:
                self.fail(f"a program has no {keyword.text!r}; it has num_api_spec_tokens and guards", keyword)
        body = self.region(0)
        return Program(title, params, body, guards, num_tokens, where=SourceLoc(self.filename, first.line))

    def params(self) -> tuple[Param, ...]:
        params: list[Param] = []
        keyword_only = False
        self.expect("(")
        while not self.accept(")"):
            if self.accept("*"):
                keyword_only = not keyword_only
            else:
                name = self.name()
                has_default = self.accept("=")
                default = self.operand() if has_default else None
                params.append(Param(name, has_default, default, keyword_only))
            if self.next.kind != ")":
                self.expect(",", "`,` or `)`")
        return tuple(params)

    def region(self, stream: int) -> tuple[AnyOp, ...]:
        self.go_deeper()
        self.expect("{")
        ops = self.statements(stream, "}")
        self.expect("}")
        self.depth -= 1
        return ops

    def statements(self, stream: int, closer: str) -> tuple[AnyOp, ...]:
        ops: list[AnyOp] = []
        self.skip_ends()
        while self.next.kind not in (closer, "eof"):
            ops.append(self.op(stream))
            if self.next.kind not in (closer, "eof"):
                self.expect("end", "the end of the line")
            self.skip_ends()
        return tuple(ops)

    def cases(self, stream: int) -> tuple[Case, ...]:
        cases: list[Case] = []
        self.expect("{")
        self.skip_ends()
        while not self.accept("}"):
            if (word := self.expect("name", "`case` or `}`")).text != "case":
                self.fail(f"expected `case` or `}}`, found {_found(word)}", word)
            cases.append(Case(self.const(), self.region(stream)))
            self.skip_ends()
        return tuple(cases)

    def op(self, enclosing: int) -> AnyOp:
        where = SourceLoc(self.filename, self.next.line)
        stream = enclosing
        if self.accept("["):
            stream = self.integer()
            self.expect("]")
        out: Ref | None = None
        if self.next.kind == "ref":
            out = self.ref()
            self.expect("=")
        word = self.expect("name", "an op")
        cls = self.op_class(word, out is not None)
        values: dict[str, Any] = {"stream": stream, "where": where}
        if out is not None:
            values["out"] = out
        if cls.name == "expr":
            values["fn"] = word.text
        self.positional(cls, values)
        self.keywords(cls, values)
        for info in FIELDS[cls]:
            if info.kind is Kind.REGION:
                values[info.name] = self.region(stream)
            elif info.kind is Kind.CASES:
                values[info.name] = self.cases(stream)
            elif info.is_required and info.name not in values:
                self.fail(f"`{word.text}` lacks its {info.name}", word)
        op: AnyOp = cls(**values)
        return op

    def op_class(self, word: _Token, has_out: bool) -> type[Any]:
        cls = OP_CLASSES.get(word.text)
        if cls is not None and cls.name != "expr" and has_out == any(info.name == "out" for info in FIELDS[cls]):
            return cls
        if has_out and word.text in EXPR_FUNCTIONS:
            return OP_CLASSES["expr"]
        if word.text in EXPR_FUNCTIONS or (cls is not None and not has_out):
            self.fail(f"`{word.text}` gives a value: write `%id = {word.text} ...`", word)
        if cls is not None:
            self.fail(f"`{word.text}` gives no value: write it without `%id =`", word)
        return self.fail(f"unknown op {word.text!r}", word)  # type: ignore[no-any-return]

    def positional(self, cls: type[Any], values: dict[str, Any]) -> None:
        infos = {info.name: info for info in FIELDS[cls]}
        for name in POSITIONAL[cls.name]:
            info = infos[name]
            if name in values:
                continue
            if self.at_end and not (info.is_required and info.kind in (Kind.INTS, Kind.OPERANDS)):
                return
            values[name] = self.field(info)

    def keywords(self, cls: type[Any], values: dict[str, Any]) -> None:
        infos = {info.name: info for info in FIELDS[cls] if info.kind not in (Kind.REGION, Kind.CASES)}
        while self.at_keyword:
            keyword = self.take()
            self.expect("=")
            info = infos.get(keyword.text)
            if info is None:
                self.fail(f"`{cls.name}` has no {keyword.text!r}; it has {', '.join(infos)}", keyword)
            elif keyword.text in values:
                self.fail(f"{keyword.text!r} is given twice", keyword)
            else:
                values[keyword.text] = self.field(info)

    # Values

    def field(self, info: FieldInfo) -> Any:
        if info.kind is Kind.WORD:
            word = self.expect("name", " or ".join(f"`{word}`" for word in info.words))
            if word.text not in info.words:
                self.fail(f"{info.name} is one of {', '.join(info.words)}, not {word.text!r}", word)
            return word.text
        return _FIELD[info.kind](self)

    def name(self) -> str:
        if self.next.kind == "string":
            return self.string()
        return self.expect("name", "a name").text

    def ref(self) -> Ref:
        return Ref(int(self.expect("ref", "a value such as %0").text[1:]))

    def refs(self) -> tuple[Ref, ...]:
        refs = []
        while self.next.kind == "ref":
            refs.append(self.ref())
        return tuple(refs)

    def integer(self) -> int:
        token = self.expect("number", "an integer")
        if not token.text.lstrip("-").isdigit():
            self.fail(f"expected an integer, found {token.text}", token)
        return int(token.text)

    def integers(self) -> tuple[int, ...]:
        numbers = []
        while self.next.kind == "number":
            numbers.append(self.integer())
        return tuple(numbers)

    def string(self) -> str:
        token = self.expect("string", "a string")

        def unescape(match: re.Match[str]) -> str:
            if match[3] is None:
                code = int(match[1] or match[2], 16)
                return chr(code) if code < 0x110000 else self.fail(f"no character has the code {code:#x}", token)
            if match[3] not in _ESCAPED:
                self.fail(f"unknown escape \\{match[3]} in a string", token)
            return _ESCAPED[match[3]]

        return _ESCAPE.sub(unescape, token.text[1:-1])

    def literal(self) -> Const:
        token = self.next
        if token.kind == "string":
            return self.string()
        if token.kind == "number":
            text = self.take().text
            return int(text) if text.lstrip("-").isdigit() else float(text)
        if token.kind == "name" and token.text in _LITERALS:
            return _LITERALS[self.take().text]
        return self.fail(f"expected a value, found {_found(token)}")  # type: ignore[no-any-return]

    def const(self) -> Const:
        return self.literal()

    def operand(self) -> Operand:
        if self.next.kind == "ref":
            return self.ref()
        if not self.accept("["):
            return self.literal()
        self.go_deeper()
        items: list[Operand] = []
        while not self.accept("]"):
            items.append(self.operand())
            if self.next.kind != "]":
                self.expect(",", "`,` or `]`")
        self.depth -= 1
        return tuple(items)

    def operand_list(self) -> tuple[Operand, ...]:
        items: list[Operand] = []
        while not self.at_end:
            items.append(self.operand())
        return tuple(items)

    def optional_string(self) -> str | None:
        if self.next.kind == "name" and self.next.text == "none":
            self.take()
            return None
        return self.string()

    def boolean(self) -> bool:
        token = self.expect("name", "`true` or `false`")
        if token.text not in ("true", "false"):
            self.fail(f"expected `true` or `false`, found {_found(token)}", token)
        return token.text == "true"

    def optional_integer(self) -> int | None:
        if self.next.kind == "name" and self.next.text == "none":
            self.take()
            return None
        return self.integer()

    def pairs(self) -> tuple[tuple[str, Any], ...]:
        self.expect("(")
        pairs: list[tuple[str, Operand]] = []
        while not self.accept(")"):
            name = self.name()
            self.expect("=")
            pairs.append((name, self.operand()))
            if self.next.kind != ")":
                self.expect(",", "`,` or `)`")
        return tuple(pairs)

    def constraint(self) -> ConstraintSpec | None:
        word = self.expect("name", "a constraint such as regex(...)")
        if word.text == "none":
            return None
        kind = next((kind for kind in CONSTRAINT_KINDS if kind == word.text), None)
        if kind is None:
            self.fail(f"unknown constraint {word.text!r}; there are {', '.join(CONSTRAINT_KINDS)}", word)
        self.expect("(")
        source = self.operand()
        options: list[tuple[str, str]] = []
        while not self.accept(")"):
            self.expect(",", "`,` or `)`")
            name = self.name()
            self.expect("=")
            options.append((name, self.string()))
        return ConstraintSpec(kind, source, tuple(options))  # type: ignore[arg-type]

    def logprobs(self) -> LogprobWish | None:
        word = self.next
        if self.accept("name"):
            return None if word.text == "none" else self.fail(f"expected `(` or `none`, found {_found(word)}", word)
        values = dict(self.pairs())
        if unknown := sorted(values.keys() - set(LogprobWish.__dataclass_fields__)):
            self.fail(f"logprobs has no {unknown[0]!r}; it has {', '.join(LogprobWish.__dataclass_fields__)}", word)
        return LogprobWish(**values)


_FIELD: dict[Kind, Callable[[_Parser], Any]] = {
    Kind.OPERAND: _Parser.operand,
    Kind.CONST: _Parser.const,
    Kind.REF: _Parser.ref,
    Kind.STRING: _Parser.string,
    Kind.OPTIONAL_STRING: _Parser.optional_string,
    Kind.BOOL: _Parser.boolean,
    Kind.INT: _Parser.integer,
    Kind.OPTIONAL_INT: _Parser.optional_integer,
    Kind.INTS: _Parser.integers,
    Kind.OPERANDS: _Parser.operand_list,
    Kind.PAIRS: _Parser.pairs,
    Kind.REFS: _Parser.refs,
    Kind.CONSTRAINT: _Parser.constraint,
    Kind.LOGPROBS: _Parser.logprobs,
}


def _shown(kind: str) -> str:
    return {"eof": "the end of the text", "end": "the end of the line"}.get(kind, f"`{kind}`")


def _found(token: _Token) -> str:
    if token.kind == "eof" or token.text == "\n":
        return "the end of the text" if token.kind == "eof" else "the end of the line"
    return f"`{token.text}`"
