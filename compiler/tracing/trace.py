"""`trace`: run the rewritten copy along every path, within bounds, and merge the paths into one Program."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import SourceLoc, TraceError
from ..ir import Arg, Opaque, Param, Program, Return, walk
from ..sink import Sink
from .copies import Copies, captured_by, free_values
from .events import PathEvent, TraceStop
from .hooks import is_traceable
from .loops import Retrace
from .merge import merge, tree_of
from .rewrite import CannotRewrite, location
from .symbols import Symbol, operand
from .tracer import MAX_OPS, MAX_PATHS, PathTracer


@dataclass(frozen=True, slots=True)
class Guards:
    """What a trace depended on besides its arguments, with its values then: globals, closure cells and defaults of
    functions, and attributes of other objects."""

    entries: tuple[tuple[Any, str, Any, str], ...] = field(repr=False, default=())
    inside: tuple[tuple[Any, ...], ...] = field(repr=False, default=())  # objects in the containers among the values
    written: tuple[bytes | None, ...] = field(repr=False, default=())  # containers of plain values

    def hold(self) -> bool:
        """Whether every guarded value is what it was, so that the Program still stands for the function."""
        for (owner, name, value, mark), inside, written in zip(self.entries, self.inside, self.written, strict=True):
            now = _read(owner, name)
            if now is not value and not (type(now) is type(value) and isinstance(now, _PLAIN) and now == value):
                return False
            if written is not None and _written(now) == written:
                continue
            if mark and not isinstance(now, _PLAIN) and fingerprint(now) != mark:
                return False
            if inside and not _same_objects(inside, _objects_in(now)):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Traced:
    """A Program and what it holds under."""

    program: Program
    guards: Guards
    hosts: Mapping[str, Any] = field(repr=False, default_factory=dict)  # what the Program's names stand for


def trace(
    body: types.FunctionType,
    make_state: Callable[[Sink], Any],
    *,
    title: str | None = None,
    bound: Mapping[str, Any] | None = None,
    num_api_spec_tokens: int | None = None,
) -> Traced:
    """The Program of a function whose first parameter is a state.

    `make_state(sink)` builds the state that the body is called with; parameters in `bound` have the values given there,
    all others are symbolic. No call of the body that is neither part of the language nor known to be pure is made; what
    cannot be followed ends its path with an Opaque. At most 256 paths and 4,096 ops are recorded.

    Raises NoSource where the function's source cannot be read, and the program's own errors (a name read before any op
    sets it, nested roles) where they happen whatever the arguments are.
    """
    bound = dict(bound or {})
    title = title or body.__name__
    params, problem = _params(body, bound)
    arguments = [p.name for p in params]
    paths: list[Sequence[PathEvent]] = []
    copies = Copies()
    captured = captured_by(body, bound)
    todo: list[list[bool]] = [[]]
    num_ops = 0
    long_loop: tuple[str, int] | None = None
    while todo and len(paths) < MAX_PATHS and num_ops < MAX_OPS and problem is None:
        decisions = todo.pop()
        tracer = PathTracer(copies, decisions, captured, MAX_OPS)
        try:
            _run_path(tracer, body, make_state, arguments, bound)
        except Retrace as again:
            copies.forced_loops.add(again.place)
            paths, todo, num_ops = [], [[]], 0
            continue
        except CannotRewrite as error:
            problem = error
            break
        long_loop = tracer.long_loop() or long_loop
        taken = [event.taken for event in tracer.events if hasattr(event, "taken")]
        todo += [[*taken[:i], False] for i in range(len(decisions), len(taken)) if taken[i]]
        num_ops += len(tracer.events) - (len(paths[-1]) // 2 if paths else 0)
        paths.append(tracer.events)
        if todo and long_loop is not None and (len(paths) >= MAX_PATHS or num_ops >= MAX_OPS):
            copies.forced_loops.add(long_loop)
            paths, todo, num_ops, long_loop = [], [[]], 0, None
    where = location(body)
    if problem is not None:
        args = tuple(Arg(out=_ref(i), param=name, where=where) for i, name in enumerate(arguments))
        ops: Any = (*args, Opaque(reason=problem.message, where=problem.where))
    else:
        ops = merge(tree_of(paths), f"unexplored: more than {MAX_PATHS} paths or {MAX_OPS} ops")
    guards = _guards(list({id(body): body, **copies.originals}.values()), list(copies.reads.values()))
    marks = tuple(sorted({(name, mark) for owner, name, _, mark in guards.entries if mark and _is_function(owner)}))
    program = Program(
        title=title, params=params, body=ops, guards=marks, num_api_spec_tokens=num_api_spec_tokens, where=where
    )
    return Traced(program, guards, copies.host_table.objects)


def _run_path(
    tracer: PathTracer,
    body: types.FunctionType,
    make_state: Callable[[Sink], Any],
    arguments: list[str],
    bound: Mapping[str, Any],
) -> None:
    """Run the copy once; whatever ends it is the last event."""
    values: dict[str, Any] = dict(bound)
    for name in arguments:
        symbol = tracer.symbol()
        tracer.events.append(Arg(out=symbol.ref, param=name, where=location(body)))
        values[name] = symbol
    try:
        state = make_state(tracer)
        result = tracer.follow(body, (state,), values)
        if result is not None:
            _return(tracer, result)
    except TraceStop:
        return
    except CannotRewrite:
        raise
    except TraceError:
        raise
    except Exception as error:
        if tracer.num_decisions == 0 and _is_programs_own(error):
            raise
        where = getattr(error, "where", None) or _line_of(error, body) or tracer.here()
        tracer.events.append(Opaque(reason=f"raises {type(error).__name__}: {error}", where=where))


def _return(tracer: PathTracer, result: Any) -> None:
    try:
        value = tracer.host_operand(result)
    except TypeError:
        tracer.events.append(Opaque(reason=f"returns a {type(result).__name__}", where=tracer.here()))
        return
    tracer.events.append(Return(value=value))


def _is_programs_own(error: Exception) -> bool:
    from ...core.errors import ProgramError, RequestError

    return isinstance(error, (ProgramError, RequestError))


def _line_of(error: Exception, body: types.FunctionType) -> SourceLoc | None:
    """The innermost line of the user's file in an exception's traceback."""
    found: SourceLoc | None = None
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename == body.__code__.co_filename:
            found = SourceLoc(code.co_filename, step.tb_lineno, code.co_name)
        step = step.tb_next
    return found


def _ref(number: int) -> Any:
    from ..ir import Ref

    return Ref(number)


def _params(body: types.FunctionType, bound: Mapping[str, Any]) -> tuple[tuple[Param, ...], CannotRewrite | None]:
    """The symbolic parameters, and why the function cannot be traced by its signature alone, if so."""
    params: list[Param] = []
    problem: CannotRewrite | None = None
    for p in list(inspect.signature(body).parameters.values())[1:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            problem = CannotRewrite(
                f"it takes {'*' if p.kind == p.VAR_POSITIONAL else '**'}{p.name}", where=location(body)
            )
            continue
        if p.name in bound:
            continue
        has_default = p.default is not p.empty
        try:
            default = operand(p.default) if has_default else None
        except TypeError:
            default = None
        params.append(Param(p.name, has_default, default, p.kind == p.KEYWORD_ONLY))
    return tuple(params), problem


_PLAIN = (str, int, float, bool, bytes, type(None))


def _is_function(owner: Any) -> bool:
    return isinstance(owner, types.FunctionType)


def _read(function: Any, name: str) -> Any:
    if not _is_function(function):
        return getattr(function, name, None)
    if name.startswith("default of "):
        return _defaults(function).get(name)
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if free == name:
            try:
                return cell.cell_contents
            except ValueError:
                return None
    return function.__globals__.get(name)


def _defaults(function: types.FunctionType) -> dict[str, Any]:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    positional = function.__defaults__ or ()
    pairs = list(zip(names[len(names) - len(positional) :], positional, strict=True))
    return {f"default of {name}": value for name, value in [*pairs, *(function.__kwdefaults__ or {}).items()]}


def _guards(functions: Sequence[types.FunctionType], reads: Sequence[tuple[Any, str, Any]]) -> Guards:
    entries: list[tuple[Any, str, Any, str]] = []
    for function in functions:
        for name, value in [*free_values(function), *sorted(_defaults(function).items())]:
            code_like = isinstance(value, (types.ModuleType, type, types.FunctionType)) or callable(value)
            mark = "" if code_like or is_traceable(value) else fingerprint(value)
            entries.append((function, name, value, mark))
    for owner, name, value in reads:
        entries.append((owner, name, value, fingerprint(value)))
    return Guards(
        tuple(entries),
        tuple(_objects_in(value) if mark else () for _, _, value, mark in entries),
        tuple(_written(value) if mark else None for _, _, value, mark in entries),
    )


def _written(value: Any) -> bytes | None:
    """A container of plain values as bytes, which are others when it has changed; None where it holds anything else.

    A run asks this of each schema and list of choices: it takes a hundredth of the time of a fingerprint.
    """
    if type(value) not in (dict, list, tuple, set, frozenset):
        return None
    try:
        return marshal.dumps(value, 2)  # version 2 writes no references, which depend on who else holds a value
    except ValueError:
        return None


def _objects_in(value: Any, depth: int = 8) -> tuple[Any, ...]:
    """What a container holds besides plain values and other containers: what a trace may call, or hand over."""
    if isinstance(value, dict):
        items: Any = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = value
    else:
        return ()
    found: list[Any] = []
    for item in items:
        if isinstance(item, (dict, list, tuple, set, frozenset)):
            found += _objects_in(item, depth - 1) if depth else ()
        elif not isinstance(item, _PLAIN):
            found.append(item)
    return tuple(found)


def _same_objects(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def fingerprint(value: Any, depth: int = 8) -> str:
    """16 hex digits that change when a plain value or a container of plain values does; other objects count by type."""
    digest = hashlib.sha256()
    todo: list[tuple[Any, int]] = [(value, depth)]
    while todo:
        item, left = todo.pop()
        digest.update(type(item).__qualname__.encode())
        if isinstance(item, _PLAIN):
            digest.update(repr(item).encode("utf-8", "surrogatepass"))
        elif left and isinstance(item, (list, tuple)):
            digest.update(str(len(item)).encode())
            todo.extend((part, left - 1) for part in item)
        elif left and isinstance(item, (set, frozenset)):
            digest.update("".join(sorted(map(repr, item))).encode("utf-8", "surrogatepass"))
        elif left and isinstance(item, dict):
            digest.update(str(len(item)).encode())
            todo.extend((part, left - 1) for pair in item.items() for part in pair)
    return digest.hexdigest()[:16]


def strict_error(program: Program, source_line: str = "") -> TraceError | None:
    """The TraceError for a program's first break, as `.compile(strict=True)` raises it; None if it is whole."""
    for op in walk(program.body):
        if isinstance(op, Opaque):
            shown = f"`{source_line.strip()}`: " if source_line.strip() else ""
            advice = (
                f"{program.title}.run(...) still works, with the body in Python from there on; to compile the whole, "
                "move what needs Python out of the program (pass its result as an argument), or split the function here"
            )
            return TraceError(
                f"{shown}{op.reason}, so {program.title}.compile() cannot go past it. {advice}", where=op.where
            )
    return None


__all__ = ["Guards", "Symbol", "Traced", "fingerprint", "strict_error", "trace"]
