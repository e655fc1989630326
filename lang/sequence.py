"""`dslc.seq(...)`: texts and gens that are generated as one, so that tokens may straddle their seams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compiler.constraints.sequence import source_of_parts
from ..compiler.expressions import evaluate
from ..compiler.ir import ConstraintSpec, Gen
from ..compiler.tracing.symbols import Symbol
from ..core.constraint import Constraint
from ..core.errors import ProgramError, RequestError, SourceLoc
from .checks import check_constraint
from .exprs import Expression, ExprList, traceable
from .gens import GenExpr, GenOptions, gen
from .locate import caller

if TYPE_CHECKING:
    from .state import ProgramState

Part = tuple[str, str, tuple[tuple[str, str], ...]]
# Types whose values an Expr can compute; those of others are read with `json` from the part's text.
_COMPUTED = ("int", "float", "str")


class SeqExpr(Expression):
    """A sequence; see `seq`. `captures` are (variable, number of the part, Expr function for its value)."""

    __slots__ = ("captures", "expr", "source")

    def __init__(self, expr: GenExpr[str], source: str, captures: tuple[tuple[str, int, str], ...]) -> None:
        self.expr = expr
        self.source = source
        self.captures = captures

    def append_to(self, state: ProgramState) -> None:
        expr, sink = self.expr, state.sink
        if not self.source:
            sink.opaque("a sequence with a constraint that is not known yet", expr.where)
        ref = sink.new_ref()
        sink.emit(
            Gen(
                out=ref, var=expr.var, sampling=expr.sampling, constraint=expr.constraint, logprobs=expr.logprobs,
                stream=state.stream, where=expr.where,
            )
        )  # fmt: skip
        if not self.captures:
            return
        whole = sink.value_of(ref, expr.where)
        for var, number, function in self.captures:
            state.set_var(var, self._value(whole, number, function))

    def _value(self, whole: Any, number: int, function: str) -> Any:
        arguments = (whole, self.source, number, *([function] if function != "str" else []))
        if isinstance(whole, Symbol):
            return whole.recorder.expr("part", *arguments)
        try:
            return evaluate("part", arguments)
        except ValueError as error:
            raise ProgramError(str(error), where=self.expr.where) from None

    def __repr__(self) -> str:
        return f"<seq at {self.expr.where}>"


@traceable
def seq(*parts: Any, name: str | None = None, **options: Any) -> SeqExpr:
    """Texts and gens as one generation: its text is the parts one after another, and tokens may straddle the seams.

    A gen is constrained by its own constraint; one without takes any text up to the first occurrence of the text that
    follows it (at the end: any text). Its variable gets its part of the text (an int or float of that type). Where the
    text could be divided in several ways, each part in turn ends as far left as the rest allows. `name` stores the
    whole text; `options` are those of `gen` (max_tokens, temperature, ...) and hold for the whole: the gens inside take
    none of their own. If it is cut by max_tokens, the part that was cut holds what there is, those behind it hold "",
    and an int or float that is cut is None.

    Raises RequestError and ConstraintError with the user's line.
    """
    where = caller()
    for option in ("n", "stop", "type", "constraint", "regex", "json_schema", "grammar", "ebnf", "dtype", "choices"):
        if options.get(option) is not None:
            raise RequestError("is no option of a sequence", field=option, where=where)
    flat = _flat(parts, where)
    described: list[Part] = []
    captures: list[tuple[str, int, str]] = []
    for number, part in enumerate(flat):
        following = flat[number + 1] if number + 1 < len(flat) else None
        described.append(_described(part, following, number, where))
        if isinstance(part, GenExpr) and part.var is not None:
            if part.var in [var for var, _, _ in captures] or part.var == name:
                raise RequestError(f"the variable {part.var!r} is there twice", field=f"parts[{number}]", where=where)
            captures.append((part.var, number, _function(part, number, where)))
    source = ""
    if all(kind != "unknown" for kind, _, _ in described):
        source = source_of_parts(described)
        check_constraint(Constraint("seq", source), where)
    whole: GenExpr[Any] = gen(name, **options)
    made = GenOptions(whole.sampling, ConstraintSpec("seq", source), whole.logprobs)
    return SeqExpr(GenExpr(name, made, where), source, tuple(captures))


def _flat(parts: tuple[Any, ...], where: SourceLoc | None) -> list[Any]:
    """The parts, sums taken apart, neighbouring texts joined."""
    out: list[Any] = []
    for part in parts:
        for piece in part.parts if isinstance(part, ExprList) else (part,):
            if isinstance(piece, Symbol):
                piece.recorder.break_here("a sequence with a text that is not known yet")
            if isinstance(piece, str) and out and isinstance(out[-1], str):
                out[-1] += piece
            elif isinstance(piece, GenExpr) or (isinstance(piece, str) and piece):
                out.append(piece)
            elif piece != "":
                raise RequestError(
                    f"is made of texts and gens, not of {piece!r}; for one of several texts take dslc.choice",
                    field=f"parts[{len(out)}]",
                    where=where,
                )
    if not out:
        raise RequestError("needs at least one text or gen", field="parts", where=where)
    return out


def _described(part: Any, following: Any, number: int, where: SourceLoc | None) -> Part:
    if isinstance(part, str):
        return ("text", part, ())
    field = f"parts[{number}]"
    if part.sampling or part.logprobs is not None or part.reasoning is not None:
        given = part.sampling[0][0] if part.sampling else "return_logprob"
        raise RequestError(
            f"a gen in a sequence has no {given} of its own; give it to seq(...)", field=field, where=where
        )
    spec = part.constraint
    if spec is not None:
        if not isinstance(spec.source, str):
            return ("unknown", "", ())  # a value of the program: only a run of the body knows it
        return (spec.kind, spec.source, spec.options)
    if following is None:
        return ("any", "", ())
    if isinstance(following, str):
        return ("until", following, ())
    raise RequestError(
        "a gen without a constraint ends where the text behind it begins, and there is none; give it a constraint",
        field=field,
        where=where,
    )


def _function(part: GenExpr[Any], number: int, where: SourceLoc | None) -> str:
    """The Expr function that makes the variable's value of the part's text."""
    if part.spec is None:
        return "str"
    if part.spec.function not in _COMPUTED:
        name = getattr(part.spec.type, "__name__", str(part.spec.type))
        raise RequestError(
            f"a sequence gives the text of its parts, or an int or float; for a {name} write "
            f"gen({part.var!r}, dslc.json({name})) and read the text",
            field=f"parts[{number}]",
            where=where,
        )
    return part.spec.function
