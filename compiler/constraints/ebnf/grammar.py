"""A grammar as rules over regular pieces, and what can be said of its rules without reading a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ....core.errors import ConstraintError
from ..nfa import count_positions
from ..regex_ast import Regex
from ..regex_ast import alt as regex_alt
from ..regex_ast import cat as regex_cat
from ..regex_ast import repeat as regex_repeat

MAX_NESTING = 150  # of brackets in one rule
MAX_MERGED = 4000  # characters of a terminal that is put together from pieces, repeats written out
MAX_MERGED_DEPTH = 40


def grammar_error(message: str, line: int = 0, column: int = 0) -> ConstraintError:
    """A grammar is wrong. `line` and `column` count from 1; 0 where the error is of the whole grammar."""
    place = f"line {line}, column {column}: " if line and column else f"line {line}: " if line else ""
    return ConstraintError(f"{place}{message}", field="ebnf")


@dataclass(frozen=True, slots=True)
class Term:
    """A regular piece. `pieces` is what it was put together from, for when its automaton is too large."""

    regex: Regex
    depth: int = field(default=0, compare=False)
    size: int = field(default=1, compare=False)  # characters, repeats written out
    pieces: Expr | None = field(default=None, compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Ref:
    """The rule `name`."""

    name: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Seq:
    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    options: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Rep:
    """`item` at least `low` and at most `high` (None: any number of) times."""

    item: Expr
    low: int
    high: int | None


Expr: TypeAlias = "Term | Ref | Seq | Or | Rep"


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules by name, each with the line on which it is defined. Made by a reader; every Ref names a rule."""

    rules: Mapping[str, Expr]
    start: str
    lines: Mapping[str, int]


def refs(expr: Expr) -> Iterator[Ref]:
    """Every reference in an expression."""
    todo = [expr]
    while todo:
        at = todo.pop()
        if isinstance(at, Ref):
            yield at
        elif isinstance(at, Seq):
            todo.extend(at.parts)
        elif isinstance(at, Or):
            todo.extend(at.options)
        elif isinstance(at, Rep):
            todo.append(at.item)


def reachable(grammar: Grammar) -> dict[str, Expr]:
    """The rules that the start leads to, in the order in which it does. Raises ConstraintError for undefined ones."""
    found: dict[str, Expr] = {}
    todo = [(grammar.start, 0)]
    while todo:
        name, line = todo.pop()
        if name in found:
            continue
        if name not in grammar.rules:
            known = ", ".join(list(grammar.rules)[:8])
            raise grammar_error(f"rule {name!r} is used but not defined; there are {known}", line)
        found[name] = grammar.rules[name]
        todo.extend((ref.name, ref.line) for ref in refs(found[name]))
    return found


def components(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected components, each behind those it leads to (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    out: list[list[str]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(edges[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component: list[str] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    out.append(component)
    return out


def simplified(rules: Mapping[str, Expr]) -> dict[str, Expr]:
    """The rules with neighbouring regular pieces put together, and rules that are regular and not recursive put in."""
    edges = {name: [ref.name for ref in refs(expr)] for name, expr in rules.items()}
    done: dict[str, Expr] = {}
    for component in components(edges):
        for name in component:
            done[name] = _simplified(rules[name], done)
    return done


def _simplified(expr: Expr, known: Mapping[str, Expr]) -> Expr:
    if isinstance(expr, Ref):
        found = known.get(expr.name)
        return found if isinstance(found, Term) else expr
    if isinstance(expr, Seq):
        return seq(_simplified(part, known) for part in expr.parts)
    if isinstance(expr, Or):
        return either([_simplified(option, known) for option in expr.options])
    if isinstance(expr, Rep):
        return rep(_simplified(expr.item, known), expr.low, expr.high)
    return expr


def seq(parts: Iterable[Expr]) -> Expr:
    """The parts in order, neighbouring terminals joined."""
    out: list[Expr] = []
    run: list[Term] = []

    def close() -> None:
        if run:
            out.append(run[0] if len(run) == 1 else _joined(run, Seq(tuple(run))))
            run.clear()

    for part in parts:
        for piece in part.parts if isinstance(part, Seq) else (part,):
            if not isinstance(piece, Term) or not _fits([*run[-1:], piece], sum(t.size for t in run) + piece.size):
                close()
            if isinstance(piece, Term):
                run.append(piece)
            else:
                out.append(piece)
    close()
    return out[0] if len(out) == 1 else Seq(tuple(out))


def either(options: Sequence[Expr]) -> Expr:
    """Any of the options, the terminals among them joined."""
    flat = [o for option in options for o in (option.options if isinstance(option, Or) else (option,))]
    out: list[Expr] = []
    run: list[Term] = []
    size = 0
    for option in flat:
        if not isinstance(option, Term) or not _fits([option], option.size):
            out.append(option)
            continue
        if run and size + option.size > MAX_MERGED:
            out.append(_either_of(run))
            run, size = [], 0
        run.append(option)
        size += option.size
    out.extend([_either_of(run)] if run else [])
    return out[0] if len(out) == 1 else Or(tuple(out))


def _either_of(terms: list[Term]) -> Term:
    return terms[0] if len(terms) == 1 else _joined(terms, Or(tuple(terms)))


def rep(item: Expr, low: int, high: int | None) -> Expr:
    """The item some number of times; a terminal stays one as long as it is not too large."""
    whole = Rep(item, low, high)
    if isinstance(item, Term) and _fits([item], item.size * max(high or low, 1)):
        return _joined([item], whole)
    return whole


def _fits(terms: Sequence[Term], size: int) -> bool:
    return size <= MAX_MERGED and all(term.depth < MAX_MERGED_DEPTH for term in terms)


def _joined(terms: Sequence[Term], whole: Expr) -> Term:
    """`whole`, which consists of these terminals, as one."""
    parts = [term.regex for term in terms]
    if isinstance(whole, Rep):
        regex = regex_repeat(parts[0], whole.low, whole.high)
    else:
        regex = regex_cat(parts) if isinstance(whole, Seq) else regex_alt(parts)
    return Term(regex, max(t.depth for t in terms) + 1, count_positions(regex), whole, terms[0].line)


def term(regex: Regex, line: int = 0) -> Term:
    """A terminal as it was written."""
    return Term(regex, 0, count_positions(regex), None, line)
