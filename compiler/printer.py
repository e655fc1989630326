"""A Program as text, for people and for tests. `parser.parse_program` reads it back; `docs/ir.md` has the grammar.

One rule per kind of field (`_FIELD`); which fields go without their names is said in `fields.POSITIONAL`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from .fields import FIELDS, POSITIONAL, FieldInfo, Kind
from .ir import AnyOp, Case, ConstraintSpec, Operand, Program, Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.errors import SourceLoc
    from ..core.request import LogprobWish

INDENT = "  "
MAX_INLINE = 100  # a region of one leaf op stays on its line up to this many characters

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED = frozenset({"true", "false", "none", "inf", "nan"})


def print_program(program: Program, with_lines: bool = False) -> str:
    """The text form. `with_lines` adds the user's place to each op as a comment (`# file:line`)."""
    head = f"program {name_text(program.title)}({_params(program)})"
    if program.num_api_spec_tokens is not None:
        head += f" num_api_spec_tokens={program.num_api_spec_tokens}"
    if program.guards:
        head += f" guards={pairs_text(program.guards)}"
    lines = _region(program.body, 0, 1, with_lines)
    if not lines:
        return head + " {\n}\n"
    comment = _comment(program.where) if with_lines else ""
    return "\n".join((head + " {" + comment, *lines, "}")) + "\n"


def print_op(op: AnyOp) -> str:
    """One op as it stands in the text form, its regions included."""
    return "\n".join(_op(op, 0, 0, False))


def string_text(value: str) -> str:
    """A quoted string; everything that is not printable is escaped, so that a string is always on one line."""
    if value.isprintable():  # nearly all are, and some, as a schema with its values, are long
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return '"' + "".join(map(_char_text, value)) + '"'


def _char_text(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def name_text(value: str) -> str:
    """A name bare where it can be, else quoted."""
    return value if _NAME.match(value) and value not in RESERVED else string_text(value)


def operand_text(operand: Operand) -> str:
    """A literal, `%id`, or `[a, b]`."""
    if isinstance(operand, Ref):
        return f"%{operand.id}"
    if isinstance(operand, tuple):
        return "[" + ", ".join(operand_text(item) for item in operand) + "]"
    if isinstance(operand, str):
        return string_text(operand)
    if operand is None:
        return "none"
    if isinstance(operand, bool):
        return "true" if operand else "false"
    if isinstance(operand, float) and not math.isfinite(operand):
        return "nan" if math.isnan(operand) else "inf" if operand > 0 else "-inf"
    return repr(operand)


def pairs_text(pairs: tuple[tuple[str, Any], ...]) -> str:
    """`(name=value, ...)`."""
    return "(" + ", ".join(f"{name_text(name)}={operand_text(value)}" for name, value in pairs) + ")"


def _params(program: Program) -> str:
    parts = []
    keyword_only = False
    for param in program.params:
        if param.keyword_only != keyword_only:
            parts.append("*")
            keyword_only = param.keyword_only
        default = f"={operand_text(param.default)}" if param.has_default else ""
        parts.append(name_text(param.name) + default)
    return ", ".join(parts)


def _constraint_text(spec: ConstraintSpec | None) -> str:
    if spec is None:
        return "none"
    options = "".join(f", {name_text(name)}={string_text(value)}" for name, value in spec.options)
    return f"{spec.kind}({operand_text(spec.source)}{options})"


def _logprobs_text(wish: LogprobWish | None) -> str:
    if wish is None:
        return "none"
    return pairs_text((("prompt_start", wish.prompt_start), ("top", wish.top), ("token_ids", wish.token_ids)))


_FIELD: dict[Kind, Callable[[Any], str]] = {
    Kind.OPERAND: operand_text,
    Kind.CONST: operand_text,
    Kind.REF: operand_text,
    Kind.STRING: string_text,
    Kind.OPTIONAL_STRING: operand_text,
    Kind.BOOL: operand_text,
    Kind.INT: str,
    Kind.OPTIONAL_INT: operand_text,
    Kind.INTS: lambda ids: " ".join(map(str, ids)),
    Kind.OPERANDS: lambda items: " ".join(map(operand_text, items)),
    Kind.PAIRS: pairs_text,
    Kind.REFS: lambda refs: " ".join(map(operand_text, refs)),
    Kind.CONSTRAINT: _constraint_text,
    Kind.LOGPROBS: _logprobs_text,
    Kind.WORD: str,
}


def _positional(op: AnyOp, infos: dict[str, FieldInfo]) -> tuple[list[str], set[str]]:
    """The fields printed without names, and which these are: up to the first at its default (words always stand)."""
    parts: list[str] = []
    done: set[str] = set()
    for name in POSITIONAL[op.name]:
        info, value = infos[name], getattr(op, name)
        if not info.is_required and value == info.default and info.kind is not Kind.WORD:
            break
        if name == "fn":
            parts.append(value)
        elif text := _FIELD[info.kind](value):
            parts.append(text)
        done.add(name)
    return parts, done


def _op(op: AnyOp, enclosing: int, depth: int, with_lines: bool) -> list[str]:
    infos = {info.name: info for info in FIELDS[type(op)]}
    positional, done = _positional(op, infos)
    parts = [] if op.stream == enclosing else [f"[{op.stream}]"]
    if "out" in infos:
        parts.append(f"%{op.out.id} =")  # type: ignore[union-attr]
    if op.name != "expr":
        parts.append(op.name)
    parts.extend(positional)
    regions: list[list[str]] = []
    for name, info in infos.items():
        value = getattr(op, name)
        if name == "out" or name in done:
            continue
        if info.kind is Kind.REGION:
            regions.append(_region(value, op.stream, depth + 1, with_lines))
        elif info.kind is Kind.CASES:
            regions.append([line for case in value for line in _case(case, op.stream, depth + 1, with_lines)])
        elif info.is_required or value != info.default:
            parts.append(f"{name}={_FIELD[info.kind](value)}")
    pad = INDENT * depth
    first = pad + " ".join(parts)
    comment = _comment(op.where) if with_lines else ""
    if not regions:
        return [first + comment]
    return _braced(first, regions[0], pad, comment)


def _case(case: Case, stream: int, depth: int, with_lines: bool) -> list[str]:
    pad = INDENT * depth
    return _braced(f"{pad}case {operand_text(case.value)}", _region(case.body, stream, depth + 1, with_lines), pad, "")


def _braced(first: str, lines: list[str], pad: str, comment: str) -> list[str]:
    if not lines:
        return [first + " { }" + comment]
    inline = f"{first} {{ {lines[0].strip()} }}"
    if len(lines) == 1 and len(inline) <= MAX_INLINE and not comment and "#" not in lines[0]:
        return [inline]
    return [first + " {" + comment, *lines, pad + "}"]


def _region(body: tuple[AnyOp, ...], stream: int, depth: int, with_lines: bool) -> list[str]:
    return [line for op in body for line in _op(op, stream, depth, with_lines)]


def _comment(where: SourceLoc | None) -> str:
    return f"  # {where}" if where is not None else ""
