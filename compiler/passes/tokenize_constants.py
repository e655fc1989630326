"""tokenize-constants: constant text becomes the ids it will have in every run.

The prompt text between two generations, special tokens or pictures (a *run*) is tokenised as one string, however it is
split into ops. So the ids of a run's constant beginning are final up to the last safe cut; what stands behind it stays
text, for a generation may give it back in order to choose its first token freely. A special token or a picture ends a
run: then its ids are final to the end. After a generation a run may open with text kept from a cut generation; the ids
made there are marked `continues`, and hold if there is none.

Where the tokenizer adds a BOS, special text that opens a stream outside a chat turn is left alone unless it brings its
own: whether one goes before it is for the executor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..fields import map_regions, new_streams
from ..ir import AnyOp, Branch, Copy, Fork, Gen, Join, Loop, Media, Program, Role, Select, Special, Switch, Text, Tokens
from .base import Context, ProgramPass, ends

if TYPE_CHECKING:
    from ...core.text.tokenizer import Tokenizer

_FIRST_LOOK = 1  # characters beyond a boundary where a cut is looked for first; doubled each time


@dataclass(slots=True)
class _Run:
    """The run of a stream so far: its text while all of it is constant, and how much of that stands as ids."""

    text: str | None = ""
    done: int = 0
    fixed: int = 0  # where the last template text ends: what is before is never given back
    continues: bool = False
    is_opening: bool = False  # a BOS may be due: nothing has been appended yet, and no chat turn is open
    tail: Text | Special | None = None  # the one op that holds text[done:], if no other stream begins with it

    def copy(self) -> _Run:
        return replace(self, tail=None)

    def same(self, other: _Run) -> bool:
        mine = (self.text, self.done, self.fixed, self.continues, self.is_opening)
        return mine == (other.text, other.done, other.fixed, other.continues, other.is_opening)


def run(program: Program, context: Context) -> Program:
    """The program with its constant text tokenised; unchanged without a tokenizer."""
    if context.tokenizer is None:
        return program
    tokenizing = _Tokenizing(context.tokenizer)
    body = tokenizing.region(program.body)
    return replace(program, body=tokenizing.finish(body))


class _Tokenizing:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.runs: dict[int, _Run] = {0: _Run(is_opening=bool(tokenizer.encode_prompt("")))}
        self.closed: dict[int, tuple[Text | Special, Tokens]] = {}  # id(op) -> a text whose run has ended, as ids

    def region(self, body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        out: list[AnyOp] = []
        for op in body:
            self.op(op, out)
        return tuple(out)

    def op(self, op: AnyOp, out: list[AnyOp]) -> None:
        run = self.runs[op.stream]
        if isinstance(op, Role) or (isinstance(op, Text) and isinstance(op.text, str)):
            run.is_opening = False  # an empty value would append nothing
        parts = self.tokenizer.split_special(op.text) if isinstance(op, Special) and run.is_opening else []
        if parts and parts[0] != self.tokenizer.bos_id:
            out.append(op)
            self.runs[op.stream] = _Run() if isinstance(parts[-1], int) else _Run(text=None)
        elif isinstance(op, Text):
            if isinstance(op.text, str) and run.text is not None:
                self.constant(op, op.text, run, out)
            else:
                run.text, run.tail = None, None
                out.append(op)
        elif isinstance(op, Special):
            self.special(op, run, out)
        elif isinstance(op, Media):
            self.close(run)
            out.append(op)
            self.runs[op.stream] = _Run()
        elif isinstance(op, (Gen, Select, Join)):
            out.append(op)
            if not isinstance(op, Join) or op.mode == "concate_and_append":
                # A join of empty branches appends nothing.
                is_opening = run.is_opening and isinstance(op, Join)
                self.runs[op.stream] = _Run(continues=True, is_opening=is_opening)
        elif isinstance(op, Tokens):
            out.append(op)  # the work of an earlier run of this pass
            self.runs[op.stream] = _Run(text=None)
        elif isinstance(op, (Fork, Copy)):
            run.tail = None  # the new streams begin with it: it has to stay text
            for stream in new_streams(op):
                self.runs[stream] = run.copy()
            out.append(op)
        elif isinstance(op, Branch):
            self.runs[op.target] = _Run(continues=True, is_opening=run.is_opening)
            out.append(op)
        elif isinstance(op, Switch):
            out.append(self.switch(op))
        elif isinstance(op, Loop):
            out.append(self.loop(op))
        elif isinstance(op, Role) and op.prefix is None:
            # The executor renders the template around it: what the runs hold there only it knows.
            self.runs[op.stream] = _Run(text=None)
            out.append(map_regions(op, self.region))
            self.runs[op.stream] = _Run(text=None)
        else:
            out.append(map_regions(op, self.region))

    def constant(self, op: Text | Special, piece: str, run: _Run, out: list[AnyOp]) -> None:
        """Append constant text to a constant run: ids up to the safe cut, the rest as text."""
        assert run.text is not None
        old = before = len(run.text)
        run.text += piece
        if isinstance(op, Special):
            run.fixed = len(run.text)
        cut = self.tokenizer.safe_cut(run.text)
        tail = run.tail
        if tail is not None and out and out[-1] is tail and cut > run.done:
            out.pop()  # nothing stands between: both as one piece
            before = run.done
            piece = run.text[before:]
        start = before if run.done == before else self.first_cut(run.text, before)
        if cut <= start:
            put = _put_text(op, piece, out)
            run.tail = put if run.done == before else None
            return
        if start > before:
            _put_text(op, run.text[before:start], out)
        out.append(self.tokens(op, run, start, cut))
        run.done, run.tail = cut, None
        if cut < old and tail is not None and type(tail) is not type(op):
            _put_text(tail, run.text[cut:old], out)
            _put_text(op, piece[old - before :], out)
        elif cut < len(run.text):
            run.tail = _put_text(op, run.text[cut:], out)

    def tokens(self, op: Text | Special, run: _Run, start: int, stop: int) -> Tokens:
        """A constant piece of a run as ids."""
        assert run.text is not None
        fixed = max(0, min(run.fixed, stop) - start) if run.continues else 0
        ids, text = self.ids(run.text, start, stop), run.text[start:stop]
        return Tokens(stream=op.stream, ids=ids, text=text, continues=run.continues, fixed=fixed, where=op.where)

    def special(self, op: Special, run: _Run, out: list[AnyOp]) -> None:
        """Template text: its plain parts belong to runs, its special tokens end them."""
        for part in self.tokenizer.split_special(op.text):
            if isinstance(part, str):
                if run.text is None:
                    _put_text(op, part, out)
                elif part:
                    self.constant(op, part, run, out)
                continue
            self.close(run)
            text = self.tokenizer.decode([part], skip_special_tokens=False)
            out.append(Tokens(stream=op.stream, ids=(part,), text=text, where=op.where))
            run = self.runs[op.stream] = _Run()

    def close(self, run: _Run) -> None:
        """The run ends here: what was still text is final too, if one op holds all of it."""
        if run.tail is None or run.text is None:
            return
        self.closed[id(run.tail)] = run.tail, self.tokens(run.tail, run, run.done, len(run.text))
        run.tail = None

    def finish(self, body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        """The texts whose runs have ended as ids, and neighbouring ids as one op."""
        out: list[AnyOp] = []
        for old in body:
            op = self.closed[id(old)][1] if id(old) in self.closed else map_regions(old, self.finish)
            last = out[-1] if out else None
            # Those that continue are of one run: a generation stands between two.
            if (
                isinstance(op, Tokens)
                and isinstance(last, Tokens)
                and (last.stream, last.continues) == (op.stream, op.continues)
            ):
                fixed = len(last.text) + op.fixed if op.fixed else last.fixed
                out[-1] = replace(last, ids=last.ids + op.ids, text=last.text + op.text, fixed=fixed)
            else:
                out.append(op)
        return tuple(out)

    def first_cut(self, text: str, start: int) -> int:
        """A safe cut of `text` at or after `start`, near it; the length if there is none."""
        look = _FIRST_LOOK
        while start + look < len(text):
            cut = self.tokenizer.safe_cut(text[: start + look])
            if cut >= start:
                return cut
            look *= 2
        cut = self.tokenizer.safe_cut(text)
        return cut if cut >= start else len(text)

    def ids(self, text: str, start: int, stop: int) -> tuple[int, ...]:
        """The ids of text[start:stop] within a run, both being safe cuts or the run's ends."""
        skipped = len(self.tokenizer.encode(text[:start])) if start else 0
        return tuple(self.tokenizer.encode(text[:stop])[skipped:])

    def loop(self, op: Loop) -> AnyOp:
        """A round may begin with what another has left behind."""
        unknown = {stream: _Run(text=None, is_opening=run.is_opening) for stream, run in self.runs.items()}
        self.runs = {stream: run.copy() for stream, run in unknown.items()}
        looped = map_regions(op, self.region)
        self.runs = unknown
        return looped

    def switch(self, op: Switch) -> Switch:
        before = {stream: run.copy() for stream, run in self.runs.items()}
        afters = [] if op.is_exhaustive else [before]
        cases = []
        for case in op.cases:
            self.runs = {stream: run.copy() for stream, run in before.items()}
            cases.append(replace(case, body=self.region(case.body)))
            if not ends(case.body):
                afters.append(self.runs)
        self.runs = {}
        for stream, run in before.items():
            found = [after.get(stream, run) for after in afters] or [run]
            same = all(other.same(found[0]) for other in found)
            unlike = _Run(text=None, is_opening=any(other.is_opening for other in found))
            self.runs[stream] = found[0].copy() if same else unlike
        return replace(op, cases=tuple(cases))


def _put_text(op: Text | Special, text: str, out: list[AnyOp]) -> Text | Special:
    """What is not settled yet stays what it was: template text is never given back, plain text may be."""
    new = replace(op, text=text)
    out.append(new)
    return new


TOKENIZE_CONSTANTS = ProgramPass(
    "tokenize-constants",
    "Replaces constant text by its ids up to the last place where no later text can change them.",
    run,
)
