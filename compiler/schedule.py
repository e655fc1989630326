"""Workload -> Schedule: what the instances now in flight share, and in which order to submit them.

Pure, and of use only for speed: results never depend on it. The instances' first prompts, as far as their arguments
tell, form a trie of token ids. Submitted depth first, instances with a common beginning stand next to each other, so
that it is computed once and can go once they are through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .prompts import prompts

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer
    from .plan import Plan

_ABOVE_TEXT = 0x88000  # characters from here on stand for ids: no script has any, and half a million ids fit


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of a plan with its arguments (bound, defaults included)."""

    plan: Plan
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """The program instances now in flight, in the order in which the user gave them."""

    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A shared stretch of the trie: `ids` after its parent's; the instances below it, in submission order.

    `ends` are the instances whose known prompt ends here.
    """

    ids: tuple[int, ...]
    instances: tuple[int, ...]
    ends: tuple[int, ...] = ()
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of submission, and what is shared.

    `order` holds instance numbers. `num_prompt_tokens` sums the known first prompts, `num_distinct_tokens` counts the
    nodes of their trie: what has to be computed. `prefixes` are the stretches from the root shared by two or more
    instances, longest first within a branch: what is worth holding while they run.
    """

    order: tuple[int, ...]
    num_prompt_tokens: int
    num_distinct_tokens: int
    prefixes: tuple[tuple[int, ...], ...] = ()
    root: Node = field(default_factory=lambda: Node((), ()), repr=False, compare=False)

    @property
    def num_shared_tokens(self) -> int:
        """Prompt tokens that need not be computed again."""
        return self.num_prompt_tokens - self.num_distinct_tokens

    def __str__(self) -> str:
        return print_schedule(self)


def schedule(workload: Workload, tokenizer: Tokenizer | None) -> Schedule:
    """The schedule of a workload. Without a tokenizer nothing is known to be shared: the given order stays."""
    known = [first_prompt(instance, tokenizer) for instance in workload.instances]
    return schedule_prompts(known)


def first_prompt(
    instance: Instance, tokenizer: Tokenizer | None, orders: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[int, ...]:
    """The ids of the first gen's or select's prompt, as far as the arguments tell. `orders`: of order-free parts."""
    for prompt in prompts(instance.plan.program, tokenizer, instance.arguments, orders):
        if prompt.is_whole and tokenizer is not None and prompt.pending:
            return (*prompt.ids, *tokenizer.encode(prompt.pending))
        return prompt.ids
    return ()


def first_text(
    instance: Instance, tokenizer: Tokenizer, orders: Mapping[str, tuple[int, ...]] | None, *, as_text: bool
) -> Sequence[Any]:
    """The same to sort by. With `as_text` it is a string in which the settled ids are characters of their own, and the
    text after them stays what it is: that costs no tokenising."""
    if not as_text:
        return first_prompt(instance, tokenizer, orders)
    for prompt in prompts(instance.plan.program, tokenizer, instance.arguments, orders):
        return "".join([chr(_ABOVE_TEXT + number % _ABOVE_TEXT) for number in prompt.ids]) + (prompt.pending or "")
    return ""


def depth_first_order(known: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """The order of a depth-first walk through the trie of these sequences, children as they first come."""
    order: list[int] = []
    todo: list[tuple[list[int], int]] = [(list(range(len(known))), 0)]
    while todo:
        members, depth = todo.pop()
        if len(members) == 1:
            order += members
            continue
        groups: dict[Any, list[int]] = {}
        for i in members:
            if len(known[i]) > depth:
                groups.setdefault(known[i][depth], []).append(i)
            else:
                order.append(i)
        for group in reversed(groups.values()):
            todo.append((group, _agreed(known, group, depth) if len(group) > 1 else depth))
    return tuple(order)


def schedule_prompts(known: Sequence[tuple[int, ...]]) -> Schedule:
    """The schedule of instances with these known first prompts."""
    root = _node(known, tuple(range(len(known))), 0, ())
    distinct = _count(root)
    order = root.instances
    return Schedule(order, sum(map(len, known)), distinct, tuple(_shared(root, ())), root)


def _node(known: Sequence[tuple[int, ...]], members: tuple[int, ...], depth: int, ids: tuple[int, ...]) -> Node:
    """The compressed trie of the members, which agree on their first `depth` ids; iterative in depth of stretches."""
    # Built bottom-up over an explicit stack: prompts of thousands of tokens may branch at every one of them.
    todo = [(members, depth, ids)]
    built: list[_Draft] = []
    parents: list[int] = [-1]
    while todo:
        members, depth, ids = todo.pop()
        number = len(built)
        ends = tuple(i for i in members if len(known[i]) == depth)
        groups: dict[int, list[int]] = {}
        for i in members:
            if len(known[i]) > depth:
                groups.setdefault(known[i][depth], []).append(i)
        built.append(_Draft(ids, ends, parents.pop()))
        for group in reversed(list(groups.values())):
            stop = _agreed(known, group, depth)
            todo.append((tuple(group), stop, known[group[0]][depth:stop]))
            parents.append(number)
    return _finish(built)


@dataclass(slots=True)
class _Draft:
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    parent: int
    children: list[Node] = field(default_factory=list)


def _finish(drafts: list[_Draft]) -> Node:
    """Drafts in depth-first order, as nodes; children before parents."""
    for draft in reversed(drafts):
        children = tuple(reversed(draft.children))
        below = tuple(i for child in children for i in child.instances)
        node = Node(draft.ids, (*draft.ends, *below), draft.ends, children)
        if draft.parent < 0:
            return node
        drafts[draft.parent].children.append(node)
    raise AssertionError("the root is the first draft")


def _agreed(known: Sequence[Any], group: list[int], depth: int) -> int:
    """How far the group, which agrees beyond `depth`, agrees."""
    first = known[group[0]]
    stop = min(len(known[i]) for i in group)
    for i in group[1:]:
        other = known[i]
        if other[depth:stop] == first[depth:stop]:
            continue
        low, high = depth, stop  # they agree up to low, and not up to high
        while high - low > 1:
            middle = (low + high) // 2
            if other[low:middle] == first[low:middle]:
                low = middle
            else:
                high = middle
        stop = low
    return stop


def _walk(root: Node) -> list[tuple[Node, int]]:
    """(node, number of nodes above it), depth first."""
    todo, found = [(root, 0)], []
    while todo:
        node, depth = todo.pop()
        found.append((node, depth))
        todo.extend((child, depth + 1) for child in reversed(node.children))
    return found


def _count(root: Node) -> int:
    return sum(len(node.ids) for node, _ in _walk(root))


def _shared(root: Node, above: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The longest shared stretches from the root: of two or more instances, with no such node below."""
    todo, found = [(root, above)], []
    while todo:
        node, above = todo.pop()
        here = above + node.ids
        shared = [child for child in node.children if len(child.instances) > 1]
        if not shared and here and len(node.instances) > 1:
            found.append(here)
        todo.extend((child, here) for child in reversed(shared))
    return found


def print_schedule(plan: Schedule, limit: int = 40) -> str:
    """The trie with its counts, at most `limit` lines of it."""
    lines = [
        f"{len(plan.order)} instances; {plan.num_prompt_tokens} known prompt tokens, "
        f"{plan.num_distinct_tokens} distinct, {plan.num_shared_tokens} shared"
    ]
    nodes = [(node, depth) for node, depth in _walk(plan.root) if node.ids]
    for node, depth in nodes[:limit]:
        who = f"instance {node.instances[0]}" if len(node.instances) == 1 else f"{len(node.instances)} instances"
        lines.append(f"{'  ' * depth}+{len(node.ids)} tokens: {who}")
    if len(nodes) > limit:
        lines.append(f"  ... and {len(nodes) - limit} more")
    return "\n".join(lines) + "\n"
