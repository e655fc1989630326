"""All formulas a text of the schema can ask for, which of them are inhabited, and their atoms as plans."""

from __future__ import annotations

from ..effort import spend
from ..nfa import TooLarge
from .document import schema_error
from .formula import Formula
from .lower import Lowering
from .plans import ArrayPlan, ObjectPlan, split_witnesses
from .shape import Shape, Unsupported

MAX_EXPLORED = 20_000


class Universe:
    """Explored once, at compile time: whatever the schema holds that is not supported is found here."""

    def __init__(self, lowering: Lowering, root: Formula) -> None:
        self.lowering = lowering
        self.root = root
        self.shapes: dict[Formula, Shape] = {}
        self.arrays: dict[Formula, list[ArrayPlan]] = {}
        self.objects: dict[Formula, list[ObjectPlan]] = {}
        self._parents: dict[Formula, list[Formula]] = {}
        self._inhabited: set[Formula] = set()
        self._explore()
        self._find_inhabited()
        self._drop_empty()

    def inhabited(self, formula: Formula) -> bool:
        """Whether some JSON value meets `formula`."""
        return formula in self._inhabited

    def _explore(self) -> None:
        todo = [self.root]
        seen = {self.root}
        for formula in todo:
            if len(todo) > MAX_EXPLORED:
                raise schema_error(f"more than {MAX_EXPLORED} combinations of subschemas", formula.pointer)
            spend(60)
            try:
                children = self._plan(formula)
            except (Unsupported, TooLarge) as error:
                raise schema_error(f"not supported: {error}", formula.pointer) from None
            for child in children:
                self._parents.setdefault(child, []).append(formula)
                if not child.pointer:
                    child.pointer = formula.pointer
                if child not in seen:
                    seen.add(child)
                    todo.append(child)

    def _plan(self, formula: Formula) -> dict[Formula, None]:
        shape = self.shapes[formula] = self.lowering.shape(formula)
        formulas = self.lowering.formulas
        arrays = self.arrays[formula] = [ArrayPlan(atom, formulas, self.lowering.shape) for atom in shape.arrays]
        objects = self.objects[formula] = [
            ObjectPlan(part, formulas, self.lowering.options.any_order)
            for atom in shape.objects
            for part in split_witnesses(atom, formulas)
        ]
        children: dict[Formula, None] = {}
        for array in arrays:
            children.update(dict.fromkeys(array.formulas_used()))
        for obj in objects:
            children.update(dict.fromkeys(obj.formulas_used()))
        return children

    def _find_inhabited(self) -> None:
        """Least fixpoint: a formula is inhabited if a value of it can be built from inhabited parts."""
        todo = dict.fromkeys(self.shapes)
        while todo:
            formula = todo.popitem()[0]
            if formula in self._inhabited:
                continue
            shape = self.shapes[formula]
            scalar = shape.null or shape.bools or not shape.numbers.is_empty or not shape.strings.is_empty
            if (
                scalar
                or any(plan.inhabited(self.inhabited) for plan in self.arrays[formula])
                or any(plan.prepare(self.inhabited) for plan in self.objects[formula])
            ):
                self._inhabited.add(formula)
                todo.update(dict.fromkeys(self._parents.get(formula, [])))

    def _drop_empty(self) -> None:
        for formula in self.shapes:
            self.arrays[formula] = [p for p in self.arrays[formula] if p.inhabited(self.inhabited)]
            self.objects[formula] = [p for p in self.objects[formula] if p.prepare(self.inhabited)]
