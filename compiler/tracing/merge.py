"""From explored paths to one Program: a tree of decisions becomes nested Switches, and paths that meet again are one.

Two paths meet where what follows is the same op by op, apart from the numbers of values and streams made on the way,
and uses nothing that only one of them made. Naive version: every decision doubles all that follows. This one takes the
longest common ending of both cases out of the Switch, region by region.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ...core.quick import copier
from ..fields import FIELDS, Kind, map_regions, new_streams, refs_in
from ..ir import (
    AnyOp,
    Arg,
    Break,
    Case,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Loop,
    Next,
    Opaque,
    Ref,
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
    regions,
    walk,
)
from ..renumber import read_ids, renumbered, renumbered_op, with_fields, with_out
from .events import Decision, Enter, Leave, PathEvent

Cursor = tuple["Node", int]


@dataclass(slots=True)
class Node:
    """What happens up to the next decision, and what happens after it either way (None: not explored)."""

    events: list[PathEvent]
    decision: Decision | None = None
    if_true: Node | None = None
    if_false: Node | None = None
    has_regions: bool = True  # whether one begins or ends among the events


_EDGES = frozenset({Enter, Leave})


def tree_of(paths: Sequence[Sequence[PathEvent]], start: int = 0) -> Node:
    """The decision tree of paths that are equal up to event `start`."""
    first = paths[0]
    kinds = list(map(type, first))
    at = kinds.index(Decision, start) if Decision in kinds[start:] else len(first)
    node = Node(list(first[start:at]), has_regions=not _EDGES.isdisjoint(kinds[start:at]))
    if at == len(first):
        return node
    decision = first[at]
    assert isinstance(decision, Decision)
    node.decision = decision
    for taken in (True, False):
        same = [p for p in paths if isinstance(d := p[at], Decision) and d.taken is taken]
        child = tree_of(same, at + 1) if same else None
        if taken:
            node.if_true = child
        else:
            node.if_false = child
    return node


def merge(tree: Node, unexplored: str) -> tuple[AnyOp, ...]:
    """The body of the Program. A side of a decision that was not explored becomes an Opaque with this reason."""
    _drop_dead(tree)
    ops, rest = _Merger(unexplored).region((tree, 0))
    assert rest is None, "a region was closed that nobody opened"
    body = _renumber(tuple(ops))
    if tree.decision is None and "get" not in [event.fn for event in tree.events if type(event) is Expr]:
        return body  # one path, and no value of a variable to be found
    return _renumber(_without_single_rounds(_without_dead(_with_known_reads(body))))


def _drop_dead(node: Node) -> set[int]:
    """Drop the Exprs that nothing on any path from here uses: they would keep paths apart. Returns what is used."""
    used: set[int] = set()
    if node.decision is not None:
        used.update([node.decision.ref.id] if node.decision.loop is None else read_ids(node.decision.loop))
    for child in (node.if_true, node.if_false):
        if child is not None:
            used |= _drop_dead(child)
    kept: list[PathEvent] = []
    for event in reversed(node.events):
        kind = type(event)
        if kind in _COMPUTING and _is_dead(event, used):
            continue
        if kind is Text:
            if type(event.text) is Ref:  # type: ignore[union-attr]
                used.add(event.text.id)  # type: ignore[union-attr]
        elif kind not in _READS_NOTHING:
            used.update(read_ids(event))  # type: ignore[arg-type]
        kept.append(event)
    kept.reverse()
    node.events = kept
    return used


_READS_NOTHING = frozenset({Leave, Enter, Arg})
_COMPUTING = frozenset({Expr, Host})
_role_with, _scope_with = copier(Role, "body"), copier(Scope, "body")


def _region_with(op: Role | Scope, body: tuple[AnyOp, ...]) -> AnyOp:
    return _role_with(op, body) if isinstance(op, Role) else _scope_with(op, body)


class _Merger:
    def __init__(self, unexplored: str) -> None:
        self.unexplored = unexplored

    def region(self, cursor: Cursor) -> tuple[list[AnyOp], Cursor | None]:
        """The ops up to where the region around `cursor` closes, and the place after that (None: the program ends)."""
        node, at = cursor
        ops: list[AnyOp] = [] if node.has_regions else node.events[at:]  # type: ignore[assignment]
        end = len(node.events) if node.has_regions else 0
        while at < end:
            event = node.events[at]
            at += 1
            kind = type(event)
            if kind is Leave:
                return ops, (node, at)
            if kind is Enter:
                body, rest = self.region((node, at))
                ops.append(_region_with(event.op, tuple(body)))  # type: ignore[union-attr]
                if rest is None:
                    return ops, None
                node, at = rest
                end = len(node.events)
            else:
                ops.append(event)  # type: ignore[arg-type]
        if node.decision is None:
            return ops, None
        if node.decision.loop is not None:
            return self._loop(node, node.decision, node.decision.loop, ops)
        branched, rest = self._branch(node, node.decision)
        return ops + branched, rest

    def _loop(self, node: Node, decision: Decision, loop: Loop, ops: list[AnyOp]) -> tuple[list[AnyOp], Cursor | None]:
        """The ops so far, the loop with its body, and what comes behind it."""
        body, rest = self._side(node.if_true, decision)
        if rest is not None:
            body.append(Opaque(reason="a loop is left by a return inside a role or scope", where=loop.where))
        more, rest = self._side(node.if_false, decision)
        return [*ops, replace(loop, body=tuple(body)), *more], rest

    def _branch(self, node: Node, decision: Decision) -> tuple[list[AnyOp], Cursor | None]:
        sides = [self._side(node.if_true, decision), self._side(node.if_false, decision)]
        rest = self._common_rest(sides, decision)
        if rest is _NO_COMMON_REST:
            reason = "what follows the enclosing role or scope depends on this branch"
            return [Opaque(reason=reason, where=decision.where)], None
        (yes, _), (no, _) = sides
        yes, no, common = _split_common_end(yes, no, decision)
        cases = tuple(Case(value, tuple(body)) for value, body in ((True, yes), (False, no)) if body)
        switch = [Switch(on=decision.ref, cases=cases, where=decision.where)] if cases else []
        return [*switch, *common], rest

    def _side(self, child: Node | None, decision: Decision) -> tuple[list[AnyOp], Cursor | None]:
        if child is None:
            return [Opaque(reason=self.unexplored, where=decision.where)], None
        return self.region((child, 0))

    def _common_rest(self, sides: list[tuple[list[AnyOp], Cursor | None]], decision: Decision) -> Any:
        """Where both sides go on after the region; a side that ends the program there gets a Return and no rest."""
        open_sides = [i for i, (_, rest) in enumerate(sides) if rest is not None]
        if not open_sides:
            return None
        tails = {i: self._tail(sides[i][1]) for i in open_sides}
        if len(open_sides) == 2:
            left, right = (_canonical(tails[i], decision) for i in open_sides)
            if left is not None and left == right:
                return sides[0][1]
            for i in open_sides:
                if all(isinstance(op, Return) for op in tails[i]):
                    ops = sides[i][0]
                    sides[i] = ([*ops, *(tails[i] or [Return(where=decision.where)])], None)
                    open_sides.remove(i)
                    break
            else:
                return _NO_COMMON_REST
        (only,) = open_sides
        return sides[only][1] if _canonical(tails[only], decision) is not None else _NO_COMMON_REST

    def _tail(self, cursor: Cursor | None) -> list[AnyOp]:
        """All ops from a place to the end of the program, over the closings of the regions around it."""
        ops: list[AnyOp] = []
        while cursor is not None:
            more, cursor = self.region(cursor)
            ops += more
        return ops


_NO_COMMON_REST: Any = object()


def _split_common_end(
    yes: list[AnyOp], no: list[AnyOp], decision: Decision
) -> tuple[list[AnyOp], list[AnyOp], list[AnyOp]]:
    """Take the longest equal ending off both lists; returns what is left of each, and the ending."""
    limit = 0
    while limit < min(len(yes), len(no)) and _look_alike(yes[-1 - limit], no[-1 - limit]):
        limit += 1
    for k in range(limit, 0, -1):
        left, right = _canonical(yes[-k:], decision), _canonical(no[-k:], decision)
        if left is not None and left == right:
            return yes[:-k], no[:-k], yes[-k:]
    return yes, no, []


_WORDS = {
    cls: tuple([info.name for info in infos if info.kind in (Kind.STRING, Kind.OPTIONAL_STRING, Kind.OPERAND)])
    for cls, infos in FIELDS.items()
}


def _look_alike(left: AnyOp, right: AnyOp) -> bool:
    """Whether two ops may be equal under other numbers, by what costs little to compare."""
    if type(left) is not type(right):
        return False
    for name in _WORDS[type(left)]:
        one, other = getattr(left, name), getattr(right, name)
        if type(one) is not type(other) or (type(one) is str and one != other):
            return False
    return True


def _canonical(ops: Sequence[AnyOp], decision: Decision) -> tuple[AnyOp, ...] | None:
    """The ops with values and streams made after the decision numbered anew; None if they use others made after it."""
    try:
        return _Numbering(decision.first_ref, decision.first_stream).region(ops, {}, {})
    except _MadeElsewhere:
        return None


class _MadeElsewhere(Exception):
    """A value or stream is used that was made neither before the numbered ops nor in them."""


class _Numbering:
    """Numbers values and streams from the given numbers on, in the order of definition; smaller ones stay.

    Different paths give different values the same number, so what a case of a Switch defines counts only inside it.
    """

    def __init__(self, first_ref: int, first_stream: int) -> None:
        self.first_ref, self.next_ref = first_ref, first_ref
        self.first_stream, self.next_stream = first_stream, first_stream

    def region(self, ops: Sequence[AnyOp], refs: dict[int, int], streams: dict[int, int]) -> tuple[AnyOp, ...]:
        return tuple([self._op(op, refs, streams) for op in ops])

    def _op(self, op: AnyOp, refs: dict[int, int], streams: dict[int, int]) -> AnyOp:
        kind = type(op)
        first = self.first_ref
        is_same = not streams
        for number in read_ids(op):
            if number >= first and number not in refs:
                raise _MadeElsewhere
            is_same = is_same and refs.get(number, number) == number
        if op.stream:
            self._check_stream(op.stream, streams)
        if kind in _PLAIN:
            return op if is_same else renumbered_op(op, refs, streams)
        if isinstance(op, Loop):
            return self._loop(op, refs, streams)
        for stream in op.streams if isinstance(op, Join) else ():
            self._check_stream(stream, streams)
        new_body: dict[str, Any] = {}
        if isinstance(op, Switch):
            cases = [Case(c.value, self.region(c.body, dict(refs), dict(streams))) for c in op.cases]
            new_body = {"cases": tuple(cases)}
        elif isinstance(op, (Role, Scope)):
            new_body = {"body": self.region(op.body, refs, streams)}
        for stream in new_streams(op):
            streams[stream] = self.next_stream
            self.next_stream += 1
        out = getattr(op, "out", None)
        if out is not None:
            refs[out.id] = self.next_ref
            self.next_ref += 1
        if not is_same or streams:
            op = renumbered_op(op, refs, streams)
        elif out is not None and refs[out.id] != out.id:
            op = with_out(op, Ref(refs[out.id]))
        return with_fields(op, **new_body) if new_body else op

    def _loop(self, op: Loop, refs: dict[int, int], streams: dict[int, int]) -> Loop:
        inside = dict(refs)
        self._define(op.params, inside)
        body = self.region(op.body, inside, dict(streams))
        self._define(op.outs, refs)
        header = renumbered_op(op, {**inside, **refs}, streams)
        return with_fields(header, body=body)  # type: ignore[no-any-return]

    def _define(self, made: Iterable[Ref], refs: dict[int, int]) -> None:
        for ref in made:
            refs[ref.id] = self.next_ref
            self.next_ref += 1

    def _check_stream(self, number: int, known: dict[int, int]) -> None:
        if number >= self.first_stream and number not in known:
            raise _MadeElsewhere


_PLAIN = frozenset({Text, Special, Set, Return, Opaque, Next, Break})  # they make nothing and hold no region


def _is_dead(op: Any, used: set[int]) -> bool:
    """Whether an op only computes a value that nobody uses."""
    computes = isinstance(op, Expr) or (isinstance(op, Host) and op.function == "builtins:isinstance")
    return computes and op.out.id not in used


def _with_known_reads(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    """Where one op alone can have set a variable that is read by name, use that op's value."""
    same: dict[int, int] = {}
    _find_known_reads(body, {}, same)
    others = {op.out.id for op in walk(body) if isinstance(op, (Expr, Host))} - same.keys()
    return renumbered(_filter(body, others), same, {})


_ANY_NUMBER = ""  # in place of a variable: the stream stands for branches whose number is not known
# (stream, variable) -> the value it holds; None: one of several
_Known: TypeAlias = "dict[tuple[int, str], int | None]"


def _find_known_reads(body: tuple[AnyOp, ...], known: _Known, same: dict[int, int]) -> None:
    """Fill `same` with read value -> set value; `known` changes as the ops of `body` set variables."""
    for op in body:
        if isinstance(op, (Gen, Select, Scope)) and op.var is not None:
            if isinstance(op, Scope):
                _find_known_reads(op.body, known, same)
            known[op.stream, op.var] = op.out.id
        elif isinstance(op, Role):
            _find_known_reads(op.body, known, same)
        elif isinstance(op, Set):
            known[op.stream, op.var] = same.get(op.value.id, op.value.id) if isinstance(op.value, Ref) else None
        elif isinstance(op, (Fork, Copy)):
            if isinstance(op, Fork) and op.count is not None:
                known[op.streams[0], _ANY_NUMBER] = None
            for made in new_streams(op):
                known.update({(made, var): v for (stream, var), v in list(known.items()) if stream == op.stream})
        elif isinstance(op, Join):
            if any((stream, _ANY_NUMBER) in known for stream in op.streams):  # what they have set is not known
                known.update(dict.fromkeys([place for place in known if place[0] == op.stream], None))
            for (stream, var), value in list(known.items()):
                if stream in op.streams and known.get((op.stream, var), -1) != value:
                    known[op.stream, var] = None
        elif isinstance(op, Loop):
            for inner in walk(op.body):  # a round before may have set them, or none at all
                name = getattr(inner, "var", None)
                if name is not None:
                    known[inner.stream, name] = None
                elif isinstance(inner, Join):
                    known.update(dict.fromkeys([place for place in known if place[0] == inner.stream], None))
            _find_known_reads(op.body, dict(known), same)
        elif isinstance(op, Switch):
            ends = [dict(known)]
            for case in op.cases:
                ends.append(dict(known))
                _find_known_reads(case.body, ends[-1], same)
            for place in {place for end in ends for place in end}:
                values = {end.get(place) for end in ends}
                known[place] = values.pop() if len(values) == 1 else None
        elif isinstance(op, Expr) and op.fn == "get":
            value = known.get((op.stream, str(op.args[0])))
            if value is not None:
                same[op.out.id] = value


def _without_dead(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    """Drop Exprs whose value nobody uses, until none is left."""
    while True:
        ops = list(walk(body))
        used = {ref for op in ops for ref in read_ids(op)}
        if not any(type(op) is Loop or _is_dead(op, used) for op in ops):
            return body
        smaller = tuple(_without_unread(op, used) for op in _filter(body, used))
        if smaller == body:
            return body
        body = smaller


def _without_unread(op: AnyOp, used: set[int]) -> AnyOp:
    """A loop without the values that it carries for nobody; `used` are all values that the program uses."""
    if isinstance(op, (Role, Scope, Loop)):
        op = replace(op, body=tuple(_without_unread(inner, used) for inner in op.body))
    elif isinstance(op, Switch):
        cases = (replace(case, body=tuple(_without_unread(inner, used) for inner in case.body)) for case in op.cases)
        op = replace(op, cases=tuple(cases))
    if not isinstance(op, Loop):
        return op
    ends = list(_ends_of(op.body))
    ids = {id(end) for end in ends}
    inside = {ref for inner in walk(op.body) if id(inner) not in ids for ref in read_ids(inner)}
    params = op.params[len(op.params) - len(op.inits) :]
    needed = {i for i, out in enumerate(op.outs) if out.id in used or params[i].id in inside}
    size = -1
    while size != len(needed):
        size = len(needed)
        handed = {ref.id for end in ends for i in needed for ref in refs_in(end.values[i])}
        needed |= {i for i, param in enumerate(params) if param.id in handed}
    if len(needed) == len(op.inits):
        return op

    def kept(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for i, value in enumerate(values) if i in needed)

    def trimmed(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
        ops: list[AnyOp] = []
        for inner in body:
            if isinstance(inner, (Next, Break)):
                inner = replace(inner, values=kept(inner.values))
            elif not isinstance(inner, Loop):
                inner = map_regions(inner, trimmed)
            ops.append(inner)
        return tuple(ops)

    head = op.params[: len(op.params) - len(op.inits)]
    return replace(op, params=(*head, *kept(params)), inits=kept(op.inits), outs=kept(op.outs), body=trimmed(op.body))


def _without_single_rounds(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    """The region with what stands in loops that go round once, and hand nothing on, in their place."""
    ops: list[AnyOp] = []
    for old in body:
        op = map_regions(old, _without_single_rounds)
        if isinstance(op, Loop) and op.over is None and not op.params:
            *inside, end = op.body or (op,)
            if isinstance(end, Break) and not any(True for _ in _ends_of(tuple(inside))):
                ops += inside
                continue
        ops.append(op)
    return tuple(ops)


def _ends_of(body: tuple[AnyOp, ...]) -> Iterator[Next | Break]:
    """The ops that end a round of the loop with this body."""
    for op in body:
        if isinstance(op, (Next, Break)):
            yield op
        elif not isinstance(op, Loop):
            for region in regions(op):
                yield from _ends_of(region)


def _filter(body: tuple[AnyOp, ...], used: set[int]) -> tuple[AnyOp, ...]:
    """The region without the Exprs whose value is not in `used`."""
    kept: list[AnyOp] = []
    for op in body:
        if _is_dead(op, used):
            continue
        if isinstance(op, Switch):
            op = with_fields(op, cases=tuple([Case(case.value, _filter(case.body, used)) for case in op.cases]))
        elif isinstance(op, (Role, Scope, Loop)):
            op = with_fields(op, body=_filter(op.body, used))
        kept.append(op)
    return tuple(kept)


def _renumber(body: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    """Number values from 0 and streams from 1 in the order in which the program defines them."""
    if _is_numbered(body, [0, 1]):
        return body
    return _Numbering(0, 1).region(body, {}, {})


def _is_numbered(body: tuple[AnyOp, ...], following: list[int]) -> bool:
    """Whether values and streams have these numbers already, and so on; the usual case where nothing branches."""
    for op in body:
        kind = type(op)
        if kind in _PLAIN:
            continue
        if kind is Gen or kind is Expr:
            if op.out.id != following[0]:  # type: ignore[union-attr]
                return False
            following[0] += 1
            continue
        if kind is Switch or kind is Loop:
            return False
        if kind is Role or kind is Scope:
            if not _is_numbered(op.body, following):  # type: ignore[union-attr]
                return False
            if kind is Role:
                continue
        for stream in new_streams(op):
            if stream != following[1]:
                return False
            following[1] += 1
        out = getattr(op, "out", None)
        if out is not None:
            if out.id != following[0]:
                return False
            following[0] += 1
    return True
