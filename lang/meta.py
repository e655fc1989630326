"""Meta info of generations and choices, as the dicts that SGLang's users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.events import Finished, Output, TokenLogprob, Tokens
from ..core.request import GenRequest, LogprobWish
from ..core.text.tokenizer import Tokenizer
from .choices import ChoicesDecision


class OutputMeta:
    """The meta info of one generated text, made when somebody asks: until then what it is made of, and no more."""

    __slots__ = ("event", "id", "logprobs", "output", "tokenizer")

    def __init__(
        self, id: str, logprobs: LogprobWish | None, event: Finished, output: Output, tokenizer: Tokenizer | None
    ) -> None:
        self.id = id
        self.logprobs = logprobs
        self.event = event
        self.output = output
        self.tokenizer = tokenizer

    def __call__(self) -> dict[str, Any]:
        return of_output(self, self.event, self.output, self.tokenizer)


def of_output(
    request: GenRequest | OutputMeta, event: Finished, output: Output, tokenizer: Tokenizer | None, num_told: int = 0
) -> dict[str, Any]:
    """The meta info of one generated text. Log-probs come as (log-prob, token id, text or None) triples.

    Ids and log-probs of the first `num_told` tokens are left out: earlier chunks of a stream have brought them.
    """
    info: dict[str, Any] = {
        "id": request.id,
        "finish_reason": output.finish_reason.as_dict(),
        "prompt_tokens": event.num_prompt_tokens,
        "completion_tokens": output.num_tokens,
        "cached_tokens": event.num_cached_tokens,
        "forced_tokens": output.num_forced_tokens,
        "is_complete": output.is_complete,
        "output_ids": list(output.token_ids[num_told:]),
        "seed": event.seed,
        "e2e_latency": event.finished_at - event.queued_at,
    }
    if event.shared_with is not None:
        info["shared_with"] = event.shared_with
    info.update(event.notes)
    wish = request.logprobs
    if wish is None:
        return info
    name = tokenizer if wish.with_text else None
    rest = output.logprobs[num_told:]
    info["output_token_logprobs"] = [_triple(entry, name) for entry in rest]
    if wish.prompt_start >= 0:
        info["input_token_logprobs"] = [_triple(entry, name) for entry in event.prompt_logprobs]
    if wish.top:
        info["output_top_logprobs"] = [_pairs(entry.top, name) for entry in rest]
        if wish.prompt_start >= 0:
            info["input_top_logprobs"] = [_pairs(entry.top, name) for entry in event.prompt_logprobs]
    if wish.token_ids:
        info["output_token_ids_logprobs"] = [_pairs(entry.chosen, name) for entry in rest]
    return info


def of_tokens(request: GenRequest, event: Tokens, num_tokens: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The meta info of one piece of a stream: its ids and log-probs, and how many tokens there are so far."""
    info: dict[str, Any] = {
        "id": request.id,
        "finish_reason": None,
        "completion_tokens": num_tokens,
        "output_ids": list(event.token_ids),
    }
    wish = request.logprobs
    if wish is not None:
        name = tokenizer if wish.with_text else None
        info["output_token_logprobs"] = [_triple(entry, name) for entry in event.logprobs]
        if wish.top:
            info["output_top_logprobs"] = [_pairs(entry.top, name) for entry in event.logprobs]
        if wish.token_ids:
            info["output_token_ids_logprobs"] = [_pairs(entry.chosen, name) for entry in event.logprobs]
    return info


def _text(token_id: int, tokenizer: Tokenizer | None) -> str | None:
    return None if tokenizer is None else tokenizer.decode([token_id], skip_special_tokens=False)


def _triple(entry: TokenLogprob, tokenizer: Tokenizer | None) -> tuple[float | None, int, str | None]:
    return (entry.logprob, entry.token_id, _text(entry.token_id, tokenizer))


def _pairs(
    pairs: Sequence[tuple[int, float]], tokenizer: Tokenizer | None
) -> list[tuple[float | None, int, str | None]]:
    return [(logprob, token_id, _text(token_id, tokenizer)) for token_id, logprob in pairs]


def of_choices(
    event: Finished,
    choices: Sequence[str],
    sequences: Sequence[Sequence[int]],
    decision: ChoicesDecision,
    alone: Sequence[Sequence[float]] | None,
) -> dict[str, Any]:
    """The meta info of a select: the method's own numbers, and the log-prob of every token of every choice."""
    info: dict[str, Any] = {
        "id": event.request_id,
        "prompt_tokens": event.num_prompt_tokens,
        "cached_tokens": event.num_cached_tokens,
        "choices": list(choices),
        "input_token_logprobs": [
            [(logprob, token_id, None) for logprob, token_id in zip(scores, ids, strict=True)]
            for scores, ids in zip(event.scores, sequences, strict=True)
        ],
        **decision.meta_info,
    }
    if event.shared_with is not None:
        info["shared_with"] = event.shared_with
    info.update(event.notes)
    if alone is not None:
        info["unconditional_token_logprobs"] = [
            [(logprob, token_id, None) for logprob, token_id in zip(scores, ids, strict=True)]
            for scores, ids in zip(alone, sequences, strict=True)
        ]
    return info
