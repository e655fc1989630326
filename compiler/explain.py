"""`dslc compile --explain`: for each gen and select what is known, shared, forced and cached, and what is not and why.

Reads the plan only; `explain` gives values, `print_explanation` their text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import all_defined, new_streams, refs_in
from .ir import (
    AnyOp,
    Arg,
    Branch,
    Copy,
    Expr,
    Fork,
    Gen,
    Join,
    Loop,
    Media,
    Opaque,
    Program,
    Ref,
    Role,
    Scope,
    Select,
    Switch,
    Text,
    walk,
)  # fmt: skip
from .passes.base import ends
from .plan import GenFacts, Plan, SelectFacts
from .printer import string_text
from .prompts import Prompt, prompts

if TYPE_CHECKING:
    from ..core.picture_tokens import PictureTokens
    from ..core.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the compiler knows of one gen or select: what it gains (`gains`), what it cannot do and why (`limits`)."""

    title: str
    where: str
    gains: tuple[str, ...]
    limits: tuple[str, ...]


def explain(plan: Plan, tokenizer: Tokenizer | None = None) -> list[Explanation]:
    """One Explanation for each gen and select, in program order. `tokenizer`: the one the plan was made for."""
    ops = list(walk(plan.program.body))
    makers = {out.id: op for op in ops for out in all_defined(op)}
    known = {prompt.out: prompt for prompt in prompts(plan.program, tokenizer)}
    explained: list[Explanation] = []
    earlier = dict(_predecessors(plan.program.body, {}))
    branches = _branches(plan.program)
    for facts in plan.facts:
        op = ops[facts.op]
        assert isinstance(op, (Gen, Select))
        gains, limits = _prompt(plan, facts, known.get(facts.out), makers)
        gains += _cached(op, earlier[op.out.id], branches, makers)
        if isinstance(facts, SelectFacts):
            more = _choices(facts, op, known.get(facts.out))
        else:
            more = _constraint(plan, facts, op, tokenizer)
        gains += more[0]
        limits += more[1]
        gains += _after(facts)
        explained.append(Explanation(_title(op), str(op.where or ""), tuple(gains), tuple(limits)))
    return explained


def print_explanation(plan: Plan, tokenizer: Tokenizer | None = None, pictures: PictureTokens | None = None) -> str:
    """The explanations as text: `+` before what is gained, `-` before what is not.

    With `pictures`, those of the program with their tokens in the model's prompts.
    """
    lines = [f"{plan.program.title}: {len(plan.gens)} gens, {len(plan.selects)} selects"]
    bound = sum(facts.expected_len for facts in plan.gens)
    if plan.gens and all(facts.expected_len for facts in plan.gens):
        lines[0] += f"; at most {bound} new tokens in a run of every gen"
    for op in walk(plan.program.body) if pictures is not None else ():
        if isinstance(op, Media) and pictures is not None:
            lines.append(f"{op.where}: " * (op.where is not None) + f"{op.kind}: {tokens_of_media(op, pictures)}")
    for item in explain(plan, tokenizer):
        lines.append(f"{item.where + ': ' if item.where else ''}{item.title}")
        lines += [f"  + {gain}" for gain in item.gains] + [f"  - {limit}" for limit in item.limits]
    for op in walk(plan.program.body):
        if isinstance(op, Opaque):
            place = f"{op.where}: " if op.where is not None else ""
            lines.append(f"{place}the program is run by its Python body, since the compiler cannot follow: {op.reason}")
    return "\n".join(lines) + "\n"


def tokens_of_media(op: Media, pictures: PictureTokens) -> str:
    """How many tokens of the prompt a picture or video takes, in words."""
    if op.kind not in pictures.kinds:
        return f"the model takes no {op.kind}s"
    source = op.source if isinstance(op.source, str) else None
    least, most = pictures.of(op.kind, source, dict(op.options).get("num_frames"))
    if least == most:
        return f"{least} tokens of the prompt"
    if most == math.inf:
        return f"at least {least} tokens of the prompt"
    return f"{least} to {most:.0f} tokens of the prompt"


def _title(op: Gen | Select) -> str:
    stream = f" on branch {op.stream}" if op.stream else ""
    return f"{op.name} {string_text(op.var) if op.var is not None else '(unnamed)'}{stream}"


def _prompt(
    plan: Plan, facts: GenFacts | SelectFacts, prompt: Prompt | None, makers: dict[int, AnyOp]
) -> tuple[list[str], list[str]]:
    if plan.tokenizer_hash is None:
        return [], ["compiled without a tokenizer: all text is tokenised in the run"]
    if prompt is None:
        return [], ["no path comes here"]
    static = facts.num_static_tokens
    if prompt.is_whole:
        tail = f" and the text {string_text(prompt.pending)}" if prompt.pending else ""
        return [f"the whole prompt is constant: {static} tokens{tail}; cached from one run to the next"], []
    why = _stop(prompt.stop, makers)
    gains = (
        [f"its first {static} prompt tokens are constant: computed once, then cached for every run"] if static else []
    )
    return gains, [f"{'from there on' if static else 'from the start'} the prompt depends on {why}"]


def _stop(op: AnyOp | None, makers: dict[int, AnyOp]) -> str:
    """What the constant part of a prompt ends with."""
    place = f" (line {op.where.line})" if op is not None and op.where is not None else ""
    if isinstance(op, Text):
        return _names(op.text if isinstance(op.text, Ref) else None, makers) + place
    if isinstance(op, (Gen, Select)):
        return f"what is generated before it{place}"
    if isinstance(op, Role):
        return f"the {op.role} turn{place}, which the chat template does not render by itself: the executor does"
    if isinstance(op, Loop):
        return f"the rounds of the loop{place}"
    if isinstance(op, Switch):
        return f"the branch taken{place}"
    if isinstance(op, Media):
        return f"the {op.kind}{place}"
    if isinstance(op, Join):
        return f"the branches joined{place}"
    return f"values of the run{place}"


def _names(ref: Ref | None, makers: dict[int, AnyOp]) -> str:
    """A value in the author's words: the argument or variable behind it."""
    op = makers.get(ref.id) if ref is not None else None
    if isinstance(op, Arg):
        return f"the argument {op.param!r}"
    if isinstance(op, (Gen, Select)):
        return f"the generated {op.var!r}" if op.var is not None else "generated text"
    if isinstance(op, Expr):
        if op.fn == "get":
            return f"the variable {op.args[0]!r}"
        inner = sorted({_names(inner, makers) for arg in op.args for inner in refs_in(arg)})
        return " and ".join(inner) if inner else "a computed value"
    return "a value"


def _cached(op: Gen | Select, earlier: frozenset[int], branches: dict[int, int], makers: dict[int, AnyOp]) -> list[str]:
    """What of the prompt other requests of the same run have put into the cache."""
    names = [_title(maker) for number in sorted(earlier) if isinstance(maker := makers[number], (Gen, Select))]
    gains = [f"goes on from {' or '.join(names)}: prompt and output are in the cache"] if names else []
    if not names and op.stream in branches:
        gains.append(f"the {branches[op.stream]} branches of the fork share the prompt before it, computed once")
    return gains


def _branches(program: Program) -> dict[int, int]:
    """For each stream that a fork of several made, how many these are."""
    forks = [op for op in walk(program.body) if isinstance(op, Fork) and len(op.streams) > 1]
    return {stream: len(op.streams) for op in forks for stream in op.streams}


def _predecessors(body: tuple[AnyOp, ...], last: dict[int, frozenset[int]]) -> Iterator[tuple[int, frozenset[int]]]:
    """(value, values of the gens and selects that can come right before it on its stream or before its fork)."""
    for op in body:
        if isinstance(op, (Gen, Select)):
            yield op.out.id, last.get(op.stream, frozenset())
            last[op.stream] = frozenset({op.out.id})
        elif isinstance(op, (Role, Scope)):
            yield from _predecessors(op.body, last)
        elif isinstance(op, (Fork, Copy, Branch)):
            for stream in new_streams(op):
                last[stream] = last.get(op.stream, frozenset())
        elif isinstance(op, Loop):
            inside = dict(last)
            for _ in _predecessors(op.body, inside):  # what a round leaves behind
                continue
            for stream in last.keys() | inside.keys():
                last[stream] = last.get(stream, frozenset()) | inside.get(stream, frozenset())
            yield from _predecessors(op.body, dict(last))
        elif isinstance(op, Switch):
            afters = [] if op.is_exhaustive else [dict(last)]
            for case in op.cases:
                inside = dict(last)
                yield from _predecessors(case.body, inside)
                if not ends(case.body):
                    afters.append(inside)
            for stream in {stream for after in afters for stream in after}:
                last[stream] = frozenset().union(*(after.get(stream, frozenset()) for after in afters))


def _choices(facts: SelectFacts, op: AnyOp, prompt: Prompt | None) -> tuple[list[str], list[str]]:
    if facts.sequences:
        apart = sum(map(len, facts.sequences))
        trie = f"one trie of {facts.num_nodes} tokens ({apart} apart)"
        return [f"{len(facts.sequences)} choices are {trie}, scored in one pass"], []
    if isinstance(op, Select) and (not isinstance(op.choices, tuple) or any(refs_in(op.choices))):
        return [], ["the choices are not constant: they are tokenised in the run"]
    if prompt is None or prompt.pending is None:
        return [], ["the text right before the choices is not constant: they are tokenised in the run"]
    return [], ["its choices are not prepared: they are tokenised in the run"]


def _constraint(plan: Plan, facts: GenFacts, op: AnyOp, tokenizer: Tokenizer | None) -> tuple[list[str], list[str]]:
    spec = op.constraint if isinstance(op, Gen) else None
    if spec is None:
        return [], []
    if facts.constraint is None:
        return [], [f"its {spec.kind} depends on a value: it is compiled in the run"]
    users = sum(other.constraint == facts.constraint for other in plan.gens)
    shared = f", one for {users} gens" if users > 1 else ""
    gains = [f"the {spec.kind} is known: compiled once for each vocabulary and process{shared}"]
    if tokenizer is not None:
        from .constraints import compile_constraint  # numpy and the automata: only for a program with constraints

        constraint = plan.constraint(facts.constraint)
        compiled = compile_constraint(constraint, tokenizer.vocabulary, encode=tokenizer.encode)
        forced = compiled.start().forced()
        if forced:
            gains.append(f"its first {len(forced)} tokens are forced: {string_text(tokenizer.decode(forced))}")
    return gains, []


def _after(facts: GenFacts | SelectFacts) -> list[str]:
    if facts.follows == "literal":
        return [f"followed by the constant {string_text(facts.literal)}"]
    return []
