"""The fields of the ops, read once from their dataclasses, so that each reader has one rule per kind of field.

Printer, parser, JSON form, verifier and passes look here instead of knowing every op: a new op is one class in `ir`
and one line in `POSITIONAL`. A field whose annotation no kind covers fails at import, by name.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from .ir import OP_CLASSES, AnyOp, Branch, Case, ConstraintSpec, Copy, Fork, Loop, Op, Operand, Program, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Kind(Enum):
    """What a field of an op holds; the value is the annotation in `ir`."""

    OPERAND = "Operand"
    CONST = "Const"
    REF = "Ref"
    STRING = "str"
    OPTIONAL_STRING = "str | None"
    BOOL = "bool"
    INT = "int"
    OPTIONAL_INT = "int | None"
    INTS = "tuple[int, ...]"
    OPERANDS = "tuple[Operand, ...]"
    PAIRS = "tuple[tuple[str, Operand], ...]"
    REFS = "tuple[Ref, ...]"
    CONSTRAINT = "ConstraintSpec | None"
    LOGPROBS = "LogprobWish | None"
    REGION = "tuple[AnyOp, ...]"
    CASES = "tuple[Case, ...]"
    WORD = "Literal"


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """A field of an op class: its name, kind, default (MISSING if it must be given) and, for a WORD, the words."""

    name: str
    kind: Kind
    default: Any
    words: tuple[str, ...] = ()

    @property
    def is_required(self) -> bool:
        return self.default is MISSING


# Fields written without their name in the text form, in this order, after the op's name. REF `out` stands before it.
POSITIONAL: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "tokens": ("ids", "text"),
    "special": ("text",),
    "media": ("kind", "source"),
    "arg": ("param",),
    "gen": ("var",),
    "select": ("var", "choices"),
    "role": ("role",),
    "scope": ("var",),
    "fork": ("streams",),
    "branch": ("target", "index"),
    "copy": ("target",),
    "join": ("mode", "streams"),
    "set": ("var", "value"),
    "expr": ("fn", "args"),
    "host": ("function", "args"),
    "switch": ("on",),
    "loop": ("over",),
    "next": ("values",),
    "break": ("values",),
    "opaque": ("reason",),
    "return": ("value",),
}


def _read_fields(cls: type[Any]) -> tuple[FieldInfo, ...]:
    infos = []
    for f in fields(cls):
        if f.name in ("stream", "where"):
            continue
        annotation = str(f.type)
        words: tuple[str, ...] = ()
        if annotation.startswith("Literal["):
            words = tuple(word.strip(" \"'") for word in annotation[len("Literal[") : -1].split(","))
            annotation = "Literal"
        try:
            kind = Kind(annotation)
        except ValueError:
            raise TypeError(f"{cls.__name__}.{f.name}: no kind of field for the annotation {annotation!r}") from None
        infos.append(FieldInfo(f.name, kind, f.default, words))
    return tuple(infos)


FIELDS: dict[type[Any], tuple[FieldInfo, ...]] = {cls: _read_fields(cls) for cls in OP_CLASSES.values()}


def field_of(cls: type[Any], name: str) -> FieldInfo | None:
    """The field of that name, or None."""
    return next((info for info in FIELDS[cls] if info.name == name), None)


def defined(op: AnyOp) -> Ref | None:
    """The value this op itself defines (not those of its regions)."""
    return getattr(op, "out", None)


def all_defined(op: AnyOp) -> tuple[Ref, ...]:
    """All values that this op itself defines, for its regions or for what follows it."""
    if isinstance(op, Loop):
        return (*op.params, *op.outs)
    out = defined(op)
    return () if out is None else (out,)


def refs_in(operand: Operand) -> Iterator[Ref]:
    """The values an operand names, left to right."""
    if isinstance(operand, Ref):
        yield operand
    elif isinstance(operand, tuple):
        for item in operand:
            yield from refs_in(item)


def operands(op: AnyOp) -> Iterator[Operand]:
    """Every operand of an op itself (not of its regions)."""
    for info in FIELDS[type(op)]:
        value = getattr(op, info.name)
        if info.kind is Kind.OPERAND:
            yield value
        elif info.kind is Kind.OPERANDS:
            yield from value
        elif info.kind is Kind.PAIRS:
            yield from (item for _, item in value)
        elif info.kind is Kind.CONSTRAINT and value is not None:
            yield value.source


def used(op: AnyOp) -> Iterator[Ref]:
    """The values an op itself reads (not those its regions read)."""
    for operand in operands(op):
        yield from refs_in(operand)


def map_operand(operand: Operand, rewrite: Callable[[Ref], Operand]) -> Operand:
    """An operand with every Ref in it replaced."""
    if isinstance(operand, Ref):
        return rewrite(operand)
    if isinstance(operand, tuple):
        return tuple(map_operand(item, rewrite) for item in operand)
    return operand


def map_operands(op: AnyOp, rewrite: Callable[[Ref], Operand]) -> AnyOp:
    """The op with every Ref it reads itself replaced; regions and `out` stay. The same object if nothing changes."""
    changes: dict[str, Any] = {}
    for info in FIELDS[type(op)]:
        old = new = getattr(op, info.name)
        if info.kind is Kind.OPERAND:
            new = map_operand(old, rewrite)
        elif info.kind is Kind.OPERANDS:
            new = tuple(map_operand(item, rewrite) for item in old)
        elif info.kind is Kind.PAIRS:
            new = tuple((name, map_operand(item, rewrite)) for name, item in old)
        elif info.kind is Kind.CONSTRAINT and isinstance(old, ConstraintSpec):
            new = replace(old, source=map_operand(old.source, rewrite))
        if new != old:
            changes[info.name] = new
    return replace(op, **changes) if changes else op


def map_regions(op: AnyOp, rewrite: Callable[[tuple[AnyOp, ...]], tuple[AnyOp, ...]]) -> AnyOp:
    """The op with each of its regions replaced, in order. The same object if it has none."""
    changes: dict[str, Any] = {}
    for info in FIELDS[type(op)]:
        value = getattr(op, info.name)
        if info.kind is Kind.REGION:
            changes[info.name] = rewrite(value)
        elif info.kind is Kind.CASES:
            changes[info.name] = tuple(Case(case.value, rewrite(case.body)) for case in value)
    return replace(op, **changes) if changes else op


def all_refs(program: Program) -> Iterator[Ref]:
    """Every value the program's ops define, in program order."""
    from .ir import walk

    for op in walk(program.body):
        yield from all_defined(op)


def new_streams(op: AnyOp) -> tuple[int, ...]:
    """The streams that a Fork or Copy makes, or that a Branch names; of other ops, none."""
    return op.streams if isinstance(op, Fork) else (op.target,) if isinstance(op, (Copy, Branch)) else ()


def op_name(op: Op) -> str:
    """How messages call an op: its name, or for an Expr the function it applies."""
    return getattr(op, "fn", "") or op.name
