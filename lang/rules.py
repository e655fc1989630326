"""How each op of a stream is carried out: one function per op class, `rule(executor, stream, step)`.

A rule runs when the stream has got to its step. It may raise: then the stream fails with that error at the op's line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compiler.ir import (
    OP_CLASSES,
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
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
    Tokens,
)
from ..core.errors import ProgramError, SourceLoc, TemplateError
from ..core.quick import maker
from . import rendered
from .generate import generate
from .media import append_media
from .score import select
from .steps import append_special, check_text, close_run, root_of
from .stream import OpenRole, Slot, Step, Stream
from .turns import plain_turn

if TYPE_CHECKING:
    from ..core.text.template import ChatTemplate
    from .executor import Executor

Rule = Callable[["Executor", Stream, Step], None]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join has settled when it was taken: its branches, when they are done, and the lists it will fill."""

    branches: tuple[Stream, ...]
    marks: tuple[Slot, ...]
    gathered: list[tuple[Slot, tuple[Slot, ...]]]


new_joined = maker(Joined)


# -- text


def plain_text(executor: Executor, stream: Stream, step: Step) -> None:
    """Text given without an op."""
    stream.begin(executor.tokenizer, stream.open_role is not None)
    stream.append_text(step.op, step.extra)


def _text(executor: Executor, stream: Stream, step: Step) -> None:
    op: Text = step.op
    stream.begin(executor.tokenizer, stream.open_role is not None)
    stream.append_text(check_text(op.text, op.where), op.where)


def _tokens(executor: Executor, stream: Stream, step: Step) -> None:
    op: Tokens = step.op
    tokenizer = executor.tokenizer
    if tokenizer is None or (op.continues and stream.run):
        stream.append_template(op.text[: op.fixed], op.where)
        stream.append_text(op.text[op.fixed :], op.where)
        return
    stream.begin(tokenizer, stream.open_role is not None or (bool(op.ids) and op.ids[0] == tokenizer.bos_id))
    close_run(executor, stream)
    stream.append_ids(op.ids, op.text)


def _special(executor: Executor, stream: Stream, step: Step) -> None:
    stream.begin(executor.tokenizer, True)
    append_special(executor, stream, step.op.text)


# -- waiting


def await_slot(executor: Executor, stream: Stream, step: Step) -> None:
    """Go on when the slot is done, with a value or an error."""
    executor.wait_on(stream, step.extra)


def resolved(executor: Executor, stream: Stream, step: Step) -> None:
    """The op's operands are known now: put them in, and carry it out."""
    step.op = step.extra()
    rule_of(step.op)(executor, stream, step)


def set_mark(executor: Executor, stream: Stream, step: Step) -> None:
    """The stream has got here: tell who waits for it."""
    assert step.slot is not None
    step.slot.set(step.extra())


# -- chat turns and scopes


def enter_scope(executor: Executor, stream: Stream, step: Step) -> None:
    stream.scopes += ((step.op, stream.text_len),)


def leave_scope(executor: Executor, stream: Stream, step: Step) -> None:
    start = next((start for op, start in reversed(stream.scopes) if op is step.op), stream.text_len)
    stream.scopes = tuple([entry for entry in stream.scopes if entry[0] is not step.op])
    assert step.slot is not None
    step.slot.set(stream.text_from(start))


def enter_role(executor: Executor, stream: Stream, step: Step) -> None:
    op: Role = step.op
    stream.roles = (*stream.roles, op.role)
    if op.prefix is not None:  # lowered: the body holds the template's text
        stream.open_role = OpenRole(op, stream.text_len + len(op.prefix), op.suffix or "")
        return
    if executor.backend.capabilities.chat:
        prefix, suffix = plain_turn(op.role)
        stream.append_text(prefix)
        stream.open_role = OpenRole(op, stream.text_len, suffix)
        return
    template = _template(executor, op)
    if executor.options.history == "render" and (stream.is_rendered or template.fragments(stream.roles) is None):
        stream.is_rendered = True
        rendered.enter(executor, stream, op, template)
        return
    prefix, suffix = _fragments(executor, template, stream.roles, op.where)
    stream.begin(executor.tokenizer, True)
    append_special(executor, stream, prefix)
    stream.open_role = OpenRole(op, stream.text_len, suffix)


def leave_role(executor: Executor, stream: Stream, step: Step) -> None:
    op: Role = step.op
    role, stream.open_role = stream.open_role, None
    if role is None:
        raise ProgramError(f"the {op.role} turn was not opened on this branch", where=op.where)
    content = stream.text_from(role.text_start)
    if op.suffix:
        content = content[: -len(op.suffix)]
    stream.messages += ({"role": op.role, "content": content},)
    if stream.is_rendered:
        rendered.leave(executor, stream, _template(executor, op))
    elif op.suffix is None:
        if executor.backend.capabilities.chat:
            stream.append_text(role.suffix)
        else:
            append_special(executor, stream, role.suffix)


def _template(executor: Executor, op: Role) -> ChatTemplate:
    template = executor.tokenizer.chat_template if executor.tokenizer is not None else None
    if template is None:
        raise TemplateError(f"a {op.role} turn needs a chat template, and the model's tokenizer has none")
    return template


def _fragments(
    executor: Executor, template: ChatTemplate, roles: tuple[str, ...], where: SourceLoc | None
) -> tuple[str, str]:
    found = template.fragments(roles)
    if found is not None:
        return found
    found = template.fragments(roles, plain=True)
    if found is None:
        found = template.append_fragments(roles)
    executor.hub.warn(
        f"{where}: the model's chat template would write this conversation differently: {template.explain(roles)}; "
        "the turns are appended one by one",
        key=(where, roles),
    )
    return found


def messages(stream: Stream) -> list[dict[str, Any]]:
    """The chat turns so far, the open one included."""
    open_turn = []
    if stream.open_role is not None:
        content = stream.text_from(stream.open_role.text_start)
        open_turn = [{"role": stream.open_role.op.role, "content": content}]
    return [dict(message) for message in stream.messages] + open_turn


# -- branches


def _fork(executor: Executor, stream: Stream, step: Step) -> None:
    stream.branch_off(step.extra)
    for branch in step.extra:
        if branch.queue:
            executor.advance(branch)


def _join(executor: Executor, stream: Stream, step: Step) -> None:
    joined: Joined = step.extra
    for branch in joined.branches:
        if branch.error is not None:
            failed = root_of(branch.error)
            for slot, _ in joined.gathered:
                slot.fail(failed)
            raise failed
    for slot, parts in joined.gathered:
        error = next((part.error for part in parts if part.error is not None), None)
        if error is not None:
            slot.fail(error)
        else:
            slot.parts = parts
            slot.set([part.value for part in parts], [part.meta for part in parts])
    if step.op.mode == "concate_and_append":
        for branch in joined.branches:
            stream.replay(branch.log or [], executor.tokenizer)
            stream.messages += branch.messages[branch.first_message :]


def meta_of(meta: Any) -> Any:
    """Meta info as the user gets it; it is made when asked for, not for every generation."""
    if isinstance(meta, list):
        return [meta_of(item) for item in meta]
    return meta() if callable(meta) else meta


def _nothing(executor: Executor, stream: Stream, step: Step) -> None:
    """A break in a plan: the body goes on by itself."""


def _not_a_step(executor: Executor, stream: Stream, step: Step) -> None:
    raise ProgramError(f"the op {step.op.name!r} is no step of a stream", where=step.op.where)


_RULES: Mapping[type, Rule] = {
    Text: _text, Tokens: _tokens, Special: _special, Media: append_media, Gen: generate, Select: select, Fork: _fork,
    Branch: _not_a_step,
    Copy: _fork, Join: _join, Opaque: _nothing, Role: enter_role, Scope: enter_scope, Arg: _not_a_step,
    Expr: _not_a_step, Host: _not_a_step, Switch: _not_a_step,
    Loop: _not_a_step, Next: _not_a_step, Break: _not_a_step, Return: _not_a_step, Set: _not_a_step,
}  # fmt: skip

if missing := set(OP_CLASSES.values()) - _RULES.keys():
    raise TypeError(f"the executor has no rule for {sorted(cls.__name__ for cls in missing)}")


def rule_of(op: AnyOp) -> Rule:
    """The rule of an op's class."""
    return _RULES[type(op)]
