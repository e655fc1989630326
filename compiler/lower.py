"""lower: the step from Program to Plan: where each gen and select stands, and what comes after it on its stream."""

from __future__ import annotations

from collections.abc import Iterator

from .ir import (
    AnyOp,
    Break,
    Copy,
    Fork,
    Gen,
    Join,
    Loop,
    Media,
    Next,
    Opaque,
    Program,
    Return,
    Role,
    Scope,
    Select,
    Special,
    Switch,
    Text,
    Tokens,
    walk,
)  # fmt: skip
from .plan import GenFacts, Plan, SelectFacts

Rest = tuple[AnyOp, ...]


def lower(program: Program, tokenizer_hash: str | None = None, passes: tuple[str, ...] = ()) -> Plan:
    """The plan of a program that the program passes have seen; plan passes then add to it (see `pipeline`)."""
    numbers = {id(op): number for number, op in enumerate(walk(program.body))}
    gens: list[GenFacts] = []
    selects: list[SelectFacts] = []
    for op, rests in _with_rests(program.body, ()):
        if isinstance(op, (Gen, Select)):
            follows, literal = _follower(rests, op.stream)
            place = (op.out, numbers[id(op)], op.stream)
            if isinstance(op, Gen):
                gens.append(GenFacts(*place, follows=follows, literal=literal, expected_len=_bound(op)))
            else:
                selects.append(SelectFacts(*place, follows=follows, literal=literal))
    return Plan(program, tokenizer_hash, gens=tuple(gens), selects=tuple(selects), passes=passes)


def _bound(op: Gen) -> int:
    bound = dict(op.sampling).get("max_new_tokens", 0)
    return bound if type(bound) is int else 0


def _with_rests(body: tuple[AnyOp, ...], outer: tuple[Rest, ...]) -> Iterator[tuple[AnyOp, tuple[Rest, ...]]]:
    """Every op with what follows it: the rest of its region, then of each region around it, innermost first."""
    for i, op in enumerate(body):
        rests = (body[i + 1 :], *outer)
        yield op, rests
        if isinstance(op, (Role, Scope)):
            yield from _with_rests(op.body, rests)
        elif isinstance(op, Loop):
            yield from _with_rests(op.body, ())
        elif isinstance(op, Switch):
            for case in op.cases:
                yield from _with_rests(case.body, rests)


def _follower(rests: tuple[Rest, ...], stream: int) -> tuple[str, str]:
    """(one of plan.FOLLOWERS, the constant text if it is "literal")."""
    literal = ""
    for op in _straight(rests):
        if isinstance(op, (Switch, Loop, Next, Break)) or (isinstance(op, Join) and stream in op.streams):
            found = "join" if isinstance(op, Join) else "branch"
        elif isinstance(op, (Return, Opaque)):
            found = "end" if isinstance(op, Return) else "break"
        elif op.stream != stream:
            continue
        elif isinstance(op, (Text, Tokens, Special)) and isinstance(op.text, str):
            literal += op.text
            continue
        else:
            found = _FOLLOWER.get(type(op), "")
            if not found or (isinstance(op, Role) and op.prefix is not None):
                continue
        return ("literal", literal) if literal else (found, "")
    return ("literal", literal) if literal else ("end", "")


_FOLLOWER: dict[type[AnyOp], str] = {
    Text: "value",
    Gen: "gen",
    Select: "select",
    Media: "media",
    Role: "turn",
    Fork: "fork",
    Copy: "fork",
    Join: "join",
}


def _straight(rests: tuple[Rest, ...]) -> Iterator[AnyOp]:
    """The ops that come next on every path, into regions that always run, up to the first branch and with it."""
    for rest in rests:
        for op in rest:
            yield op
            if isinstance(op, (Role, Scope)):
                yield from _straight((op.body,))
