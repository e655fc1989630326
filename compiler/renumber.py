"""Values and streams of ops under other numbers: for the rounds of a loop, and for paths that are compared.

What an op reads and what it makes is listed once for each class, by the kinds of its fields; an op that stays as it is
is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..core.quick import copier
from .fields import FIELDS, Kind
from .ir import OP_CLASSES, AnyOp, Case, ConstraintSpec, Ref, Switch

_OPERANDS = (Kind.OPERAND, Kind.OPERANDS, Kind.PAIRS, Kind.CONSTRAINT)
_STREAMS = ("streams", "target")


def _names(cls: type[Any], *kinds: Kind) -> tuple[str, ...]:
    return tuple([info.name for info in FIELDS[cls] if info.kind in kinds])


_READS = {cls: _names(cls, *_OPERANDS) for cls in OP_CLASSES.values()}
_VALUES = {cls: _names(cls, *_OPERANDS, Kind.REF, Kind.REFS) for cls in OP_CLASSES.values()}
_PAIRED = frozenset(name for cls in OP_CLASSES.values() for name in _names(cls, Kind.PAIRS))
_MADE_STREAMS = {cls: tuple([i.name for i in FIELDS[cls] if i.name in _STREAMS]) for cls in OP_CLASSES.values()}
_REGIONS = {cls: _names(cls, Kind.REGION) for cls in OP_CLASSES.values()}
_SLOTS = {cls: tuple([field.name for field in fields(cls)]) for cls in OP_CLASSES.values()}


def read_ids(op: AnyOp) -> list[int]:
    """The values that an op itself reads, those of its regions left out."""
    found: list[int] = []
    for name in _READS[type(op)]:
        value = getattr(op, name)
        kind = type(value)
        if kind is Ref:
            found.append(value.id)
        elif kind is tuple:
            if value:
                _collect([part for _, part in value] if name in _PAIRED else value, found)
        elif kind is ConstraintSpec:
            _collect((value.source,), found)
    return found


def _collect(value: Iterable[Any], found: list[int]) -> None:
    for item in value:
        kind = type(item)
        if kind is Ref:
            found.append(item.id)
        elif kind is tuple:
            _collect(item, found)


def renumbered(body: tuple[AnyOp, ...], refs: Mapping[int, int], streams: Mapping[int, int]) -> tuple[AnyOp, ...]:
    """A region with its value and stream numbers replaced (numbers not listed stay)."""
    return tuple([_renumbered(op, refs, streams) for op in body])


def _renumbered(op: AnyOp, refs: Mapping[int, int], streams: Mapping[int, int]) -> AnyOp:
    op = renumbered_op(op, refs, streams)
    for name in _REGIONS[type(op)]:
        op = with_fields(op, **{name: renumbered(getattr(op, name), refs, streams)})
    if type(op) is Switch:
        cases = tuple([Case(case.value, renumbered(case.body, refs, streams)) for case in op.cases])
        op = with_fields(op, cases=cases)
    return op


def renumbered_op(op: AnyOp, refs: Mapping[int, int], streams: Mapping[int, int]) -> AnyOp:
    """An op with its own numbers replaced; what is in its regions stays."""
    changes: dict[str, Any] = {}
    kind = type(op)
    for name in _VALUES[kind]:
        old = getattr(op, name)
        new = _operand(old, refs)
        if new is not old:
            changes[name] = new
    if streams:
        if (number := streams.get(op.stream, op.stream)) != op.stream:
            changes["stream"] = number
        for name in _MADE_STREAMS[kind]:
            old = getattr(op, name)
            changes[name] = streams.get(old, old) if type(old) is int else tuple([streams.get(s, s) for s in old])
    return with_fields(op, **changes) if changes else op


def _operand(value: Any, refs: Mapping[int, int]) -> Any:
    """An operand with its values replaced; the same object where none is."""
    kind = type(value)
    if kind is Ref:
        new = refs.get(value.id)
        return value if new is None or new == value.id else Ref(new)
    if kind is tuple:
        for item in value:
            if type(item) is not str:
                break
        else:
            return value
        items = [_operand(item, refs) for item in value]
        for old, item in zip(value, items, strict=True):
            if old is not item:
                return tuple(items)
        return value
    if kind is ConstraintSpec:
        source = _operand(value.source, refs)
        return value if source is value.source else ConstraintSpec(value.kind, source, value.options)
    return value


def with_out(op: Any, out: Ref) -> Any:
    """An op that makes this value."""
    kind = type(op)
    if kind not in _with_out:
        _with_out[kind] = copier(kind, "out")
    return _with_out[kind](op, out)


_with_out: dict[type[Any], Callable[[Any, Ref], Any]] = {}


def with_fields(op: Any, **changes: Any) -> Any:
    """`dataclasses.replace` for an op, in half the time."""
    kind = type(op)
    made = object.__new__(kind)
    put = object.__setattr__
    for name in _SLOTS[kind]:
        put(made, name, changes[name] if name in changes else getattr(op, name))
    return made
