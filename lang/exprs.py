"""What `gen(...)`, `select(...)`, `user(...)` and their like return: small values that a state turns into ops.

Everything that can be wrong about them is refused when they are built, with the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.ir import ConstraintSpec
from ..compiler.tracing.symbols import Symbol
from ..core.errors import ProgramError, RequestError, SourceLoc
from ..core.request import LogprobWish
from .checks import GEN_NAMES, check_choices, constraint_spec, logprob_wish, sampling_overrides
from .choices import choices_method as find_method
from .locate import caller

if TYPE_CHECKING:
    from .state import ProgramState


class Expression:
    """Something a state can append. `a + b` appends a, then b."""

    __dslc_traceable__ = True
    __slots__ = ()

    def append_to(self, state: ProgramState) -> None:
        """Hand this expression's ops to the state's sink."""
        raise TypeError(f"{type(self).__name__} has no rule for appending")

    def __add__(self, other: Any) -> ExprList:
        return ExprList(_parts(self) + _parts(other))

    def __radd__(self, other: Any) -> ExprList:
        return ExprList(_parts(other) + _parts(self))


def _parts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, ExprList):
        return value.parts
    if isinstance(value, (str, Symbol, Expression)):
        return (value,)
    raise ProgramError(
        f"{type(value).__name__} cannot be part of a program's text; convert it to a str", where=caller()
    )


class ExprList(Expression):
    """Several things to append, in order."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def append_to(self, state: ProgramState) -> None:
        for part in self.parts:
            state.append(part)


class GenExpr(Expression):
    """A generation; see `gen`."""

    __slots__ = ("constraint", "logprobs", "sampling", "var", "where")

    def __init__(
        self,
        var: str | None,
        sampling: tuple[tuple[str, Any], ...],
        constraint: ConstraintSpec | None,
        logprobs: LogprobWish | None,
        where: SourceLoc | None,
    ) -> None:
        self.var = var
        self.sampling = sampling
        self.constraint = constraint
        self.logprobs = logprobs
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_gen(self)


class SelectExpr(Expression):
    """A choice; see `select`."""

    __slots__ = ("choices", "method", "temperature", "var", "where")

    def __init__(self, var: str | None, choices: Any, method: str, temperature: Any, where: SourceLoc | None) -> None:
        self.var = var
        self.choices = choices
        self.method = method
        self.temperature = temperature
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_select(self)


class SpecialExpr(Expression):
    """Template text in which special tokens are parsed."""

    __slots__ = ("text", "where")

    def __init__(self, text: str, where: SourceLoc | None) -> None:
        self.text = text
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_special(self.text, self.where)


class MediaExpr(Expression):
    """A picture or a video."""

    __slots__ = ("kind", "options", "source", "where")

    def __init__(self, kind: Any, source: Any, options: tuple[tuple[str, Any], ...], where: SourceLoc | None) -> None:
        self.kind = kind
        self.source = source
        self.options = options
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        state.emit_media(self)


class RoleExpr(Expression):
    """A whole chat turn with its content."""

    __slots__ = ("content", "role", "where")

    def __init__(self, role: str, content: Any, where: SourceLoc | None) -> None:
        self.role = role
        self.content = content
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        with state.role_region(self.role, self.where):
            if self.content is not None:
                state.append(self.content)


class RoleEdgeExpr(Expression):
    """The beginning or the end of a chat turn, as `user_begin()` and `user_end()` write it."""

    __slots__ = ("is_begin", "role", "where")

    def __init__(self, role: str, is_begin: bool, where: SourceLoc | None) -> None:
        self.role = role
        self.is_begin = is_begin
        self.where = where

    def append_to(self, state: ProgramState) -> None:
        if self.is_begin:
            state.begin_role(self.role, self.where)
        else:
            state.end_role(self.role, self.where)


def _traceable(function: Callable[..., Any]) -> Any:
    function.__dslc_traceable__ = True  # type: ignore[attr-defined]
    return function


@_traceable
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
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: Any = None,
    regex: str | None = None,
    json_schema: Any = None,
    *,
    ebnf: str | None = None,
    repetition_penalty: float | None = None,
    logit_bias: dict[int, float] | None = None,
    seed: int | None = None,
    skip_special_tokens: bool | None = None,
    spaces_between_special_tokens: bool | None = None,
    no_stop_trim: bool | None = None,
    token_ids_logprob: Sequence[int] | None = None,
) -> Expression:
    """Generate text into the variable `name` and append it (positional order and names as in SGLang).

    Options not given come from `run(...)`. At most one of `dtype`, `choices`, `regex`, `json_schema` (a dict, its JSON
    text, or a pydantic model) and `ebnf` constrains the text. With `choices` this is `select`.

    Raises RequestError or ConstraintError naming the option, with the user's line.
    """
    where = caller()
    _check_name(name, where)
    options = {
        "max_new_tokens": max_tokens, "min_new_tokens": min_tokens, "n": n, "stop": stop,
        "stop_token_ids": stop_token_ids, "stop_regex": stop_regex, "temperature": temperature, "top_p": top_p,
        "top_k": top_k, "min_p": min_p, "frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty,
        "ignore_eos": ignore_eos, "repetition_penalty": repetition_penalty, "logit_bias": logit_bias, "seed": seed,
        "skip_special_tokens": skip_special_tokens, "spaces_between_special_tokens": spaces_between_special_tokens,
        "no_stop_trim": no_stop_trim,
    }  # fmt: skip
    constraints = {"dtype": dtype, "regex": regex, "json_schema": json_schema, "ebnf": ebnf}
    if choices is not None:
        for key, value in {**constraints, **options, "return_logprob": return_logprob}.items():
            if value is not None and key != "temperature":
                raise RequestError("a choice is scored, not sampled", field=GEN_NAMES.get(key, key), where=where)
        return _select(name, choices, 0.0 if temperature is None else temperature, choices_method, where)
    if choices_method is not None:
        raise RequestError("needs choices", field="choices_method", where=where)
    sampling = sampling_overrides(options, where, GEN_NAMES)
    constraint = constraint_spec(constraints, where)
    wish = logprob_wish(
        return_logprob, logprob_start_len, top_logprobs_num, return_text_in_logprobs, token_ids_logprob, where
    )
    return GenExpr(name, sampling, constraint, wish, where)


@_traceable
def gen_int(name: str | None = None, *args: Any, **options: Any) -> Expression:
    """`gen` of an integer (SGLang's `gen_int`)."""
    return gen(name, *args, **{**options, "dtype": int})  # type: ignore[no-any-return]


@_traceable
def gen_string(name: str | None = None, *args: Any, **options: Any) -> Expression:
    """`gen` of a quoted string (SGLang's `gen_string`)."""
    return gen(name, *args, **{**options, "dtype": str})  # type: ignore[no-any-return]


@_traceable
def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: Any = None,
) -> Expression:
    """Append the one of `choices` that the model finds likeliest after the text so far, and store it in `name`.

    All choices are scored as tokens after the same prompt, in one pass. Above temperature 0 one is drawn from
    softmax(score / temperature). Raises RequestError for no, empty or duplicate choices.
    """
    where = caller()
    _check_name(name, where)
    return _select(name, choices, temperature, choices_method, where)


def _select(name: str | None, choices: Any, temperature: Any, method: Any, where: SourceLoc | None) -> SelectExpr:
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


@_traceable
def image(source: Any) -> Expression:
    """Append a picture: a path, bytes, or a PIL image."""
    return MediaExpr("image", source, (), caller())


@_traceable
def video(path: Any, num_frames: int) -> Expression:
    """Append a video of which `num_frames` frames are used."""
    return MediaExpr("video", path, (("num_frames", num_frames),), caller())


@_traceable
def special(text: str) -> Expression:
    """Append text in which special tokens are parsed (plain `s += text` never does)."""
    return SpecialExpr(text, caller())


def _role(role: str) -> Callable[..., Expression]:
    def turn(expr: Any = None) -> Expression:
        return RoleExpr(role, expr, caller())

    turn.__name__ = turn.__qualname__ = role
    turn.__doc__ = f"A chat turn of the {role}: `s += {role}(content)`."
    return _traceable(turn)  # type: ignore[no-any-return]


def _edge(role: str, is_begin: bool) -> Callable[[], Expression]:
    def edge() -> Expression:
        return RoleEdgeExpr(role, is_begin, caller())

    edge.__name__ = edge.__qualname__ = f"{role}_{'begin' if is_begin else 'end'}"
    edge.__doc__ = f"The {'beginning' if is_begin else 'end'} of a chat turn of the {role}."
    return _traceable(edge)  # type: ignore[no-any-return]


system, user, assistant = _role("system"), _role("user"), _role("assistant")
system_begin, system_end = _edge("system", True), _edge("system", False)
user_begin, user_end = _edge("user", True), _edge("user", False)
assistant_begin, assistant_end = _edge("assistant", True), _edge("assistant", False)


def flatten(value: Iterable[Any]) -> tuple[Any, ...]:
    """The parts of a list or tuple of things to append."""
    return tuple(part for item in value for part in _parts(item))
