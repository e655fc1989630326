"""Options of gen() and run(), checked when they are written: every error names the option and the user's line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.ir import ConstraintSpec
from ..compiler.tracing.symbols import Symbol, operand
from ..core.constraint import Constraint, ConstraintKind
from ..core.errors import ConstraintError, DslcError, RequestError, SourceLoc
from ..core.request import LogprobWish
from ..core.sampling import MAX_TOP_LOGPROBS, SamplingParams

if TYPE_CHECKING:
    from .types import TypeSpec

Overrides = tuple[tuple[str, Any], ...]

# What SGLang's dtype= stands for, as regexes; numbers are bounded so that a generation ends.
DTYPE_REGEX: dict[type, str] = {
    int: r"[+-]?[0-9]{1,18}",
    float: r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?",
    str: r'"[^"\\\n\r]{0,1000}"',
    bool: r"True|False",
}
# gen() has two of SamplingParams' fields under other names.
GEN_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

# What gen() and run() say about log-probs, in the order of `logprob_wish`.
LOGPROB_NAMES = (
    "return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "token_ids_logprob",
)  # fmt: skip

_MAX_KNOWN = 4096
_known: dict[Any, Overrides] = {}


def sampling_overrides(
    options: Mapping[str, Any], where: SourceLoc | None, names: Mapping[str, str] | None = None
) -> Overrides:
    """The options that were given (not None), as sorted pairs for an op; checked as far as they are plain values.

    `names` says under which name the user wrote a field. Raises RequestError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return ()
    try:
        key: Any = tuple((name, type(value), value) for name, value in given.items())
        known = _known.get(key)
    except TypeError:  # a list or a dict, or a Symbol: not hashable
        key = known = None
    if known is None:
        known = _checked(given, where, names or {})
        if key is not None and len(_known) < _MAX_KNOWN:
            _known[key] = known
    return known


def _checked(given: dict[str, Any], where: SourceLoc | None, names: Mapping[str, str]) -> Overrides:
    plain = {name: value for name, value in given.items() if not holds_symbol(value)}
    _check_containers(plain, where)
    checked = SamplingParams(**plain)
    try:
        # The other of the two may come from the run: only what is written here can be wrong here.
        trial = checked
        if "max_new_tokens" not in plain and type(checked.min_new_tokens) is int:
            trial = SamplingParams(**{**plain, "max_new_tokens": max(checked.max_new_tokens, checked.min_new_tokens)})
        trial.verify()
        if checked.stop_regex:
            from ..core.text.stops import stop_set

            stop_set((), checked.stop_regex)
    except RequestError as error:
        raise _renamed(error, names).at(where) from None
    pairs = [(name, getattr(checked, name) if name in plain else operand(value)) for name, value in given.items()]
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _check_containers(plain: Mapping[str, Any], where: SourceLoc | None) -> None:
    """What SamplingParams would iterate over must be of the right kind."""
    for name in ("stop", "stop_regex"):
        value = plain.get(name, "")
        if not isinstance(value, (str, list, tuple)):
            raise RequestError(f"must be a str or a list of str, not {value!r}", field=name, where=where)
    ids = plain.get("stop_token_ids", ())
    if isinstance(ids, str) or not isinstance(ids, (int, list, tuple)):
        raise RequestError(f"must be a list of token ids, not {ids!r}", field="stop_token_ids", where=where)
    bias = plain.get("logit_bias", {})
    if not isinstance(bias, (Mapping, tuple)):
        raise RequestError(f"must be a dict from token id to bias, not {bias!r}", field="logit_bias", where=where)
    for token, value in bias.items() if isinstance(bias, Mapping) else ():
        # JSON has no other keys than strings, so "7" is taken for 7.
        if not (isinstance(token, int) or (isinstance(token, str) and token.isdigit())):
            raise RequestError(f"a key must be a token id, not {token!r}", field="logit_bias", where=where)
        if not isinstance(value, (int, float)):
            raise RequestError(f"a bias must be a number, not {value!r}", field="logit_bias", where=where)


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The error under the name that the user wrote."""
    name = names.get(error.field, error.field)
    text = error.message.removeprefix(f"{error.field}: ")
    for field, written in names.items():
        text = text.replace(field, written)
    return RequestError(text, field=name)


def holds_symbol(value: Any) -> bool:
    """Whether a value, or an item of a list, is not known while tracing."""
    return isinstance(value, Symbol) or (
        isinstance(value, (list, tuple)) and any(isinstance(item, Symbol) for item in value)
    )


def logprob_wish(
    return_logprob: bool | None,
    start: int | None,
    top: int | None,
    with_text: bool | None,
    token_ids: Sequence[int] | None,
    where: SourceLoc | None,
) -> LogprobWish | None:
    """The log-probs asked for, or None. Raises RequestError for details without `return_logprob=True`."""
    if not return_logprob:
        details = {
            "logprob_start_len": start,
            "top_logprobs_num": top,
            "return_text_in_logprobs": with_text,
            "token_ids_logprob": token_ids,
        }
        if wrong := [name for name, value in details.items() if value]:
            raise RequestError("needs return_logprob=True", field=wrong[0], where=where)
        return None
    if top is not None and not (type(top) is int and 0 <= top <= MAX_TOP_LOGPROBS):
        raise RequestError(
            f"must be between 0 and {MAX_TOP_LOGPROBS}, not {top!r}", field="top_logprobs_num", where=where
        )
    if start is not None and not (type(start) is int and start >= -1):
        raise RequestError(f"must be -1 (none) or a position, not {start!r}", field="logprob_start_len", where=where)
    for token in token_ids or ():
        if type(token) is not int or token < 0:
            raise RequestError(f"must be token ids, not {token!r}", field="token_ids_logprob", where=where)
    return LogprobWish(
        prompt_start=-1 if start is None else start,
        top=top or 0,
        token_ids=tuple(token_ids or ()),
        with_text=bool(with_text),
    )


def constraint_of(given: Mapping[str, Any], where: SourceLoc | None) -> tuple[TypeSpec | None, ConstraintSpec | None]:
    """The type and the constraint of a gen from its options constraint, type, dtype, regex, json_schema, grammar...

    Raises RequestError or ConstraintError.
    """
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None, None
    if len(names) > 1:
        raise RequestError(f"cannot be combined with {names[1]}", field=names[0], where=where)
    (name,) = names
    source = given[name]
    kind: ConstraintKind = "regex"
    if name == "constraint":
        return None, _of_value(source, where)
    if name == "type":
        return _of_type(source, where)
    if name == "tools":
        return _of_tools(source, where)
    if name == "dtype":
        source = _dtype_regex(source, where)
    elif name in ("ebnf", "grammar"):
        kind = "ebnf"
    elif name == "json_schema":
        kind = "json_schema"
        if not isinstance(source, Symbol):
            source = schema_text(source, where)
    if isinstance(source, Symbol):
        return None, ConstraintSpec(kind, operand(source))
    if not isinstance(source, str):
        raise ConstraintError(f"must be a str, not {type(source).__name__}", field=name, where=where)
    check_constraint(Constraint(kind, source), where, name)
    return None, ConstraintSpec(kind, source)


def _of_value(value: Any, where: SourceLoc | None) -> ConstraintSpec:
    if isinstance(value, ConstraintSpec):
        return value
    if isinstance(value, Symbol):
        value.recorder.break_here("a constraint that is not known yet")
    if not isinstance(value, Constraint):
        raise RequestError(
            f"must be made by dslc.regex, json, ebnf or choice, not {value!r}", field="constraint", where=where
        )
    check_constraint(value, where)
    return ConstraintSpec(value.kind, value.source, value.options)


def _of_type(kind: Any, where: SourceLoc | None) -> tuple[TypeSpec, ConstraintSpec | None]:
    from .types import type_spec

    if isinstance(kind, Symbol):
        kind.recorder.break_here("a type that is not known yet")
    try:
        spec = type_spec(kind)
    except (TypeError, NameError) as error:
        raise RequestError(str(error), field="type", where=where) from None
    if spec.kind is None:
        return spec, None
    check_constraint(Constraint(spec.kind, spec.source), where, "type")
    return spec, ConstraintSpec(spec.kind, spec.source)


def _of_tools(functions: Any, where: SourceLoc | None) -> tuple[TypeSpec, ConstraintSpec]:
    from .tools import spec_of_tools

    if not isinstance(functions, (list, tuple)):
        raise RequestError(f"must be a list of functions, not {functions!r}", field="tools", where=where)
    spec = spec_of_tools(functions, where)
    check_constraint(Constraint("json_schema", spec.source), where, "tools")
    return spec, ConstraintSpec("json_schema", spec.source)


def _dtype_regex(dtype: Any, where: SourceLoc | None) -> str:
    named = {kind.__name__: kind for kind in DTYPE_REGEX}
    key = named.get(dtype, dtype) if isinstance(dtype, str) else dtype
    for kind, regex in DTYPE_REGEX.items():
        if key is kind:
            return regex
    raise RequestError(f"must be int, float, str or bool, not {dtype!r}", field="dtype", where=where)


def schema_text(schema: Any, where: SourceLoc | None) -> str:
    from ..compiler.constraints import source_of_schema

    try:
        return source_of_schema(schema)
    except DslcError as error:
        raise error.at(where) from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ConstraintError(str(error), field="json_schema", where=where) from None


def check_constraint(constraint: Constraint, where: SourceLoc | None, name: str = "") -> None:
    """Raise the ConstraintError of an invalid or unsupported constraint, at the user's line.

    `name` is the option under which it was written, if not that of its kind.
    """
    from ..compiler import constraints

    try:
        constraints.check_constraint(constraint)
    except ConstraintError as error:
        if name and name != error.field:
            text = error.message.removeprefix(f"{error.field}: ")
            renamed = ConstraintError(text, field=name, where=where)
            renamed.pointer = error.pointer  # the text has it already
            raise renamed from None
        raise error.at(where) from None
    except DslcError as error:
        raise error.at(where) from None


def check_choices(choices: Sequence[Any], where: SourceLoc | None) -> None:
    """Raise RequestError naming the first choice that cannot be scored."""
    if not choices:
        raise RequestError("a select needs at least one choice", field="choices", where=where)
    for i, choice in enumerate(choices):
        if not isinstance(choice, (str, Symbol)) or (isinstance(choice, str) and not choice):
            raise RequestError(f"must be a non-empty string, not {choice!r}", field=f"choices[{i}]", where=where)
