"""Which sampling options an API takes: what it has no word for is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import fields
from typing import Any

from ...core.errors import RequestError
from ...core.sampling import SamplingParams

_DEFAULTS = SamplingParams()
# Taken by every API in some form, by the caller; or carried out before a request is made.
_EVERYWHERE = frozenset({"max_new_tokens", "n", "stop", "seed", "temperature", "top_p"})
PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})
# What servers with an OpenAI-compatible API take beside OpenAI's own options, under the same names (two excepted).
MORE_OPTIONS = frozenset(
    {
        "top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_token_ids", "ignore_eos", "no_stop_trim",
        "skip_special_tokens", "spaces_between_special_tokens", "logit_bias",
    }
)  # fmt: skip
_BODY_NAMES = {"min_new_tokens": "min_tokens"}


def common_options(
    sampling: SamplingParams, name: str, more: Set[str] = frozenset(), taken: Set[str] = PENALTIES
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options under their own names, options for the body) of one request; `max_new_tokens`, `n`, `stop` and `seed`
    are left to the caller. Raises RequestError naming the first option that `name` does not take."""
    options: dict[str, Any] = {"temperature": sampling.temperature}
    body: dict[str, Any] = {}
    if sampling.top_p != 1.0:
        options["top_p"] = sampling.top_p
    for field in fields(SamplingParams):
        option, value = field.name, getattr(sampling, field.name)
        if option in _EVERYWHERE or value == getattr(_DEFAULTS, option):
            continue
        if option in taken:
            options[option] = value
        elif option in more:
            body[_BODY_NAMES.get(option, option)] = dict(value) if option == "logit_bias" else _plain(value)
        else:
            raise RequestError(f"{name} has no such option", field=option)
    return options, body


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
