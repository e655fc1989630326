"""The laws of the IR, each written once as data: name, promise, the ops it speaks of, and a check.

`verify(program)` raises at the first broken law with its name, the op and the user's line; `diagnose` lists them all.
The walk keeps what holds at each op (`_Flow`): visible values, open streams, open roles, variables set. How an op
changes that is one rule per op (`_AFTER`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.errors import ConstraintError, RequestError, SourceLoc, VerifyError
from ..core.sampling import MAX_TOP_LOGPROBS, SAMPLING_FIELDS, SamplingParams
from .expressions import BOOLEAN, FUNCTIONS
from .fields import FIELDS, Kind, all_defined, defined, new_streams, op_name, operands, used
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
    Op,
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
    walk,
)  # fmt: skip

Problems = Iterator[str]


@dataclass(slots=True)
class _Stream:
    """A stream: which fork or copy made it, its open role, and the variables some path has set.

    Once joined it can be read (Expr) and nothing else.
    """

    parent: int = -1
    maker: int = -1  # number of the Fork among the program's; -1: the program's own stream, a copy, or a Branch's
    role: str | None = None
    variables: set[str] = field(default_factory=set)
    is_joined: bool = False
    is_group: bool = False  # it stands for the branches of a fork with a count
    named: int = 0  # of a group: the stream that the last Branch has named

    def copy(self) -> _Stream:
        return replace(self, variables=set(self.variables))


@dataclass(slots=True)
class _Flow:
    """What holds before an op, on the path that reaches it."""

    program: Program
    values: set[int] = field(default_factory=set)
    streams: dict[int, _Stream] = field(default_factory=lambda: {0: _Stream()})
    at_head: bool = True
    loop_size: int | None = None  # how many values a next or break of the innermost loop gives
    ended_by: str | None = None
    # Of the whole program so far, whatever the path:
    defined: dict[int, AnyOp] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)  # stream -> what became of it
    num_forks: int = 0


@dataclass(frozen=True, slots=True)
class Law:
    """A law of single ops. `check` yields a sentence for each way in which the op breaks it."""

    name: str
    promise: str
    ops: frozenset[type[Any]]
    check: Callable[[Any, _Flow], Problems]


LAWS: list[Law] = []


def _law(name: str, promise: str, *ops: type[Any]) -> Callable[..., Any]:
    """Register a check for these op classes (none: for all)."""

    def register(check: Callable[[Any, _Flow], Problems]) -> Callable[[Any, _Flow], Problems]:
        LAWS.append(Law(name, promise, frozenset(ops or OP_CLASSES.values()), check))
        return check

    return register


def verify(program: Program) -> Program:
    """The program itself, if it is legal. Raises VerifyError for the first broken law, with the user's line."""
    for error in _problems(program):
        raise error
    return program


def diagnose(program: Program) -> list[VerifyError]:
    """Every broken law, in program order; empty for a legal program."""
    return list(_problems(program))


def _problems(program: Program) -> Iterator[VerifyError]:
    for message in _check_params(program):
        yield VerifyError(message, rule="params", where=program.where)
    flow = _Flow(program)
    yield from _region(program.body, flow)
    taken = {op.param for op in program.body if isinstance(op, Arg)}
    for param in program.params:
        if param.name not in taken:
            yield VerifyError(f"no arg op for the parameter {param.name!r}", rule="args-at-head", where=program.where)


def _check_params(program: Program) -> Problems:
    names: set[str] = set()
    defaults = keyword_only = False
    for param in program.params:
        if not param.name.isidentifier():
            yield f"{param.name!r} is not a name for a parameter"
        if param.name in names:
            yield f"two parameters are called {param.name!r}"
        if param.default is not None and not param.has_default:
            yield f"the parameter {param.name!r} has a default value but no default"
        if keyword_only and not param.keyword_only:
            yield f"the positional parameter {param.name!r} follows a keyword-only one"
        if defaults and not param.has_default and not param.keyword_only:
            yield f"the parameter {param.name!r} without a default follows one with a default"
        names.add(param.name)
        keyword_only = keyword_only or param.keyword_only
        defaults = defaults or param.has_default


# The walk


def _region(body: tuple[AnyOp, ...], flow: _Flow) -> Iterator[VerifyError]:
    for op in body:
        for law in _LAWS_OF[type(op)]:
            for message in law.check(op, flow):
                yield VerifyError(f"{op_name(op)}: {message}", rule=law.name, where=op.where)
        if not isinstance(op, Arg):
            flow.at_head = False
        yield from _AFTER[type(op)](op, flow)
        if (out := defined(op)) is not None:
            flow.defined[out.id] = op
            flow.values.add(out.id)
        elif isinstance(op, Loop):
            flow.values.update(out.id for out in op.outs)


def _set_var(op: Any, flow: _Flow) -> Iterator[VerifyError]:
    if op.var is not None and op.stream in flow.streams:
        flow.streams[op.stream].variables.add(op.var)
    return iter(())


def _nothing(op: Any, flow: _Flow) -> Iterator[VerifyError]:
    return iter(())


def _end(op: Any, flow: _Flow) -> Iterator[VerifyError]:
    flow.ended_by = op.name
    return iter(())


def _role(op: Role, flow: _Flow) -> Iterator[VerifyError]:
    stream = flow.streams.get(op.stream)
    before = stream.role if stream else None
    if stream:
        stream.role = op.role
    yield from _region(op.body, flow)
    if op.stream in flow.streams:
        flow.streams[op.stream].role = before


def _scope(op: Scope, flow: _Flow) -> Iterator[VerifyError]:
    yield from _region(op.body, flow)
    yield from _set_var(op, flow)


def _fork(op: Fork, flow: _Flow) -> Iterator[VerifyError]:
    _start(op, op.streams, flow, flow.num_forks)
    flow.num_forks += 1
    if op.count is not None and op.streams:
        flow.streams[op.streams[0]].is_group = True
    return iter(())


def _branch(op: Branch, flow: _Flow) -> Iterator[VerifyError]:
    group = flow.streams.get(op.stream)
    if group is not None:
        before = flow.streams.get(group.named)
        if before is not None and group.named:
            before.is_joined = True
            group.variables |= before.variables
            flow.made[group.named] = "another branch of its fork was named since"
        group.named = op.target
        # What one branch has set may be set in another: they have one set of variables.
        flow.streams[op.target] = _Stream(op.stream, -1, group.role, group.variables)
        flow.made[op.target] = "it is used outside the region that named it"
    return iter(())


def _copy(op: Copy, flow: _Flow) -> Iterator[VerifyError]:
    _start(op, (op.target,), flow, -1)
    return iter(())


def _start(op: Fork | Copy, streams: tuple[int, ...], flow: _Flow, maker: int) -> None:
    parent = flow.streams.get(op.stream, _Stream())
    for stream in streams:
        flow.streams[stream] = _Stream(op.stream, maker, parent.role, set(parent.variables))
        flow.made[stream] = "it is used outside the case that made it"


def _join(op: Join, flow: _Flow) -> Iterator[VerifyError]:
    for stream in op.streams:
        ended = flow.streams.get(stream)
        if ended is None:
            continue
        if ended.named in flow.streams and ended.named:
            ended.variables |= flow.streams[ended.named].variables
            flow.streams[ended.named].is_joined = True
        ended.is_joined = True
        flow.made[stream] = "it was joined before"
        if op.mode == "gather_variable" and op.stream in flow.streams:
            flow.streams[op.stream].variables |= ended.variables
    return iter(())


def _switch(op: Switch, flow: _Flow) -> Iterator[VerifyError]:
    """Each case starts from the state before; afterwards holds what holds on every path that goes on."""
    values, streams = set(flow.values), flow.streams
    ends: list[dict[int, _Stream]] = []
    enders: list[str] = []
    for case in op.cases:
        flow.values = set(values)
        flow.streams = {number: stream.copy() for number, stream in streams.items()}
        flow.ended_by = None
        yield from _region(case.body, flow)
        if flow.ended_by is None:
            ends.append(flow.streams)
        else:
            enders.append(flow.ended_by)
    if not op.is_exhaustive:
        ends.append(streams)
    flow.values = values
    flow.ended_by = None if ends else (enders[0] if enders else None)
    merged = ends or [streams]
    flow.streams = {}
    for number, stream in streams.items():
        if all(number in end for end in merged):
            stream.variables = set().union(*(end[number].variables for end in merged))
            stream.is_joined = any(end[number].is_joined for end in merged)
            flow.streams[number] = stream


def _loop(op: Loop, flow: _Flow) -> Iterator[VerifyError]:
    """A round begins with what held before, or after another round; afterwards holds what held before."""
    flow.defined.update({ref.id: op for ref in (*op.params, *op.outs)})
    values, streams, size = set(flow.values), flow.streams, flow.loop_size
    flow.values = values | {ref.id for ref in op.params}
    for number, variables in _set_in(op.body).items():  # a round before may have set them
        if number in streams:
            streams[number].variables |= variables
    flow.streams = {number: stream.copy() for number, stream in streams.items()}
    flow.loop_size = len(op.inits)
    yield from _region(op.body, flow)
    if flow.ended_by is None:
        yield VerifyError("loop: a path through its body ends without a next or break", rule="loop", where=op.where)
    flow.values, flow.streams, flow.loop_size, flow.ended_by = values, streams, size, None


def _set_in(body: tuple[AnyOp, ...]) -> dict[int, set[str]]:
    """The variables that the ops of a region may set, by stream."""
    found: dict[int, set[str]] = {}
    for op in walk(body):
        if isinstance(op, Branch):
            found[op.target] = found.setdefault(op.stream, set())
        if isinstance(op, (Gen, Select, Scope, Set)) and op.var is not None:
            found.setdefault(op.stream, set()).add(op.var)
        elif isinstance(op, Join) and op.mode == "gather_variable":
            for number in op.streams:
                found.setdefault(op.stream, set()).update(found.get(number, ()))
    return found


_AFTER: dict[type[Any], Callable[[Any, _Flow], Iterator[VerifyError]]] = {
    Text: _nothing,
    Tokens: _nothing,
    Special: _nothing,
    Media: _nothing,
    Arg: _nothing,
    Expr: _nothing,
    Host: _nothing,
    Gen: _set_var,
    Select: _set_var,
    Set: _set_var,
    Role: _role,
    Scope: _scope,
    Fork: _fork,
    Branch: _branch,
    Copy: _copy,
    Join: _join,
    Switch: _switch,
    Loop: _loop,
    Next: _end,
    Break: _end,
    Opaque: _end,
    Return: _end,
}


# Laws of every op


@_law("path-end", "Nothing follows an opaque, a return, a next or a break on its path.")
def _path_end(op: Op, flow: _Flow) -> Problems:
    if flow.ended_by is not None:
        yield f"it follows `{flow.ended_by}`, which ends the path"


@_law("stream-open", "An op acts on a stream that a fork or copy has made; one that was joined is only read.")
def _stream_open(op: Op, flow: _Flow) -> Problems:
    stream = flow.streams.get(op.stream)
    if stream is None or (stream.is_joined and not isinstance(op, Expr)):
        yield f"stream {op.stream} is not open here: {flow.made.get(op.stream, 'no fork or copy makes it before')}"


@_law("defined-before-use", "A value is used only after its definition, within the region that defines it.")
def _defined_before_use(op: AnyOp, flow: _Flow) -> Problems:
    for ref in used(op):
        if ref.id not in flow.values:
            maker = flow.defined.get(ref.id)
            yield (
                f"%{ref.id} is used before any op defines it"
                if maker is None
                else f"%{ref.id} is used outside the case that defines it ({_place(maker)})"
            )


@_law("defined-once", "A value is defined by exactly one op.")
def _defined_once(op: AnyOp, flow: _Flow) -> Problems:
    refs = all_defined(op)
    for i, out in enumerate(refs):
        if out.id in flow.defined:
            yield f"%{out.id} is defined already ({_place(flow.defined[out.id])})"
        elif out in refs[:i]:
            yield f"%{out.id} is defined twice"


@_law("unicode", "Text can be written as UTF-8: no lone surrogates.")
def _unicode(op: AnyOp, flow: _Flow) -> Problems:
    for info in FIELDS[type(op)]:
        if info.kind in (Kind.STRING, Kind.OPTIONAL_STRING):
            yield from _surrogates(getattr(op, info.name))
    for operand in operands(op):
        yield from _surrogates(operand)


def _surrogates(operand: Operand) -> Problems:
    if isinstance(operand, tuple):
        for item in operand:
            yield from _surrogates(item)
    elif isinstance(operand, str):
        found = next((char for char in operand if "\ud800" <= char <= "\udfff"), None)
        if found is not None:
            yield f"the string {operand[:40]!r} holds the lone surrogate U+{ord(found):04X}"


@_law("variable-name", "Variables have names.", Gen, Select, Scope, Set)
def _variable_name(op: Gen | Select | Scope | Set, flow: _Flow) -> Problems:
    if op.var == "":
        yield "the name of the variable is empty"


# Laws of single ops


@_law("text-operand", "What is appended as text is a string or a value.", Text)
def _text_operand(op: Text, flow: _Flow) -> Problems:
    if not isinstance(op.text, (str, Ref)):
        yield f"text must be a string or a value, not {op.text!r}"


@_law("token-ids", "Token ids are not negative.", Tokens)
def _token_ids(op: Tokens, flow: _Flow) -> Problems:
    bad = next((i for i in op.ids if i < 0), None)
    if bad is not None:
        yield f"{bad} is no token id"


@_law("media-kind", "Media is an image or a video from a string or a value.", Media)
def _media_kind(op: Media, flow: _Flow) -> Problems:
    if op.kind not in ("image", "video"):
        yield f"the kind must be image or video, not {op.kind!r}"
    if not isinstance(op.source, (str, Ref)):
        yield f"the source must be a path, a URL or a value, not {op.source!r}"


@_law("args-at-head", "The arg ops stand first, on the program's stream, one for each parameter.", Arg)
def _args_at_head(op: Arg, flow: _Flow) -> Problems:
    if not flow.at_head:
        yield f"the arg op of {op.param!r} stands after other ops"
    if op.stream != 0:
        yield "it stands on another stream than the program's"
    if op.param not in {param.name for param in flow.program.params}:
        yield f"the program has no parameter {op.param!r}"
    if any(isinstance(other, Arg) and other.param == op.param for other in flow.defined.values()):
        yield f"a second arg op for {op.param!r}"


@_law("sampling", "Sampling options are known, sorted, given once, and possible where constant.", Gen)
def _sampling(op: Gen, flow: _Flow) -> Problems:
    names = [name for name, _ in op.sampling]
    unknown = [name for name in names if name not in SAMPLING_FIELDS]
    if unknown:
        yield f"unknown sampling option {unknown[0]!r}; there are {', '.join(sorted(SAMPLING_FIELDS))}"
        return
    if names != sorted(set(names)):
        yield f"sampling options must be sorted and given once: {', '.join(names)}"
    constants: dict[str, Any] = {name: value for name, value in op.sampling if not _has_ref(value)}
    try:
        SamplingParams(**constants).verify()
    except RequestError as error:
        yield error.message
    except (TypeError, ValueError) as error:
        yield f"impossible sampling options: {error}"


@_law("logprobs", "Log-prob wishes are within their bounds.", Gen)
def _logprobs(op: Gen, flow: _Flow) -> Problems:
    if op.logprobs is None:
        return
    if not 0 <= op.logprobs.top <= MAX_TOP_LOGPROBS:
        yield f"at most {MAX_TOP_LOGPROBS} top log-probs can be had, not {op.logprobs.top}"
    if op.logprobs.prompt_start < -1:
        yield f"prompt_start must be -1 (none) or a position, not {op.logprobs.prompt_start}"


@_law("constraint", "A constraint's source is a value, or text that its kind accepts.", Gen)
def _constraint(op: Gen, flow: _Flow) -> Problems:
    if op.constraint is None or isinstance(op.constraint.source, Ref):
        return
    if not isinstance(op.constraint.source, str):
        yield f"the source of a {op.constraint.kind} must be text, not {op.constraint.source!r}"
        return
    from .constraints import check_constraint  # numpy and the grammar engines: only for a program with constraints

    try:
        check_constraint(op.constraint.resolve(op.constraint.source))
    except ConstraintError as error:
        yield error.message


@_law("choices", "A select has choices, none of them empty, and a method.", Select)
def _choices(op: Select, flow: _Flow) -> Problems:
    if not isinstance(op.choices, (tuple, Ref)):
        yield f"choices must be a list or a value, not {op.choices!r}"
    elif op.choices == ():
        yield "it has no choices"
    elif isinstance(op.choices, tuple):
        for choice in op.choices:
            if not isinstance(choice, (str, Ref)):
                yield f"a choice must be a string or a value, not {choice!r}"
            elif choice == "":
                yield "a choice is empty"
    if not op.method:
        yield "it names no choice method"


@_law("roles-flat", "On one stream a role does not open inside another.", Role)
def _roles_flat(op: Role, flow: _Flow) -> Problems:
    stream = flow.streams.get(op.stream)
    if stream is not None and stream.role is not None:
        yield f"the role {op.role!r} opens inside the role {stream.role!r}: close that one first"
    if not op.role:
        yield "the role has no name"


@_law("role-fragments", "A lowered role has both its prefix and its suffix.", Role)
def _role_fragments(op: Role, flow: _Flow) -> Problems:
    if (op.prefix is None) != (op.suffix is None):
        yield "it has only one of prefix and suffix"


@_law("streams-made-once", "A fork or copy makes new streams, a branch names one, each once.", Fork, Copy, Branch)
def _streams_made_once(op: Fork | Copy | Branch, flow: _Flow) -> Problems:
    streams = new_streams(op)
    if not streams:
        yield "it makes no stream"
    for i, stream in enumerate(streams):
        if stream in flow.made or stream in streams[:i] or stream <= 0:
            yield f"stream {stream} exists already" if stream > 0 else f"a new stream cannot have the number {stream}"


@_law("branches", "A fork with a count makes one stream, for all its branches; on it stand only branch ops.")
def _branches(op: AnyOp, flow: _Flow) -> Problems:
    if isinstance(op, Fork) and op.count is not None and len(op.streams) != 1:
        yield f"it has a count and {len(op.streams)} streams"
    stream = flow.streams.get(op.stream)
    is_group = stream is not None and stream.is_group
    if is_group and not isinstance(op, Branch):
        yield f"stream {op.stream} stands for all branches of a fork: a branch op names one of them"
    if isinstance(op, Branch) and not is_group:
        yield f"stream {op.stream} was not made by a fork with a count"


@_law("join-of-fork", "A join ends streams of one fork of its own stream, each once.", Join)
def _join_of_fork(op: Join, flow: _Flow) -> Problems:
    if not op.streams:
        yield "it joins no stream"
    makers = set()
    for i, stream in enumerate(op.streams):
        branch = flow.streams.get(stream)
        if stream in op.streams[:i]:
            yield f"stream {stream} is joined twice"
        elif branch is None or branch.is_joined:
            yield f"stream {stream} is not open here: {flow.made.get(stream, 'no fork makes it before')}"
        elif branch.maker < 0:
            yield f"stream {stream} was not made by a fork"
        elif branch.parent != op.stream:
            yield f"stream {stream} is a branch of stream {branch.parent}, not of stream {op.stream}"
        else:
            makers.add(branch.maker)
    if len(makers) > 1:
        yield "its streams come from different forks"


@_law("expr-function", "An expression applies a known function to the right number of values.", Expr)
def _expr_function(op: Expr, flow: _Flow) -> Problems:
    function = FUNCTIONS.get(op.fn)
    if function is None:
        yield f"there is no function {op.fn!r} in the IR"
    elif not function.takes(len(op.args)):
        yield f"takes {function.arity} arguments, not {len(op.args)}"
    elif op.fn in ("get", "has", "typed", "captured") and not isinstance(op.args[0], str):
        yield f"needs a name, not {op.args[0]!r}"


@_law("loop", "A loop has a parameter for each value that a round begins with, and a result for each it carries.", Loop)
def _loop_shape(op: Loop, flow: _Flow) -> Problems:
    wanted = len(op.inits) + (op.over is not None)
    if len(op.params) != wanted:
        yield f"it has {len(op.params)} params, and a round begins with {wanted} values"
    if len(op.outs) != len(op.inits):
        yield f"it has {len(op.outs)} outs, and carries {len(op.inits)} values"
    if op.over is not None and not isinstance(op.over, (tuple, Ref)):
        yield f"it goes over a list or a value, not {op.over!r}"


@_law("loop-end", "A next or break stands in a loop, with a value for each that the loop carries.", Next, Break)
def _loop_end(op: Next | Break, flow: _Flow) -> Problems:
    if flow.loop_size is None:
        yield "it stands in no loop"
    elif len(op.values) != flow.loop_size:
        yield f"it gives {len(op.values)} values, and the loop carries {flow.loop_size}"


@_law(
    "host-function",
    "A host call names its function, or a method of its first value; it catches captured classes.",
    Host,
)
def _host_function(op: Host, flow: _Flow) -> Problems:
    if op.function in ("", "."):
        yield "it names no function"
    if op.function.startswith((".", "(")) and not op.args:
        yield f"{op.function!r} needs the value that it is called on"
    if any(not isinstance(name, str) for name in op.catches):
        yield "what it catches are names of exception classes"


@_law("variable-set", "A variable is read only where some path to the reader has set it.", Expr)
def _variable_set(op: Expr, flow: _Flow) -> Problems:
    stream = flow.streams.get(op.stream)
    if op.fn not in ("get", "typed") or len(op.args) != 1 or stream is None or op.args[0] in stream.variables:
        return
    known = ", ".join(sorted(map(repr, stream.variables))) or "none yet"
    yield f"the variable {op.args[0]!r} is read before any op sets it; variables so far: {known}"


@_law("cases", "A switch has cases, each for another value.", Switch)
def _cases(op: Switch, flow: _Flow) -> Problems:
    if not op.cases:
        yield "it has no cases"
    seen: set[tuple[type, Any]] = set()
    for case in op.cases:
        key = (type(case.value), case.value)
        if key in seen:
            yield f"two cases for {case.value!r}"
        seen.add(key)


@_law("truth", "A switch with cases for both truth values is on a truth value, so that one of them is taken.", Switch)
def _truth(op: Switch, flow: _Flow) -> Problems:
    if not op.is_exhaustive or isinstance(op.on, bool):
        return
    maker = flow.defined.get(op.on.id) if isinstance(op.on, Ref) else None
    if not isinstance(maker, Expr) or maker.fn not in BOOLEAN:
        yield "it has cases for true and false, but its operand need not be either: put a `bool` before it"


def _has_ref(operand: Operand) -> bool:
    return isinstance(operand, Ref) or (isinstance(operand, tuple) and any(map(_has_ref, operand)))


def _place(op: AnyOp) -> str:
    where: SourceLoc | None = op.where
    return f"`{op_name(op)}` at {where}" if where is not None else f"`{op_name(op)}`"


_LAWS_OF: dict[type[Any], list[Law]] = {cls: [law for law in LAWS if cls in law.ops] for cls in OP_CLASSES.values()}
