"""Hypothesis strategies for random programs that obey every law of the IR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from dslc.compiler.ir import (
    AnyOp,
    Arg,
    Branch,
    Break,
    Case,
    ConstraintSpec,
    Copy,
    Expr,
    Fork,
    Gen,
    Host,
    Join,
    Loop,
    Media,
    Next,
    Opaque,
    Param,
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
from dslc.core.request import LogprobWish

ALL_OPS = frozenset(
    {
        "text", "tokens", "special", "media", "gen", "select", "role", "scope", "fork", "branch", "copy", "join", "set",
        "expr",
        "host", "switch", "loop", "next", "break", "opaque", "return",
    }
)  # fmt: skip
# What an executor can run on any backend: no media, no break, no ids of a certain tokenizer.
RUNNABLE_OPS = ALL_OPS - {"tokens", "special", "media", "opaque"}

NAMES = ("a", "b", "label", "x_1", "émile")
WORDS = ("Q: ", " yes", "no", "\n", "The ", "answer", " is 42.", "ü€😀", '"quoted" \\ # ; {', " ")
REGEXES = ("[0-9]+", "(yes|no)", "[a-z ]{1,20}")
JSON_SCHEMAS = ('{"type": "integer"}', '{"type": "object", "properties": {"a": {"type": "boolean"}}}')


# What a random program may call; run it with these as its host table.
HOSTS: dict[str, Any] = {
    "host:join": lambda *parts: "+".join(map(str, parts)),
    "host:double": lambda text, times=2: str(text) * times,
    "host:fail": lambda *parts: [][0],
    "host:IndexError": IndexError,
}


def texts() -> st.SearchStrategy[str]:
    """Short strings: mostly words that read well, sometimes any Unicode but surrogates."""
    return st.one_of(st.sampled_from(WORDS), st.text(max_size=8))


def literals() -> st.SearchStrategy[Any]:
    """Constants of every type that is equal to itself."""
    return st.one_of(
        texts(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.booleans(),
        st.none(),
    )


@dataclass
class _Scope:
    """What is known where the next op goes."""

    values: list[Ref] = field(default_factory=list)
    strings: list[Ref] = field(default_factory=list)
    truths: list[Ref] = field(default_factory=list)
    variables: dict[int, set[str]] = field(default_factory=lambda: {0: set()})
    roles: set[int] = field(default_factory=set)
    forks: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # fork -> parent, open branches
    # Of forks with a count, by stream: parent, number of branches, their variables, the branch that was named last.
    groups: dict[int, tuple[int, int, set[str], int]] = field(default_factory=dict)

    def copy(self) -> _Scope:
        return _Scope(
            list(self.values),
            list(self.strings),
            list(self.truths),
            {stream: set(names) for stream, names in self.variables.items()},
            set(self.roles),
            dict(self.forks),
        )


class _Builder:
    def __init__(self, draw: Any, ops: frozenset[str], constraints: bool) -> None:
        self.draw = draw
        self.ops = ops
        self.constraints = constraints
        self.next_ref = 0
        self.next_stream = 1
        self.next_fork = 0
        self.ended = False
        self.carried: int | None = None  # how many values the innermost loop carries

    def ref(self) -> Ref:
        self.next_ref += 1
        return Ref(self.next_ref - 1)

    def pick(self, items: Any) -> Any:
        return self.draw(st.sampled_from(sorted(items, key=repr)))

    def region(self, scope: _Scope, size: int, depth: int) -> tuple[AnyOp, ...]:
        ops: list[AnyOp] = []
        for _ in range(self.draw(st.integers(0, size))):
            names = sorted(self.ops - ({"role", "scope", "switch", "fork", "loop"} if depth >= 3 else set()))
            maker = getattr(self, "_" + self.draw(st.sampled_from(names)))
            made = maker(scope, self.pick(scope.variables), depth)
            if made is not None:
                ops.append(made)
            if self.ended:
                break
        return tuple(ops)

    def _text(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        options = [texts().filter(bool)] + ([st.sampled_from(scope.strings)] if scope.strings else [])
        return Text(stream=stream, text=self.draw(st.one_of(options)))

    def _tokens(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        ids = self.draw(st.lists(st.integers(0, 200_000), max_size=4))
        return Tokens(stream=stream, ids=tuple(ids), text=self.draw(texts()), continues=self.draw(st.booleans()))

    def _special(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        return Special(stream=stream, text=self.draw(texts()))

    def _media(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        options = (("num_frames", self.draw(st.integers(1, 9))),) if self.draw(st.booleans()) else ()
        return Media(stream=stream, kind=self.pick(["image", "video"]), source=self.draw(texts()), options=options)

    def _gen(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        sampling: list[tuple[str, Any]] = []
        if self.draw(st.booleans()):
            sampling.append(("max_new_tokens", self.draw(st.integers(1, 8))))
        if self.draw(st.booleans()):
            sampling.append(("stop", self.draw(st.lists(st.sampled_from(["\n", ".", "ab"]), max_size=2).map(tuple))))
        if self.draw(st.booleans()):
            sampling.append(("temperature", self.draw(st.sampled_from([0.0, 0.5, 1]))))
        spec = None
        if self.constraints and self.draw(st.booleans()):
            if self.draw(st.booleans()):
                spec = ConstraintSpec("regex", self.pick(REGEXES))
            else:
                options = (("whitespace", "compact"),) if self.draw(st.booleans()) else ()
                spec = ConstraintSpec("json_schema", self.pick(JSON_SCHEMAS), options)
        wish = LogprobWish(0, self.draw(st.integers(0, 5)), (1, 2)) if self.draw(st.integers(0, 4)) == 0 else None
        var = self.draw(st.one_of(st.none(), st.sampled_from(NAMES)))
        out = self.ref()
        self._defined(scope, stream, out, var)
        scope.strings.append(out)
        return Gen(stream=stream, out=out, var=var, sampling=tuple(sampling), constraint=spec, logprobs=wish)

    def _select(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        choices = self.draw(st.lists(texts().filter(bool), min_size=1, max_size=4, unique=True))
        var = self.draw(st.one_of(st.none(), st.sampled_from(NAMES)))
        out = self.ref()
        self._defined(scope, stream, out, var)
        scope.strings.append(out)
        return Select(stream=stream, out=out, choices=tuple(choices), var=var)

    def _role(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        if stream in scope.roles:
            return None
        scope.roles.add(stream)
        body = self.region(scope, 4, depth + 1)
        scope.roles.discard(stream)
        return Role(stream=stream, role=self.pick(["system", "user", "assistant", "tool"]), body=body)

    def _scope(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        body = self.region(scope, 4, depth + 1)
        out, var = self.ref(), self.pick(NAMES)
        self._defined(scope, stream, out, var)
        scope.strings.append(out)
        return Scope(stream=stream, out=out, var=var, body=body)

    def _fork(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        size = self.draw(st.integers(1, 3))
        if "branch" in self.ops and self.draw(st.integers(0, 2)) == 0:
            group, self.next_stream = self.next_stream, self.next_stream + 1
            scope.groups[group] = (stream, size, set(scope.variables[stream]), -1)
            if stream in scope.roles:  # its branches begin inside that role
                scope.roles.add(group)
            return Fork(stream=stream, streams=(group,), count=size)
        streams = tuple(self._new_stream(scope, stream) for _ in range(size))
        scope.forks[self.next_fork] = (stream, streams)
        self.next_fork += 1
        return Fork(stream=stream, streams=streams)

    def _branch(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        free = [group for group, (*_, named) in scope.groups.items() if named not in scope.roles]
        if not free:
            return None
        group = self.pick(free)
        parent, size, names, before = scope.groups[group]
        if any(before == parent for parent, *_ in [*scope.forks.values(), *scope.groups.values()]):
            return None  # what its branches end in would be closed
        if parent in scope.roles:
            return None
        scope.variables.pop(before, None)
        target, self.next_stream = self.next_stream, self.next_stream + 1
        scope.variables[target] = names
        if group in scope.roles:
            scope.roles.add(target)
        scope.groups[group] = (parent, size, names, target)
        return Branch(stream=group, target=target, index=self.draw(st.integers(0, size - 1)))

    def _copy(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        return Copy(stream=stream, target=self._new_stream(scope, stream))

    def _join(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        forks = [n for n, (parent, open_) in scope.forks.items() if parent in scope.variables and open_]
        # A branch with a role of its own still open stays.
        forks = [n for n in forks if set(scope.forks[n][1]) <= scope.variables.keys() - scope.roles]
        groups = [
            group for group, (parent, _, _, named) in scope.groups.items()
            if parent in scope.variables and named not in scope.roles
        ]  # fmt: skip
        if groups and (not forks or self.draw(st.booleans())):
            parent, _, names, named = scope.groups.pop(group := self.pick(groups))
            scope.variables.pop(named, None)
            mode = self.pick(["gather_variable", "concate_and_append"])
            if mode == "gather_variable":
                scope.variables[parent] |= names
            return Join(stream=parent, streams=(group,), mode=mode)
        if not forks:
            return None
        number = self.pick(forks)
        parent, streams = scope.forks.pop(number)
        mode = self.pick(["gather_variable", "concate_and_append"])
        for branch in streams:
            names = scope.variables.pop(branch)
            if mode == "gather_variable":
                scope.variables[parent] |= names
        return Join(stream=parent, streams=streams, mode=mode)

    def _set(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        var = self.pick(NAMES)
        scope.variables[stream].add(var)
        return Set(stream=stream, var=var, value=self._operand(scope))

    def _expr(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        kind = self.draw(st.integers(0, 4))
        string: Any = self.pick(scope.strings) if scope.strings else self.draw(texts())
        fn, args = "concat", (string, self.draw(texts()))
        if kind == 1 and scope.variables[stream]:
            fn, args = "get", (self.pick(scope.variables[stream]),)
        elif kind == 2:
            fn, args = self.pick(["strip", "upper", "len"]), (string,)
        elif kind == 3:
            fn, args = self.pick(["eq", "contains", "startswith"]), (string, self.draw(texts()))
        elif kind == 4:
            fn, args = self.pick(["text", "has"]), ()
            args = () if fn == "text" else (self.pick(NAMES),)
        out = self.ref()
        scope.values.append(out)
        if fn in ("concat", "strip", "upper", "text"):
            scope.strings.append(out)
        if fn in ("eq", "contains", "startswith", "has"):
            scope.truths.append(out)
        return Expr(stream=stream, out=out, fn=fn, args=args)

    def _host(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        function = self.pick(["host:join", "host:double", "host:fail", ".upper", ".split"])
        args: tuple[Any, ...] = (self.pick(scope.strings) if scope.strings else self.draw(texts()),)
        kwargs: tuple[tuple[str, Any], ...] = ()
        catches: tuple[Any, ...] = ("host:IndexError",) if function == "host:fail" else ()
        if function == "host:join":
            args += (self._operand(scope),)
        elif function == "host:double" and self.draw(st.booleans()):
            kwargs = (("times", 3),)
        out = self.ref()
        if not catches:
            scope.values.append(out)
        if function in ("host:join", "host:double", ".upper"):
            scope.strings.append(out)
        is_pure = not catches and self.draw(st.booleans())
        return Host(
            stream=stream, out=out, function=function, args=args, kwargs=kwargs, catches=catches, is_pure=is_pure
        )

    def _switch(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        values: list[Any] = [True, False]
        on: Any = self.draw(st.sampled_from([True, False, *scope.truths]))
        if self.draw(st.booleans()):
            values = self.draw(st.lists(texts(), min_size=1, unique=True))
            on = self._operand(scope, literal=texts())
        cases, ends = [], []
        for value in values[:3]:
            inner = scope.copy()
            body = self.region(inner, 4, depth + 1)
            cases.append(Case(value, body))
            if not self.ended:
                ends.append(inner)
            self.ended = False
        if values != [True, False]:
            ends.append(scope.copy())
        self.ended = not ends
        for number in list(scope.variables):
            if not all(number in end.variables for end in ends):
                del scope.variables[number]
            elif ends:
                # Only what every path has set, so that no run reads an unset variable.
                scope.variables[number] = set.intersection(*(end.variables[number] for end in ends))
        scope.forks = {n: fork for n, fork in scope.forks.items() if all(n in end.forks for end in ends)}
        return Switch(stream=stream, on=on, cases=tuple(cases))

    def _loop(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        """Over a short list, so that it ends; with or without a value that it carries."""
        over: Any = self.draw(st.lists(texts(), max_size=3).map(tuple))
        inits = (self._operand(scope),) if self.draw(st.booleans()) else ()
        params = tuple(self.ref() for _ in range(1 + len(inits)))
        inner = scope.copy()
        inner.values += params
        inner.strings.append(params[0])
        inner.forks = {}  # what is joined in one round cannot be joined in the next
        carried, self.carried = self.carried, len(inits)
        body = self.region(inner, 4, depth + 1)
        if not self.ended:
            body = (*body, Next(values=tuple(self._operand(inner) for _ in inits)))
        self.carried, self.ended = carried, False
        outs = tuple(self.ref() for _ in inits)
        scope.values += outs
        return Loop(stream=stream, over=over, params=params, inits=inits, outs=outs, body=body)

    def _next(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        return self._end_round(Next, scope, stream)

    def _break(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        return self._end_round(Break, scope, stream)

    def _end_round(self, kind: Any, scope: _Scope, stream: int) -> AnyOp | None:
        if self.carried is None or self.draw(st.integers(0, 2)):
            return None
        self.ended = True
        return kind(stream=stream, values=tuple(self._operand(scope) for _ in range(self.carried)))

    def _opaque(self, scope: _Scope, stream: int, depth: int) -> AnyOp:
        self.ended = True
        return Opaque(stream=stream, reason=self.draw(texts()))

    def _return(self, scope: _Scope, stream: int, depth: int) -> AnyOp | None:
        if self.draw(st.integers(0, 3)):
            return None
        self.ended = True
        return Return(stream=stream, value=self._operand(scope))

    def _operand(self, scope: _Scope, literal: st.SearchStrategy[Any] | None = None) -> Any:
        options = [literal if literal is not None else literals()]
        if scope.values:
            options.append(st.sampled_from(scope.values))
            if literal is None:
                options.append(st.lists(st.one_of(literals(), st.sampled_from(scope.values)), max_size=3).map(tuple))
        return self.draw(st.one_of(options))

    def _new_stream(self, scope: _Scope, parent: int) -> int:
        stream = self.next_stream
        self.next_stream += 1
        scope.variables[stream] = set(scope.variables[parent])
        if parent in scope.roles:
            scope.roles.add(stream)
        return stream

    def _defined(self, scope: _Scope, stream: int, out: Ref, var: str | None) -> None:
        scope.values.append(out)
        if var is not None and stream in scope.variables:
            scope.variables[stream].add(var)


@st.composite
def programs(
    draw: Any, ops: frozenset[str] = ALL_OPS, max_size: int = 8, constraints: bool = True, num_params: int = 2
) -> Program:
    """A random legal Program made of these ops. At run time its arguments must be strings."""
    builder = _Builder(draw, ops, constraints)
    scope = _Scope()
    names = ["ticket", "style", "n"][: draw(st.integers(0, num_params))]
    params, body = [], []
    has_default = keyword_only = False
    for name in names:
        keyword_only = keyword_only or draw(st.booleans())
        has_default = draw(st.booleans()) or (has_default and not keyword_only)
        params.append(Param(name, has_default, draw(texts()) if has_default else None, keyword_only))
        out = builder.ref()
        scope.values.append(out)
        scope.strings.append(out)
        body.append(Arg(out=out, param=name))
    body += builder.region(scope, max_size, 0)
    guards = tuple(draw(st.dictionaries(st.sampled_from(NAMES), texts(), max_size=2)).items())
    title = draw(st.sampled_from(["triage", "module.<locals>.f", "true", ""]))
    return Program(title, tuple(params), tuple(body), guards, draw(st.one_of(st.none(), st.integers(1, 512))))
