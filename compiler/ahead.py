"""The look-ahead of a program that is not whole: its body runs, and each op it makes is checked against the trace.

A body with a break still makes the ops that its trace foretold, up to the break. `LookAhead` keeps the places of the
trace that the body may have come to, and says for each op which one of the plan it is; so what the plan knows of that
one (prepared choices, hints) serves the run. An op that none of the places foretells ends it: the look-ahead is lost
from there, never the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import SourceLoc
from .fields import refs_in
from .ir import (
    AnyOp,
    Arg,
    Branch,
    Break,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Loop,
    Media,
    Next,
    Opaque,
    Program,
    Ref,
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
)

if TYPE_CHECKING:
    from .plan import Plan, SelectFacts

MAX_PLACES = 64  # that the body may have come to; with more the trace says nothing any more

_SILENT = (Arg, Expr, Host, Branch)  # a body computes them; its states are told nothing


class _Up(NamedTuple):
    """The region around a place: what it is of, and where that goes on."""

    op: Role | Scope | Switch | Loop
    after: _Place


class _Place(NamedTuple):
    body: tuple[AnyOp, ...]
    at: int
    up: _Up | None


class LookAhead:
    """The look-ahead of one running instance. `on_lost` is called once, if an op comes that was not foretold."""

    __slots__ = ("_origins", "_places", "on_lost", "plan")

    def __init__(self, program: Program, plan: Plan, on_lost: Callable[[], None]) -> None:
        self.plan = plan
        self.on_lost = on_lost
        self._places: list[_Place] = [_Place(program.body, 0, None)]
        self._origins: dict[int, Ref] = {}  # numbers of the body's values -> those of the plan

    # -- what the plan knows

    def select(self, number: int) -> SelectFacts | None:
        """The facts of the select whose value has this number in the run."""
        out = self._origins.get(number)
        return self.plan.select(out) if out is not None else None

    def hints(self, number: int) -> Any:
        """The hints of the gen or select whose value has this number in the run."""
        out = self._origins.get(number)
        return self.plan.hints.get(out.id) if out is not None else None

    def path(self, number: int) -> float:
        """Tokens to be generated from there on, as far as the trace goes."""
        out = self._origins.get(number)
        return self.plan.paths.get(out.id, 0.0) if out is not None else 0.0

    # -- what the body does

    def text(self, text: str, where: SourceLoc | None) -> bool:
        """The body appends text. False where the look-ahead ends here, as after each of these."""
        return self._step(Text, where, lambda op: _may_be(op.text, text))

    def gen(self, number: int, expr: Any) -> bool:
        """The body generates: an expression with the fields of a Gen."""

        def fits(op: Gen) -> bool:
            return op.var == expr.var and _options_fit(op, expr)

        return self._step(Gen, expr.where, fits, number)

    def op(self, op: AnyOp) -> bool:
        """The body emits an op with plain operands, or opens a role or scope."""
        number = op.out.id if isinstance(op, Select) else -1
        return self._step(type(op), op.where, lambda known: _is_like(known, op), number)

    def leave(self, op: Role | Scope) -> bool:
        """The body closes a role or scope."""
        return self._step(_Leave, None, lambda known: type(known) is type(op))

    def _step(self, kind: type[Any], where: SourceLoc | None, fits: Callable[[Any], bool], number: int = -1) -> bool:
        found: list[tuple[AnyOp, _Place]] = []
        is_open = False
        for place in self._places:
            for op, is_leave, following in _events(place):
                if op is None:
                    is_open = True
                elif is_leave == (kind is _Leave) and (is_leave or type(op) is kind) and fits(op):
                    found.append((op, following))
        if len(found) > 1 and where is not None:  # branches that begin alike: the line tells them apart
            found = [one for one in found if one[0].where is None or one[0].where.line == where.line] or found
        if not found or len(found) > MAX_PLACES:
            if not found and not is_open:
                self.on_lost()
            return False
        self._places = list({(id(place.body), place.at): place for _, place in found}.values())
        if number >= 0:
            outs = {op.out for op, _ in found}  # type: ignore[union-attr]
            if len(outs) == 1:
                self._origins[number] = outs.pop()
        return True


class _Leave:
    """In place of an op's class: a region is closed."""


def _events(start: _Place) -> list[tuple[AnyOp | None, bool, _Place]]:
    """(op, whether it is closed here, the place behind) of all that may come next; None: anything may."""
    found: list[tuple[AnyOp | None, bool, _Place]] = []
    todo: list[_Place] = [start]
    seen: set[tuple[int, int, int]] = set()  # a round in which nothing is told comes back to where it began
    while todo:
        place = todo.pop()
        body, at, up = place
        key = (id(body), at, id(up.op) if up is not None else 0)
        if key in seen:
            continue
        seen.add(key)
        if at == len(body):
            if up is None:
                continue  # the end
            if isinstance(up.op, (Role, Scope)):
                found.append((up.op, True, up.after))
            else:
                todo.append(up.after)
            continue
        op = body[at]
        behind = _Place(body, at + 1, up)
        if isinstance(op, Opaque):
            found.append((None, False, place))
        elif isinstance(op, _SILENT):
            todo.append(behind)
        elif isinstance(op, Switch):
            todo += [_Place(case.body, 0, _Up(op, behind)) for case in op.cases]
            if not op.is_exhaustive:
                todo.append(behind)
        elif isinstance(op, Loop):
            todo += [behind, _Place(op.body, 0, _Up(op, behind))]
        elif isinstance(op, (Next, Break)):
            todo += _round_ends(op, up, found)
        elif isinstance(op, Return):
            found += _leaves(up)
        elif isinstance(op, (Role, Scope)):
            found.append((op, False, _Place(op.body, 0, _Up(op, behind))))
        else:
            found.append((op, False, behind))
            if isinstance(op, Text) and not isinstance(op.text, str):
                todo.append(behind)  # an empty text is not appended
    return found


def _round_ends(op: Next | Break, up: _Up | None, found: list[tuple[AnyOp | None, bool, _Place]]) -> list[_Place]:
    """Where the innermost loop goes on; the roles and scopes inside of it close first."""
    around: list[_Up] = []
    while up is not None and not isinstance(up.op, Loop):
        if isinstance(up.op, (Role, Scope)):
            around.append(up)
        up = up.after.up
    if up is None:
        return []
    after = [up.after] if isinstance(op, Break) else [up.after, _Place(up.op.body, 0, up)]  # type: ignore[union-attr]
    if not around:
        return after
    # The first to close; what follows it is the end of the round again.
    found.append((around[0].op, True, _Place((op,), 0, around[0].after.up)))
    return []


def _leaves(up: _Up | None) -> list[tuple[AnyOp | None, bool, _Place]]:
    """A return closes the roles and scopes around it."""
    while up is not None and not isinstance(up.op, (Role, Scope)):
        up = up.after.up
    return [] if up is None else [(up.op, True, _Place((Return(),), 0, up.after.up))]


def _is_like(known: Any, op: Any) -> bool:
    """Whether an op of the body is what this op of the trace stands for."""
    if isinstance(op, Select):
        return bool(known.var == op.var and known.method == op.method and _may_be(known.choices, op.choices))
    if isinstance(op, (Role, Special, Media, Scope)):
        return all(getattr(known, name, None) == getattr(op, name, None) for name in ("role", "var", "text", "kind"))
    if isinstance(op, Fork):
        return known.count is not None or len(known.streams) == len(op.streams)
    if isinstance(op, Join):
        return bool(known.mode == op.mode)
    if isinstance(op, Set):
        return bool(known.var == op.var)
    return isinstance(op, Copy)


def _may_be(operand: Any, value: Any) -> bool:
    """Whether an operand of the trace can be this value."""
    return operand == value or any(True for _ in refs_in(operand))


def _options_fit(op: Gen, expr: Any) -> bool:
    known, given = dict(op.sampling), dict(expr.sampling)
    if known.keys() != given.keys() or not all(_may_be(known[name], given[name]) for name in known):
        return False
    if op.constraint is None or expr.constraint is None:
        return op.constraint is expr.constraint
    same_kind = op.constraint.kind == expr.constraint.kind and op.constraint.options == expr.constraint.options
    return same_kind and _may_be(op.constraint.source, expr.constraint.source)
