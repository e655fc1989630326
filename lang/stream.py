"""One text stream of a running program: its tokens, its text, its variables.

All prompt text between two generations or special tokens is one *run*, tokenised as one string when it ends, however it
was appended. Ids that were sampled stay as they are; text that a stop cut off in mid-token opens the next run.
Law: detokenise(ids) + pending = text (less a leading BOS that the text does not show).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from ..compiler.ir import AnyOp, Role, Scope, Tokens
from ..core.errors import DslcError
from ..core.text.tokenizer import Tokenizer


class Slot:
    """A value that an op will produce: a generated text, a choice, what a scope captured, what a join gathered."""

    __slots__ = ("error", "is_done", "meta", "value")

    def __init__(self, value: Any = None, is_done: bool = False) -> None:
        self.value = value
        self.is_done = is_done
        self.error: DslcError | None = None
        self.meta: Any = None

    def set(self, value: Any, meta: Any = None) -> None:
        """Give the value; whoever waits for it goes on."""
        self.value = value
        self.meta = meta
        self.is_done = True

    def fail(self, error: DslcError) -> None:
        """Say that there will be no value."""
        if not self.is_done:
            self.error = error
            self.is_done = True


@dataclass(slots=True)
class Step:
    """Something a stream has to do, in order: an op, or the opening or closing of a region."""

    kind: Literal["op", "enter", "leave"]
    op: AnyOp
    slot: Slot | None = None
    branches: tuple[Stream, ...] = ()


@dataclass(slots=True)
class OpenRole:
    """A chat turn whose content is being appended. `text_start`: where its content begins in the stream's text."""

    op: Role
    text_start: int
    suffix: str
    prefix_len: int = 0


@dataclass(slots=True, eq=False)
class Stream:
    """The state of one stream; changed only by its executor."""

    id: int
    path: str
    ids: list[int] = field(default_factory=list)
    pending: str = ""  # text of the run that is not tokenised yet
    text: str = ""
    variables: dict[str, Slot] = field(default_factory=dict)  # as of the last emitted op
    messages: list[dict[str, Any]] = field(default_factory=list)
    roles: tuple[str, ...] = ()
    open_role: OpenRole | None = None
    scopes: list[tuple[Scope, int, Slot]] = field(default_factory=list)
    queue: deque[Step] = field(default_factory=deque)
    busy: Slot | None = None  # the generation that must end before the next step
    is_started: bool = True  # a branch starts when its fork is reached
    is_joined: bool = False
    error: DslcError | None = None
    num_requests: int = 0
    num_branches: int = 0
    inherited: dict[str, Slot] = field(default_factory=dict)  # variables at the fork
    fork_at: tuple[int, int, str] = (0, 0, "")  # (ids, text length, pending) of the parent at the fork
    regions: list[Role | Scope] = field(default_factory=list)  # open as of the last emitted op

    @property
    def is_idle(self) -> bool:
        """Whether every step so far has been carried out."""
        return self.is_started and self.busy is None and not self.queue

    # -- appending

    def begin(self, tokenizer: Tokenizer | None, in_template: bool) -> None:
        """Before the first content: a BOS where the tokenizer adds one and no chat template writes it."""
        if tokenizer is not None and not self.ids and not self.text and not in_template:
            self.ids += tokenizer.encode_prompt("")

    def append_text(self, text: str) -> None:
        """Plain text, in the current run."""
        self.pending += text
        self.text += text

    def append_tokens(self, op: Tokens, tokenizer: Tokenizer) -> None:
        """Constant text whose ids are known."""
        if op.continues and self.pending:
            self.append_text(op.text)
            return
        self.close_run(tokenizer)
        self.ids += op.ids
        self.text += op.text

    def append_special(self, text: str, tokenizer: Tokenizer | None) -> None:
        """Template text: special tokens in it end the run."""
        if tokenizer is None:
            self.append_text(text)
            return
        for part in tokenizer.split_special(text):
            if isinstance(part, str):
                self.append_text(part)
            else:
                self.close_run(tokenizer)
                self.ids.append(part)
                self.text += tokenizer.decode([part], skip_special_tokens=False)

    def close_run(self, tokenizer: Tokenizer | None) -> None:
        """Tokenise what is pending. Without a tokenizer text stays text."""
        if self.pending and tokenizer is not None:
            self.ids += tokenizer.encode(self.pending)
            self.pending = ""

    def branch(self, stream: Stream) -> None:
        """Make `stream` begin as a copy of this one."""
        stream.ids = list(self.ids)
        stream.pending = self.pending
        stream.text = self.text
        stream.messages = [dict(message) for message in self.messages]
        stream.roles = self.roles
        if self.open_role is not None:
            role = self.open_role
            stream.open_role = OpenRole(role.op, role.text_start, role.suffix, role.prefix_len)
        stream.fork_at = (len(self.ids), len(self.text), self.pending)
        stream.is_started = True

    def fail(self, error: DslcError) -> None:
        """Stop here: nothing more is carried out on this stream, and what it was to produce fails."""
        if self.error is not None:
            return
        self.error = error
        self.is_started = True
        if self.busy is not None:
            self.busy.fail(error)
            self.busy = None
        for step in self.queue:
            if step.slot is not None:
                step.slot.fail(error)
            for branch in step.branches:
                branch.fail(error)
        self.queue.clear()
        for _, _, slot in self.scopes:
            slot.fail(error)
