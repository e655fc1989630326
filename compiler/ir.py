"""The IR: a program as a small closed set of frozen ops.

The tracer makes Programs, passes rewrite them, `lower` reads them last; the executor runs the same ops one by one when
a program is interpreted. A Program prints as text (`printer`), parses back to an equal Program (`parser`), saves as
versioned JSON (`serial`) and is checked by `verifier`.

Values are `Ref`s, defined once by the op whose `out` they are. Every op acts on one text stream (`stream`; 0 is the
program's own; `Fork` and `Copy` make others, and a Join ends the ones it names). Ops stand in the order of the user's
source; two ops on different streams depend on each other only through values. Regions (the `body` of Role, Scope
and Loop, and the cases of Switch) nest; a value is used only where it is defined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from ..core.constraint import Constraint, ConstraintKind
from ..core.errors import SourceLoc
from ..core.request import LogprobWish

IR_VERSION = 3


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the program; printed `%id`. Ids number the values of a Program in the order of definition."""

    id: int


Const: TypeAlias = "str | int | float | bool | None"
# A literal, a value, or a tuple of operands (printed `[a, b]`).
Operand: TypeAlias = "Const | Ref | tuple[Operand, ...]"


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """A constraint whose source may depend on a value. `resolve(source)` gives the core Constraint."""

    kind: ConstraintKind
    source: Operand
    options: tuple[tuple[str, str], ...] = ()

    def resolve(self, source: str) -> Constraint:
        """The Constraint with its source text now known."""
        return Constraint(self.kind, source, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """Base of all ops. `where` is the user's line, for errors; it takes no part in equality."""

    name: ClassVar[str] = ""
    stream: int = 0
    where: SourceLoc | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Op):
    """Append plain text. Special tokens in it are not parsed."""

    name: ClassVar[str] = "text"
    text: Operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(Op):
    """Append constant text whose ids are final. Made by the tokenise-constants pass from Text and Special.

    `ids` are the ids of `text`, special tokens included. The pass cuts only where no later text can change them
    (`Tokenizer.safe_cut`), so what follows is tokenised by itself. Text that is pending on the stream (appended, but
    not yet tokenised) ends here and is tokenised by itself too; but where `continues` is set and text is pending (the
    kept tail of a generation cut by a stop), the executor appends `text` instead of the ids; its first `fixed`
    characters end with template text, which no select or gen gives back.
    """

    name: ClassVar[str] = "tokens"
    ids: tuple[int, ...]
    text: str
    continues: bool = False
    fixed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Special(Op):
    """Append template text in which special tokens are parsed."""

    name: ClassVar[str] = "special"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Media(Op):
    """Append a picture or a video. `source` is a path, URL or handle; `options` such as ("num_frames", 8)."""

    name: ClassVar[str] = "media"
    kind: Literal["image", "video"]
    source: Operand
    options: tuple[tuple[str, Operand], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Op):
    """Define the value of a parameter. One per parameter, at the head of the program."""

    name: ClassVar[str] = "arg"
    out: Ref
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gen(Op):
    """Generate text into the variable `var` (None: unnamed) and append it.

    `sampling` holds only the options given at this gen, sorted by name, under the names of `SamplingParams`; the
    rest comes from the run. The value is a str, or a tuple of `n` strings.
    """

    name: ClassVar[str] = "gen"
    out: Ref
    var: str | None = None
    sampling: tuple[tuple[str, Operand], ...] = ()
    constraint: ConstraintSpec | None = None
    logprobs: LogprobWish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Op):
    """Choose one of `choices` by log-prob, store it in `var` and append it. `method` names a choice method."""

    name: ClassVar[str] = "select"
    out: Ref
    choices: Operand
    var: str | None = None
    method: str = "token_length_normalized"
    temperature: Operand = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Role(Op):
    """A chat turn: what `body` appends on this stream is the message of `role`.

    With `prefix` and `suffix` None the executor renders the chat template around it. The lower-chat-template pass sets
    both and puts them into `body` as its first and last text: then the executor only runs `body`, and the message is
    what body appended less the two.
    """

    name: ClassVar[str] = "role"
    role: str
    body: tuple[AnyOp, ...] = ()
    prefix: str | None = None
    suffix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope(Op):
    """`var_scope`: after `body`, `var` holds the text that body appended on this stream."""

    name: ClassVar[str] = "scope"
    out: Ref
    var: str
    body: tuple[AnyOp, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork(Op):
    """Start `streams`, each beginning with a copy of this stream's text and variables.

    With a `count` there is one stream, which stands for so many branches: a Branch names one of them, a Join ends all.
    """

    name: ClassVar[str] = "fork"
    streams: tuple[int, ...]
    count: Operand = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch(Op):
    """From here on `target` is branch number `index` of the Fork with a count that made this op's stream.

    What `target` was before, and the branch that another Branch of the same fork named, can only be read from here on.
    """

    name: ClassVar[str] = "branch"
    target: int
    index: Operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Op):
    """`s.copy()`: start one stream beginning with a copy of this stream; it is never joined."""

    name: ClassVar[str] = "copy"
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Op):
    """End `streams` (made by one Fork of this stream).

    "gather_variable": for each variable set in a branch, this stream's variable of that name becomes the tuple of the
    branches' values. "concate_and_append": the text each branch added is appended here, in order.
    """

    name: ClassVar[str] = "join"
    streams: tuple[int, ...]
    mode: Literal["gather_variable", "concate_and_append"] = "gather_variable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set(Op):
    """Set the variable `var` of this stream."""

    name: ClassVar[str] = "set"
    var: str
    value: Operand


# Pure functions of an Expr, and what they mean in Python. "get" reads variable args[0] of the op's stream by name;
# "text" is the stream's text so far; "has" whether the variable is set. A list among the arguments is a tuple.
EXPR_FUNCTIONS: frozenset[str] = frozenset(
    {
        "get", "has", "text",
        "format",  # format(value, spec)
        "str", "repr", "concat", "join", "slice", "index", "replace", "split",
        "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize",
        "startswith", "endswith", "find", "count",
        "eq", "ne", "lt", "le", "gt", "ge", "contains",
        "len", "int", "float", "bool", "parse_json",
        "and", "or", "not", "add", "sub", "mul", "neg", "mod", "div", "floordiv", "pow",
        "is_none",
        "partition", "rpartition", "splitlines", "rsplit", "removeprefix", "removesuffix", "rfind", "casefold",
        "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "zfill",
        "attr",  # getattr(value, name)
        "tuple", "dict", "range",  # tuple(args); dict of args[0], args[1], args[2], ... as key, value, key, ...
        "captured",  # the object of the user's process that the host table has under the name args[0]
        "typed",  # variable args[0] of the op's stream, as the type its gen was given
        "unpack",  # tuple(args[0]), which must have args[1] items
        "unset",  # what the Python variable args[0] holds while it is not set: to use it raises UnboundLocalError
        "unordered",  # args[1] joined with args[0], in the order that the schedule chose (else as given)
        "part",  # of the text args[0] of a gen under the sequence args[1]: what belongs to part number args[2],
        # as the type args[3] ("str", "int" or "float")
        "error_of", "result_of",  # of the outcome of a Host with `catches`
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Expr(Op):
    """A pure computation from the closed list `EXPR_FUNCTIONS`."""

    name: ClassVar[str] = "expr"
    out: Ref
    fn: str
    args: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Op):
    """Call a Python function of the user's process, when the program gets there, once, in the order of the source.

    `function` is a name in the host table of the traced function ("module:qualname"), ".name" for the method of
    `args[0]`, or "()" for `args[0]` itself. A list among the operands is handed over as a new list. With `catches`
    (names of exception classes in the host table) `out` is an outcome, read by the Exprs "error_of" and "result_of":
    what one of them catches is kept there instead of ending the program. `is_pure`: known to do nothing but compute.
    """

    name: ClassVar[str] = "host"
    out: Ref
    function: str
    args: tuple[Operand, ...] = ()
    kwargs: tuple[tuple[str, Operand], ...] = ()
    catches: tuple[Operand, ...] = ()
    is_pure: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One branch of a Switch: taken when the value equals `value`."""

    value: Const
    body: tuple[AnyOp, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Op):
    """Go into the first case whose value equals `on` (same type and value); into none if no case fits.

    The tracer gives a branch on a truth value the cases true and false. A value defined in a case is used only there;
    a variable set there is read afterwards with Expr "get".
    """

    name: ClassVar[str] = "switch"
    on: Operand
    cases: tuple[Case, ...]

    @property
    def is_exhaustive(self) -> bool:
        """Whether one case is always taken: there is one for each truth value (then `on` is one, by law)."""
        return {True, False} <= {case.value for case in self.cases if isinstance(case.value, bool)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop(Op):
    """Run `body` in rounds: once for each item of `over`, or, where that is None, until a Break.

    `params` are the values that a round begins with: the item first if there is `over`, then one for each of `inits`,
    which begin the first round; a Next gives those of the next one. `outs` are what the last Next or Break gave. Every
    path through the body ends with a Next, Break, Return or Opaque. What the body defines, streams included, is used
    only there; a variable set there is read afterwards by name.
    """

    name: ClassVar[str] = "loop"
    over: Operand = None
    params: tuple[Ref, ...] = ()
    inits: tuple[Operand, ...] = ()
    outs: tuple[Ref, ...] = ()
    body: tuple[AnyOp, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Next(Op):
    """End a round of the innermost Loop; the next one begins with these values."""

    name: ClassVar[str] = "next"
    values: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Break(Op):
    """End the innermost Loop with these values."""

    name: ClassVar[str] = "break"
    values: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque(Op):
    """A break: from here on only the Python body knows what happens. Always the last op of its region path."""

    name: ClassVar[str] = "opaque"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Return(Op):
    """The program returns `value` (as `state.ret_value`). Ends the program, wherever it stands."""

    name: ClassVar[str] = "return"
    value: Operand = None


AnyOp: TypeAlias = (
    "Text | Tokens | Special | Media | Arg | Gen | Select | Role | Scope | Fork | Branch | Copy | Join | Set | Expr"
    " | Host | Switch | Loop | Next | Break | Opaque | Return"
)
OP_CLASSES: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        Text, Tokens, Special, Media, Arg, Gen, Select, Role, Scope, Fork, Branch, Copy, Join, Set, Expr, Host, Switch,
        Loop, Next, Break, Opaque, Return,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a program. `default` counts only where `has_default`; a non-constant default is a guard."""

    name: str
    has_default: bool = False
    default: Operand = None
    keyword_only: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A traced program. Made by `tracing.trace`, rewritten by passes, read last by `lower`.

    `num_api_spec_tokens` as in SGLang's decorator. `guards` are sorted (name, fingerprint) pairs of the globals,
    closure cells and defaults the trace depended on: with another value the function is traced anew.
    """

    title: str
    params: tuple[Param, ...] = ()
    body: tuple[AnyOp, ...] = ()
    guards: tuple[tuple[str, str], ...] = ()
    num_api_spec_tokens: int | None = None
    where: SourceLoc | None = field(default=None, compare=False)

    @property
    def is_whole(self) -> bool:
        """Whether the program has no break, so that it can run without its Python body."""
        return not any(isinstance(op, Opaque) for op in walk(self.body))

    def __str__(self) -> str:
        """The text form (docs/ir.md)."""
        from .printer import print_program

        return print_program(self).rstrip("\n")


def regions(op: AnyOp) -> tuple[tuple[AnyOp, ...], ...]:
    """The regions of an op, in order; empty for a leaf."""
    if isinstance(op, (Role, Scope, Loop)):
        return (op.body,)
    if isinstance(op, Switch):
        return tuple(case.body for case in op.cases)
    return ()


def walk(body: tuple[AnyOp, ...]) -> Iterator[AnyOp]:
    """Every op of a region and of the regions inside it, in program order."""
    for op in body:
        yield op
        for region in regions(op):
            yield from walk(region)
