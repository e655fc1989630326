"""`trace`: run the rewritten copy along every path, within bounds, and merge the paths into one Program."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ...core.errors import SourceLoc, TraceError
from ..ir import Arg, Opaque, Param, Program, Ref, Return, walk
from ..sink import Sink
from .copies import Copies, free_values
from .events import Decision, PathEvent, TraceStop
from .hooks import is_traceable
from .loops import Retrace
from .merge import merge, tree_of
from .recorder import MAX_OPS, Way
from .rewrite import CannotRewrite, location
from .source import parameters
from .symbols import Symbol, operand
from .tracer import PathTracer

MAX_PATHS = 256
MAX_EVENTS = 20_000  # of all paths, as often as they are recorded: what bounds the time


@dataclass(frozen=True, slots=True)
class Guards:
    """What a trace depended on besides its arguments, with its values then: globals, closure cells and defaults of
    functions, and attributes of other objects."""

    entries: tuple[tuple[Any, str, Any, str], ...] = field(repr=False, default=())
    written: tuple[bytes | None, ...] = field(repr=False, default=())  # containers of plain values
    inside: tuple[tuple[Any, ...], ...] = field(repr=False, default=())  # of other containers: the objects in them

    def hold(self) -> bool:
        """Whether every guarded value is what it was, so that the Program still stands for the function."""
        for (owner, name, value, mark), inside, written in zip(self.entries, self.inside, self.written, strict=True):
            now = _read(owner, name)
            if now is not value and not (type(now) is type(value) and isinstance(now, _PLAIN) and now == value):
                return False
            if written is not None:
                if _written(now) != written:
                    return False
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
    where = location(body)
    arguments = [Arg(out=Ref(number), param=p.name, where=where) for number, p in enumerate(params)]
    paths: list[Sequence[PathEvent]] = []
    copies = Copies(bound.values())
    copies.num_arguments = len(arguments)
    todo = [Way()]
    num_ops = num_events = 0  # on all paths, each counted once; and as often as it was recorded
    long_loop: tuple[str, int] | None = None
    branches: set[tuple[str, int]] = set()
    while todo and len(paths) < MAX_PATHS and num_ops < MAX_OPS and num_events < MAX_EVENTS and problem is None:
        way = todo.pop()
        tracer = PathTracer(copies, way, MAX_OPS)
        try:
            _run_path(tracer, body, make_state, arguments, bound)
        except Retrace as again:
            if again.place is not None:
                copies.forced_loops.add(again.place)
            copies.force_branches(again.branches)
            paths, todo, num_ops, num_events = [], [Way()], 0, 0
            continue
        except CannotRewrite as error:
            problem = error
            break
        long_loop = tracer.long_loop() or long_loop
        todo += tracer.other_ways()
        num_ops += len(tracer.events) - _num_known(tracer.events, len(way.decisions))
        num_events += len(tracer.events)
        paths.append(tracer.events)
        branches |= tracer.branches()
        if todo and (len(paths) >= MAX_PATHS or num_ops >= MAX_OPS or num_events >= MAX_EVENTS):
            if long_loop is not None:
                copies.forced_loops.add(long_loop)
            if long_loop is not None or copies.force_branches(branches):
                paths, todo, num_ops, num_events, long_loop = [], [Way()], 0, 0, None
    if problem is not None:
        ops: Any = (*arguments, Opaque(reason=problem.message, where=problem.where))
    else:
        ops = merge(tree_of(paths), f"unexplored: more than {MAX_PATHS} paths or {MAX_OPS} ops")
    free = {**copies.free} if copies.free else {id(body): free_values(body)}
    guards = _guards(
        [(copies.originals.get(key, body), names) for key, names in free.items()],
        copies.reads.values(),
        copies.is_changed,
    )
    marks = tuple(sorted({(name, mark) for owner, name, _, mark in guards.entries if mark and _is_function(owner)}))
    program = Program(
        title=title, params=params, body=ops, guards=marks, num_api_spec_tokens=num_api_spec_tokens, where=where
    )
    return Traced(program, guards, copies.host_table.objects)


def _num_known(events: Sequence[PathEvent], num_decisions: int) -> int:
    """How many events of a path are those of the path that it left: up to its last decision that was given."""
    if not num_decisions:
        return 0
    for number, event in enumerate(events):
        num_decisions -= isinstance(event, Decision)
        if not num_decisions:
            return number + 1
    return len(events)


def _run_path(
    tracer: PathTracer,
    body: types.FunctionType,
    make_state: Callable[[Sink], Any],
    arguments: list[Arg],
    bound: Mapping[str, Any],
) -> None:
    """Run the copy once; whatever ends it is the last event."""
    values: dict[str, Any] = dict(bound)
    for op in arguments:
        assert tracer.new_ref() == op.out
        tracer.events.append(op)
        values[op.param] = Symbol(tracer, op.out)
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


def _params(body: types.FunctionType, bound: Mapping[str, Any]) -> tuple[tuple[Param, ...], CannotRewrite | None]:
    """The symbolic parameters, and why the function cannot be traced by its signature alone, if so."""
    params: list[Param] = []
    problem: CannotRewrite | None = None
    kinds = inspect.Parameter
    for p in parameters(body)[1:]:
        if p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            stars = "*" if p.kind == kinds.VAR_POSITIONAL else "**"
            problem = CannotRewrite(f"it takes {stars}{p.name}", where=location(body))
            continue
        if p.name in bound:
            continue
        has_default = p.default is not kinds.empty
        try:
            default = operand(p.default) if has_default else None
        except TypeError:
            default = None
        params.append(Param(p.name, has_default, default, p.kind == kinds.KEYWORD_ONLY))
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
    if not function.__defaults__ and not function.__kwdefaults__:
        return {}
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    positional = function.__defaults__ or ()
    pairs = list(zip(names[len(names) - len(positional) :], positional, strict=True))
    return {f"default of {name}": value for name, value in [*pairs, *(function.__kwdefaults__ or {}).items()]}


def _guards(
    functions: Iterable[tuple[types.FunctionType, list[tuple[str, Any]]]],
    reads: Iterable[tuple[Any, str, Any]],
    is_changed: Callable[[Any], bool],
) -> Guards:
    """`functions`: those that were followed, with what they read besides their arguments. What the run may change the
    run reads: of that it matters only which object it is."""
    read = [
        (function, name, value)
        for function, free in functions
        for name, value in (*free, *sorted(_defaults(function).items()))
    ]
    entries: list[tuple[Any, str, Any, str]] = []
    written: list[bytes | None] = []
    for owner, name, value in (*read, *reads):
        is_code = isinstance(value, types.ModuleType) or callable(value) or is_traceable(value)
        is_marked = (not is_code or len(entries) >= len(read)) and not is_changed(value)
        written.append(_written(value) if is_marked else None)
        if not is_marked:
            mark = ""
        elif type(value) is str and len(value) < _SHORT:
            mark = _mark_of_text(value)
        elif (bytes_ := written[-1]) is not None and len(bytes_) < _SHORT:
            mark = _mark_of_written(bytes_)
        else:
            mark = fingerprint(value)
        entries.append((owner, name, value, mark))
    inside = [
        _objects_in(value) if mark and text is None else ()
        for (_, _, value, mark), text in zip(entries, written, strict=True)
    ]
    return Guards(tuple(entries), tuple(written), tuple(inside))


_SHORT = 100_000  # characters or bytes: a few hundred marks of that size are remembered


@lru_cache(256)
def _mark_of_text(text: str) -> str:
    return fingerprint(text)


@lru_cache(256)
def _mark_of_written(written: bytes) -> str:
    """Plain values have the same mark when they are written the same."""
    return fingerprint(marshal.loads(written))


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
