"""fold-text: what is constant becomes one constant, and what an f-string appends becomes its parts.

Three steps: expressions of constants are computed; `text` of a `concat` (an f-string, a sum of strings) becomes a text
for each part, so that the constant ones can be joined with their neighbours and tokenised; neighbouring constant texts
of a stream are joined. No text moves across anything that reads or changes its stream, nor out of its region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ..expressions import STATEFUL, evaluate
from ..fields import all_refs, map_operands, map_regions, refs_in, used
from ..ir import AnyOp, Arg, Copy, Expr, Fork, Gen, Join, Media, Operand, Program, Ref, Scope, Select, Set, Text, walk
from .base import Context, ProgramPass
from .changes import Changes

# Functions whose result is a string, whatever their arguments.
_STRING_FUNCTIONS = frozenset(
    {"text", "format", "str", "repr", "concat", "join", "strip", "lstrip", "rstrip", "lower", "upper", "title",
     "capitalize", "replace"}
)  # fmt: skip
# Not computed here: a small source can ask for a result of any size.
_UNBOUNDED = frozenset({"mul", "format", "mod"})


def run(program: Program, context: Context) -> Program:
    """The program with constants folded."""
    body = _Constants(program).region(program.body)
    body = _Splitter(replace(program, body=body)).region(body)
    return replace(program, body=_join_texts(body))


class _Constants:
    """Compute expressions of constants, and put their values where they are read."""

    def __init__(self, program: Program) -> None:
        self.known: dict[int, Operand] = {}
        self.must_be_text: set[int] = set()
        self.must_be_list: set[int] = set()
        for op in walk(program.body):
            if isinstance(op, Text):
                self.must_be_text.update(ref.id for ref in refs_in(op.text))
            elif isinstance(op, Media):
                self.must_be_text.update(ref.id for ref in refs_in(op.source))
            elif isinstance(op, Gen) and op.constraint is not None:
                self.must_be_text.update(ref.id for ref in refs_in(op.constraint.source))
            elif isinstance(op, Select):
                self.must_be_list.update(ref.id for ref in refs_in(op.choices))

    def region(self, body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        ops: list[AnyOp] = []
        for old in body:
            op = map_operands(old, lambda ref: self.known.get(ref.id, ref))
            if isinstance(op, Expr) and self.compute(op):
                continue
            ops.append(map_regions(op, self.region))
        return tuple(ops)

    def compute(self, op: Expr) -> bool:
        if op.fn in STATEFUL | _UNBOUNDED or any(True for _ in used(op)) or op.out.id in self.must_be_list:
            return False
        try:
            value = evaluate(op.fn, op.args)
        except Exception:
            return False  # it raises in the run too, at its place
        fits = isinstance(value, str) or (
            op.out.id not in self.must_be_text and isinstance(value, (int, float, type(None)))
        )
        if fits:
            self.known[op.out.id] = value
        return fits


class _Splitter:
    """`%2 = concat "Q: " %0; text %2` becomes `text "Q: "; text %0`, as strings; so does a sum of strings."""

    def __init__(self, program: Program) -> None:
        self.concats: dict[int, Expr] = {}
        self.strings: set[int] = set()
        self.uses: Counter[int] = Counter()
        self.split: set[int] = set()
        for op in walk(program.body):
            self.uses.update(ref.id for ref in used(op))
            if isinstance(op, Expr):
                adds_strings = op.fn == "add" and all(self.is_string(arg) for arg in op.args)
                if op.fn == "concat" or adds_strings:
                    self.concats[op.out.id] = op
                if op.fn in _STRING_FUNCTIONS or adds_strings:
                    self.strings.add(op.out.id)
            elif isinstance(op, (Select, Scope)) or (isinstance(op, Gen) and "n" not in dict(op.sampling)):
                self.strings.add(op.out.id)
        self.concats = {out: op for out, op in self.concats.items() if not self.is_last_form(op)}
        changes = Changes(program.body)
        if changes.num_calls:
            self.concats = {out: op for out, op in self.concats.items() if self.may_move(op, changes)}
        self.next_ref = max((ref.id for ref in all_refs(program)), default=-1) + 1

    def may_move(self, op: Expr, changes: Changes) -> bool:
        """Whether the parts say the same where the text is appended as where the f-string stands."""
        parts = [item.id for item in op.args if isinstance(item, Ref) and not self.is_string(item)]
        return not any(map(changes.may_change, parts)) or changes.is_used_before_calls(op.out.id)

    def is_last_form(self, op: Expr) -> bool:
        """Whether the concat only makes a string of one value: splitting it again would change nothing."""
        return len(op.args) == 1 and isinstance(op.args[0], Ref) and not self.is_string(op.args[0])

    def is_string(self, operand: Operand) -> bool:
        return isinstance(operand, str) or (isinstance(operand, Ref) and operand.id in self.strings)

    def region(self, body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        ops: list[AnyOp] = []
        for op in body:
            if isinstance(op, Text) and isinstance(op.text, Ref) and op.text.id in self.concats:
                self.uses[op.text.id] -= 1
                ops.extend(self.parts(op, op.text.id))
            else:
                ops.append(map_regions(op, self.region))
        return tuple(reversed([op for op in reversed(ops) if not self.drop(op)]))

    def parts(self, op: Text, concat: int) -> Iterator[AnyOp]:
        self.split.add(concat)
        for item in self.concats[concat].args:
            if isinstance(item, Ref) and item.id in self.concats:
                yield from self.parts(op, item.id)
            elif isinstance(item, str):
                yield replace(op, text=item)
            elif isinstance(item, Ref) and item.id in self.strings:
                self.uses[item.id] += 1
                yield replace(op, text=item)
            else:
                out = Ref(self.next_ref)
                self.next_ref += 1
                self.uses[out.id] = 1
                self.uses.update(ref.id for ref in refs_in(item))
                yield Expr(stream=op.stream, out=out, fn="concat", args=(item,), where=op.where)
                yield replace(op, text=out)

    def drop(self, op: AnyOp) -> bool:
        """Whether op is a concat or sum that is only in texts now: its parts are formatted there, no error is lost."""
        if not isinstance(op, Expr) or op.out.id not in self.split or self.uses[op.out.id]:
            return False
        self.uses.subtract(ref.id for ref in used(op))
        return True


def _join_texts(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    ops: list[AnyOp] = []
    last: dict[int, int] = {}  # stream -> index of its constant text, while nothing has read or changed the stream
    for old in body:
        op = map_regions(old, _join_texts)
        if isinstance(op, Text) and isinstance(op.text, str):
            at = last.get(op.stream)
            if at is None:
                if op.text:
                    last[op.stream] = len(ops)
                    ops.append(op)
                continue
            before = ops[at]
            assert isinstance(before, Text) and isinstance(before.text, str)
            ops[at] = replace(before, text=before.text + op.text)
            continue
        ops.append(op)
        for stream in _touched(op, last):
            last.pop(stream, None)
    return tuple(ops)


def _touched(op: AnyOp, streams: dict[int, int]) -> tuple[int, ...]:
    """The streams whose text an op reads or changes; of an op with regions, all."""
    if isinstance(op, (Set, Arg)) or (isinstance(op, Expr) and op.fn != "text"):
        return ()
    if isinstance(op, Join):
        return (op.stream, *op.streams)
    if isinstance(op, (Fork, Copy, Gen, Select)) or not _has_regions(op):
        return (op.stream,)
    return tuple(streams)


def _has_regions(op: AnyOp) -> bool:
    return hasattr(op, "body") or hasattr(op, "cases")


FOLD_TEXT = ProgramPass(
    "fold-text",
    "Computes constant expressions, splits appended f-strings, and joins neighbouring constant texts of a stream.",
    run,
)
