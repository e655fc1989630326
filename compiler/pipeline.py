"""From a Program to the Plan that the executor walks: the passes in their order.

`compile_program(program, tokenizer)` is the compiler after tracing. Each pass has a name, a promise and an off switch;
`print_after_all` shows them at work.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from .ir import Program, Tokens, walk
from .lower import lower
from .passes.base import ChatFragments, CompileOptions, Context, Pass, PlanPass, ProgramPass
from .passes.canonicalise import CANONICALISE
from .passes.chat_template import LOWER_CHAT_TEMPLATE
from .passes.constraint_cache import CONSTRAINT_CACHE
from .passes.drop_unobserved import DROP_UNOBSERVED
from .passes.fold_text import FOLD_TEXT
from .passes.select_to_trie import SELECT_TO_TRIE
from .passes.static_prefixes import STATIC_PREFIXES
from .passes.tokenize_constants import TOKENIZE_CONSTANTS
from .plan import Plan, print_plan
from .printer import print_program
from .verifier import verify

if TYPE_CHECKING:
    from ..core.text.tokenizer import Tokenizer

VERIFY = ProgramPass(
    "verify",
    "Changes nothing: raises VerifyError at the user's line where the program breaks a law of the IR.",
    lambda program, context: verify(program),
)
PASSES: tuple[Pass, ...] = (
    VERIFY,
    DROP_UNOBSERVED,
    LOWER_CHAT_TEMPLATE,
    FOLD_TEXT,
    CANONICALISE,
    TOKENIZE_CONSTANTS,
    CONSTRAINT_CACHE,
    STATIC_PREFIXES,
    SELECT_TO_TRIE,
)
PASS_NAMES = tuple(item.name for item in PASSES)
# Those of a workload (`scheduling.make`): named here so that compiling a program need not load them.
SCHEDULE_PASS_NAMES = (
    "order-free",
    "depth-first",
    "kv-pressure",
    "common-gens",
    "next-use",
    "critical-path",
    "cost-model",
)


def compile_program(
    program: Program,
    tokenizer: Tokenizer | None = None,
    template: ChatFragments | None = None,
    options: CompileOptions | None = None,
    print_after_all: Callable[[str, str], None] | None = None,
) -> Plan:
    """The plan of a program: all passes but `options.disabled`, in order.

    Without a tokenizer text stays text. `template` None takes the tokenizer's; without one roles stay roles.
    `print_after_all(pass name, text)` is called after each pass, with the program's text, or the plan's.
    Raises VerifyError or ConstraintError at the user's line, ConfigError for an unknown pass name.
    """
    options = options or CompileOptions()
    check_pass_names(options.disabled)
    if template is None and tokenizer is not None:
        template = tokenizer.chat_template
    context = Context(tokenizer, template, options)
    tell = print_after_all or (lambda name, text: None)
    chosen = [item for item in PASSES if item.name not in options.disabled]
    for item in chosen:
        if isinstance(item, ProgramPass):
            program = item.run(program, context)
            tell(item.name, print_program(program))
    plan = lower(program, tokenizer.hash if tokenizer is not None else None, tuple(item.name for item in chosen))
    for item in chosen:
        if isinstance(item, PlanPass):
            plan = item.run(plan, context)
            tell(item.name, print_plan(plan))
    return plan


def check_pass_names(names: tuple[str, ...]) -> None:
    """Raise ConfigError for a name that no pass has."""
    for name in names:
        known = (*PASS_NAMES, *SCHEDULE_PASS_NAMES)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the passes are {', '.join(known)}"
            raise ConfigError(f"there is no pass {name!r}; {hint}", field="disabled")


def plan_stats(plan: Plan) -> dict[str, int]:
    """Counts of a plan, by name: what `dslc compile --stats` prints."""
    ops = list(walk(plan.program.body))
    return {
        "ops": len(ops),
        "gens": len(plan.gens),
        "selects": len(plan.selects),
        "selects_prepared": sum(bool(facts.sequences) for facts in plan.selects),
        "trie_nodes": sum(facts.num_nodes for facts in plan.selects),
        "constraints": len(plan.constraints),
        "constant_tokens": sum(len(op.ids) for op in ops if isinstance(op, Tokens)),
        "static_prefixes": len(plan.prefixes),
        "static_prefix_tokens": len(plan.static_prefix),
        "static_prompt_tokens": sum(facts.num_static_tokens for facts in plan.facts),
    }
