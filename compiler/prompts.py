"""What is known of each prompt before it is sent: an interpreter of programs that takes "unknown" for an answer.

Walked without arguments it finds what is constant in every run (static prefixes, tails before a select); walked with
the arguments of an instance, what that instance's first prompts will be (the Schedule). One rule per op (`_RULES`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .expressions import FUNCTIONS, STATEFUL
from .fields import new_streams
from .ir import (
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
    Operand,
    Program,
    Ref,
    Return,
    Role,
    Scope,
    Select,
    Set,
    Special,
    Switch,
    Text,
    Tokens,
)  # fmt: skip

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "UNKNOWN"})()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of the prompt of one gen or select.

    `ids` are its settled leading ids; `pending` the text after its last settled id, tokenised as one when it is sent
    (None: not known), whose first `fixed` characters end with template text. `is_whole`: the prompt is ids +
    encode(pending). Where it is not, `stop` is the op at which the known ids end.
    """

    out: Ref
    stream: int
    ids: tuple[int, ...]
    pending: str | None
    is_whole: bool
    stop: AnyOp | None = None
    fixed: int = 0


@dataclass(slots=True)
class _Stream:
    ids: tuple[int, ...] = ()
    is_open: bool = True  # nothing unknown yet: ids go on
    pending: str | None = ""
    fixed: int = 0  # characters of `pending` up to the end of the last template text
    text: str | None = ""
    variables: dict[str, Any] = field(default_factory=dict)
    stop: AnyOp | None = None  # what closed it first
    is_begun: bool = False  # something was appended
    in_role: bool = False

    def copy(self) -> _Stream:
        return replace(self, variables=dict(self.variables))

    def close(self, op: AnyOp, pending: str | None) -> None:
        """`op` has appended something unknown; `pending` is what is known of the text after it."""
        self.stop = self.stop if self.stop is not None else op
        self.is_open, self.pending, self.fixed, self.text = False, pending, 0, None


class _Ended(Exception):
    """The path met a return or a break."""


def prompts(
    program: Program,
    tokenizer: Tokenizer | None = None,
    arguments: Mapping[str, Any] | None = None,
    orders: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[Prompt]:
    """The prompts of all gens and selects that may be reached, in program order.

    `arguments` gives parameters values (those left out are unknown), `orders` those of order-free parts that are chosen
    already. Without a tokenizer nothing is settled.
    """
    walker = _Walker(tokenizer, arguments or {}, orders or {})
    try:
        yield from walker.region(program.body)
    except _Ended:
        return


def order_free_parts(
    program: Program, tokenizer: Tokenizer | None, arguments: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The parts of each `unordered` on the program's own stream that the arguments tell, by "path/occurrence"."""
    walker = _Walker(tokenizer, arguments, {})
    try:
        for _ in walker.region(program.body):
            pass
    except _Ended:
        pass
    return walker.unordered


class _Walker:
    def __init__(
        self, tokenizer: Tokenizer | None, arguments: Mapping[str, Any], orders: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.tokenizer = tokenizer
        self.arguments = arguments
        self.orders = orders
        self.num_unordered = 0  # on the program's own stream
        self.is_certain = True  # no branch or loop so far whose way is not known
        self.unordered: dict[str, tuple[str, ...]] = {}
        self.values: dict[int, Any] = {}
        self.streams: dict[int, _Stream] = {0: _Stream()}
        self.groups: set[int] = set()  # streams that stand for branches whose number is not known

    def region(self, body: tuple[AnyOp, ...]) -> Iterator[Prompt]:
        for op in body:
            yield from _RULES[type(op)](self, op)

    def value(self, operand: Operand) -> Any:
        if isinstance(operand, Ref):
            return self.values.get(operand.id, UNKNOWN)
        if isinstance(operand, tuple):
            items = [self.value(item) for item in operand]
            return UNKNOWN if any(item is UNKNOWN for item in items) else items
        return operand

    # Text

    def begin(self, stream: _Stream, in_template: bool) -> None:
        """Before the first content: what the tokenizer puts before a prompt, unless template text comes."""
        if (
            not stream.is_begun
            and stream.is_open
            and not in_template
            and not stream.in_role
            and self.tokenizer is not None
        ):
            stream.ids = tuple(self.tokenizer.encode_prompt(""))
        stream.is_begun = True

    def append(self, stream: _Stream, op: AnyOp, text: Any) -> None:
        if not isinstance(text, str):
            if stream.is_open and stream.pending and self.tokenizer is not None:
                cut = self.tokenizer.safe_cut(stream.pending)
                stream.ids = (*stream.ids, *self.tokenizer.encode(stream.pending[:cut]))
            stream.close(op, None)
            return
        if stream.pending is not None:
            stream.pending += text
        if stream.text is not None:
            stream.text += text

    def settle(self, stream: _Stream, ids: tuple[int, ...] = ()) -> None:
        """The pending text ends here and is tokenised by itself; then come `ids`."""
        if stream.is_open and stream.pending is not None and (self.tokenizer is not None or not stream.pending):
            before = self.tokenizer.encode(stream.pending) if self.tokenizer is not None and stream.pending else ()
            stream.ids = (*stream.ids, *before, *ids)
        else:
            stream.is_open = False
        stream.pending, stream.fixed = "", 0

    def text(self, op: Text) -> Iterator[Prompt]:
        stream, text = self.streams[op.stream], self.value(op.text)
        if text is not UNKNOWN and text != "":  # an empty text, which an unknown one may be, opens nothing
            self.begin(stream, False)
        self.append(stream, op, text)
        return iter(())

    def tokens(self, op: Tokens) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        self.begin(stream, self.tokenizer is not None and op.ids[:1] == (self.tokenizer.bos_id,))
        if op.continues and stream.pending != "":
            if op.fixed and stream.pending is not None:
                stream.fixed = len(stream.pending) + op.fixed
            self.append(stream, op, op.text)
        else:
            self.settle(stream, op.ids)
            stream.text = None if stream.text is None else stream.text + op.text
        return iter(())

    def special(self, op: Special) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        self.begin(stream, True)
        if self.tokenizer is None:
            text = stream.text
            stream.close(op, None)
            stream.text = None if text is None else text + op.text
            return iter(())
        for part in self.tokenizer.split_special(op.text):
            if isinstance(part, str):
                self.append(stream, op, part)
                stream.fixed = len(stream.pending or "")
            else:
                self.settle(stream, (part,))
                if stream.text is not None:
                    stream.text += self.tokenizer.decode([part], skip_special_tokens=False)
        return iter(())

    def media(self, op: Media) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        self.begin(stream, False)
        stream.close(op, "")
        return iter(())

    # Values

    def arg(self, op: Arg) -> Iterator[Prompt]:
        self.values[op.out.id] = self.arguments.get(op.param, UNKNOWN)
        return iter(())

    def set(self, op: Set) -> Iterator[Prompt]:
        self.streams[op.stream].variables[op.var] = self.value(op.value)
        return iter(())

    def expr(self, op: Expr) -> Iterator[Prompt]:
        self.values[op.out.id] = self.computed(op)
        return iter(())

    def host(self, op: Host) -> Iterator[Prompt]:
        self.values[op.out.id] = UNKNOWN
        return iter(())

    def computed(self, op: Expr) -> Any:
        stream = self.streams[op.stream]
        if op.fn == "text":
            return UNKNOWN if stream.text is None else stream.text
        if op.fn == "unordered":
            return self.arranged(op)
        if op.fn in ("typed", "captured"):
            return UNKNOWN
        if op.fn in STATEFUL:
            known = stream.variables.get(str(op.args[0]), UNKNOWN)
            return known if op.fn == "get" or known is UNKNOWN else True
        args = [self.value(arg) for arg in op.args]
        compute = FUNCTIONS[op.fn].compute
        if compute is None or any(arg is UNKNOWN for arg in args):
            return UNKNOWN
        try:
            return compute(*args)
        except Exception:
            return UNKNOWN  # the run raises it, at its place

    def arranged(self, op: Expr) -> Any:
        """Order-free parts, joined in the order that is chosen for them."""
        separator, parts = self.value(op.args[0]), self.value(op.args[1])
        key = f"0/{self.num_unordered}"
        if op.stream == 0:
            self.num_unordered += 1
        if separator is UNKNOWN or parts is UNKNOWN or not all(isinstance(part, str) for part in parts):
            return UNKNOWN
        order = None
        if op.stream == 0 and self.is_certain:
            self.unordered[key] = tuple(parts)
            order = self.orders.get(key)
        return separator.join(parts if order is None else [parts[i] for i in order])

    # Generations

    def generate(self, op: Gen | Select) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        self.begin(stream, False)
        is_whole = stream.is_open and stream.pending is not None and self.tokenizer is not None
        yield Prompt(op.out, op.stream, stream.ids, stream.pending, is_whole, stream.stop, stream.fixed)
        stream.close(op, "")
        if op.var is not None:
            stream.variables[op.var] = UNKNOWN

    # Regions and streams

    def role(self, op: Role) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        stream.in_role = True
        if op.prefix is None:
            self.begin(stream, True)
            stream.close(op, None)  # the executor renders the template around it
        yield from self.region(op.body)
        stream = self.streams[op.stream]
        stream.in_role = False
        if op.prefix is None:
            stream.close(op, None)

    def scope(self, op: Scope) -> Iterator[Prompt]:
        before = self.streams[op.stream].text
        yield from self.region(op.body)
        stream = self.streams[op.stream]  # a switch in the body may have put another in its place
        known = before is not None and stream.text is not None
        self.values[op.out.id] = stream.text[len(before) :] if known else UNKNOWN  # type: ignore[index, arg-type]
        stream.variables[op.var] = self.values[op.out.id]

    def fork(self, op: Fork | Copy) -> Iterator[Prompt]:
        for number in new_streams(op):
            self.streams[number] = self.streams[op.stream].copy()
        if isinstance(op, Fork) and op.count is not None:
            self.groups.update(op.streams)
        return iter(())

    def branch(self, op: Branch) -> Iterator[Prompt]:
        stream = self.streams[op.target] = self.streams[op.stream].copy()
        stream.variables = {}  # what was done on it before is not known
        stream.is_begun = True
        stream.close(op, None)
        return iter(())

    def join(self, op: Join) -> Iterator[Prompt]:
        stream = self.streams[op.stream]
        if op.mode == "concate_and_append":
            stream.close(op, None)
            return iter(())
        for number in op.streams:
            if number in self.groups:
                stream.variables = {}
            for var, value in self.streams[number].variables.items():
                if stream.variables.get(var) is not value:
                    stream.variables[var] = UNKNOWN
        return iter(())

    def switch(self, op: Switch) -> Iterator[Prompt]:
        on = self.value(op.on)
        if on is not UNKNOWN:
            for case in op.cases:
                if type(case.value) is type(on) and case.value == on:
                    yield from self.region(case.body)
                    return
            return
        self.is_certain = False
        before = self.streams
        afters = [] if op.is_exhaustive else [before]
        for case in op.cases:
            self.streams = {number: stream.copy() for number, stream in before.items()}
            try:
                yield from self.region(case.body)
            except _Ended:
                continue
            afters.append(self.streams)
        if not afters:
            raise _Ended
        numbers = set.intersection(*(set(after) for after in afters)) & set(before)
        self.streams = {number: _merge(op, [after[number] for after in afters]) for number in sorted(numbers)}

    def loop(self, op: Loop) -> Iterator[Prompt]:
        """A round begins with what is known before the first and after any: next to nothing."""
        self.is_certain = False
        for stream in self.streams.values():
            stream.close(op, None)
            stream.is_begun = True
            stream.variables = {}
        before = self.streams
        self.streams = {number: stream.copy() for number, stream in before.items()}
        with contextlib.suppress(_Ended):
            yield from self.region(op.body)
        self.streams = before

    def end(self, op: Opaque | Return | Next | Break) -> Iterator[Prompt]:
        raise _Ended


def _merge(op: Switch, streams: list[_Stream]) -> _Stream:
    """What holds on all of these paths."""
    first = streams[0]
    if all(stream == first for stream in streams):
        return first
    merged = first.copy()
    for other in streams[1:]:
        merged.is_begun = merged.is_begun or other.is_begun
        if (other.ids, other.is_open, other.pending) != (merged.ids, merged.is_open, merged.pending):
            merged.is_open = False
            merged.stop = merged.stop if merged.stop is not None else op
            merged.ids = merged.ids[: _common(merged.ids, other.ids)]
            merged.pending = merged.pending if merged.pending == other.pending else None
        merged.text = merged.text if merged.text == other.text else None
        for var in merged.variables.keys() | other.variables.keys():
            known = merged.variables.get(var, UNKNOWN)
            merged.variables[var] = known if other.variables.get(var, UNKNOWN) is known else UNKNOWN
    return merged


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """The length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


_RULES: dict[type[Any], Callable[[_Walker, Any], Iterator[Prompt]]] = {
    Text: _Walker.text,
    Tokens: _Walker.tokens,
    Special: _Walker.special,
    Media: _Walker.media,
    Arg: _Walker.arg,
    Gen: _Walker.generate,
    Select: _Walker.generate,
    Role: _Walker.role,
    Scope: _Walker.scope,
    Fork: _Walker.fork,
    Branch: _Walker.branch,
    Copy: _Walker.fork,
    Join: _Walker.join,
    Set: _Walker.set,
    Expr: _Walker.expr,
    Host: _Walker.host,
    Switch: _Walker.switch,
    Loop: _Walker.loop,
    Next: _Walker.end,
    Break: _Walker.end,
    Opaque: _Walker.end,
    Return: _Walker.end,
}
if missing := set(OP_CLASSES.values()) - set(_RULES):
    raise TypeError(f"prompts: no rule for {', '.join(sorted(cls.__name__ for cls in missing))}")
