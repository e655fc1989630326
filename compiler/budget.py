"""Budgets: what a run of a program can cost, as intervals that are known before anything is sent.

`budget(program, tokenizer, arguments, defaults)` walks the program once with lengths for values: text of the arguments
is exact, generated text is bounded by `max_new_tokens`, what the program cannot know is unbounded. Branches give the
hull of their ways. The run's account (`account.evaluate`) lies inside, whatever the model says; `beyond` names the gens
whose prompt cannot fit, or may not, into a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ContextOverflow, SourceLoc
from ..core.sampling import SamplingParams
from .budget_state import ANY, INF, ZERO, Span, State, Stream, Value, hull_of, known_value, sum_of, widen
from .expressions import FUNCTIONS, STATEFUL
from .fields import new_streams
from .ir import (
    OP_CLASSES,
    AnyOp,
    Arg,
    Branch,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Media,
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
from .prompts import UNKNOWN

if TYPE_CHECKING:
    from ..core.picture_tokens import PictureTokens
    from ..core.text.tokenizer import Tokenizer
    from .plan import Plan

DEFAULT_NEW_TOKENS = SamplingParams().max_new_tokens
CHUNK = 8192  # prompt tokens of one forward, unless the limits say otherwise
MAX_ROUNDS = 64  # of a loop, walked one by one
UNKNOWN_TOKENS = 256  # how long an unknown text is taken to be, in guesses
ROLE_TOKENS = 64.0  # of the template's text around a turn that the executor renders, at most


@dataclass(frozen=True, slots=True)
class Site:
    """The prompt of one gen or select: its tokens, and the most that it and its output hold together.

    `is_certain`: every run comes there.
    """

    op: Gen | Select
    prompt: Span
    total: Span
    is_certain: bool = True

    @property
    def where(self) -> SourceLoc | None:
        return self.op.where


@dataclass(frozen=True, slots=True)
class Budget:
    """Totals of one run from an empty cache, under the names of the engine's counters, and the sites that make them.

    `computed` counts prompt tokens put through the model. `kv` is no bound but a guess: what the run leaves in the
    cache if every output is as long as it may be and what is unknown is short.
    """

    requests: Span = ZERO
    prompt_tokens: Span = ZERO
    computed: Span = ZERO
    generated_tokens: Span = ZERO
    scored_tokens: Span = ZERO
    forwards: Span = ZERO
    rows: Span = ZERO
    kv: float = 0
    sites: tuple[Site, ...] = ()

    def holds(self, usage: Any) -> dict[str, tuple[str, int]]:
        """Name -> (span, value) of each total of a `Usage` that lies outside; empty as it should be."""
        pairs = {
            "requests": (self.requests, usage.requests),
            "prompt_tokens": (self.prompt_tokens, usage.prompt_tokens),
            "prefilled_tokens": (self.computed, usage.prefilled_tokens + usage.recomputed_tokens),
            "generated_tokens": (self.generated_tokens, usage.generated_tokens),
            "scored_tokens": (self.scored_tokens, usage.scored_tokens),
            "forwards": (self.forwards, usage.forwards),
            "rows": (self.rows, usage.rows),
        }
        return {name: (str(span), value) for name, (span, value) in pairs.items() if value not in span}


def together(budgets: Sequence[Budget], num_distinct: int = 0) -> Budget:
    """The budget of a batch: at most the sum, at least what the greatest of them needs.

    `num_distinct`: tokens that are known to differ, so that they must all be computed.
    """
    total = Budget()
    for one in budgets:
        spans = {name: _beside(getattr(total, name), getattr(one, name)) for name in _TOTALS}
        total = Budget(**spans, kv=total.kv + one.kv, sites=total.sites + one.sites)
    least = max(total.computed.least, num_distinct)
    return replace(
        total, computed=Span(least, total.computed.most), rows=Span(max(total.rows.least, least), total.rows.most)
    )


def _beside(one: Span, other: Span) -> Span:
    """Of two that run together: equal requests may be made once, so at least the greater is needed."""
    return Span(max(one.least, other.least), one.most + other.most)


_TOTALS = (
    "requests", "prompt_tokens", "computed", "generated_tokens", "scored_tokens", "forwards", "rows",
)  # fmt: skip


def beyond(found: Budget, context_len: int) -> tuple[list[Site], list[Site]]:
    """(sites whose prompt cannot fit into the context, sites that may not fit together with their output)."""
    never = [site for site in found.sites if site.prompt.least > context_len]
    maybe = [site for site in found.sites if site not in never and context_len < site.total.most < INF]
    return never, maybe


def refuse_overflow(plan: Plan, tokenizer: Tokenizer | None, context_len: int | None) -> None:
    """Raise ContextOverflow at the user's line if a prompt that every run sends cannot fit, whatever the arguments."""
    if context_len is None or tokenizer is None:
        return
    found = plan.guesses.get(("sites", tokenizer.hash))
    if found is None:
        found = plan.guesses["sites", tokenizer.hash] = budget(plan.program, tokenizer).sites
    for site in found:
        if site.is_certain and site.prompt.least > context_len:
            what = f"the prompt of {site.op.var!r}" if site.op.var is not None else "a prompt"
            raise ContextOverflow(
                f"{what} in {plan.program.title!r} has at least {site.prompt.least:.0f} tokens, the model's context "
                f"{context_len}: no run of it can succeed"
            ).at(site.where)


def budget(
    program: Program,
    tokenizer: Tokenizer | None = None,
    arguments: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    chunk: int = CHUNK,
    pictures: PictureTokens | None = None,
) -> Budget:
    """The budget of one run. `defaults` are the run's sampling options; arguments left out are unknown, and so is what
    a picture costs without `pictures`."""
    walker = _Walker(tokenizer, arguments or {}, dict(defaults or {}), chunk)
    walker.pictures = pictures
    try:
        walker.region(program.body)
    except _Ended:
        pass
    else:
        walker.ends.append(walker.state)
    return walker.result()


class _Ended(Exception):
    """The path met a return, a break, or the end of a round."""


class _Walker:
    def __init__(
        self, tokenizer: Tokenizer | None, arguments: Mapping[str, Any], defaults: dict[str, Any], chunk: int
    ) -> None:
        self.tokenizer = tokenizer
        self.arguments = arguments
        self.defaults = defaults
        self.chunk = chunk
        self.pictures: PictureTokens | None = None
        self.state = State()
        self.values: dict[int, Value] = {}
        self.sites: dict[int, Site] = {}
        self.ends: list[State] = []
        self.groups: set[int] = set()  # streams that stand for branches whose number is not known
        self.num_uncertain = 0  # branches and loops around, whose way is not known
        self.nexts: list[State] = []  # of the innermost loop
        self.breaks: list[State] = []
        self.longest = 1
        if tokenizer is not None:
            start = len(tokenizer.encode_prompt(""))  # a BOS, unless the program begins with template text
            self.state.streams[0].tokens = Span(0, start)
            self.longest = max((len(token) for token in tokenizer.vocabulary.token_bytes if token), default=1)

    def result(self) -> Budget:
        total = hull_of(self.ends) or State()
        least = total.deepest
        return Budget(
            Span(least, total.requests.most), Span(total.asked, total.prompts.most), Span(least, total.computed.most),
            total.generated, total.scored, Span(least, total.forwards.most), Span(least, total.rows.most), total.kv,
            tuple(self.sites.values()),
        )  # fmt: skip

    def region(self, body: tuple[AnyOp, ...]) -> None:
        for op in body:
            _RULES[op.name](self, op)

    # Values

    def value(self, operand: Operand) -> Value:
        if isinstance(operand, Ref):
            return self.values.get(operand.id, Value())
        if isinstance(operand, tuple):
            items = [self.value(item) for item in operand]
            if all(item.known is not UNKNOWN for item in items):
                return known_value([item.known for item in items])
            return Value(size=sum_of(item.size for item in items))
        return known_value(operand)

    def tokens_of(self, text: Span, known: str | None) -> Span:
        """Tokens of a text: exact where it is known; otherwise at most one a byte."""
        if self.tokenizer is None:
            return Span(0 if not text.least else 1, text.most)
        if known is not None:
            count = len(self.tokenizer.encode(known))
            return Span(count, count)
        return Span(math.ceil(text.least / self.longest), text.most)

    # Text

    def append(self, stream: Stream, value: Value) -> None:
        text = value.known if isinstance(value.known, str) else None
        size = Span(len(text.encode()), len(text.encode())) if text is not None else value.size
        stream.text += size
        stream.all_bytes += size
        stream.known = stream.known + text if stream.known is not None and text is not None else None

    def settle(self, stream: Stream, more: int = 0) -> None:
        """The pending text ends here."""
        text = self.tokens_of(stream.text, stream.known)
        stream.tokens = stream.tokens + text + Span(more, more)
        stream.guess += more + (
            text.most if stream.known is not None else min(text.most / self.longest, UNKNOWN_TOKENS)
        )
        stream.text, stream.known = ZERO, ""

    def text(self, op: Text) -> None:
        self.append(self.state.streams[op.stream], self.value(op.text))

    def fixed(self, op: Tokens) -> None:
        stream = self.state.streams[op.stream]
        if op.continues and stream.text.most:
            size = len(op.text.encode())  # as text with the kept tail of the generation, or as ids by itself
            stream.tokens += Span(size // self.longest, size)
            stream.guess += len(op.ids)
        else:
            self.settle(stream, len(op.ids))
        stream.all_bytes += Span(len(op.text.encode()), len(op.text.encode()))

    def special(self, op: Special) -> None:
        stream = self.state.streams[op.stream]
        if self.tokenizer is None:
            self.append(stream, known_value(op.text))
            return
        for part in self.tokenizer.split_special(op.text):
            if isinstance(part, str):
                self.append(stream, known_value(part))
            else:
                self.settle(stream, 1)

    def media(self, op: Media) -> None:
        stream = self.state.streams[op.stream]
        if self.pictures is None:
            stream.tokens, stream.known = Span(stream.tokens.least, INF), None
            return
        num_frames = self.value(dict(op.options).get("num_frames")).known
        bounds = self.pictures.of(op.kind, self.value(op.source).known, num_frames)
        self.settle(stream)
        stream.tokens += Span(*bounds)
        stream.guess += bounds[0]

    # Generations

    def option(self, op: Gen, name: str, default: Any) -> Any:
        given = dict(op.sampling).get(name, self.defaults.get(name, default))
        known = self.value(given).known if isinstance(given, (Ref, tuple)) else given
        return default if known is None else known

    def gen(self, op: Gen) -> None:
        most = self.option(op, "max_new_tokens", DEFAULT_NEW_TOKENS)
        num = self.option(op, "n", 1)
        most = float(most) if isinstance(most, int) else INF
        num = num if isinstance(num, int) else 1024
        out = Span(0, most)
        prompt, new = self.request(op, Span(num * out.least, num * out.most))
        state = self.state
        state.generated += Span(0, num * most)
        extra = num - 1  # the other choices compute the prompt's last token again, one forward after the first
        state.computed += Span(0, extra)
        # A choice of L tokens takes L forwards, its prompt's included; one more where a constraint ends it with none.
        decodes = Span(0, num * max(most, 1.0))
        state.rows += Span(extra, extra) + decodes
        state.forwards += Span(1, self.pieces(new) + num * max(most, 1.0) + extra)
        stream = state.streams[op.stream]
        self.deepen(stream, 1, prompt.least)
        stream.tokens += Span(0, most)
        state.kv += stream.guess - stream.kept + num * most
        stream.guess += most
        stream.kept = stream.guess
        size = Span(0, most * self.longest)
        stream.text, stream.known = Span(0, self.longest), None  # a stop may leave a piece of a token's text behind
        stream.all_bytes += size
        value = Value(size=Span(0, size.most * num))
        self.define(op, stream, value)

    def select(self, op: Select) -> None:
        choices = self.value(op.choices)
        sizes = Span(0, choices.size.most)
        texts = choices.known if isinstance(choices.known, list) else None
        if texts is not None and all(isinstance(text, str) for text in texts):
            lengths = [len(text.encode()) for text in texts]
            sizes = Span(sum(lengths), sum(lengths))
            one = Span(min(lengths, default=0), max(lengths, default=0))
        else:
            one = Span(0, sizes.most)
        stream = self.state.streams[op.stream]
        num = len(texts) if texts is not None else INF
        tail = self.tail(stream)
        scored = Span(0, sizes.most + (tail * num if tail else 0))
        prompt, new = self.request(op, scored, is_score=True)
        state = self.state
        state.scored += scored
        twice = 2 if op.method == "unconditional_likelihood_normalized" else 1
        if twice == 2:
            state.requests += Span(1, 1)
            state.prompts += Span(1, 1)
            state.computed += Span(0, 1)
            state.scored += scored
        state.rows += Span(0, scored.most * twice + (twice - 1))
        parts = math.ceil(scored.most / 512) + 2 if scored.most < INF else INF
        state.forwards += Span(twice, (self.pieces(new) + parts) * twice)
        self.deepen(stream, twice, prompt.least)
        state.kv += stream.guess - stream.kept
        stream.kept = stream.guess
        known = texts[0] if texts is not None and len(texts) == 1 else UNKNOWN
        value = Value(known, one)
        self.append(stream, value)
        self.define(op, stream, value)

    def tail(self, stream: Stream) -> float:
        """Bytes of the pending text that may be scored with each choice, at most."""
        if stream.known is None or self.tokenizer is None:
            return stream.text.most
        return len(stream.known[self.tokenizer.safe_cut(stream.known) :].encode())

    def pieces(self, new: Span) -> float:
        """Forwards that a prompt's prefill takes at most."""
        return math.ceil(new.most / self.chunk) + 1 if new.most < INF else INF

    def request(self, op: Gen | Select, more: Span, is_score: bool = False) -> tuple[Span, Span]:
        """One request goes out: (its prompt, what of it is computed at most)."""
        stream, state = self.state.streams[op.stream], self.state
        if is_score:  # the text after the last safe cut may be scored with the choices instead
            pending = self.tokens_of(stream.text, stream.known)
            prompt = stream.tokens + Span(0, pending.most)
        else:
            self.settle(stream)
            prompt = stream.tokens
        prompt = Span(max(prompt.least, 1 if not is_score else 0), max(prompt.most, 1))
        new = Span(min(1, prompt.most), prompt.most)
        state.requests += Span(1, 1)
        state.prompts += prompt
        state.computed += new
        state.rows += new
        known = self.sites.get(op.out.id)
        total = prompt + Span(0, more.most)
        if known is not None:
            prompt, total = known.prompt.hull(prompt), known.total.hull(total)
        self.sites[op.out.id] = Site(op, prompt, total, self.num_uncertain == 0 and not self.ends)
        return prompt, new

    def deepen(self, stream: Stream, num_requests: int, prompt: float) -> None:
        stream.depth += num_requests
        stream.asked += prompt
        self.state.deepest = max(self.state.deepest, stream.depth)
        self.state.asked = max(self.state.asked, stream.asked)

    def define(self, op: Gen | Select, stream: Stream, value: Value) -> None:
        self.values[op.out.id] = value
        if op.var is not None:
            stream.variables[op.var] = value

    # Values, regions and streams

    def arg(self, op: Arg) -> None:
        known = self.arguments.get(op.param, UNKNOWN)
        self.values[op.out.id] = known_value(known) if known is not UNKNOWN else Value()

    def host(self, op: Host) -> None:
        self.values[op.out.id] = Value()

    def set(self, op: Set) -> None:
        self.state.streams[op.stream].variables[op.var] = self.value(op.value)

    def expr(self, op: Expr) -> None:
        stream = self.state.streams[op.stream]
        if op.fn == "text":
            self.values[op.out.id] = Value(size=Span(0, stream.all_bytes.most))
        elif op.fn == "unordered":
            separator, parts = self.value(op.args[0]), self.value(op.args[1])
            num = len(parts.known) if isinstance(parts.known, list) else INF
            extra = separator.size.most * max(0, num - 1) if separator.size.most else 0.0
            self.values[op.out.id] = Value(size=parts.size + Span(extra if num < INF else 0, extra))
        elif op.fn in STATEFUL:
            self.values[op.out.id] = stream.variables.get(str(op.args[0]), Value()) if op.fn == "get" else Value()
        else:
            self.values[op.out.id] = self.computed(op)

    def computed(self, op: Expr) -> Value:
        args = [self.value(arg) for arg in op.args]
        function = FUNCTIONS.get(op.fn)
        if function is not None and function.compute is not None and all(arg.known is not UNKNOWN for arg in args):
            try:
                return known_value(function.compute(*(arg.known for arg in args)))
            except Exception:
                return Value()  # the run raises it, at its place
        if op.fn == "concat":
            return Value(size=sum_of(arg.size for arg in args))
        if op.fn in _SHORTER and args:
            return Value(size=Span(0, args[0].size.most))
        if op.fn in _NUMBERS:
            return Value(size=Span(1, 32))
        return Value()

    def role(self, op: Role) -> None:
        if op.prefix is None:
            stream = self.state.streams[op.stream]
            stream.tokens, stream.known = stream.tokens + Span(0, ROLE_TOKENS), None
        self.region(op.body)
        if op.prefix is None:
            stream = self.state.streams[op.stream]
            stream.tokens, stream.known = stream.tokens + Span(0, ROLE_TOKENS), None

    def scope(self, op: Scope) -> None:
        self.region(op.body)
        stream = self.state.streams[op.stream]
        value = Value(size=Span(0, stream.all_bytes.most))
        self.values[op.out.id] = stream.variables[op.var] = value

    def fork(self, op: Fork | Copy) -> None:
        for number in new_streams(op):
            self.state.streams[number] = self.state.streams[op.stream].copy()
        if isinstance(op, Fork) and op.count is not None:
            self.groups.update(op.streams)

    def branch(self, op: Branch) -> None:
        """What was done on the branch before is not known: only a bound from below stays."""
        stream = self.state.streams[op.target] = self.state.streams[op.stream].copy()
        stream.tokens, stream.text = Span(stream.tokens.least, INF), Span(stream.text.least, INF)
        stream.known, stream.all_bytes, stream.variables = None, ANY, {}

    def join(self, op: Join) -> None:
        streams = self.state.streams
        parent = streams[op.stream]
        branches = [streams[number] for number in op.streams if number in streams]
        for branch in branches:
            if branch.depth > parent.depth:
                parent.depth, parent.asked = branch.depth, branch.asked
        if op.mode == "concate_and_append":
            base = parent.tokens
            for branch in branches:
                parent.text += branch.text
                grown = Span(max(0, branch.tokens.least - base.most), branch.tokens.most)
                parent.tokens += grown
                parent.all_bytes += branch.all_bytes
            parent.known = None
        if not self.groups.isdisjoint(op.streams):
            parent.variables = {}
            if op.mode == "concate_and_append":
                parent.tokens, parent.text = Span(parent.tokens.least, INF), Span(parent.text.least, INF)
                parent.all_bytes = ANY
            return
        for branch in branches:
            for var, value in branch.variables.items():
                if parent.variables.get(var) is not value:
                    size = parent.variables[var].size if var in parent.variables else ZERO
                    parent.variables[var] = Value(size=size + value.size)

    def switch(self, op: Switch) -> None:
        on = self.value(op.on).known
        if on is not UNKNOWN:
            for case in op.cases:
                if type(case.value) is type(on) and case.value == on:
                    self.region(case.body)
                    return
            return
        before = self.state
        self.num_uncertain += 1
        afters = [] if op.is_exhaustive else [before]
        for case in op.cases:
            self.state = before.copy()
            try:
                self.region(case.body)
            except _Ended:
                continue
            afters.append(self.state)
        self.num_uncertain -= 1
        if not afters:
            raise _Ended
        merged = hull_of(afters)
        assert merged is not None
        self.state = merged

    def loop(self, op: Any) -> None:
        """Round by round where the number of rounds is known; otherwise once, and unbounded from there."""
        over = self.value(op.over).known if op.over is not None else UNKNOWN
        items = over if isinstance(over, list) and len(over) <= MAX_ROUNDS else None
        self.num_uncertain += items is None
        outer = self.nexts, self.breaks
        done: list[State] = [self.state.copy()] if items is None and op.over is not None else []
        current: State | None = self.state
        for item in items if items is not None else (UNKNOWN,):
            assert current is not None
            self.nexts, self.breaks, self.state = [], [], current.copy()
            for i, param in enumerate(op.params):
                self.values[param.id] = known_value(item) if i == 0 and op.over is not None else Value()
            with suppress(_Ended):
                self.region(op.body)
            done += self.breaks
            current = hull_of(self.nexts)
            if current is None:
                break
        if current is not None:
            done.append(current)
        if items is None:
            for state in done:
                widen(state)
        self.nexts, self.breaks = outer
        self.num_uncertain -= items is None
        merged = hull_of(done)
        if merged is None:
            raise _Ended
        self.state = merged
        for out in op.outs:
            self.values[out.id] = Value()

    def round_ends(self, op: Any) -> None:
        (self.nexts if op.name == "next" else self.breaks).append(self.state)
        raise _Ended

    def end(self, op: Opaque | Return) -> None:
        if isinstance(op, Opaque):  # the body goes on by itself: nothing bounds what it does
            widen(self.state)
        self.ends.append(self.state)
        raise _Ended


_SHORTER = frozenset({"strip", "lstrip", "rstrip", "slice", "index", "str", "removeprefix", "removesuffix"})
_NUMBERS = frozenset({"len", "find", "count", "rfind", "eq", "ne", "lt", "le", "gt", "ge", "contains", "not", "bool"})


_RULES: dict[str, Callable[[_Walker, Any], None]] = {
    "text": _Walker.text, "tokens": _Walker.fixed, "special": _Walker.special, "media": _Walker.media,
    "arg": _Walker.arg, "gen": _Walker.gen, "select": _Walker.select, "role": _Walker.role, "scope": _Walker.scope,
    "fork": _Walker.fork, "branch": _Walker.branch, "copy": _Walker.fork, "join": _Walker.join, "set": _Walker.set,
    "expr": _Walker.expr, "host": _Walker.host, "switch": _Walker.switch, "loop": _Walker.loop,
    "next": _Walker.round_ends, "break": _Walker.round_ends, "opaque": _Walker.end, "return": _Walker.end,
}  # fmt: skip
if missing := OP_CLASSES.keys() - _RULES.keys():
    raise TypeError(f"budget: no rule for {', '.join(sorted(missing))}")


def print_budget(found: Budget) -> str:
    """One line for each total."""
    lines = {
        "requests": found.requests,
        "prompt tokens": found.prompt_tokens,
        "computed": found.computed,
        "generated": found.generated_tokens,
        "scored": found.scored_tokens,
        "forwards": found.forwards,
        "rows": found.rows,
    }
    return "".join(f"  {name:13} {span}\n" for name, span in lines.items())
