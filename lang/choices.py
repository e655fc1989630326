"""Choice methods: which choice of a `select` wins, given the log-probs of each choice's tokens.

The three built-in methods are SGLang's formulae, applied to log-probs of the canonical tokens of (healed tail + choice)
after the same fixed prompt ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.errors import RequestError
from ..core.quick import maker


@dataclass(frozen=True, slots=True)
class ChoicesDecision:
    """The chosen text, and what the method says about all choices (into the meta info)."""

    decision: str
    scores: tuple[float, ...]  # one per choice; the greatest is chosen at temperature 0
    meta_info: dict[str, Any] = field(default_factory=dict)


_decision = maker(ChoicesDecision)


class ChoicesSamplingMethod(Protocol):
    """A way to score choices. `name` registers it; `needs_unconditional` asks for log-probs without the prompt too."""

    name: str
    needs_unconditional: bool

    def __call__(
        self,
        *,
        choices: Sequence[str],
        logprobs: Sequence[Sequence[float]],
        token_ids: Sequence[Sequence[int]],
        unconditional: Sequence[Sequence[float]] | None,
    ) -> ChoicesDecision:
        """Decide. `logprobs[i][t]` is the log-prob of token t of choice i after the prompt and the tokens before."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _best(scores: Sequence[float]) -> int:
    """The first of the greatest."""
    return scores.index(max(scores))


class TokenLengthNormalized:
    """Greatest mean log-prob of the choice's tokens."""

    name = "token_length_normalized"
    needs_unconditional = False

    def __call__(
        self, *, choices: Sequence[str], logprobs: Sequence[Sequence[float]], token_ids: Any, unconditional: Any
    ) -> ChoicesDecision:
        scores = tuple([sum(values) / len(values) for values in logprobs])
        return _decision(choices[_best(scores)], scores, {"normalized_prompt_logprobs": list(scores)})


class GreedyTokenSelection:
    """Token by token: keep the choices whose next token is likeliest among those kept.

    A choice that ends while others go on counts with its mean log-prob for the missing tokens, as in SGLang.
    """

    name = "greedy_token_selection"
    needs_unconditional = False

    def __call__(
        self,
        *,
        choices: Sequence[str],
        logprobs: Sequence[Sequence[float]],
        token_ids: Sequence[Sequence[int]],
        unconditional: Any,
    ) -> ChoicesDecision:
        length = max(map(len, logprobs))
        table = [[*values, *[_mean(values)] * (length - len(values))] for values in logprobs]
        kept = list(range(len(choices)))
        for t in range(length):
            best = max(table[i][t] for i in kept)
            kept = [i for i in kept if table[i][t] == best]
            if len(kept) == 1:
                break
        means = [_mean(values) for values in logprobs]
        scores = tuple(0.0 if i == kept[0] else -math.inf for i in range(len(choices)))
        info = {"normalized_prompt_logprobs": means, "greedy_logprob_matrix": table}
        return ChoicesDecision(choices[kept[0]], scores, info)


class UnconditionalLikelihoodNormalized:
    """Greatest mean of log p(token | prompt) - log p(token | nothing) (Holtzman et al., arXiv 2104.08315)."""

    name = "unconditional_likelihood_normalized"
    needs_unconditional = True

    def __call__(
        self,
        *,
        choices: Sequence[str],
        logprobs: Sequence[Sequence[float]],
        token_ids: Any,
        unconditional: Sequence[Sequence[float]] | None,
    ) -> ChoicesDecision:
        assert unconditional is not None
        scores = tuple(
            _mean([a - b for a, b in zip(given, alone, strict=True)])
            for given, alone in zip(logprobs, unconditional, strict=True)
        )
        info = {
            "normalized_prompt_logprobs": [_mean(values) for values in logprobs],
            "normalized_unconditional_prompt_logprobs": list(scores),
        }
        return ChoicesDecision(choices[_best(scores)], scores, info)


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()

_METHODS: dict[str, ChoicesSamplingMethod] = {
    method.name: method
    for method in (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)
}


def register_choices_method(method: ChoicesSamplingMethod) -> ChoicesSamplingMethod:
    """Make a method of one's own known under its name. Raises RequestError if another has that name."""
    known = _METHODS.setdefault(method.name, method)
    if known is not method:
        raise RequestError(f"a choice method called {method.name!r} exists already", field="choices_method")
    return method


def choices_method(name: str) -> ChoicesSamplingMethod:
    """The method of that name. Raises RequestError listing the known ones."""
    if name not in _METHODS:
        known = ", ".join(sorted(_METHODS))
        raise RequestError(f"unknown choice method {name!r}; known are {known}", field="choices_method")
    return _METHODS[name]
