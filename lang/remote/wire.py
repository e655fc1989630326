"""SGLang's native `/generate` protocol: requests as its JSON, and its JSON as outputs.

What the protocol has no word for travels under `"dslc"`, to servers that say in `/get_server_info` that they read it
(`"dslc_version"`): constraints with their options, sequences, healing, reasoning, and the options of sampling that
SGLang does not know. Such a server also says under `meta_info["dslc"]` what SGLang's meta info has no place for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RequestError
from ...core.events import FinishReason, Output, TokenLogprob
from ...core.sampling import SAMPLING_FIELDS, SamplingParams
from ...core.text.detokenize import kept_ids

if TYPE_CHECKING:
    from ...core.request import GenRequest
    from ...core.text.tokenizer import Tokenizer

# Sampling options under the names of the protocol; those that are here under another name are not equal.
_SAME = (
    "max_new_tokens", "min_new_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k",
    "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "skip_special_tokens",
    "spaces_between_special_tokens", "no_stop_trim",
)  # fmt: skip
_OURS = ("jump_forward", "finish_valid")  # only dslc's servers know them
_HERE = ("token_healing",)  # carried out where the prompt is made
_DEFAULTS = SamplingParams()
assert {*_SAME, *_OURS, *_HERE, "logit_bias", "seed", "custom_params"} == SAMPLING_FIELDS


def payload(request: GenRequest, ids: Sequence[int], seed: int, is_dslc: bool, server: str) -> dict[str, Any]:
    """The body of `POST /generate` of a generation. Raises RequestError naming what the server has no word for."""
    _refuse(request, is_dslc, server)
    sampling = request.sampling
    params: dict[str, Any] = {name: _plain(getattr(sampling, name)) for name in _SAME if _differs(sampling, name)}
    params["max_new_tokens"] = sampling.max_new_tokens
    params["temperature"] = sampling.temperature
    params["sampling_seed"] = seed
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): value for token, value in sampling.logit_bias}
    body: dict[str, Any] = {"rid": request.id, "input_ids": list(ids), "sampling_params": params}
    ours: dict[str, Any] = {name: getattr(sampling, name) for name in _OURS if _differs(sampling, name)}
    constraint = request.constraint
    if constraint is not None:
        if is_dslc:
            ours["constraint"] = {**vars_of(constraint), "options": list(map(list, constraint.options))}
        else:
            params[constraint.kind] = constraint.source
    if request.healed:
        ours["healed"] = request.healed
    if request.reasoning is not None:
        ours["reasoning"] = list(request.reasoning)
    if ours:
        body["dslc"] = ours
    if request.stream:
        body["stream"] = True
    if request.adapter is not None:
        body["lora_path"] = request.adapter
    if request.cache_salt:
        body["extra_key"] = request.cache_salt
    if request.priority:
        body["priority"] = request.priority
    _wish(request, body)
    return body


def vars_of(constraint: Any) -> dict[str, Any]:
    """A constraint's kind and source."""
    return {"kind": constraint.kind, "source": constraint.source}


def _refuse(request: GenRequest, is_dslc: bool, server: str) -> None:
    if request.logit_processor is not None or request.sampling.custom_params:
        raise RequestError(f"{server} cannot be told of a logit processor of this process", field="logit_processor")
    if request.routing_key:
        raise RequestError(f"{server} takes none", field="routing_key")
    if is_dslc:
        return
    for name in _OURS:
        if _differs(request.sampling, name):
            raise RequestError(f"{server} has no such option", field=name)
    if request.constraint is not None:
        for name, value in request.constraint.options:
            raise RequestError(
                f"{server} has no option {name}={value!r} of a constraint", field=request.constraint.kind
            )


def _differs(sampling: SamplingParams, name: str) -> bool:
    return bool(getattr(sampling, name) != getattr(_DEFAULTS, name))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _wish(request: GenRequest, body: dict[str, Any]) -> None:
    """The log-prob wish. The server's first entry of a prompt is no number: it begins one token earlier."""
    wish = request.logprobs
    if wish is None:
        return
    body["return_logprob"] = True
    body["logprob_start_len"] = max(-1, wish.prompt_start - 1) if wish.prompt_start > 0 else wish.prompt_start
    if wish.top:
        body["top_logprobs_num"] = wish.top
    if wish.token_ids:
        body["token_ids_logprob"] = list(wish.token_ids)


def score_payload(request: GenRequest, prompt: Sequence[int], sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The body of `POST /generate` that scores each sequence after the prompt, in one call."""
    return {
        "rid": [f"{request.id}-{number}" for number in range(len(sequences))],
        "input_ids": [[*prompt, *sequence] for sequence in sequences],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": len(prompt) - 1,
    }


def scores_of(answer: Mapping[str, Any], sequence: Sequence[int]) -> tuple[float, ...]:
    """The log-probs of the sequence, which ends the prompt that was scored. Raises ValueError where they are not it."""
    entries = answer["meta_info"]["input_token_logprobs"][-len(sequence) :]
    if [entry[1] for entry in entries] != list(sequence) or any(entry[0] is None for entry in entries):
        raise ValueError(f"the log-probs of {list(sequence)} were asked for, and it gave {entries}")
    return tuple([float(entry[0]) for entry in entries])


def maximal(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The sequences that begin no other: their scores hold those of all."""
    found: list[tuple[int, ...]] = []
    for sequence in sorted(set(sequences), reverse=True):
        if not (found and found[-1][: len(sequence)] == sequence):
            found.append(sequence)
    return found


# -- answers


def output_of(index: int, answer: Mapping[str, Any], request: GenRequest, tokenizer: Tokenizer) -> Output:
    """One answer as an output."""
    meta = answer["meta_info"]
    ours = meta.get("dslc") or {}
    text = answer["text"]
    ids = tuple(answer.get("output_ids") or ())
    finish = finish_of(meta)
    sampling = request.sampling
    is_trimmed = isinstance(finish.matched, int) and not sampling.no_stop_trim and ids[-1:] == (finish.matched,)
    body = ids[:-1] if is_trimmed else ids
    kept, tail = kept_ids(tokenizer, body, request.healed + text, sampling.skip_special_tokens)
    return Output(
        index,
        text,
        ids,
        kept,
        tail,
        finish,
        _logprobs(meta, "output", request),
        tuple((start, count) for start, count in ours.get("forced_runs", ())),
        ours.get("is_complete"),
        meta["completion_tokens"],
    )


def finish_of(meta: Mapping[str, Any]) -> FinishReason:
    """Why an output ended. Raises ValueError for what is no reason."""
    reason = meta["finish_reason"]
    if reason["type"] not in ("stop", "length", "abort"):
        raise ValueError(f"finish_reason {reason!r}")
    return FinishReason(reason["type"], reason.get("matched") if reason["type"] == "stop" else None)


def prompt_logprobs_of(meta: Mapping[str, Any], request: GenRequest) -> tuple[TokenLogprob, ...]:
    """The log-probs of the prompt from where they were asked for."""
    wish = request.logprobs
    if wish is None or wish.prompt_start < 0:
        return ()
    found = _logprobs(meta, "input", request)
    return found[1:] if wish.prompt_start > 0 else found


def output_logprobs(meta: Mapping[str, Any], request: GenRequest) -> tuple[TokenLogprob, ...]:
    """The log-probs of an output, as far as they are there."""
    return _logprobs(meta, "output", request)


def _logprobs(meta: Mapping[str, Any], side: str, request: GenRequest) -> tuple[TokenLogprob, ...]:
    wish = request.logprobs
    if wish is None:
        return ()
    entries = meta[f"{side}_token_logprobs"]
    tops = meta.get(f"{side}_top_logprobs") if wish.top else None
    chosen = meta.get(f"{side}_token_ids_logprobs") if wish.token_ids else None
    return tuple(
        [
            TokenLogprob(entry[1], entry[0], _pairs(tops, place), _pairs(chosen, place))
            for place, entry in enumerate(entries)
        ]
    )


def _pairs(rows: Sequence[Any] | None, place: int) -> tuple[tuple[int, float], ...]:
    row = rows[place] if rows else None
    return tuple([(entry[1], entry[0]) for entry in row]) if row else ()
