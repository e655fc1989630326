"""canonicalise: what nobody reads is not computed, and what a loop computes anew in every round is computed before it.

Only what cannot fail goes or moves: an expression that may raise stays where the program raises, and so does one that
asks an object which a call may change. Texts in a loop are
constants that `tokenize-constants` makes ids of, once for all rounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..expressions import FUNCTIONS, STATEFUL
from ..fields import all_defined, map_regions, used
from ..ir import AnyOp, Expr, Program, walk
from .base import Context, ProgramPass
from .changes import Changes


def run(program: Program, context: Context) -> Program:
    """The program without dead values, and with what is the same in every round of a loop before it."""
    body = _hoisted(program.body, Changes(program.body))
    return replace(program, body=_without_dead(body))


def _is_free(op: AnyOp) -> bool:
    """Whether an op only computes, from its operands alone, and cannot fail."""
    return isinstance(op, Expr) and op.fn not in STATEFUL and FUNCTIONS[op.fn].is_total


def _without_dead(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    uses: Counter[int] = Counter()
    for op in walk(body):
        uses.update(ref.id for ref in used(op))

    def live(region: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        kept: list[AnyOp] = []
        for old in reversed(region):  # those that read come after those that give
            op = map_regions(old, live)
            if isinstance(op, Expr) and not uses[op.out.id] and (_is_free(op) or op.fn in ("text", "has")):
                uses.subtract(ref.id for ref in used(op))
                continue
            kept.append(op)
        return tuple(reversed(kept))

    return live(body)


def _hoisted(body: tuple[AnyOp, ...], changes: Changes) -> tuple[AnyOp, ...]:
    ops: list[AnyOp] = []
    for old in body:
        op = map_regions(old, lambda region: _hoisted(region, changes))
        if op.name == "loop":
            op, before = _split(op, changes)
            ops += before
        ops.append(op)
    return tuple(ops)


def _split(loop: AnyOp, changes: Changes) -> tuple[AnyOp, list[AnyOp]]:
    """A loop without what every round computes alike, and that."""
    inside = {ref.id for inner in walk((loop,)) for ref in all_defined(inner)}
    before: list[AnyOp] = []

    def stays(item: AnyOp) -> bool:
        if not (isinstance(item, Expr) and _is_free(item)) or inside.intersection(ref.id for ref in used(item)):
            return True
        if any(changes.may_change(ref.id) for ref in used(item)):
            return True
        inside.discard(item.out.id)
        before.append(item)
        return False

    return map_regions(loop, lambda region: tuple(item for item in region if stays(item))), before


CANONICALISE = ProgramPass(
    "canonicalise",
    "Drops values that nobody reads, and computes what is the same in every round of a loop before it; nothing that "
    "may fail goes or moves.",
    run,
)
