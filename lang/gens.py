"""`gen(...)` and `select(...)`: what they return, and their options, checked when they are written."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ..compiler.ir import ConstraintSpec, Ref, Select
from ..compiler.tracing.symbols import Symbol
from ..core.constraint import Constraint
from ..core.errors import ProgramError, RequestError, SourceLoc
from ..core.request import LogprobWish
from .checks import (
    GEN_NAMES,
    LOGPROB_NAMES,
    Overrides,
    check_choices,
    constraint_of,
    logprob_wish,
    sampling_overrides,
)
from .choices import choices_method as find_method
from .exprs import Expression, traceable
from .locate import caller
from .types import TypeSpec, is_type

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from .reasoning_format import ReasoningFormat
    from .state import ProgramState

    class LaterNames(TypedDict, total=False):
        """The options of gen() that SGLang's has not: by name only."""

        repetition_penalty: float | None
        logit_bias: dict[int, float] | None
        seed: int | None
        skip_special_tokens: bool | None
        spaces_between_special_tokens: bool | None
        no_stop_trim: bool | None
        jump_forward: bool | Literal["step"] | None
        finish_valid: bool | None
        token_healing: bool | None
        token_ids_logprob: Sequence[int] | None

    class GenNames(LaterNames, total=False):
        """The options of gen() that go with a type."""

        max_tokens: int | None
        min_tokens: int | None
        n: int | None
        stop: str | Sequence[str] | None
        stop_token_ids: Sequence[int] | None
        stop_regex: str | Sequence[str] | None
        temperature: float | None
        top_p: float | None
        top_k: int | None
        min_p: float | None
        frequency_penalty: float | None
        presence_penalty: float | None
        ignore_eos: bool | None
        return_logprob: bool | None
        logprob_start_len: int | None
        top_logprobs_num: int | None
        return_text_in_logprobs: bool | None


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
FIELD_NAMES = {written: field for field, written in GEN_NAMES.items()}


@dataclass(frozen=True, slots=True)
class GenOptions:
    """What a gen asks for, checked; shared by all gens that ask for the same."""

    sampling: Overrides = ()
    constraint: ConstraintSpec | None = None
    logprobs: LogprobWish | None = None
    spec: TypeSpec | None = None  # how the text becomes a value; None: it stays text


class GenExpr(Expression, Generic[T]):
    """A generation whose value is a T; see `gen`. `state[g]` is that value."""

    __slots__ = ("constraint", "logprobs", "reasoning", "sampling", "spec", "var", "where")

    def __init__(self, var: str | None, options: GenOptions, where: SourceLoc | None) -> None:
        self.var = var
        self.where = where
        self.sampling = options.sampling
        self.constraint = options.constraint
        self.logprobs = options.logprobs
        self.spec = options.spec
        self.reasoning: ReasoningFormat | None = None  # see `separate_reasoning`

    def with_reasoning(self, form: ReasoningFormat) -> GenExpr[T]:
        """The same generation, with its reasoning split off."""
        options = GenOptions(self.sampling, self.constraint, self.logprobs, self.spec)
        expr: GenExpr[T] = GenExpr(self.var, options, self.where)
        expr.reasoning = form
        return expr

    def append_to(self, state: ProgramState) -> None:
        state.emit_gen(self)

    def __repr__(self) -> str:
        return f"<gen {self.var!r} at {self.where}>"


class SelectExpr(Expression):
    """A choice; see `select`."""

    __slots__ = ("choices", "method", "temperature", "var", "where")

    def __init__(self, var: str | None, choices: Any, method: str, temperature: Any, where: SourceLoc | None) -> None:
        self.var = var
        self.choices = choices
        self.method = method
        self.temperature = temperature
        self.where = where

    def op(self, stream: int, number: int) -> Select:
        """The op on a stream; `number` is that of its value."""
        return Select(
            out=Ref(number), var=self.var, choices=self.choices, method=self.method, temperature=self.temperature,
            stream=stream, where=self.where,
        )  # fmt: skip

    def append_to(self, state: ProgramState) -> None:
        state.emit_select(self)


_MAX_KNOWN = 4096
_WRITTEN = frozenset({list, dict})
_MAX_WRITTEN = 10_000  # bytes: so many are remembered
_TEXTS = (str, NoneType)


def _remembered(function: F) -> F:
    """The function, whose results are values: a line that asks for the same again gets what it got before."""
    # By line and arguments: the result (which keeps its line alive, and so that line's id its own), and the classes of
    # those arguments that are no plain texts: 1, 1.0 and True are equal.
    known: dict[Any, tuple[Any, list[tuple[int, type[Any]]], list[tuple[str, type[Any]]]]] = {}

    @wraps(function)
    def remembering(*args: Any, **options: Any) -> Any:
        where = caller()
        key: Any = (id(where), args, *options.items())
        try:
            found = known.get(key)
        except TypeError:  # a list or a dict among them, or a Symbol
            written = _written((*args, *options.values()))
            if written is None:
                return function(*args, **options)
            key = (id(where), len(args), *options, written)
            found = known.get(key)
        if found is not None:
            made, of_args, of_options = found
            for name, kind in of_options:
                if options[name].__class__ is not kind:
                    break
            else:
                for i, kind in of_args:
                    if args[i].__class__ is not kind:
                        break
                else:
                    return made
        made = function(*args, **options)
        if made.__class__ is GenExpr and made.where is where:
            if len(known) >= _MAX_KNOWN:
                known.clear()
            known[key] = (
                made,
                [(i, value.__class__) for i, value in enumerate(args) if value.__class__ not in _TEXTS],
                [(name, value.__class__) for name, value in options.items() if value.__class__ not in _TEXTS],
            )
        return made

    return remembering  # type: ignore[return-value]


@overload
def gen(name: str | None, max_tokens: type[T], /, **options: Unpack[GenNames]) -> GenExpr[T]: ...
@overload
def gen(name: str | None, max_tokens: Constraint, /, **options: Unpack[GenNames]) -> GenExpr[str]: ...
@overload
def gen(name: str | None = None, *, type: type[T], **options: Unpack[GenNames]) -> GenExpr[T]: ...
@overload
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: Any = None,
    choices: Sequence[str] | None = None,
    choices_method: Any = None,
    regex: str | None = None,
    json_schema: Any = None,
    *,
    type: None = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    ebnf: str | None = None,
    grammar: str | None = None,
    constraint: Constraint | None = None,
    **options: Unpack[LaterNames],
) -> GenExpr[str]: ...
@_remembered  # type: ignore[misc]  # the second place has two names: SGLang's, and none for a type
@traceable
def gen(
    name: str | None = None,
    second: Any = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: Any = None,
    choices: Sequence[str] | None = None,
    choices_method: Any = None,
    regex: str | None = None,
    json_schema: Any = None,
    *,
    max_tokens: Any = None,
    type: Any = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    ebnf: str | None = None,
    grammar: str | None = None,
    constraint: Constraint | None = None,
    repetition_penalty: float | None = None,
    logit_bias: dict[int, float] | None = None,
    seed: int | None = None,
    skip_special_tokens: bool | None = None,
    spaces_between_special_tokens: bool | None = None,
    no_stop_trim: bool | None = None,
    jump_forward: bool | Literal["step"] | None = None,
    finish_valid: bool | None = None,
    token_healing: bool | None = None,
    token_ids_logprob: Sequence[int] | None = None,
) -> Any:
    """Generate text into the variable `name` and append it (positional order and names as in SGLang).

    `second` is `max_tokens`, or a type or constraint: `gen("x", 16)`, `gen("x", int)`, `gen("x", int, max_tokens=16)`.

    Options not given come from `run(...)`. At most one of these constrains the text: `type` (also in second place: int,
    Literal, an enum, a dataclass, a pydantic model, ...; `s[name]` is then a value of that type, `s.raw(name)` its
    text), `dtype` (SGLang's int, float, str, bool: the value stays text), `regex`, `json_schema` (a dict, its JSON
    text, or a pydantic model), `grammar` (EBNF; also called `ebnf`), `constraint` (also in second place: a value of
    `dslc.regex`, `json`, `ebnf` or `choice`), `tools` (functions: the value is a `ToolCall` of one of them). With
    `choices` this is `select`.

    Raises RequestError or ConstraintError naming the option, with the user's line.
    """
    where = caller()
    if name is not None and name.__class__ is not str:
        _check_name(name, where)
    if second is not None:
        if max_tokens is None:
            max_tokens = second
        else:
            type, constraint = _second_place(second, type, constraint, where)
    given = (
        max_tokens, min_tokens, n, stop, stop_token_ids, stop_regex, temperature, top_p, top_k, min_p,
        frequency_penalty, presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num,
        return_text_in_logprobs, dtype, choices, choices_method, regex, json_schema, type, tools, ebnf, grammar,
        constraint, repetition_penalty, logit_bias, seed, skip_special_tokens, spaces_between_special_tokens,
        no_stop_trim, jump_forward, finish_valid, token_healing, token_ids_logprob,
    )  # fmt: skip
    if choices is not None or choices_method is not None:
        return _select_by_gen(name, dict(zip(GEN_OPTIONS, given, strict=True)), where)
    key: Any = given
    try:
        known = _known.get(key)
    except TypeError:  # a list or a dict among them, or a Symbol
        key = _written(given)
        known = _known.get(key) if key is not None else None
    if known is not None:
        for i, kind in known[0]:
            if given[i].__class__ is not kind:  # 1, 1.0 and True are equal
                break
        else:
            return GenExpr(name, known[1], where)
    options = _gen_options(dict(zip(GEN_OPTIONS, given, strict=True)), where)
    if key is not None and len(_known) < _MAX_KNOWN:
        _known[key] = (tuple([(i, value.__class__) for i, value in enumerate(given) if value is not None]), options)
    return GenExpr(name, options, where)


def _written(given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What was given, with lists and dicts of plain values as bytes; None where they hold anything else."""
    try:
        key = tuple([
            (value.__class__, marshal.dumps(value, 2)) if value.__class__ in _WRITTEN else value for value in given
        ])  # fmt: skip
        hash(key)
    except (TypeError, ValueError):
        return None
    return key if sum([len(value[1]) for value in key if value.__class__ is tuple]) < _MAX_WRITTEN else None


def _second_place(second: Any, type: Any, constraint: Any, where: SourceLoc | None) -> tuple[Any, Any]:
    """The type and the constraint, one of which stands in second place beside max_tokens."""
    if isinstance(second, (Constraint, ConstraintSpec)) and constraint is None:
        return type, second
    if is_type(second) and type is None:
        return second, constraint
    field = "constraint" if constraint is not None else "type" if type is not None else "max_tokens"
    raise RequestError("is given twice", field=field, where=where)


# The options of gen() after its name, in order.
GEN_OPTIONS = (
    "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "ignore_eos", "return_logprob", "logprob_start_len", "top_logprobs_num",
    "return_text_in_logprobs", "dtype", "choices", "choices_method", "regex", "json_schema", "type", "tools", "ebnf",
    "grammar", "constraint", "repetition_penalty", "logit_bias", "seed", "skip_special_tokens",
    "spaces_between_special_tokens", "no_stop_trim", "jump_forward", "finish_valid", "token_healing",
    "token_ids_logprob",
)  # fmt: skip
CONSTRAINT_OPTIONS = ("constraint", "type", "tools", "dtype", "regex", "json_schema", "grammar", "ebnf")
_NOT_SAMPLING = frozenset({*LOGPROB_NAMES, *CONSTRAINT_OPTIONS, "choices", "choices_method"})
_known: dict[Any, tuple[tuple[tuple[int, Any], ...], GenOptions]] = {}  # what was asked for, whatever the name
_known_selects: dict[Any, SelectExpr] = {}  # by line, name, temperature, method and choices


def _gen_options(given: dict[str, Any], where: SourceLoc | None) -> GenOptions:
    """The options of a gen by name, checked."""
    if isinstance(given["max_tokens"], (Constraint, ConstraintSpec)):
        if given["constraint"] is not None:
            raise RequestError("is given twice", field="constraint", where=where)
        given["constraint"], given["max_tokens"] = given["max_tokens"], None
    if is_type(given["max_tokens"]):
        if given["type"] is not None:
            raise RequestError("is given twice", field="type", where=where)
        given["type"], given["max_tokens"] = given["max_tokens"], None
    sampling = {
        FIELD_NAMES.get(name, name): value
        for name, value in given.items()
        if value is not None and name not in _NOT_SAMPLING
    }
    constraints = {name: given[name] for name in CONSTRAINT_OPTIONS}
    spec, constraint = constraint_of(constraints, where)
    asked, start, top, with_text, token_ids = (given[name] for name in LOGPROB_NAMES)
    wish = logprob_wish(asked, start, top, with_text, token_ids, where)
    return GenOptions(sampling_overrides(sampling, where, GEN_NAMES), constraint, wish, spec)


def _select_by_gen(name: str | None, given: dict[str, Any], where: SourceLoc | None) -> SelectExpr:
    """gen() with choices."""
    if given["choices"] is None:
        raise RequestError("needs choices", field="choices_method", where=where)
    for option, value in given.items():
        if value is not None and option not in ("choices", "choices_method", "temperature"):
            raise RequestError("a choice is scored, not sampled", field=option, where=where)
    temperature = 0.0 if given["temperature"] is None else given["temperature"]
    return _select(name, given["choices"], temperature, given["choices_method"], where)


@traceable
def gen_int(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    *,
    min_tokens: int | None = None,
    **options: Unpack[LaterNames],
) -> GenExpr[str]:
    """`gen` of an integer, whose value stays text. Without `min_tokens` in third place, as in SGLang."""
    return gen(
        name, max_tokens, min_tokens, n, stop, stop_token_ids, stop_regex, temperature, top_p, top_k, min_p,
        frequency_penalty, presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num,
        return_text_in_logprobs, int, **options,
    )  # fmt: skip


@traceable
def gen_string(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    *,
    min_tokens: int | None = None,
    **options: Unpack[LaterNames],
) -> GenExpr[str]:
    """`gen` of a quoted string, whose value stays text. Without `min_tokens` in third place, as in SGLang."""
    return gen(
        name, max_tokens, min_tokens, n, stop, stop_token_ids, stop_regex, temperature, top_p, top_k, min_p,
        frequency_penalty, presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num,
        return_text_in_logprobs, str, **options,
    )  # fmt: skip


@traceable
def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: Any = None,
) -> SelectExpr:
    """Append the one of `choices` that the model finds likeliest after the text so far, and store it in `name`.

    All choices are scored as tokens after the same prompt, in one pass. Above temperature 0 one is drawn from
    softmax(score / temperature). Raises RequestError for no, empty or duplicate choices.
    """
    where = caller()
    if choices.__class__ is not list and choices.__class__ is not tuple:
        return _select(name, choices, temperature, choices_method, where)
    key = (id(where), name, temperature, choices_method, *choices)
    try:
        known = _known_selects.get(key)
    except TypeError:  # a Symbol among them
        return _select(name, choices, temperature, choices_method, where)
    if known is not None:
        for choice in choices:
            if choice.__class__ is not str:  # it may be equal to one
                break
        else:
            return known
    made = _select(name, choices, temperature, choices_method, where)
    if isinstance(choices_method, (str, NoneType)) and {choice.__class__ for choice in made.choices} == {str}:
        if len(_known_selects) >= _MAX_KNOWN:
            _known_selects.clear()
        _known_selects[key] = made
    return made


def _select(name: str | None, choices: Any, temperature: Any, method: Any, where: SourceLoc | None) -> SelectExpr:
    """A select, checked."""
    _check_name(name, where)
    if not isinstance(choices, Symbol):
        if isinstance(choices, str) or not isinstance(choices, Iterable):
            raise RequestError(f"must be a list of strings, not {choices!r}", field="choices", where=where)
        choices = tuple(choices)
        check_choices(choices, where)
    if not isinstance(temperature, Symbol) and not (isinstance(temperature, (int, float)) and temperature >= 0):
        raise RequestError(f"must be at least 0, not {temperature!r}", field="temperature", where=where)
    method_name = "token_length_normalized" if method is None else getattr(method, "name", method)
    if not isinstance(method_name, str):
        raise RequestError(
            f"must be the name of a choice method or a ChoicesSamplingMethod, not {method!r}",
            field="choices_method",
            where=where,
        )
    try:
        find_method(method_name)
    except RequestError as error:
        raise error.at(where) from None
    return SelectExpr(name, choices, method_name, temperature, where)


def _check_name(name: Any, where: SourceLoc | None) -> None:
    if name is not None and not isinstance(name, str):
        raise ProgramError(f"the name of a variable must be a str, not {name!r}", where=where)
