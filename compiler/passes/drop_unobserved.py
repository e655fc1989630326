"""drop-unobserved: with `outputs=`, what no output can observe is not run.

Observable are the variables named, what the program returns, and the effects of host calls. A gen or select stays if
its value reaches one of these, or stands in the prompt of one that stays; what appends or computes only for dropped
ones goes with them. Without `outputs=` everything reachable from the state is observable, and nothing is dropped. Ops
that make, end or leave streams stay, so that branches keep their paths and with them their seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..fields import new_streams, used
from ..ir import (
    AnyOp,
    Branch,
    Case,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Media,
    Program,
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
    Tokens,
    walk,
)  # fmt: skip
from .base import Context, ProgramPass, ends


def run(program: Program, context: Context) -> Program:
    """The program without what the outputs cannot observe; unchanged without outputs, with a break, or a fork whose
    size only the run knows."""
    outputs = context.options.outputs
    if outputs is None or not program.is_whole or any(isinstance(op, Branch) for op in walk(program.body)):
        return program  # in a fork of unknown size any branch may give what another one reads
    at_end = _Live(variables={(0, name) for name in outputs})
    body, _ = _region(program.body, at_end, at_end)
    return replace(program, body=body)


@dataclass(slots=True)
class _Live:
    """What is wanted later: values, variables of streams, and the text of streams."""

    values: set[int] = field(default_factory=set)
    variables: set[tuple[int, str]] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)

    def copy(self) -> _Live:
        return _Live(set(self.values), set(self.variables), set(self.texts))

    def add(self, other: _Live) -> None:
        self.values |= other.values
        self.variables |= other.variables
        self.texts |= other.texts

    def read(self, op: AnyOp) -> None:
        """The values that an op reads are wanted."""
        self.values.update(ref.id for ref in used(op))


def _region(body: tuple[AnyOp, ...], after: _Live, at_end: _Live) -> tuple[tuple[AnyOp, ...], _Live]:
    """(what stays, what is wanted before it). `at_end` is what is wanted when the program ends."""
    live = after.copy()
    kept: list[AnyOp] = []
    for old in reversed(body):
        op = _keep(old, live, at_end)
        if op is not None:
            kept.append(op)
    return tuple(reversed(kept)), live


def _keep(op: AnyOp, live: _Live, at_end: _Live) -> AnyOp | None:
    """The op, or what stays of it; `live` becomes what is wanted before it."""
    if isinstance(op, (Gen, Select, Set)):
        return _writer(op, live)
    if isinstance(op, (Text, Tokens, Special, Media)):
        return _wanted(op, op.stream in live.texts, live)
    if isinstance(op, Expr):
        return _expr(op, live)
    if isinstance(op, Host):
        return _wanted(op, not op.is_pure or op.out.id in live.values, live)
    if isinstance(op, (Role, Scope)):
        return _scope(op, live, at_end)
    if isinstance(op, Switch):
        return _switch(op, live, at_end)
    if op.name == "loop":
        _want_all(op, live)
        return op
    if isinstance(op, Return):
        live.values, live.variables, live.texts = set(), set(at_end.variables), set()
        return _wanted(op, True, live)
    if isinstance(op, (Fork, Copy, Join)):
        _streams(op, live)
    else:  # Arg, and what ends a round or the path
        live.read(op)
    return op


def _wanted(op: AnyOp, is_wanted: bool, live: _Live) -> AnyOp | None:
    if not is_wanted:
        return None
    live.read(op)
    return op


def _writer(op: Gen | Select | Set, live: _Live) -> AnyOp | None:
    is_wanted = op.var is not None and (op.stream, op.var) in live.variables
    if not isinstance(op, Set):
        is_wanted = is_wanted or op.out.id in live.values or op.stream in live.texts
        if is_wanted:
            live.texts.add(op.stream)
    if is_wanted and op.var is not None:
        live.variables.discard((op.stream, op.var))
    return _wanted(op, is_wanted, live)


def _expr(op: Expr, live: _Live) -> AnyOp | None:
    if op.out.id not in live.values:
        return None
    if op.fn in ("get", "has", "typed"):
        live.variables.add((op.stream, str(op.args[0])))
    elif op.fn == "text":
        live.texts.add(op.stream)
    return _wanted(op, True, live)


def _scope(op: Role | Scope, live: _Live, at_end: _Live) -> AnyOp | None:
    is_wanted = False
    if isinstance(op, Scope):
        is_wanted = op.out.id in live.values or (op.stream, op.var) in live.variables
        live.variables.discard((op.stream, op.var))
        if is_wanted:
            live.texts.add(op.stream)
    is_text = op.stream in live.texts
    body, before = _region(op.body, live, at_end)
    live.values, live.variables, live.texts = before.values, before.variables, before.texts
    if not body and not is_wanted and not is_text:
        return None
    return replace(op, body=body)


def _switch(op: Switch, live: _Live, at_end: _Live) -> AnyOp | None:
    after = live.copy()
    if op.is_exhaustive:
        live.values, live.variables, live.texts = set(), set(), set()
    cases: list[Case] = []
    for case in op.cases:
        body, before = _region(case.body, _Live() if ends(case.body) else after, at_end)
        cases.append(Case(case.value, body))
        live.add(before)
    if not any(case.body for case in cases):
        live.add(after)
        return None
    return _wanted(replace(op, cases=tuple(cases)), True, live)


def _streams(op: Fork | Copy | Join, live: _Live) -> None:
    if isinstance(op, Join):
        if op.mode == "concate_and_append" and op.stream in live.texts:
            live.texts |= set(op.streams)
        names = {name for stream, name in live.variables if stream == op.stream}
        live.variables |= {(branch, name) for branch in op.streams for name in names}
        return
    for branch in new_streams(op):
        if branch in live.texts:
            live.texts.add(op.stream)
        live.variables |= {(op.stream, name) for stream, name in live.variables if stream == branch}


def _want_all(op: AnyOp, live: _Live) -> None:
    """Everything in a loop stays: what a round wants, the round before gives."""
    for inner in walk((op,)):
        live.read(inner)
        live.texts.add(inner.stream)
        live.texts.update(new_streams(inner))
        if isinstance(inner, Expr) and inner.fn in ("get", "has", "typed"):
            live.variables.add((inner.stream, str(inner.args[0])))


DROP_UNOBSERVED = ProgramPass(
    "drop-unobserved",
    "With `outputs=`, drops gens whose value no output can observe, and what only they needed; nothing without it.",
    run,
)
