"""select-to-trie: the choices of a select as token sequences, ready to be scored as one trie.

Choices are tokenised together with the text that is pending before them, as the run would. That text must be known: it
is if nothing but constants stands between it and the last settled token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..ir import Select, walk
from ..prompts import prompts
from .base import Context, PlanPass

if TYPE_CHECKING:
    from ..plan import Plan, SelectFacts


def run(plan: Plan, context: Context) -> Plan:
    """The plan with `tail` and `sequences` in the facts of each select with constant choices behind a known tail."""
    tokenizer = context.tokenizer
    if tokenizer is None:
        return plan
    found = {prompt.out: prompt for prompt in prompts(plan.program, tokenizer)}
    choices = {op.out: op.choices for op in walk(plan.program.body) if isinstance(op, Select)}

    def prepared(facts: SelectFacts) -> SelectFacts:
        prompt, options = found.get(facts.out), choices[facts.out]
        if prompt is None or prompt.pending is None or not isinstance(options, tuple):
            return facts
        texts = [choice for choice in options if isinstance(choice, str)]
        if len(texts) != len(options):
            return facts
        tail = prompt.pending[max(tokenizer.safe_cut(prompt.pending), prompt.fixed) :]
        return replace(facts, tail=tail, sequences=tuple(tuple(tokenizer.encode(tail + text)) for text in texts))

    return replace(plan, selects=tuple(prepared(facts) for facts in plan.selects))


SELECT_TO_TRIE = PlanPass(
    "select-to-trie",
    "Tokenises constant choices behind a known tail, so that a select is one scored trie.",
    run,
)
