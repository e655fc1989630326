"""What a pass is: a name, a promise, and a function. `pipeline.PASSES` holds them in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...core.text.tokenizer import Tokenizer
from ..ir import AnyOp, Break, Next, Opaque, Program, Return, Role, Scope, Switch

if TYPE_CHECKING:
    from ..plan import Plan


class ChatFragments(Protocol):
    """The part of a chat template that the compiler asks."""

    def fragments(self, roles: tuple[str, ...], plain: bool = False) -> tuple[str, str] | None:
        """(text before, text after) the content of the last message of a conversation with these roles.

        None where the template does not pass: where the text of a message depends on what follows or on its content
        (with `plain`: on a content without white space around it).
        """


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile. `disabled` names passes to leave out; `warm_constraints` compiles constant constraints now.

    `outputs` are the variables that will be read after a run; None: everything is observable.
    """

    disabled: tuple[str, ...] = ()
    warm_constraints: bool = False
    outputs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What passes may know besides the program. Without a tokenizer text stays text; without a template roles stay."""

    tokenizer: Tokenizer | None = None
    template: ChatFragments | None = None
    options: CompileOptions = field(default_factory=CompileOptions)


@dataclass(frozen=True, slots=True)
class ProgramPass:
    """Rewrites a program. Pure; the result is legal where the argument was, and runs to the same output."""

    name: str
    promise: str
    run: Callable[[Program, Context], Program]


@dataclass(frozen=True, slots=True)
class PlanPass:
    """Adds what it has found out to a plan, whose program stays as it is."""

    name: str
    promise: str
    run: Callable[[Plan, Context], Plan]


Pass = ProgramPass | PlanPass


def ends(body: tuple[AnyOp, ...]) -> bool:
    """Whether no path goes on after a region: each has met a return or a break."""
    if not body:
        return False
    last = body[-1]
    if isinstance(last, (Opaque, Return, Next, Break)):
        return True
    if isinstance(last, (Role, Scope)):
        return ends(last.body)
    return isinstance(last, Switch) and last.is_exhaustive and all(ends(case.body) for case in last.cases)
