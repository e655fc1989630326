"""`dslc check`: what is wrong with a program, or looks like a mistake, found without running it.

Errors are broken laws of the IR and what a run is sure to refuse; warnings are what a person hardly meant. Each rule is
a function from a program (and what is known of the model) to findings; `RULES` lists them, and docs/check.md describes
them. A rule speaks only where it is sure of what it says: there are no guesses, and so no false alarms to switch off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import RequestError, SourceLoc, VerifyError
from ..core.sampling import SamplingParams
from .fields import all_defined, new_streams, refs_in, used
from .ir import (
    AnyOp,
    Arg,
    Branch,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Loop,
    Opaque,
    Operand,
    Program,
    Ref,
    Role,
    Scope,
    Select,
    Set,
    Switch,
    Text,
    walk,
)  # fmt: skip
from .passes.base import ends
from .prompts import prompts
from .verifier import diagnose

if TYPE_CHECKING:
    from ..core.backend import Capabilities
    from ..core.picture_tokens import PictureTokens
    from ..core.text.tokenizer import Tokenizer
    from .constraints.char_dfa import CharDfa

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell the author: one of LEVELS, the rule, a sentence, and the line."""

    level: str
    rule: str
    message: str
    where: SourceLoc | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        return f"{place}{self.level}: {self.message} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the model the program is for; None: not known, and rules that need it say nothing.

    `backend` is what serves it can do, `pictures` what those cost in its prompts.
    """

    tokenizer: Tokenizer | None = None
    context_len: int | None = None
    backend: Capabilities | None = None
    pictures: PictureTokens | None = None


@dataclass
class _Subject:
    """A program under check, with what several rules look up."""

    program: Program
    model: Model
    ops: tuple[AnyOp, ...]
    uses: set[int] = field(default_factory=set)  # ids of the values that some op reads
    makers: dict[int, AnyOp] = field(default_factory=dict)
    setters: dict[str, list[AnyOp]] = field(default_factory=dict)  # variable -> ops that set it
    languages: dict[str, Any] = field(default_factory=dict)  # regex -> its automaton
    outputs: tuple[str, ...] | None = None  # the variables that are read after a run; None: everything may be

    def language(self, op: AnyOp) -> CharDfa | None:
        """The language of a gen's constant regex."""
        spec = op.constraint if isinstance(op, Gen) else None
        if spec is None or spec.kind != "regex" or not isinstance(spec.source, str):
            return None
        if spec.source not in self.languages:
            from .constraints.char_dfa import from_regex
            from .constraints.regex_syntax import parse_regex

            self.languages[spec.source] = from_regex(parse_regex(spec.source))
        found: CharDfa = self.languages[spec.source]
        return found


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of `check`: its name, the level of its findings, and what it finds, in a sentence."""

    name: str
    level: str
    promise: str
    find: Callable[[_Subject], Iterator[tuple[str, SourceLoc | None]]]


RULES: list[Rule] = []
Found = Iterator[tuple[str, "SourceLoc | None"]]


def _rule(name: str, level: str, promise: str) -> Callable[[Callable[[_Subject], Found]], Callable[[_Subject], Found]]:
    def register(find: Callable[[_Subject], Found]) -> Callable[[_Subject], Found]:
        RULES.append(Rule(name, level, promise, find))
        return find

    return register


def check(program: Program, model: Model | None = None, outputs: tuple[str, ...] | None = None) -> list[Finding]:
    """Everything found, by line. With broken laws only those are reported: the other rules build on them.

    `outputs` are those that the program declares.
    """
    broken = diagnose(program)
    if broken:
        return [finding_of(error) for error in broken]
    subject = _subject(program, model or Model())
    subject.outputs = outputs
    found = [Finding(rule.level, rule.name, message, where) for rule in RULES for message, where in rule.find(subject)]
    return sorted(found, key=lambda finding: (finding.where is None, finding.where or SourceLoc("", 0)))


def finding_of(error: VerifyError) -> Finding:
    """A broken law as a finding."""
    return Finding("error", error.rule, error.message.removeprefix(f"[{error.rule}] "), error.where)


def _subject(program: Program, model: Model) -> _Subject:
    subject = _Subject(program, model, tuple(walk(program.body)))
    for op in subject.ops:
        subject.uses.update(ref.id for ref in used(op))
        subject.makers.update({out.id: op for out in all_defined(op)})
        if isinstance(op, (Gen, Select, Scope, Set)) and op.var is not None:
            subject.setters.setdefault(op.var, []).append(op)
    return subject


# Breaks


@_rule("break", "note", "Where the compiler cannot follow, and the rest runs in Python.")
def _breaks(subject: _Subject) -> Found:
    for op in subject.ops:
        if isinstance(op, Opaque) and not op.reason.endswith(_UNSET):
            yield f"the rest of {subject.program.title!r} runs in Python: {op.reason}", op.where


# Variables

_UNSET = " is read where this path has not set it"  # the tracer's reason to end a path that would fail there


@_rule("maybe-unset", "warning", "A variable read where some path to the reader has not set it.")
def _maybe_unset(subject: _Subject) -> Found:
    for op in subject.ops:
        if isinstance(op, Opaque) and op.reason.endswith(_UNSET):
            name = op.reason.removesuffix(_UNSET)
            yield f"{name} is read here, but a path comes here that has not set it", op.where
    yield from _sure_region(subject.program.body, {0: set()})


def _sure_region(body: tuple[AnyOp, ...], sure: dict[int, set[str]]) -> Found:
    """Walk with the variables that every path has set, by stream."""
    for op in body:
        if isinstance(op, Expr) and op.fn == "get" and op.args[0] not in sure[op.stream]:
            yield f"{op.args[0]!r} is read here, but a path comes here that has not set it", op.where
        elif isinstance(op, (Role, Scope)):
            yield from _sure_region(op.body, sure)
        elif isinstance(op, (Fork, Copy)):
            for stream in new_streams(op):
                sure[stream] = set(sure[op.stream])
        elif isinstance(op, Branch):
            sure[op.target] = sure[op.stream]
        elif isinstance(op, Join):
            if op.mode == "gather_variable":
                sure[op.stream] |= set().union(*(sure[stream] for stream in op.streams))
        elif isinstance(op, Loop):  # its rounds may be none
            yield from _sure_region(op.body, {stream: set(names) for stream, names in sure.items()})
        elif isinstance(op, Switch):
            before = {stream: set(names) for stream, names in sure.items()}
            afters = [] if op.is_exhaustive else [before]
            for case in op.cases:
                inside = {stream: set(names) for stream, names in before.items()}
                yield from _sure_region(case.body, inside)
                if not ends(case.body):
                    afters.append(inside)
            for stream in before:
                sure[stream] = set.intersection(*(after[stream] for after in afters)) if afters else before[stream]
        if isinstance(op, (Gen, Select, Scope, Set)) and op.var is not None:
            sure[op.stream].add(op.var)


def _variable_read(op: AnyOp) -> Operand:
    """The name of the variable that an op reads by name, if it does."""
    if isinstance(op, Host) and op.function in ("state:get", "state:typed"):
        return op.args[0]
    return op.args[0] if isinstance(op, Expr) and op.fn in ("get", "has", "typed") else None


@_rule("overwritten", "warning", "A variable generated or chosen, and set again before anything reads it.")
def _overwritten(subject: _Subject) -> Found:
    read = set(map(_variable_read, subject.ops))
    for body in _regions_of(subject.program):
        last: dict[tuple[int, str], Gen | Select] = {}
        for op in body:
            var = getattr(op, "var", None)
            if isinstance(op, (Fork, Copy, Switch, Loop)):
                last.clear()  # somebody may read it there, or take it along
            if not isinstance(op, (Gen, Select, Scope, Set)) or var is None or var in read:
                continue
            before = last.pop((op.stream, var), None)
            if before is not None and before.out.id not in subject.uses:
                place = f" at line {op.where.line}" if op.where is not None else ""
                yield (
                    f"what is put into {var!r} here is lost: it is set again{place} before anything reads it",
                    before.where,
                )
            if isinstance(op, (Gen, Select)):
                last[op.stream, var] = op


def _regions_of(program: Program) -> Iterator[tuple[AnyOp, ...]]:
    """Each straight stretch of ops: bodies of roles and scopes belong to the region around them."""

    def flat(body: tuple[AnyOp, ...]) -> Iterator[AnyOp]:
        for op in body:
            yield op
            if isinstance(op, (Role, Scope)):
                yield from flat(op.body)

    yield tuple(flat(program.body))
    for op in walk(program.body):
        if isinstance(op, Switch):
            yield from (tuple(flat(case.body)) for case in op.cases)
        elif isinstance(op, Loop):
            yield tuple(flat(op.body))


@_rule("unused-parameter", "warning", "A parameter that the program never uses.")
def _unused_parameter(subject: _Subject) -> Found:
    for op in subject.ops:
        if isinstance(op, Arg) and op.out.id not in subject.uses and subject.program.is_whole:
            yield f"the parameter {op.param!r} is never used", op.where


# Branches


@_rule("lost-branch", "warning", "A branch that generates what nothing can read: it is not joined, and no op reads it.")
def _lost_branch(subject: _Subject) -> Found:
    parents = _parents(subject.program)
    joined = {stream for op in subject.ops if isinstance(op, Join) for stream in op.streams}
    joined |= {op.target for op in subject.ops if isinstance(op, Branch) and op.stream in joined}
    seen: set[int] = {0}
    for op in subject.ops:
        if (
            op.stream in joined
            or (isinstance(op, Expr) and op.fn in ("get", "typed", "text"))
            or (isinstance(op, Host) and op.function.startswith("state:"))
            or (isinstance(op, (Gen, Select, Scope)) and op.out.id in subject.uses)
        ):
            seen.add(op.stream)
        elif not isinstance(op, Opaque):
            continue
        else:
            return  # the Python body may read anything
    for stream in sorted(joined | seen):
        while stream in parents:  # what a read branch began with is read through it
            stream = parents[stream]
            seen.add(stream)
    lost: set[int] = set()
    for op in subject.ops:
        if isinstance(op, (Gen, Select)) and op.stream not in seen | joined | lost:
            lost.add(op.stream)
            yield "nothing can read what this branch generates: join it, or read its variables", op.where


@_rule("unused-branch", "warning", "A branch of a fork on which nothing is done, and which is not joined.")
def _unused_branch(subject: _Subject) -> Found:
    if not subject.program.is_whole:
        return
    used_streams = {op.stream for op in subject.ops}
    used_streams |= {stream for op in subject.ops if isinstance(op, Join) for stream in op.streams}
    for op in subject.ops:
        if isinstance(op, Fork):
            idle = [i for i, stream in enumerate(op.streams) if stream not in used_streams]
            if idle:
                names = ", ".join(map(str, idle))
                yield (
                    f"nothing is done on branch {names} of this fork of {len(op.streams)}, and it is not joined",
                    op.where,
                )


def _parents(program: Program) -> dict[int, int]:
    parents: dict[int, int] = {}
    for op in walk(program.body):
        for stream in new_streams(op):
            parents[stream] = op.stream
    return parents


# Choices and comparisons


@_rule("choices", "warning", "Choices of a select that are equal, only one, or the beginning of one another.")
def _choices(subject: _Subject) -> Found:
    for op in subject.ops:
        if not isinstance(op, Select) or not isinstance(op.choices, tuple):
            continue
        texts = [choice for choice in op.choices if isinstance(choice, str)]
        if len(op.choices) == 1:
            yield "there is only one choice, so nothing is chosen", op.where
        for i, text in enumerate(texts):
            if text in texts[:i]:
                yield f"the choice {text!r} is there twice", op.where
            longer = next((other for other in texts if other != text and other.startswith(text)), None)
            if longer is not None and text not in texts[:i]:
                yield f"the choice {text!r} begins the choice {longer!r}: their scores are hardly comparable", op.where


@_rule("never-equal", "warning", "A comparison with a value that a select cannot choose or a constraint cannot give.")
def _never_equal(subject: _Subject) -> Found:
    for op in subject.ops:
        if not isinstance(op, Expr) or op.fn not in ("eq", "ne", "contains") or len(op.args) != 2:
            continue
        left, right = op.args
        pairs = [(left, right), (right, left)]
        if op.fn == "contains":
            pairs = [(right, item) for item in left] if isinstance(left, tuple) else []
        for value, constant in pairs:
            if isinstance(value, Ref) and isinstance(constant, str):
                reason = _why_never(subject, value, constant)
                if reason:
                    yield f"it can never be {constant!r}: {reason}", op.where


def _why_never(subject: _Subject, value: Ref, constant: str) -> str:
    """Why a generated value cannot be this text; empty if it can, or nobody knows."""
    makers: list[AnyOp] = [subject.makers[value.id]]
    if isinstance(makers[0], Expr) and makers[0].fn == "get":
        if any(isinstance(op, (Join, Opaque)) for op in subject.ops):
            return ""
        makers = subject.setters.get(str(makers[0].args[0]), [])
    reasons = {_why_not_made(subject, maker, constant) for maker in makers}
    return reasons.pop() if len(reasons) == 1 else ""


def _why_not_made(subject: _Subject, maker: AnyOp, constant: str) -> str:
    if isinstance(maker, Select) and isinstance(maker.choices, tuple):
        if all(isinstance(choice, str) and choice != constant for choice in maker.choices):
            return f"the choices are {', '.join(map(repr, maker.choices))}"
    elif isinstance(maker, Gen) and "n" not in dict(maker.sampling):
        language = subject.language(maker)
        # A text cut by its token limit or a stop string is a beginning of a match.
        if language is not None and not _is_beginning(language, constant):
            spec = maker.constraint
            return f"it has to match {spec.source if spec is not None else ''!r}"
    return ""


def _is_beginning(language: CharDfa, text: str) -> bool:
    state = language.start
    for char in text:
        state = int(language.delta[state, language.class_of(ord(char))])
    return bool(state)


# Generations


@_rule("stop-in-match", "warning", "A stop string that can occur inside what the constraint allows, and cuts it there.")
def _stop_in_match(subject: _Subject) -> Found:
    for op in subject.ops:
        language = subject.language(op)
        if language is None or not isinstance(op, Gen):
            continue
        from .constraints.char_algebra import intersect
        from .constraints.char_dfa import from_regex
        from .constraints.regex_syntax import parse_regex

        for stop in _strings(dict(op.sampling).get("stop", ())):
            literal = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in stop)
            cut = intersect(language, from_regex(parse_regex(f"(?s:.*){literal}(?s:.+)")))
            example = cut.some_text()
            if example is not None:
                yield f"the stop string {stop!r} can occur inside a match and cuts it, as in {example!r}", op.where


@_rule("token-limits", "error", "A token limit below a constraint's shortest match, or a minimum above its longest.")
def _token_limits(subject: _Subject) -> Found:
    tokenizer = subject.model.tokenizer
    for op in subject.ops:
        language = subject.language(op)
        if language is None or not isinstance(op, Gen):
            continue
        options = dict(op.sampling)
        least, most = options.get("min_new_tokens", 0), options.get("max_new_tokens")
        longest, shortest = language.longest, language.some_text()
        if isinstance(least, int) and longest is not None and least > longest:
            yield f"at least {least} tokens are asked for, but a match has at most {longest} characters", op.where
        if tokenizer is None or not isinstance(most, int) or shortest is None:
            continue
        widest = max(len(token) for token in tokenizer.vocabulary.token_bytes if token is not None)
        if len(shortest.encode()) > most * widest:
            yield f"{most} tokens are too few: the shortest match has {len(shortest)} characters", op.where


@_rule("same-samples", "warning", "Several samples of one gen that are all the same, as it is greedy.")
def _same_samples(subject: _Subject) -> Found:
    for op in subject.ops:
        options = dict(op.sampling) if isinstance(op, Gen) else {}
        n, temperature = options.get("n", 1), options.get("temperature")
        greedy = (isinstance(temperature, (int, float)) and temperature < 1e-6) or options.get("top_k") == 1
        if isinstance(n, int) and n > 1 and greedy:
            yield f"all {n} samples will be the same: the most likely token is always taken", op.where


@_rule("token-id", "error", "A stop token or a biased token that the vocabulary does not have.")
def _token_id(subject: _Subject) -> Found:
    tokenizer = subject.model.tokenizer
    for op in subject.ops:
        if not isinstance(op, Gen) or tokenizer is None:
            continue
        constants: dict[str, Any] = {name: value for name, value in op.sampling if not any(refs_in(value))}
        try:
            SamplingParams(**constants).verify(tokenizer.vocab_size)
        except RequestError as error:
            yield error.message, op.where


# Text, turns, context


@_rule("special-in-text", "warning", "A special token's text in plain text, where it is not parsed.")
def _special_in_text(subject: _Subject) -> Found:
    tokenizer = subject.model.tokenizer
    for op in subject.ops:
        if tokenizer is not None and isinstance(op, Text) and isinstance(op.text, str):
            found = tokenizer.find_special(op.text)
            if found is not None:
                yield f"the text holds {found!r} as plain text; dslc.special(...) makes it a special token", op.where


@_rule("empty-turn", "warning", "A chat turn without any content.")
def _empty_turn(subject: _Subject) -> Found:
    for op in subject.ops if subject.program.is_whole else ():  # a break inside a turn leaves it empty
        if isinstance(op, Role) and not op.body:
            yield f"the {op.role} turn is empty", op.where


@_rule("chat-template", "error", "Chat turns for a model without a chat template.")
def _chat_template(subject: _Subject) -> Found:
    tokenizer = subject.model.tokenizer
    role = next((op for op in subject.ops if isinstance(op, Role)), None)
    if role is not None and tokenizer is not None and tokenizer.chat_template is None:
        yield f"a {role.role} turn needs a chat template, and the model's tokenizer has none", role.where


@_rule("context", "error", "A prompt that alone, or with the tokens asked for, cannot fit into the model's context.")
def _context(subject: _Subject) -> Found:
    limit, tokenizer = subject.model.context_len, subject.model.tokenizer
    if limit is None or tokenizer is None:
        return
    from .budget import budget

    least: dict[int, int] = {}
    for site in budget(subject.program, tokenizer, pictures=subject.model.pictures).sites:
        least[site.op.out.id] = min(int(site.prompt.least), least.get(site.op.out.id, limit))
    for prompt in prompts(subject.program, tokenizer):
        op = subject.makers[prompt.out.id]
        known = len(prompt.ids) + (len(tokenizer.encode(prompt.pending)) if prompt.is_whole and prompt.pending else 0)
        known = max(known, least.get(prompt.out.id, 0))
        wanted = dict(op.sampling).get("max_new_tokens", 0) if isinstance(op, Gen) else 0
        if known >= limit:
            yield f"its prompt has at least {known} tokens, and the model's context only {limit}", op.where
        elif isinstance(wanted, int) and known + wanted > limit:
            yield f"its prompt of at least {known} tokens and {wanted} new ones exceed the context of {limit}", op.where


def _strings(operand: Operand) -> tuple[str, ...]:
    items = operand if isinstance(operand, tuple) else (operand,)
    return tuple(item for item in items if isinstance(item, str))


from . import check_options as check_options  # noqa: E402  its rules enter RULES after these
