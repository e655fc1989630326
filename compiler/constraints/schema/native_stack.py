"""The stack of a schema's machine in the compiled walk: frames as numbers, and the tables of the usual ones.

What is usual: values; objects read along one plan whose properties come in order and are not counted; arrays read along
one plan in which nothing is counted but items; the texts, strings, numbers and names in them. `frames.c` reads these by
itself, as `SchemaMachine` does. Of other frames it has a number alone, and asks the machine what they lead to.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from enum import IntEnum, auto
from typing import TypeVar

from ..native_walk import NativeMachine, spelled
from .frames import Frame, Kind, Phase
from .names import free_text
from .plans import ArrayTrack, ObjectTrack, Want
from .readers import Leaf
from .style import Style
from .values import ArrayProgram, Demand, ObjectProgram, ValueProgram

_NONE, _ODD = -1, -2  # as in walk.h
_NOTHING: frozenset[str] = frozenset()
_INT32 = 1 << 31


class _Frame(IntEnum):
    """As in frames.c, where it is said what goes with each."""

    END = 0
    ROOT = auto()
    ITEM_ROOT = auto()
    TEXT = auto()
    GAP = auto()
    VALUE = auto()
    STRING = auto()
    PLAIN = auto()
    NAME = auto()
    KEY = auto()
    OPEN_OBJECT = auto()
    OBJECT_NAME = auto()
    OBJECT_KEY = auto()
    OBJECT_VALUE = auto()
    OBJECT_AFTER = auto()
    OPEN_ARRAY = auto()
    ARRAY_VALUE = auto()
    ARRAY_AFTER = auto()
    ODD = auto()


_OBJECT_FRAMES = {
    Phase.OPEN: _Frame.OPEN_OBJECT,
    Phase.NAME: _Frame.OBJECT_NAME,
    Phase.KEY: _Frame.OBJECT_KEY,
    Phase.VALUE: _Frame.OBJECT_VALUE,
    Phase.AFTER: _Frame.OBJECT_AFTER,
}
_ARRAY_FRAMES = {Phase.OPEN: _Frame.OPEN_ARRAY, Phase.VALUE: _Frame.ARRAY_VALUE, Phase.AFTER: _Frame.ARRAY_AFTER}
_OBJECT_PHASES = {frame: phase for phase, frame in _OBJECT_FRAMES.items()}
_ARRAY_PHASES = {frame: phase for phase, frame in _ARRAY_FRAMES.items()}
_ALONE = {Kind.END: _Frame.END, Kind.ROOT: _Frame.ROOT, Kind.ITEM_ROOT: _Frame.ITEM_ROOT}
_ALONE_BACK = {frame: kind for kind, frame in _ALONE.items()}
Key = tuple[_Frame, int, int]
Numbered = TypeVar("Numbered")


class NativeStack:
    """Counts the contexts of one machine, in C. Frames are numbered once; what they hold is kept."""

    def __init__(self, native: NativeMachine, style: Style) -> None:
        self.native, self.lib, self.handle = native, native.lib, native.handle
        self.demands: list[Demand] = []
        self._demands: dict[Demand, int] = {}
        self._readers: dict[Leaf, int] = {}
        self._objects: dict[ObjectProgram, int] = {}
        self._arrays: dict[ArrayProgram, int] = {}
        self._odd: dict[Frame, int] = {}
        quoted = style.comma[1:] + b'"'
        self._texts = {quoted: 1, style.colon: 3, style.comma[1:]: 0}
        if style.gap or quoted != b'"':  # as next_key's state is reached, see `object_byte`
            self._texts[b'"'] = 2
        self._text_of = [style.comma[1:], quoted, b'"', style.colon]
        self._reader_of: list[Leaf] = []
        self._object_of: list[ObjectProgram] = []
        self._array_of: list[ArrayProgram] = []
        self._odd_of: list[Frame] = []
        self._out = (ctypes.c_int64 * 4)()
        free = native.dfa(free_text())
        comma, colon = style.comma, style.colon
        self.lib.stack_new(self.handle, free, style.gap, len(comma), comma, len(colon), colon)

    def push(self, frame: Frame, parent: int) -> int:
        """The context of a frame on a parent."""
        context: int = self.lib.stack_push(self.handle, *self._key(frame, parent), parent)
        return context

    def read(self, context: int, program_of: Callable[[Demand], ValueProgram]) -> tuple[Frame, int]:
        """The frame and the parent of a context."""
        self.lib.stack_read(self.handle, context, self._out)
        number, x, y, parent = self._out
        return self._frame(_Frame(number), x, y, program_of), parent

    # Frames to numbers

    def _key(self, frame: Frame, parent: int) -> Key:
        kind = frame[0]
        if kind is Kind.TEXT:
            return _Frame.TEXT, self._text(frame[1]), frame[2]
        if kind is Kind.GAP:
            return _Frame.GAP, frame[1], frame[2]
        if kind is Kind.VALUE:
            return _Frame.VALUE, self._demand(frame[1].demand), 0
        if kind is Kind.PLAIN:
            return _Frame.PLAIN, self._reader(frame[1]), 0
        if kind is Kind.STRING and frame[2] is None:
            if isinstance(frame[1], Leaf):
                return _Frame.STRING, self._reader(frame[1]), 0
            number, x, y, _ = self._raw(parent)
            if number == _Frame.OBJECT_KEY:
                return _Frame.KEY, x, y
        if kind is Kind.NAME and (number := self._object(frame[1])) >= 0:
            return _Frame.NAME, number, frame[2][0][1].position
        if kind is Kind.OBJECT and (number := self._object(frame[1])) >= 0:
            return _OBJECT_FRAMES[frame[3]], number, self._place(frame[2][0], frame[2][0][1].position)
        if kind is Kind.ARRAY and (number := self._array(frame[1])) >= 0:
            return _ARRAY_FRAMES[frame[3]], number, self._place(frame[2][0], frame[2][0][1].items)
        if kind in _ALONE:
            return _ALONE[kind], 0, 0
        return _Frame.ODD, _numbered(self._odd, self._odd_of, frame), 0

    def _place(self, track: tuple[object, ...], at: int) -> int:
        """How far an object or array is, and what the value that is pending is to meet."""
        return at if len(track) == 2 else at << 32 | self._demand((track[2],))  # type: ignore[arg-type]

    def _raw(self, context: int) -> tuple[int, int, int, int]:
        self.lib.stack_read(self.handle, context, self._out)
        return tuple(self._out)

    def _text(self, text: bytes) -> int:
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = self.lib.stack_text(self.handle, len(text), text)
            self._text_of.append(text)
        return number

    def _demand(self, demand: Demand) -> int:
        return _numbered(self._demands, self.demands, demand)

    def _reader(self, leaf: Leaf) -> int:
        number = self._readers.get(leaf)
        if number is None:
            number = self._readers[leaf] = self.lib.stack_reader(self.handle, leaf.native.handle)
            self._reader_of.append(leaf)
        return number

    # Numbers to frames

    def _frame(self, code: _Frame, x: int, y: int, program_of: Callable[[Demand], ValueProgram]) -> Frame:
        if code in _OBJECT_PHASES:
            return (Kind.OBJECT, self._object_of[x], self._tracks(code, y, _object_track), _OBJECT_PHASES[code])
        if code in _ARRAY_PHASES:
            return (Kind.ARRAY, self._array_of[x], self._tracks(code, y, _array_track), _ARRAY_PHASES[code])
        if code is _Frame.TEXT:
            return (Kind.TEXT, self._text_of[x], y)
        if code is _Frame.GAP:
            return (Kind.GAP, x, y)
        if code is _Frame.VALUE:
            return (Kind.VALUE, program_of(self.demands[x]))
        if code is _Frame.STRING:
            return (Kind.STRING, self._reader_of[x], None)
        if code is _Frame.PLAIN:
            return (Kind.PLAIN, self._reader_of[x])
        if code is _Frame.NAME:
            return (Kind.NAME, self._object_of[x], ((0, _object_track(y)),))
        if code is _Frame.KEY:
            program = self._object_of[x]
            return (Kind.STRING, program.open_reader(((0, _object_track(y)),)), None)
        return (_ALONE_BACK[code],) if code in _ALONE_BACK else self._odd_of[x]

    def _tracks(self, code: _Frame, y: int, track: Callable[[int], object]) -> object:
        if code in (_Frame.OBJECT_VALUE, _Frame.ARRAY_VALUE):
            return ((0, track(y >> 32), *self.demands[y & (1 << 32) - 1]),)
        return ((0, track(y)),)

    # Tables

    def define_value(self, demand: int, program: ValueProgram) -> None:
        """What a value that meets a demand may begin with."""
        strings = _NONE if program.strings is None else self._reader(program.strings)
        plain = _NONE if program.plain is None else self._reader(program.plain)
        objects = _NONE if program.objects is None else self._object(program.objects)
        arrays = _NONE if program.arrays is None else self._array(program.arrays)
        self.lib.stack_value(self.handle, demand, strings, plain, objects, arrays)

    def _object(self, program: ObjectProgram) -> int:
        number = self._objects.get(program)
        if number is None:
            number = self._objects[program] = self._define_object(program)
        return number

    def _define_object(self, program: ObjectProgram) -> int:
        plan = program.plans[0]
        if len(program.plans) > 1 or program.distinct or not plan.is_in_order or len(plan.undeclared) > 1:
            return _ODD
        demands = [self._demand((Want(p.formula),)) for p in plan.properties]
        is_open = 0
        if plan.undeclared and plan.is_usable(0):
            is_open = 1 if program.is_plain else _ODD
        demands.append(self._demand((Want(plan.undeclared[0].formula),)) if is_open else 0)
        lengths, text = spelled(plan.names)
        first, wanted = array("i", plan.first_required), array("i", demands)
        self._object_of.append(program)
        number: int = self.lib.stack_object(
            self.handle, len(plan.names), lengths.buffer_info()[0], text, bytes(plan.possible), first.buffer_info()[0],
            wanted.buffer_info()[0], is_open,
        )  # fmt: skip
        return number

    def _array(self, program: ArrayProgram) -> int:
        number = self._arrays.get(program)
        if number is None:
            number = self._arrays[program] = self._define_array(program)
        return number

    def _define_array(self, program: ArrayProgram) -> int:
        plan, atom = program.plans[0], program.plans[0].atom
        bounds = (atom.low, -1 if atom.high is None else atom.high, plan.settled)
        if len(program.plans) > 1 or plan.unique or atom.counted or max(bounds) >= _INT32:
            return _ODD
        items = [*atom.prefix, atom.rest]
        demands = array("i", [self._demand((Want(item),)) for item in items])
        inhabited = bytes(program.universe.inhabited(item) for item in items)
        self._array_of.append(program)
        number: int = self.lib.stack_array(self.handle, *bounds, len(atom.prefix), demands.buffer_info()[0], inhabited)
        return number


def _object_track(position: int) -> ObjectTrack:
    return ObjectTrack(position, 0, 0, 0, _NOTHING)


def _array_track(items: int) -> ArrayTrack:
    return ArrayTrack(items, (), _NOTHING)


def _numbered(numbers: dict[Numbered, int], all_of_them: list[Numbered], one: Numbered) -> int:
    number = numbers.get(one)
    if number is None:
        number = numbers[one] = len(all_of_them)
        all_of_them.append(one)
    return number
