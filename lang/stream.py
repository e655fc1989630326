"""One text stream of a running program: its tokens, its text, its variables, and what it still has to do.

All prompt text between two generations or special tokens is one *run*, tokenised as one string when it ends, however it
was appended. Ids that were sampled stay as they are; text that a stop cut off in mid-token opens the next run.
Law: detokenise(ids) + pending run = text (less a leading BOS that the text does not show).

What is settled is kept as a list of immutable segments, so a branch costs a copy of pointers, not of text or ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, groupby
from typing import Any

from ..compiler.ir import Role, Scope
from ..core.errors import ProgramError, SourceLoc
from ..core.media import PLACEHOLDERS
from ..core.quick import maker
from ..core.request import MediaRef, Segment
from ..core.text.tokenizer import Tokenizer
from .ahead import Ahead
from .feed import Feed
from .types import TypeSpec

Run = list[tuple[str, SourceLoc | None]]
new_segment = maker(Segment)
GONE: Any = ()  # in place of what a finished stream does not need any more
NO_CHANGES: Any = frozenset()  # of a branch: a set is made for the first
NO_LOG: Any = ()  # of a branch that has appended nothing yet
NO_SEEDS: tuple[int, ...] = (-1,)
MAX_SEGMENTS = 64  # of a stream, before neighbours are joined


def joined(segments: list[Segment]) -> list[Segment]:
    """The same prompt in fewer segments: neighbours that are token ids, or text, become one. A prompt is copied for
    every request, so that a stream of many generations would cost the square of their number."""
    made: list[Segment] = []
    for is_media, run in groupby(segments, lambda segment: segment.media is not None):
        if is_media:
            made += run
            continue
        for is_text, alike in groupby(run, lambda segment: bool(segment.text)):
            if is_text:
                made.append(Segment(text="".join([segment.text for segment in alike])))
            else:
                made.append(new_segment(tuple(chain.from_iterable([segment.ids for segment in alike]))))
    return made


class Slot:
    """A value that an op will produce: a generated text, a choice, what a scope captured, what a join gathered.

    `watchers` are called, in the thread that owns the program, when the value or the error is there.
    """

    __slots__ = ("before", "beside", "error", "is_done", "meta", "parts", "spec", "start", "value", "watchers")
    before: Slot | None  # of what a stream has generated: what it had generated before (set with `start`)
    start: int  # where its text begins in the stream's

    def __init__(self, value: Any = None, is_done: bool = False) -> None:
        self.value = value
        self.spec: TypeSpec | None = None  # how the text becomes what the user reads
        self.parts: tuple[Slot, ...] = ()  # of a join: where the values came from
        self.beside: Slot | None = None  # of a generation: its reasoning
        self.is_done = is_done
        self.error: BaseException | None = None
        self.meta: Any = None
        self.watchers: list[Callable[[], None]] | None = None

    def set(self, value: Any, meta: Any = None) -> None:
        """Give the value; whoever waits for it goes on. Once failed it stays so."""
        if not self.is_done:
            self.value = value
            self.meta = meta
            self.is_done = True
            if self.watchers is not None:
                self._done()

    def fail(self, error: BaseException) -> None:
        """Say that there will be no value."""
        if self.beside is not None:
            self.beside.fail(error)
        if not self.is_done:
            self.error = error
            self._done()

    def read(self, name: str = "", where: SourceLoc | None = None) -> Any:
        """What the user reads: the value, or for a typed generation what its text stands for.

        Raises ProgramError where the text is no such value (it was cut, or the backend does not enforce constraints).
        """
        if self.spec is not None:
            texts = self.value if isinstance(self.value, list) else [self.value]
            for number, text in enumerate(texts):
                self._check_whole(text, number, name, where)
            values = [self._parse(text, name, where) for text in texts]
            return values if isinstance(self.value, list) else values[0]
        if any(part.spec is not None for part in self.parts):
            return [part.read(name, where) for part in self.parts]
        return self.value

    def _parse(self, text: str, name: str, where: SourceLoc | None) -> Any:
        assert self.spec is not None
        try:
            return self.spec.parse(text)
        except ValueError as error:
            shown = getattr(self.spec.type, "__name__", str(self.spec.type))
            raise ProgramError(f"the text of {name!r} is no {shown}: {error}; it is {text!r}", where=where) from None

    def _check_whole(self, text: str, number: int, name: str, where: SourceLoc | None) -> None:
        """Refuse a text that its limit of tokens cut before it met its constraint, though it may look like a value."""
        metas = self.meta if isinstance(self.meta, list) else [self.meta]
        meta = metas[number] if number < len(metas) else None
        info = meta() if callable(meta) else meta
        if isinstance(info, dict) and info.get("is_complete") is False:
            raise ProgramError(
                f"the text of {name!r} is not complete: it was cut by max_tokens after {info['completion_tokens']} "
                f"tokens; it is {text!r} (finish_valid=True ends it in time)",
                where=where,
            )

    def _done(self) -> None:
        self.is_done = True
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when the value is there; at once if it is."""
        if self.is_done:
            watcher()
        elif self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)


class Step:
    """Something a stream has to do when it gets there: `rule(executor, stream, step)`."""

    __slots__ = ("extra", "op", "rule", "slot")

    def __init__(self, rule: Callable[[Any, Stream, Step], None], op: Any, slot: Slot | None = None, extra: Any = None):
        self.rule = rule
        self.op = op
        self.slot = slot
        self.extra = extra

    @property
    def where(self) -> SourceLoc | None:
        return getattr(self.op, "where", None)


class OpenRole:
    """A chat turn whose content is being appended. `text_start`: where its content begins in the stream's text."""

    __slots__ = ("op", "suffix", "text_start")

    def __init__(self, op: Role, text_start: int, suffix: str) -> None:
        self.op = op
        self.text_start = text_start
        self.suffix = suffix


class Stream:
    """The state of one stream; changed only by its executor."""

    __slots__ = (
        "ahead", "branches", "busy", "changes", "error", "feed", "first_message", "fixed", "id", "is_joined",
        "is_rendered", "is_started", "last_mark", "log", "messages", "num_branches", "num_requests", "open_role",
        "path", "pieces", "queue", "regions", "request_id", "roles", "run", "scopes", "seeds", "segments", "siblings",
        "text_len", "variables",
    )  # fmt: skip

    def __init__(self, id: int, path: str, parent: Stream | None = None) -> None:
        """A stream; a branch of `parent` begins when `branch_off` has been called for it."""
        self.id = id
        self.path = path
        # Settled prompt, the run that is not tokenised yet (with the user's lines), and the whole text in pieces.
        self.segments: list[Segment]
        self.run: Run
        self.fixed = 0  # characters of the run up to the end of its last template text, which is never given back
        self.pieces: list[str]
        self.text_len = 0
        self.ahead: Ahead | None = None  # what a call wrote that may serve the next gens too
        self.last_mark: Slot | None = None  # what was generated last
        self.feed: Feed | None = None  # hears of all text
        self.log: list[Any] | None = None  # what a branch appended, for a join that appends it again
        # Chat turns and scopes, as of the last step carried out.
        self.messages: tuple[dict[str, Any], ...] = ()
        self.first_message = 0  # how many of them a branch has from its parent
        self.roles: tuple[str, ...] = ()
        self.open_role: OpenRole | None = None
        self.is_rendered = False  # the template writes all turns anew at each (history="render")
        self.scopes: tuple[tuple[Scope, int], ...] = ()
        # Variables and open regions, as of the last op emitted.
        self.variables: dict[str, Slot]
        self.changes: set[str] | None  # variables that a branch set itself
        self.regions: tuple[Role | Scope, ...]
        self.branches: tuple[Stream, ...] = ()
        self.siblings: tuple[Stream, ...] = ()  # the branches of the same fork, this one included
        # What is still to do.
        self.queue: deque[Step] = GONE  # made for the first step that has to wait
        self.busy: Slot | None = None  # the generation that must end before the next step
        self.request_id = ""  # of that generation
        self.is_started: bool  # a branch starts when its fork is reached
        self.is_joined = False
        self.error: BaseException | None = None
        self.num_requests = 0
        self.seeds = NO_SEEDS  # of the requests around the last one; see RunOptions.seeds_of
        self.num_branches = 0
        if parent is None:
            self.segments, self.run, self.pieces, self.is_started = [], [], [], True
            self.variables, self.changes, self.regions = {}, None, ()
        else:
            self.segments = self.run = self.pieces = GONE
            self.is_started = False
            self.variables, self.changes, self.regions = parent.variables.copy(), NO_CHANGES, parent.regions

    @property
    def is_idle(self) -> bool:
        """Whether every step so far has been carried out."""
        return self.is_started and self.busy is None and not self.queue

    def mark(self, text: str, slot: Slot) -> None:
        """The last text that was appended is what the slot holds."""
        slot.start, slot.before = self.text_len - len(text), self.last_mark
        self.last_mark = slot

    @property
    def marks(self) -> list[tuple[int, Slot]]:
        """Where in the text each generated text begins, in order."""
        found, slot = [], self.last_mark
        while slot is not None:
            found.append((slot.start, slot))
            slot = slot.before
        return found[::-1]

    # -- text and tokens

    def text(self) -> str:
        """All text so far."""
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    def text_from(self, start: int) -> str:
        """The text from character `start` on, without joining what comes before."""
        wanted = self.text_len - start
        if wanted <= 0:
            return ""
        parts: list[str] = []
        for piece in reversed(self.pieces):
            parts.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        parts.reverse()
        return "".join(parts)[-wanted if wanted else 0 :]

    @property
    def pending(self) -> str:
        """The text of the run that is not tokenised yet."""
        if len(self.run) > 1:
            self.run = [("".join([text for text, _ in self.run]), self.run[0][1])]
        return self.run[0][0] if self.run else ""

    def show(self, text: str) -> None:
        """Add to the text what has been added to the tokens."""
        self.pieces.append(text)
        self.text_len += len(text)
        if self.feed is not None:
            self.feed.add_text(text)

    def settled(self) -> tuple[Segment, ...]:
        """The prompt so far, without the run that is not tokenised yet."""
        segments = self.segments
        if len(segments) > MAX_SEGMENTS:
            segments = self.segments = joined(segments)
        return tuple(segments)

    def begin(self, tokenizer: Tokenizer | None, in_template: bool) -> None:
        """Before the first content: a BOS where the tokenizer adds one and no chat template writes it."""
        if tokenizer is not None and not in_template and not self.segments and not self.pieces:
            start = tuple(tokenizer.encode_prompt(""))
            if start:
                self.segments.append(Segment(ids=start))

    def append_text(self, text: str, where: SourceLoc | None = None) -> None:
        """Plain text, in the current run."""
        if text:
            self.run.append((text, where))
            self.pieces.append(text)
            self.text_len += len(text)
            if self.feed is not None:
                self.feed.add_text(text)
            if self.log is not None:
                self._note(text)

    def append_template(self, text: str, where: SourceLoc | None = None) -> None:
        """Template text without special tokens, in the current run."""
        if text:
            log, self.log = self.log, None
            self.append_text(text, where)
            self.fixed = sum([len(piece) for piece, _ in self.run])
            self.log = log
            if log is not None:
                self._note((None, text, "", ""))

    def _note(self, item: Any) -> None:
        """Remember what a branch has appended."""
        if self.log is NO_LOG:
            self.log = [item]
        elif self.log is not None:
            self.log.append(item)

    def free_from(self, tokenizer: Tokenizer) -> int:
        """Where in the run the plain text begins whose ids later text could change."""
        return max(tokenizer.safe_cut(self.pending), self.fixed)

    def append_ids(self, ids: tuple[int, ...], text: str) -> None:
        """Constant tokens whose ids are final; the run before them ends."""
        if ids:
            self.segments.append(new_segment(ids))
        if text:
            self.show(text)
        if self.log is not None:
            self._note((ids, text, "", ""))

    def append_special(self, text: str, tokenizer: Tokenizer | None) -> None:
        """Template text: special tokens in it end the run."""
        if tokenizer is None:
            self.append_text(text)
            return
        for part in tokenizer.split_special(text):
            if isinstance(part, str):
                self.append_template(part)
            else:
                self.close_run(tokenizer)
                self.append_ids((part,), tokenizer.decode([part], skip_special_tokens=False))

    def append_media(self, ref: MediaRef, tokenizer: Tokenizer | None) -> None:
        """A picture or video; the run before it ends, and the text shows a placeholder."""
        self.close_run(tokenizer)
        self.segments.append(Segment(media=ref))
        self.show(PLACEHOLDERS[ref.kind])
        if self.log is not None:
            self._note(ref)

    def append_generated(self, ids: tuple[int, ...], tail: str, text: str, num_told: int = 0, healed: str = "") -> None:
        """What was generated: `ids` stay as they are, `tail` opens the next run; together they are `text`, after the
        `healed` text before it, which is shown already.

        The feed has heard of the first `num_told` characters already.
        """
        if ids:
            self.segments.append(new_segment(ids))
        if tail:
            self.run.append((tail, None))
        if text:
            self.pieces.append(text)
            self.text_len += len(text)
            if self.feed is not None and num_told < len(text):
                self.feed.add_text(text[num_told:])
        if self.log is not None:
            self._note((ids, text, tail, healed))

    def close_run(self, tokenizer: Tokenizer | None) -> None:
        """Tokenise what is pending. Without a tokenizer text stays text."""
        if self.run:
            text = self.pending
            self.run, self.fixed = [], 0
            closed = Segment(text=text) if tokenizer is None else new_segment(tuple(tokenizer.encode(text)))
            self.segments.append(closed)

    def replay(self, log: list[Any], tokenizer: Tokenizer | None) -> None:
        """Append what a branch appended, as it did: text as text, generated ids as they are."""
        for item in log:
            if isinstance(item, str):
                self.append_text(item)
            elif isinstance(item, MediaRef):
                self.append_media(item, tokenizer)
            else:
                ids, text, tail, healed = item
                if healed and not self.pending.endswith(healed):  # it reaches back to before the branch
                    self.append_text(text)
                    continue
                if ids is None:
                    self.append_template(text)
                    continue
                if healed:
                    before, where = self.pending[: -len(healed)], self.run[0][1]
                    self.run = [(before, where)] if before else []
                self.close_run(tokenizer)
                self.append_generated(ids, tail, text, healed=healed)

    # -- branches and failure

    def branch_off(self, streams: tuple[Stream, ...]) -> None:
        """Make each of the streams begin as a copy of this one."""
        run = [(self.pending, None)] if self.run else []
        pieces = [self.text()] if self.pieces else []
        num_messages = len(self.messages)
        role = self.open_role
        for stream in streams:
            stream.segments = self.segments.copy()
            stream.run = run.copy()  # type: ignore[assignment]
            stream.fixed = self.fixed
            stream.pieces = pieces.copy()
            stream.text_len = self.text_len
            stream.last_mark = self.last_mark
            stream.messages = self.messages
            stream.first_message = num_messages
            stream.roles = self.roles
            stream.is_rendered = self.is_rendered
            stream.log = NO_LOG
            if role is not None:
                stream.open_role = OpenRole(role.op, role.text_start, role.suffix)
            stream.is_started = True

    def fail(self, error: BaseException) -> list[Stream]:
        """Stop here: what this stream was still to produce fails. Returns the streams that can never start now."""
        if self.error is not None:
            return []
        self.error = error
        self.is_started = True
        busy, self.busy = self.busy, None
        steps, self.queue = self.queue, GONE
        if busy is not None:
            busy.fail(error)
        for step in steps:
            if step.slot is not None:
                step.slot.fail(error)
        return [branch for branch in self.branches if not branch.is_started]

    def settle(self) -> None:
        """The program has ended: only the text, the turns and the variables are still of use."""
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        self.segments = self.run = GONE
        self.log = self.changes = None
        self.siblings = self.branches = ()
        self.seeds = NO_SEEDS
        self.ahead = None
