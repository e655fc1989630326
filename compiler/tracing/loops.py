"""Loops of the rewritten copy: unrolled where what they go over is known, a Loop of the IR where it is not.

The body of a Loop is traced once. Python variables that it sets, or containers that it changes, are values that a round
begins with and hands on to the next; the path that goes into the body ends with the round, and the path around it goes
on with what the last round has given.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ir import Loop, Operand
from .items import Lost, items_of
from .symbols import Symbol

if TYPE_CHECKING:
    from ...core.errors import SourceLoc
    from .tracer import PathTracer


class Carried(NamedTuple):
    """A Python variable that a loop sets: its name, whether code outside of the loop reads it, and its value now."""

    name: str
    is_read_outside: bool
    value: Callable[[], Any]  # raises NameError while the variable is not set


class Retrace(BaseException):
    """What was recorded is void, or too much: trace anew, with this loop that was unrolled as a Loop of the IR, or with
    the `if`s at these lines as regions of their own."""

    def __init__(self, place: tuple[str, int] | None = None, branches: Iterable[tuple[str, int]] = ()) -> None:
        self.place = place
        self.branches = branches


NOT_SET: Any = object()


class LoopDriver:
    """One execution of a `for` or `while` of the copy."""

    def __init__(self, tracer: PathTracer, variables: Sequence[Carried], place: SourceLoc | None, width: int) -> None:
        self.tracer = tracer
        self.variables = variables
        self.place = place
        self.width = width  # number of names that an item is unpacked into; 0: one name
        self.is_symbolic = False
        self._items: Iterator[Any] = iter(())
        self._over: Operand = None
        self._item: Callable[[Symbol], Any] | None = None  # what stands for a value in the body
        self._num_own = 0  # variables that hold such an item: no round hands it to the next
        self._is_begun = False
        self._is_left = False
        self._before: list[Any] = []  # the variables when the loop began
        self._values: dict[int, Symbol] = {}  # what they are now, by number
        self._loop: Loop | None = None

    # -- for

    def over(self, values: Any, num_own: int = 0) -> LoopDriver:
        """Set what a `for` goes over, and how many of the variables hold the item."""
        tracer = self.tracer
        items = items_of(values)
        if items is not None:
            values, self._item = items
            self._num_own = num_own
        if isinstance(values, Symbol):
            self.is_symbolic, self._over = True, values.ref
        elif self._is_forced:
            values = list(values)
            try:
                self._over, self.is_symbolic = tuple(tracer.host_operand(value) for value in values), True
            except TypeError:
                self._items = iter(values)
        else:
            self._items = iter(values)
        return self

    def __iter__(self) -> LoopDriver:
        return self

    def __next__(self) -> Any:
        self.tracer.tick()
        if not self.is_symbolic:
            self.tracer.unrolled.append(self)
            return self._unpacked(next(self._items))
        if not self._go_round():
            raise StopIteration
        assert self._loop is not None
        value = Symbol(self.tracer, self._loop.params[0])
        return self._unpacked(value) if self._item is None else self._item(value)

    def _unpacked(self, item: Any) -> Any:
        return unpacked(item, self.width) if self.width and isinstance(item, Symbol) else item

    # -- while

    def round(self, test: Callable[[], Any], is_endless: bool) -> bool:
        """Whether a `while` goes (once more) into its body. A Loop has its test inside the body."""
        tracer = self.tracer
        tracer.tick()
        if self.is_symbolic:
            return self._go_round()
        if not self._is_begun:
            self._is_begun = True
            found = None if is_endless or self._is_forced else tracer.attempt(test)
            if found is None or isinstance(found[0], Symbol):
                self.is_symbolic, self._is_begun = True, False
                return self._go_round()
            tracer.unrolled.append(self)
            return bool(found[0])
        tracer.unrolled.append(self)
        return bool(test())

    # -- both

    @property
    def _is_forced(self) -> bool:
        return self.key in self.tracer.forced_loops

    @property
    def key(self) -> tuple[str, int]:
        """What names the loop from one trace to the next."""
        return ("", 0) if self.place is None else (self.place.file, self.place.line)

    def _go_round(self) -> bool:
        if self._is_begun:
            self._end("next")
        self._is_begun = True
        self._before = [_value_of(variable) for variable in self.variables]
        counts = _num_holders(self._before)
        inits: list[Operand] = []
        numbers: list[int] = []
        for number, value in enumerate(self._before):
            if number < self._num_own:
                continue
            init = self._init(self.variables[number], value, counts[number] > _ALONE)
            if init is not NOT_SET:
                inits.append(init)
                numbers.append(number)
        tracer = self.tracer
        params = tuple(tracer.new_ref() for _ in range(len(inits) + (self._over is not None)))
        outs = tuple(tracer.new_ref() for _ in inits)
        self._loop = Loop(over=self._over, params=params, inits=tuple(inits), outs=outs, where=self.place)
        is_inside = tracer.decide_loop(self._loop)
        begins = params[len(params) - len(inits) :] if is_inside else outs
        self._values = {number: Symbol(tracer, ref) for number, ref in zip(numbers, begins, strict=True)}
        return is_inside

    def _init(self, variable: Carried, value: Any, has_other_names: bool) -> Any:
        """The operand that a variable begins the first round with; NOT_SET where it is none: a state, a branch."""
        tracer = self.tracer
        if value is NOT_SET or type(value) is Lost:
            return tracer.expr("unset", variable.name).ref
        if tracer.is_language(value):
            return NOT_SET
        if tracer.is_shared(value) and has_other_names:
            tracer.break_here(f"a loop may change {variable.name!r}, which another name stands for too", self.place)
        try:
            return tracer.host_operand(value)
        except TypeError as error:
            return tracer.break_here(f"a loop changes {variable.name!r}: {error}", self.place)

    def has(self, number: int) -> bool:
        """Whether a variable has a value of its own in the body, or behind the loop."""
        return number in self._values or number < self._num_own

    def value(self, number: int) -> Any:
        """That value."""
        if number < self._num_own:
            return Lost(self.tracer, self.variables[number].name)
        return self._values[number]

    def leave(self) -> None:
        """A `break` of this loop."""
        if self.is_symbolic:
            self._end("break")

    def leave_later(self) -> None:
        """A `break` with a `finally` around it: the round goes on with that, and ends behind the loop."""
        self._is_left = self.is_symbolic

    def end_if_left(self) -> None:
        """The place behind the loop."""
        if self._is_left:
            self._end("break")

    def _end(self, kind: str) -> None:
        """The round ends here, and the path with it."""
        tracer = self.tracer
        values: list[Operand] = []
        for number, variable in enumerate(self.variables):
            if number < self._num_own:
                continue
            value = _value_of(variable)
            if number not in self._values:
                if value is not self._before[number]:
                    tracer.break_here(f"a loop sets {variable.name!r} to another part of the program", self.place)
                continue
            if value is NOT_SET or tracer.is_language(value):
                if variable.is_read_outside:
                    tracer.break_here(f"{variable.name!r} goes on from a loop as a part of the program", self.place)
                values.append(tracer.expr("unset", variable.name).ref)
                continue
            try:
                values.append(tracer.host_operand(value))
            except TypeError as error:
                if variable.is_read_outside:
                    tracer.break_here(f"a loop changes {variable.name!r}: {error}", self.place)
                values.append(tracer.expr("unset", variable.name).ref)
        tracer.end_round(kind, tuple(values), self.place)


def _value_of(variable: Carried) -> Any:
    try:
        return variable.value()
    except NameError:
        return NOT_SET


def _num_holders(values: list[Any]) -> list[int]:
    """How many hold each value, the list and this call among them."""
    return [sys.getrefcount(value) for value in values]


def _held_by_one_variable() -> int:
    """What `_num_holders` gives for an object that one variable holds; Python versions differ in it."""
    only: list[Any] = []

    def value() -> list[Any]:
        return only

    return _num_holders([value()])[0]


_ALONE = _held_by_one_variable()


def unpacked(value: Symbol, width: int) -> list[Any]:
    """The parts of a value that is taken apart into `width` names."""
    parts = value.recorder.expr("unpack", value, width)
    return [value.recorder.expr("index", parts, i) for i in range(width)]


def copies_of(frame: types.FrameType | None, is_copy: Callable[[types.FrameType], bool]) -> Iterable[Any]:
    """The values of all variables of the copies that are running."""
    while frame is not None:
        if is_copy(frame):
            yield from frame.f_locals.values()
        frame = frame.f_back
