"""What the rewritten copy calls in place of Python's own constructs.

Each hook does what the construct would do on plain values, and records an Expr where a Symbol is involved. What it can
neither compute nor record ends the path with a break that names the construct.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import operator
import string
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import patterns
from .foreign import BINARY, CONTEXT, ITERATION, TRUTH, UNARY, asked_by, attribute, is_foreign, is_foreign_call, operate
from .items import FUNCTIONS as ITERATING
from .items import items_of, over_items
from .loops import Carried, LoopDriver, unpacked
from .purity import HOOKS, TRACEABLE, calls_back, is_pure, is_users_function, mutates
from .symbols import METHODS, Symbol

if TYPE_CHECKING:
    from .tracer import PathTracer

# Calls of one symbolic argument that have an Expr of their own.
_UNARY: dict[Any, str] = {
    len: "len", int: "int", float: "float", str: "str", bool: "bool", repr: "repr", json.loads: "parse_json",
}  # fmt: skip
_PLAIN = frozenset({str, int, float, bool})
# Methods of plain strings that may get symbolic arguments.
_STRING_METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "startswith", "endswith", "find", "count", "replace", "split"}
)
_CONVERSIONS: dict[str, Callable[[Any], str]] = {"r": repr, "s": str, "a": ascii}
# Calls that only put their arguments into a container, so that symbols may be among them.
_STRUCTURAL = frozenset({list, tuple, dict, zip, enumerate, reversed, map, filter, next, iter, all, any, sum})
# Calls that need to see the frame or the names of the code they stand in.
_FRAME_BOUND = frozenset({builtins.globals, builtins.vars, builtins.eval, builtins.exec, builtins.dir})
# Methods of a dict or set that look a value up by its hash.
_LOOK_UPS = frozenset({"get", "__contains__", "index", "count", "issubset", "issuperset", "isdisjoint"})


class Hooks:
    """Bound as one global of the rewritten copies. Every method may raise TraceStop, through the tracer of the path."""

    tracer: PathTracer

    def __init__(self) -> None:
        self._recipes: dict[int, Recipe] = {}  # of the functions written in the copy, by id

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`: ours and pure ones run, the user's own are followed where they make parts of the
        program, the rest is called when the program runs."""
        tracer = self.tracer
        tracer.tick()
        if isinstance(function, Symbol):
            return tracer.host_call(function, args, kwargs)
        if is_traceable(function):
            return function(*args, **kwargs)
        if isinstance(getattr(function, "__self__", None), Symbol):
            return function(*args, **kwargs)
        may_have_items = (type(function) is type or function is len) and function in ITERATING
        if may_have_items and any(items_of(arg) is not None for arg in args):
            return over_items(tracer, function, args, kwargs)
        if (args or kwargs) and is_pure(function):
            if function is getattr and len(args) == 2 and isinstance(args[1], str):
                return self.getattr(*args)
            if is_foreign_call(tracer, function, args, kwargs):
                return operate(tracer, function, args, kwargs)
            if calls_back(function) and any(map(is_users, [*args, *kwargs.values()])):
                return self._with_users_functions(function, args, kwargs)
        if _any_symbol(args) or (kwargs and _any_symbol(kwargs.values())):
            return self._symbolic_call(function, args, kwargs)
        if is_users_function(function):
            return tracer.call_user(function, args, kwargs)
        if not is_pure(function):
            if function in _FRAME_BOUND:
                tracer.break_here(f"call of {_name(function)}, which needs the running code itself")
            return tracer.host_call(function, args, kwargs)
        if mutates(function) and tracer.is_captured(function.__self__):
            return tracer.host_call(function, args, kwargs)
        if mutates(function):
            tracer.check_outside(function.__self__, _name(function))
        return tracer.note_made(function(*args, **kwargs))

    def method(self, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """`owner.name(*args, **kwargs)`."""
        if type(owner) is types.ModuleType:
            function = getattr(owner, name)
            if type(function) is types.FunctionType and TRACEABLE in function.__dict__:
                return function(*args, **kwargs)  # the most usual call of all: `dslc.gen(...)`
            return self.call(function, *args, **kwargs)
        if not isinstance(owner, Symbol):
            found = attribute(self.tracer, owner, name)
            return self.call(getattr(owner, name) if found is None else found[0], *args, **kwargs)
        self.tracer.tick()
        if name in METHODS and not kwargs:
            return getattr(owner, name)(*args)
        return self.tracer.host_call(BoundName(owner, name), args, kwargs)

    def getattr(self, owner: Any, name: str) -> Any:
        """`owner.name`."""
        if isinstance(owner, Symbol):
            return self.tracer.expr("attr", owner, name)
        found = attribute(self.tracer, owner, name)
        if found is not None:
            return found[0]
        if self.tracer.is_changed(owner) and name in getattr(owner, "__dict__", ()):
            return self.tracer.host_call(builtins.getattr, (owner, name), is_pure=True)
        return self.tracer.note_read(owner, name, getattr(owner, name))

    def binary(self, name: str, left: Any, right: Any) -> Any:
        """`left + right`, `left < right` and the like."""
        function = BINARY[name]
        asked = asked_by(function)
        if is_foreign(self.tracer, left, asked) or is_foreign(self.tracer, right, asked):
            return operate(self.tracer, function, (left, right))
        return function(left, right)

    def unary(self, name: str, value: Any) -> Any:
        """`-value` and the like."""
        function = UNARY[name]
        if is_foreign(self.tracer, value, asked_by(function)):
            return operate(self.tracer, function, (value,))
        return function(value)

    def test(self, value: Any) -> Any:
        """What an `if` or `assert` asks."""
        return operate(self.tracer, bool, (value,)) if is_foreign(self.tracer, value, TRUTH) else value

    def operand(self, value: Any) -> Any:
        """A value of `and` and `or`, whose truth is asked for and which may be their result."""
        if is_foreign(self.tracer, value, TRUTH):
            return Symbol(self.tracer, self.tracer.handed(value))
        return value

    def compared(self, value: Any) -> Any:
        """A value in a chain of comparisons."""
        if is_foreign(self.tracer, value, asked_by(operator.lt)):
            return Symbol(self.tracer, self.tracer.handed(value))
        return value

    def manager(self, value: Any) -> Any:
        """What a `with` enters."""
        if is_foreign(self.tracer, value, CONTEXT):
            self.tracer.break_here(f"a `with` over a {type(value).__name__}")
        return value

    @contextlib.contextmanager
    def guarded(self, caught: Callable[[], tuple[Any, ...]]) -> Iterator[None]:
        """The body of a `try`: `caught` gives what its handlers name."""
        guards = self.tracer.guards
        guards.append(tuple(_classes(caught())))
        try:
            yield
        finally:
            guards.pop()

    def caught(self, error: BaseException) -> Any:
        """What a handler calls the exception: a value that is not known yet where it is raised in the run."""
        return getattr(error, "__dslc_error__", error)

    def spread(self, value: Any) -> Any:
        """What `*` or `**` takes apart in a call or a display."""
        if is_foreign(self.tracer, value, ITERATION):
            self.tracer.break_here(f"a {type(value).__name__} that the run may change is taken apart by a star")
        return value

    def fresh(self, value: Any) -> Any:
        """A list, dict or set written as an argument of a call."""
        return self.tracer.note_fresh(value)

    def function(self, recipe: Recipe, copy: Any, values: Callable[[], tuple[Any, ...]]) -> Any:
        """A lambda of the copy, and how to make the user's own of it."""
        self._recipes[id(copy)] = recipe._replace(copy=copy, values=values)
        return copy

    def original_of(self, copy: Any) -> Symbol:
        """The user's own function for one that is written in the copy: made when the program runs."""
        recipe = self._recipes.get(id(copy))
        if recipe is None:
            raise TypeError(f"the function {copy.__qualname__}, which is defined in the program, is handed over")
        return self.tracer.host_call(recipe.make(), self._free_values(recipe), is_pure=True)

    def _free_values(self, recipe: Recipe) -> tuple[Any, ...]:
        try:
            return recipe.values() if recipe.values is not None else ()
        except NameError:
            raise TypeError(f"{recipe.name} reads a variable that has no value yet") from None

    def comprehension(
        self, recipe: Recipe, first: Any, copy: Callable[[Any], Any], values: Callable[[], tuple[Any, ...]]
    ) -> Any:
        """A comprehension or generator expression over `first`.

        It is run here where it only computes. Otherwise it runs with the program as one function, if it reads nothing
        of the language, and else here step by step.
        """
        tracer = self.tracer
        recipe = recipe._replace(values=values)
        found = tracer.attempt(lambda: _collected(copy(first)))
        if found:
            return found[0]
        symbol = tracer.whole(recipe, first, self._free_values)
        return symbol if symbol is not None else copy(first)

    def _with_users_functions(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of one of Python's own functions that calls the user's, which are followed; else the run calls it."""

        def hooked(value: Any) -> Any:
            return (lambda *args, **kwargs: self.call(value, *args, **kwargs)) if is_users(value) else value

        def compute() -> Any:
            made = function(*map(hooked, args), **{name: hooked(value) for name, value in kwargs.items()})
            return iter(list(made)) if isinstance(made, (map, filter)) else made

        found = self.tracer.attempt(compute)
        return self.tracer.note_made(found[0]) if found is not None else self.tracer.host_call(function, args, kwargs)

    def _symbolic_call(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tracer = self.tracer
        if is_users_function(function):
            return tracer.call_user(function, args, kwargs)
        try:
            unary = _UNARY.get(function)
            structural = function in _STRUCTURAL and not any(isinstance(arg, Symbol) for arg in args)
        except TypeError:
            unary, structural = None, False
        if function is range:
            return tracer.expr("range", *args)
        if function is isinstance and len(args) == 2 and isinstance(args[0], Symbol) and tracer.is_text(args[0]):
            return isinstance("", args[1])
        if unary is not None and len(args) == 1 and not kwargs:
            if isinstance(args[0], Symbol):
                return tracer.expr(unary, args[0])
            if function in (len, bool):
                return function(args[0])  # a plain container that holds symbols
        if function is format and isinstance(args[0], Symbol) and not kwargs:
            return tracer.expr("format", args[0], args[1] if len(args) > 1 else "")
        if isinstance(function, type) and issubclass(function, BaseException):
            return function(*args, **kwargs)
        receiver = getattr(function, "__self__", None)
        if isinstance(receiver, str):
            return self._string_method(receiver, function.__name__, args, kwargs)
        if isinstance(receiver, (list, dict, set)):
            return self._container_method(function, receiver, args, kwargs)
        if structural:
            return function(*args, **kwargs)
        return tracer.host_call(function, args, kwargs, is_pure(function) and not mutates(function))

    def _container_method(self, function: Any, receiver: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A method of a list, dict or set, with a value that is not known yet among its arguments."""
        tracer = self.tracer
        if mutates(function):
            if tracer.is_captured(receiver):
                return tracer.host_call(function, args, kwargs)
            tracer.check_outside(receiver, _name(function))
            if args and _holds_symbol(args[0]) and not isinstance(receiver, list):
                tracer.break_here(f"{_name(function)} of a value that is not known yet")
            return function(*args, **kwargs)
        if function.__name__ in _LOOK_UPS:
            return tracer.host_call(function, args, kwargs, is_pure=True)
        return function(*args, **kwargs)

    def _string_method(self, receiver: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tracer = self.tracer
        if name == "join" and len(args) == 1 and not isinstance(args[0], Symbol):
            return tracer.expr("join", receiver, tuple(args[0]))
        if name == "join" and len(args) == 1:
            return tracer.expr("join", receiver, args[0])
        if name == "format":
            return self._str_format(receiver, args, kwargs)
        if name in _STRING_METHODS and not kwargs:
            return tracer.expr(name, receiver, *args)
        return tracer.host_call(getattr(receiver, name), args, kwargs, is_pure=True)

    def _str_format(self, template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        parts: list[Any] = []
        automatic = 0
        for literal, field, spec, conversion in string.Formatter().parse(template):
            if literal:
                parts.append(literal)
            if field is None:
                continue
            if "{" in (spec or "") or any(c in field for c in ".["):
                self.tracer.break_here("a nested field in str.format with a value that is not known yet")
            if field == "" or field.isdigit():
                index = automatic if field == "" else int(field)
                automatic += field == ""
                value = args[index]
            else:
                value = kwargs[field]
            parts.append((value, conversion or "", spec or ""))
        return self.fstring(*parts)

    def fstring(self, *parts: Any) -> Any:
        """An f-string: literal strings and (value, conversion, format spec) triples."""
        pieces: list[Any] = []
        text = ""
        for part in parts:
            piece = part if type(part) is str else self._formatted(*part)
            if isinstance(piece, str):
                text += piece
                continue
            if text:
                pieces.append(text)
                text = ""
            pieces.append(piece)
        if not pieces:
            return text
        return self.tracer.expr("concat", *pieces, text) if text else self.tracer.expr("concat", *pieces)

    def part(self, value: Any, conversion: str, spec: Any) -> tuple[Any, str, Any]:
        """A value in an f-string, which is formatted before the next one is evaluated: a triple of `fstring`."""
        if type(value) in _PLAIN or type(value) is Symbol:
            return value, conversion, spec
        if is_foreign_call(self.tracer, _CONVERSIONS.get(conversion, format), (value,), {}):
            return self._formatted(value, conversion, spec), "", ""
        return value, conversion, spec

    def _formatted(self, value: Any, conversion: str, spec: Any) -> Any:
        if type(value) is Symbol and not conversion and type(spec) is str and not spec:
            return value
        if type(value) in _PLAIN and not conversion and type(spec) is str:
            return format(value, spec)
        if is_foreign_call(self.tracer, _CONVERSIONS.get(conversion, format), (value,), {}):
            if conversion:
                return operate(self.tracer, _CONVERSIONS[conversion], (value,))
            return operate(self.tracer, format, (value, spec))
        if not _holds_symbol(value) and not isinstance(spec, Symbol):
            if conversion:
                value = _CONVERSIONS[conversion](value)
            return format(value, spec)
        if not isinstance(value, Symbol):  # a container that holds symbols
            function, args = (_CONVERSIONS[conversion], (value,)) if conversion else (format, (value, spec))
            return self.tracer.host_call(function, args, is_pure=True)
        if conversion == "a":
            self.tracer.break_here("ascii() of a value that is not known yet")
        if conversion:
            value = self.tracer.expr({"r": "repr", "s": "str"}[conversion], value)
        return self.tracer.expr("format", value, spec) if isinstance(spec, Symbol) or spec else value

    def mod(self, left: Any, right: Any) -> Any:
        """`left % right`: arithmetic, or a format string with `%s` and `%d` only where symbols are involved."""
        if is_foreign_call(self.tracer, BINARY["Mod"], (left, right), {}):
            return operate(self.tracer, BINARY["Mod"], (left, right))
        if isinstance(left, Symbol) or (isinstance(right, Symbol) and not isinstance(left, str)):
            return self.tracer.expr("mod", left, right)
        if not isinstance(left, str) or not _holds_symbol(right):
            return left % right
        values = list(right) if isinstance(right, tuple) else [right]
        parts: list[Any] = []
        for literal, kind in _percent_parts(left, self.tracer):
            parts.append(literal)
            if kind:
                if not values:
                    raise TypeError("not enough arguments for format string")
                value = values.pop(0)
                parts.append((value, "s", "") if kind == "s" else (value, "", "d"))
        if values:
            raise TypeError("not all arguments converted during string formatting")
        return self.fstring(*parts)

    def contains(self, item: Any, container: Any) -> Any:
        """`item in container`."""
        if is_foreign_call(self.tracer, operator.contains, (container, item), {}):
            return operate(self.tracer, operator.contains, (container, item))
        if isinstance(container, Symbol) or isinstance(item, Symbol):
            if isinstance(container, (set, frozenset, dict)):
                container = sorted(container, key=repr)
            if isinstance(container, (list, tuple)):
                container = tuple(container)
            elif not isinstance(container, (Symbol, str)):
                return item in container  # ours: a state
            return self.tracer.expr("contains", container, item)
        return item in container

    def is_none(self, value: Any) -> Any:
        """`value is None`."""
        return self.tracer.expr("is_none", value) if isinstance(value, Symbol) else value is None

    def is_same(self, left: Any, right: Any) -> Any:
        """`left is right`."""
        if left is right or not (isinstance(left, Symbol) or isinstance(right, Symbol)):
            return left is right
        return self.tracer.operate(operator.is_, left, right)

    def negate(self, value: Any) -> Any:
        """`not value`."""
        if isinstance(value, Symbol):
            return self.tracer.expr("not", value)
        return operate(self.tracer, operator.not_, (value,)) if is_foreign(self.tracer, value, TRUTH) else not value

    def for_loop(self, values: Any, variables: tuple[Any, ...], width: int, num_own: int) -> LoopDriver:
        """What a `for` goes over; `variables` are those that it sets, the first `num_own` of them with each item."""
        return self._driver(variables, width).over(self._gone_over(values), num_own)

    def _gone_over(self, values: Any) -> Any:
        """What is iterated over: an object of the process is by the run."""
        return Symbol(self.tracer, self.tracer.handed(values)) if is_foreign(self.tracer, values, ITERATION) else values

    def while_loop(self, variables: tuple[Any, ...]) -> LoopDriver:
        """A `while`; `variables` are those that it sets."""
        return self._driver(variables, 0)

    def _driver(self, variables: tuple[Any, ...], width: int) -> LoopDriver:
        return LoopDriver(self.tracer, [Carried(*variable) for variable in variables], self.tracer.here(), width)

    def unpack(self, value: Any, width: int) -> Any:
        """What is taken apart into several names."""
        value = self._gone_over(value)
        return unpacked(value, width) if isinstance(value, Symbol) else value

    def iterate(self, values: Any) -> Any:
        """What a comprehension goes over: Python data is unrolled."""
        values = self._gone_over(values)
        if isinstance(values, Symbol):
            self.tracer.break_here("a loop over a value that is not known yet")
        return self._counted(values)

    def _counted(self, values: Any) -> Any:
        for value in values:
            self.tracer.tick()
            yield value

    def getitem(self, container: Any, key: Any) -> Any:
        """`container[key]`."""
        if type(container) is not Symbol and is_foreign(self.tracer, container, asked_by(operator.getitem)):
            return operate(self.tracer, operator.getitem, (container, key))
        if _holds_symbol(key) and not isinstance(container, Symbol) and not is_traceable(type(container)):
            if isinstance(container, str):
                if isinstance(key, slice):
                    return self.tracer.expr("slice", container, key.start, key.stop, key.step)
                return self.tracer.expr("index", container, key)
            if isinstance(container, (list, tuple)) and isinstance(key, Symbol):
                return self.tracer.expr("index", tuple(container), key)
            return self.tracer.host_call(operator.getitem, (container, key), is_pure=True)
        return container[key]

    def setitem(self, container: Any, key: Any, value: Any) -> None:
        """`container[key] = value`: on a state, or on a container made by this run of the copy."""
        if isinstance(container, Symbol):
            self.tracer.host_call(operator.setitem, (container, key, value))
            return
        if not is_traceable(type(container)):
            if self.tracer.is_captured(container):
                self.tracer.host_call(operator.setitem, (container, key, value))
                return
            self.tracer.check_outside(container, "a store")
            if isinstance(key, Symbol):
                self.tracer.break_here("a store under a key that is not known yet")
        container[key] = value

    def setattr(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value`."""
        if isinstance(owner, Symbol) or self.tracer.is_captured(owner):
            self.tracer.host_call(builtins.setattr, (owner, name, value))
            return
        if not is_traceable(type(owner)):
            self.tracer.break_here(f"the attribute {name!r} of an object is set")
        setattr(owner, name, value)

    def augment(self, owner: Any, key: Any, kind: str, operator: str, value: Any) -> None:
        """`owner[key] += value` or `owner.key += value` (and the other operators)."""
        before = self.getitem(owner, key) if kind == "item" else self.getattr(owner, key)
        after = self.in_place(operator, before, value)
        if after is before and is_traceable(type(before)):
            return
        if kind == "item":
            self.setitem(owner, key, after)
        else:
            self.setattr(owner, key, after)

    def in_place(self, operator: str, before: Any, value: Any) -> Any:
        """What `before += value` (and the other operators) gives; an object that can be changed is changed."""
        tracer, function = self.tracer, _AUGMENT[operator]
        if isinstance(before, Symbol):
            if operator in _OF_SCALARS and (tracer.is_scalar(before) or tracer.is_scalar(value)):
                return function(before, value)
            return tracer.changed_by(function, before, value)
        if is_foreign(tracer, before, _IN_PLACE):
            return operate(tracer, function, (before, value))
        if isinstance(before, (list, set, dict, bytearray)):
            if tracer.is_captured(before):
                tracer.break_here("a captured object is changed")
            tracer.check_outside(before, f"{_SIGNS[operator]}=")
        return function(before, value)

    def is_sequence(self, value: Any, least: int, is_exact: bool) -> Any:
        """Whether a sequence pattern of a `match` can fit."""
        if isinstance(value, Symbol) and self.tracer.is_text(value):
            return False
        return self._asked(patterns.is_sequence, value, least, is_exact)

    def is_mapping(self, value: Any) -> Any:
        """Whether a mapping pattern of a `match` can fit."""
        return self._asked(patterns.is_mapping, value)

    def rest_of(self, value: Any, keys: tuple[Any, ...]) -> Any:
        """What `**rest` of a mapping pattern holds."""
        return self._asked(patterns.rest_of, value, keys)

    def _asked(self, function: Any, value: Any, *args: Any) -> Any:
        if isinstance(value, Symbol) or is_foreign(self.tracer, value, ITERATION):
            return self.tracer.host_call(function, (value, *args), is_pure=True)
        return function(value, *args)

    def opaque_store(self) -> None:
        """`del owner[key]` or `del owner.name`."""
        self.tracer.break_here("a part of an object is deleted")


class Recipe(NamedTuple):
    """A comprehension or lambda of the user's, as a function of the variables around it that it reads."""

    name: str
    tree: ast.Expression  # a lambda; its parameters are `names`, for a comprehension after what it goes over
    names: tuple[str, ...]
    globals: dict[str, Any]
    file: str
    reads: tuple[str, ...]  # all names that it reads, globals among them
    made: dict[str, Any]
    copy: Any = None
    values: Callable[[], tuple[Any, ...]] | None = None

    def make(self) -> types.FunctionType:
        """The function, in the user's own globals."""
        if self.name not in self.made:
            function: types.FunctionType = eval(compile(self.tree, self.file, "eval"), self.globals)
            function.__qualname__ = function.__name__ = self.name
            self.made[self.name] = function
        made: types.FunctionType = self.made[self.name]
        return made


class BoundName:
    """A method of a value that is not known yet."""

    def __init__(self, owner: Symbol, name: str) -> None:
        self.__self__ = owner
        self.__name__ = self.__qualname__ = name


def _classes(kinds: Any) -> Iterator[type[BaseException]]:
    """The exception classes of a handler, which may be a tuple of tuples."""
    if isinstance(kinds, tuple):
        for kind in kinds:
            yield from _classes(kind)
    elif isinstance(kinds, type):
        yield kinds


def is_users(value: Any) -> bool:
    """Whether this is a function, method or class of the user's own, and not one that is written in a copy."""
    if isinstance(value, types.MethodType):
        value = value.__func__
    if is_traceable(value) or HOOKS in getattr(value, "__globals__", ()):
        return False
    return not is_pure(value) if isinstance(value, type) else is_users_function(value)


def _collected(found: Any) -> Any:
    """What a comprehension gives; of a generator expression, an iterator over all of it."""
    return iter(list(found)) if isinstance(found, types.GeneratorType) else found


def _augments() -> dict[str, Callable[[Any, Any], Any]]:
    names = {
        "Add": "iadd", "Sub": "isub", "Mult": "imul", "Div": "itruediv", "FloorDiv": "ifloordiv", "Mod": "imod",
        "Pow": "ipow", "BitOr": "ior", "BitAnd": "iand", "BitXor": "ixor", "LShift": "ilshift", "RShift": "irshift",
        "MatMult": "imatmul",
    }  # fmt: skip
    return {name: getattr(operator, function) for name, function in names.items()}


_AUGMENT = _augments()
_OF_SCALARS = frozenset({"Add", "Sub", "Mult", "Div", "FloorDiv", "Mod", "Pow"})  # those that have an Expr
_IN_PLACE = tuple(f"__{function.__name__}__" for function in _AUGMENT.values())
_SIGNS = {
    "Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "FloorDiv": "//", "Mod": "%", "Pow": "**", "BitOr": "|",
    "BitAnd": "&", "BitXor": "^", "LShift": "<<", "RShift": ">>", "MatMult": "@",
}  # fmt: skip


def is_traceable(value: Any) -> bool:
    """Whether a function, method or class is part of the language, and so may run in a traced copy."""
    if isinstance(value, types.MethodType):
        return bool(getattr(type(value.__self__), TRACEABLE, False) or getattr(value.__func__, TRACEABLE, False))
    if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        return bool(getattr(type(value.__self__), TRACEABLE, False))
    return bool(getattr(value, TRACEABLE, False) or getattr(type(value), TRACEABLE, False))


def _holds_symbol(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Symbol):
        return True
    if depth and isinstance(value, (list, tuple, set)):
        return any(_holds_symbol(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return any(_holds_symbol(item, depth - 1) for item in value.values())
    if isinstance(value, slice):
        return any(isinstance(part, Symbol) for part in (value.start, value.stop, value.step))
    return False


def _any_symbol(values: Iterable[Any]) -> bool:
    # A generator would take longer than what it asks.
    for value in values:  # noqa: SIM110
        if type(value) not in _PLAIN and _holds_symbol(value):
            return True
    return False


def _name(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
    return name if module in (None, "builtins", "__main__") else f"{module}.{name}"


def _percent_parts(template: str, tracer: PathTracer) -> list[tuple[str, str]]:
    """(literal, conversion) pairs of a %-format string; only %s, %d and %% have a meaning in the IR."""
    parts: list[tuple[str, str]] = []
    literal = ""
    at = 0
    while at < len(template):
        if template[at] != "%":
            literal += template[at]
            at += 1
            continue
        kind = template[at + 1 : at + 2]
        if kind == "%":
            literal += "%"
        elif kind in ("s", "d"):
            parts.append((literal, kind))
            literal = ""
        else:
            tracer.break_here(f"the format %{kind} of a value that is not known yet")
        at += 2
    parts.append((literal, ""))
    return parts
