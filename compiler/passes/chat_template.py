"""lower-chat-template: write the template's text around each turn, where it is known beforehand.

A turn's text is known if the template gives the same fragments for every sequence of roles that can lead to it. All
turns are lowered or none: a conversation is rendered by one hand.
"""

from __future__ import annotations

from dataclasses import replace

from ..fields import map_regions
from ..ir import AnyOp, Copy, Fork, Program, Role, Scope, Special, Switch, walk
from .base import Context, ProgramPass, ends

MAX_HISTORIES = 64  # role sequences followed through branches; beyond, roles stay
Histories = dict[int, frozenset[tuple[str, ...]]]  # stream -> the role sequences that can have been on it


class _Unknown(Exception):
    """The template does not pass, or a turn's fragments depend on the path."""


def run(program: Program, context: Context) -> Program:
    """The program with every Role lowered, or unchanged."""
    if context.template is None or not any(isinstance(op, Role) for op in walk(program.body)):
        return program
    try:
        body = _Lowering(context).region(program.body, {0: frozenset({()})})
    except _Unknown:
        return program
    return replace(program, body=body)


class _Lowering:
    def __init__(self, context: Context) -> None:
        self.context = context

    def region(self, body: tuple[AnyOp, ...], histories: Histories) -> tuple[AnyOp, ...]:
        """The region lowered; `histories` becomes what holds after it."""
        return tuple(self.op(op, histories) for op in body)

    def op(self, op: AnyOp, histories: Histories) -> AnyOp:
        if isinstance(op, Role):
            return self.role(op, histories)
        if isinstance(op, (Fork, Copy)):
            for stream in op.streams if isinstance(op, Fork) else (op.target,):
                histories[stream] = histories[op.stream]
        if isinstance(op, Scope):
            return map_regions(op, lambda body: self.region(body, histories))
        if isinstance(op, Switch):
            return self.switch(op, histories)
        return op

    def role(self, op: Role, histories: Histories) -> Role:
        if op.prefix is not None:
            raise _Unknown
        after = frozenset((*roles, op.role) for roles in histories[op.stream])
        histories[op.stream] = after
        template = self.context.template
        found = {template.fragments(roles) for roles in after} if template is not None else set()
        if len(found) != 1 or (fragments := found.pop()) is None:
            raise _Unknown
        prefix, suffix = fragments
        body = self.region(op.body, histories)
        first = (Special(stream=op.stream, text=prefix, where=op.where),) if prefix else ()
        last = (Special(stream=op.stream, text=suffix, where=op.where),) if suffix and not ends(body) else ()
        return replace(op, body=(*first, *body, *last), prefix=prefix, suffix=suffix)

    def switch(self, op: Switch, histories: Histories) -> Switch:
        before = dict(histories)
        afters: list[Histories] = [] if op.is_exhaustive else [before]
        cases = []
        for case in op.cases:
            inside = dict(before)
            cases.append(replace(case, body=self.region(case.body, inside)))
            if not ends(case.body):
                afters.append(inside)
        for stream in before:
            merged = frozenset().union(*(after[stream] for after in afters)) if afters else before[stream]
            if len(merged) > MAX_HISTORIES:
                raise _Unknown
            histories[stream] = merged
        return replace(op, cases=tuple(cases))


LOWER_CHAT_TEMPLATE = ProgramPass(
    "lower-chat-template",
    "Puts the chat template's text around each turn as special text, if it is known for every turn.",
    run,
)
