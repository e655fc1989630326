"""Runs a Plan without its Python body: one rule per op, evaluating operands and handing plain ops to the executor.

Where the body would read a value and so be suspended, the walker is suspended at the same place, with the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..compiler.expressions import STATEFUL, evaluate
from ..compiler.ir import (
    OP_CLASSES,
    AnyOp,
    Arg,
    Copy,
    Expr,
    Fork,
    Gen,
    Join,
    Media,
    Opaque,
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
)
from ..compiler.plan import Plan
from ..core.errors import DslcError, ProgramError
from .executor import Executor, check_text
from .exprs import check


class _Returned(Exception):
    """The program has returned; carries the value."""

    def __init__(self, value: Any) -> None:
        self.value = value


def walk_plan(executor: Executor, plan: Plan, arguments: Mapping[str, Any]) -> Any:
    """Run a whole plan with these arguments (all of them, defaults filled in). Returns what the program returns."""
    walker = _Walker(executor, arguments)
    try:
        walker.region(plan.program.body)
    except _Returned as returned:
        return returned.value
    return None


class _Walker:
    def __init__(self, executor: Executor, arguments: Mapping[str, Any]) -> None:
        self.executor = executor
        self.arguments = arguments
        self.values: dict[int, Any] = {}

    def region(self, body: tuple[AnyOp, ...]) -> None:
        for op in body:
            _RULES[type(op)](self, op)

    def value(self, operand: Any, op: AnyOp) -> Any:
        """The plain value of an operand; suspends where it is a generated value that is not there yet."""
        if isinstance(operand, Ref):
            if operand.id in self.values:
                return self.values[operand.id]
            return self.executor.value_of(operand, op.where)
        if isinstance(operand, tuple):
            return tuple(self.value(item, op) for item in operand)
        return operand

    def _emit(self, op: Any) -> None:
        self.executor.emit(op)

    def _text(self, op: Text) -> None:
        if isinstance(op.text, Ref):
            text = check_text(self.value(op.text, op), op.where)
            op = replace(op, text=text)
            if not text:
                return
        self.executor.emit(op)

    def _arg(self, op: Arg) -> None:
        self.values[op.out.id] = self.arguments[op.param]

    def _media(self, op: Media) -> None:
        self.executor.emit(replace(op, source=self.value(op.source, op), options=self.value(op.options, op)))

    def _gen(self, op: Gen) -> None:
        sampling = self.value(op.sampling, op)
        if sampling != op.sampling:
            op = replace(op, sampling=sampling)
        if op.constraint is not None and not isinstance(op.constraint.source, str):
            source = check_text(self.value(op.constraint.source, op), op.where)
            spec = replace(op.constraint, source=source)
            check(spec.resolve(source), op.where)
            op = replace(op, constraint=spec)
        self.executor.emit(op)

    def _select(self, op: Select) -> None:
        choices, temperature = self.value(op.choices, op), self.value(op.temperature, op)
        if isinstance(choices, list):
            choices = tuple(choices)
        if choices != op.choices or temperature != op.temperature:
            op = replace(op, choices=choices, temperature=temperature)
        self.executor.emit(op)

    def _region_op(self, op: Role | Scope) -> None:
        header = replace(op, body=())
        self.executor.enter(header)
        try:
            self.region(op.body)
        finally:
            self.executor.leave(header)

    def _set(self, op: Set) -> None:
        value = self.value(op.value, op)
        self.executor.emit(replace(op, value=value))

    def _expr(self, op: Expr) -> None:
        if op.fn in STATEFUL:
            self.values[op.out.id] = self._read(op)
            return
        args = [self.value(arg, op) for arg in op.args]
        try:
            self.values[op.out.id] = evaluate(op.fn, args)
        except DslcError:
            raise
        except Exception as error:
            error.add_note(f"in the program {self.executor.title!r}, {op.where}")
            raise

    def _read(self, op: Expr) -> Any:
        if op.fn == "get":
            return self.executor.get(op.stream, str(op.args[0]), op.where)
        if op.fn == "has":
            return self.executor.has(op.stream, str(op.args[0]), op.where)
        return self.executor.text(op.stream, op.where)

    def _switch(self, op: Switch) -> None:
        value = self.value(op.on, op)
        for case in op.cases:
            if type(case.value) is type(value) and case.value == value:
                self.region(case.body)
                return

    def _opaque(self, op: Opaque) -> None:
        raise ProgramError(f"a plan with a break cannot run by itself: {op.reason}", where=op.where)

    def _return(self, op: Return) -> None:
        value = self.value(op.value, op)
        raise _Returned(list(value) if isinstance(value, tuple) else value)


_RULES: dict[type, Callable[[Any, Any], None]] = {
    Text: _Walker._text, Tokens: _Walker._emit, Special: _Walker._emit, Media: _Walker._media, Arg: _Walker._arg,
    Gen: _Walker._gen, Select: _Walker._select, Role: _Walker._region_op, Scope: _Walker._region_op,
    Fork: _Walker._emit, Copy: _Walker._emit, Join: _Walker._emit, Set: _Walker._set, Expr: _Walker._expr,
    Switch: _Walker._switch,
    Opaque: _Walker._opaque, Return: _Walker._return,
}  # fmt: skip

if missing := set(OP_CLASSES.values()) - _RULES.keys():
    raise TypeError(f"the walker has no rule for {sorted(cls.__name__ for cls in missing)}")
