"""lower-chat-template: write the template's text around each turn whose text is known beforehand.

A turn's text is known if the template gives the same fragments for every sequence of roles that can lead to it. Some
templates keep to their fragments only for plain contents (no white space around them): then a turn is lowered if its
content is constant and plain. The executor renders the other turns, by the same fragments; so it does where the program
may return inside the turn, which closes it.
"""

from __future__ import annotations

from dataclasses import replace

from ...core.text.template import is_plain_content
from ..fields import map_regions, new_streams
from ..ir import AnyOp, Branch, Copy, Fork, Loop, Program, Return, Role, Scope, Special, Switch, Text, walk
from .base import ChatFragments, Context, ProgramPass, ends

MAX_HISTORIES = 64  # role sequences followed through branches; beyond, turns stay as they are
Histories = dict[int, frozenset[tuple[str, ...]]]  # stream -> the role sequences that can be on it; empty: too many


def run(program: Program, context: Context) -> Program:
    """The program with its turns lowered where their text is known; unchanged without a template."""
    if context.template is None:
        return program
    body = _Lowering(context.template).region(program.body, {0: frozenset({()})})
    return replace(program, body=body)


class _Lowering:
    def __init__(self, template: ChatFragments) -> None:
        self.template = template

    def region(self, body: tuple[AnyOp, ...], histories: Histories) -> tuple[AnyOp, ...]:
        """The region lowered; `histories` becomes what holds after it."""
        return tuple(self.op(op, histories) for op in body)

    def op(self, op: AnyOp, histories: Histories) -> AnyOp:
        if isinstance(op, Role):
            return self.role(op, histories)
        if isinstance(op, (Fork, Copy)):
            for stream in new_streams(op):
                histories[stream] = histories[op.stream]
        if isinstance(op, Branch):
            histories[op.target] = frozenset()  # turns that were added to it before are not known
        if isinstance(op, Scope):
            return map_regions(op, lambda body: self.region(body, histories))
        if isinstance(op, Switch):
            return self.switch(op, histories)
        if isinstance(op, Loop):
            histories.update(dict.fromkeys(histories, frozenset()))  # how many turns its rounds add is not known
            inside = dict(histories)
            return map_regions(op, lambda body: self.region(body, inside))
        return op

    def role(self, op: Role, histories: Histories) -> Role:
        histories[op.stream] = after = frozenset((*roles, op.role) for roles in histories[op.stream])
        body = self.region(op.body, histories)
        can_return = any(isinstance(inner, Return) for inner in walk(body))  # then leaving appends the suffix
        fragments = self.fragments(after, body) if op.prefix is None and not can_return else None
        if fragments is None:
            return replace(op, body=body)
        prefix, suffix = fragments
        first = (Special(stream=op.stream, text=prefix, where=op.where),) if prefix else ()
        last = (Special(stream=op.stream, text=suffix, where=op.where),) if suffix and not ends(body) else ()
        return replace(op, body=(*first, *body, *last), prefix=prefix, suffix=suffix)

    def fragments(self, histories: frozenset[tuple[str, ...]], body: tuple[AnyOp, ...]) -> tuple[str, str] | None:
        """The template's text around the last turn of each of these conversations, if it is one and the same."""
        found = {self.template.fragments(roles) for roles in histories}
        if found == {None} and _is_plain(body):
            found = {self.template.fragments(roles, plain=True) for roles in histories}
        return found.pop() if len(found) == 1 else None

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
            sets = [after[stream] for after in afters]
            merged: frozenset[tuple[str, ...]] = frozenset().union(*sets) if all(sets) else frozenset()
            histories[stream] = merged if len(merged) <= MAX_HISTORIES else frozenset()
        return replace(op, cases=tuple(cases))


def _is_plain(body: tuple[AnyOp, ...]) -> bool:
    """Whether a turn's content is constant, and such that the template leaves it as it is."""
    texts = [op.text for op in body if isinstance(op, Text) and isinstance(op.text, str)]
    return len(texts) == len(body) and is_plain_content("".join(texts))


LOWER_CHAT_TEMPLATE = ProgramPass(
    "lower-chat-template",
    "Puts the chat template's text around each turn, as special text, where it is known for every path.",
    run,
)
