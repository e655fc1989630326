"""How tokens are drawn, as one frozen value that travels whole from `gen(...)` to the sampler."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from .errors import RequestError

MAX_N = 1024  # parallel samples of one request
MAX_STOP_STRINGS = 256
MAX_STOP_CHARS = 16_384  # of all stop strings, or of all stop regexes, together
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling options under SGLang's names. Made once (by `gen`, `run(...)` or `Engine.generate`), never altered.

    A temperature below 1e-6 means greedy. `top_k=-1` and `top_p=1.0` mean "off". Filters apply in the order
    top-k, top-p, min-p, on the distribution after penalties and temperature. `frequency_penalty` and
    `presence_penalty` count output tokens; `repetition_penalty` counts prompt and output tokens
    (divides positive logits, multiplies negative ones; Keskar et al., arXiv 1909.05858).
    `seed` makes the draw reproducible: token t of choice c is drawn from (seed, c, t), whatever the batch.
    `jump_forward` says how text that a constraint leaves no choice about is written: True takes its tokens unsampled,
    in one forward together with the token before them; "step" takes the same ids one forward each; False samples them
    under the mask, which may split the text into tokens otherwise. None is the engine's default.
    `finish_valid` makes a constrained output complete before its tokens run out: a token after which it could not be
    any more is not taken, and the shortest way to an end is taken instead.
    `token_healing` gives the end of a prompt back to a constrained output where later text could change its tokens:
    they are generated again, so that a token may reach over the seam. None: where there is a constraint. A program
    reads it; a request says what is given back.
    `spaces_between_special_tokens` is how a server puts ids together to text; None: as it does by itself. In process
    text is the tokens' own and nothing else, which is False; True is refused.
    `custom_params`, a dict of JSON values, is for the request's logit processor; it is kept as its JSON text.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool = False
    jump_forward: bool | Literal["step"] | None = None
    finish_valid: bool = False
    token_healing: bool | None = None
    custom_params: str = ""

    def __post_init__(self) -> None:
        """Bring the convenient spellings (a single stop string, a list, a dict) into the one stored form.

        Raises RequestError naming the field where that cannot be done.
        """
        for name, one in (("stop", str), ("stop_regex", str), ("stop_token_ids", int)):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                object.__setattr__(self, name, (value,) if isinstance(value, one) else _as_tuple(value, name))
        if not isinstance(self.logit_bias, tuple):
            object.__setattr__(self, "logit_bias", _as_bias(self.logit_bias))
        if not isinstance(self.custom_params, str):
            object.__setattr__(self, "custom_params", _as_json(self.custom_params))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken (ties: the lowest id)."""
        return self.temperature < 1e-6 or self.top_k == 1

    def verify(self, vocab_size: int | None = None) -> None:
        """Raise RequestError naming the first field with an impossible value (type, range, beyond the vocabulary)."""
        for name in ("max_new_tokens", "min_new_tokens", "n", "top_k"):
            if type(getattr(self, name)) is not int:
                raise RequestError(f"must be an integer, not {getattr(self, name)!r}", field=name)
        if not 0 <= self.max_new_tokens <= 2**31:
            raise RequestError(f"must be between 0 and 2**31, not {self.max_new_tokens}", field="max_new_tokens")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise RequestError(
                f"must be between 0 and max_new_tokens={self.max_new_tokens}, not {self.min_new_tokens}",
                field="min_new_tokens",
            )
        if not 1 <= self.n <= MAX_N:
            raise RequestError(f"must be between 1 and {MAX_N}, not {self.n}", field="n")
        if self.top_k != -1 and self.top_k < 1:
            raise RequestError(f"must be -1 (off) or at least 1, not {self.top_k}", field="top_k")
        if self.jump_forward not in (True, False, "step", None):
            raise RequestError(f'must be True, "step" or False, not {self.jump_forward!r}', field="jump_forward")
        _check_range(self, "temperature", 0.0, math.inf)
        _check_range(self, "top_p", 0.0, 1.0, open_low=True)
        _check_range(self, "min_p", 0.0, 1.0)
        _check_range(self, "frequency_penalty", -2.0, 2.0)
        _check_range(self, "presence_penalty", -2.0, 2.0)
        _check_range(self, "repetition_penalty", 0.0, 2.0, open_low=True)
        self._verify_stops()
        self._verify_ids(vocab_size)
        if self.seed is not None and (type(self.seed) is not int or not -(2**63) <= self.seed < 2**64):
            raise RequestError(f"must be a 64-bit integer, not {self.seed!r}", field="seed")

    def _verify_stops(self) -> None:
        for name in ("stop", "stop_regex"):
            value = getattr(self, name)
            if len(value) > MAX_STOP_STRINGS:
                raise RequestError(f"at most {MAX_STOP_STRINGS} are allowed, got {len(value)}", field=name)
            for i, item in enumerate(value):
                if not isinstance(item, str) or not item:
                    raise RequestError(f"must be a non-empty string, not {item!r}", field=f"{name}[{i}]")
            if sum(map(len, value)) > MAX_STOP_CHARS:
                raise RequestError(
                    f"at most {MAX_STOP_CHARS} characters are allowed, got {sum(map(len, value))}", field=name
                )

    def _verify_ids(self, vocab_size: int | None) -> None:
        for i, token_id in enumerate(self.stop_token_ids):
            _check_id(token_id, vocab_size, f"stop_token_ids[{i}]")
        for token_id, value in self.logit_bias:
            _check_id(token_id, vocab_size, f"logit_bias[{token_id}]")
            if not -100.0 <= value <= 100.0:  # also refuses NaN
                raise RequestError(f"must be between -100 and 100, not {value}", field=f"logit_bias[{token_id}]")


SAMPLING_FIELDS: frozenset[str] = frozenset(f.name for f in fields(SamplingParams))


def _as_tuple(value: Any, field: str) -> tuple[Any, ...]:
    try:
        if not isinstance(value, (str, bytes, Mapping)):
            return () if value is None else tuple(value)
    except TypeError:
        pass  # it cannot be gone through
    raise RequestError(f"must be a list, not {value!r:.80}", field=field)


def _as_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """A dict from token ids, which JSON has as strings, to numbers."""
    try:
        given = dict(value or {})
    except (TypeError, ValueError):
        raise RequestError(f"must be a dict from token ids to numbers, not {value!r:.80}", field="logit_bias") from None
    found: dict[int, float] = {}
    for key, number in given.items():
        try:
            token_id = key if type(key) is int else int(str(key))
            found[token_id] = float(number)
        except (TypeError, ValueError):
            raise RequestError(
                f"must be a number for a token id, not {number!r:.80}", field=f"logit_bias[{key!r:.80}]"
            ) from None
    return tuple(sorted(found.items()))


def _as_json(value: Any) -> str:
    try:
        return json.dumps(dict(value), sort_keys=True) if value else ""
    except (TypeError, ValueError) as error:
        raise RequestError(f"must be a dict of JSON values: {error}", field="custom_params") from None


def _check_range(params: SamplingParams, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    value = getattr(params, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"must be a finite number, not {value!r}", field=name)
    if value < low or value > high or (open_low and value == low):
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if high == math.inf else f" and at most {high:g}"
        )
        raise RequestError(f"must be {bounds}, not {value}", field=name)


def _check_id(token_id: object, vocab_size: int | None, field: str) -> None:
    if type(token_id) is not int or token_id < 0 or (vocab_size is not None and token_id >= vocab_size):
        limit = f"below the vocabulary size {vocab_size}" if vocab_size is not None else "non-negative"
        raise RequestError(f"must be a token id {limit}, not {token_id!r}", field=field)
