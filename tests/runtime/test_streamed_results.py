"""A streamed call and a whole one say the same: text, ids, reasons, counts and log-probs; forced tokens included."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_checkpoint

from dslc.runtime.engine import Engine

torch.set_num_threads(1)

CALLS: dict[str, dict[str, Any]] = {
    "plain": {"max_new_tokens": 12, "temperature": 1.0, "seed": 3},
    "choices": {"max_new_tokens": 9, "temperature": 1.0, "seed": 5, "n": 3},
    "a stop string": {"max_new_tokens": 60, "temperature": 1.0, "seed": 9, "stop": ["e", "a"]},
    "a stop that stays": {"max_new_tokens": 60, "temperature": 1.0, "seed": 9, "stop": ["e"], "no_stop_trim": True},
    "nothing": {"max_new_tokens": 0, "seed": 1},
    "constrained": {"max_new_tokens": 40, "temperature": 1.0, "seed": 1, "regex": 'label: "(bug|billing)", [0-9]{2}'},
    "cut": {"max_new_tokens": 3, "temperature": 1.0, "seed": 1, "regex": "[a-z]{40}"},
}


@pytest.fixture(scope="module")
def engine() -> Any:
    path = str(tiny_checkpoint("llama"))
    with Engine(model_path=path, device="cpu", max_total_tokens=2048, random_seed=1, deterministic=True) as engine:
        yield engine


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs by nature: times, the request's name, how much was cached."""
    meta = {k: v for k, v in result["meta_info"].items() if k not in ("id", "e2e_latency", "cached_tokens")}
    return {"text": result["text"], "ids": result["output_ids"], **meta}


@pytest.mark.parametrize("call", CALLS)
def test_the_last_of_a_stream_is_the_whole_result(engine: Any, call: str) -> None:
    params, wish = CALLS[call], {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    whole = engine.generate("Question: ", params, **wish)
    whole = whole if isinstance(whole, list) else [whole]
    streamed = list(engine.generate("Question: ", params, stream=True, **wish))
    for chunks in (streamed, asyncio.run(drained(engine, params, wish))):
        last: dict[int, Any] = {}
        for chunk in chunks:
            number = chunk.get("index", 0)
            before = last.get(number)
            if before is not None:
                assert chunk["text"].startswith(before["text"])
                assert chunk["output_ids"][: len(before["output_ids"])] == before["output_ids"]
            chunk["text"].encode()  # valid UTF-8 at every moment
            last[number] = chunk
        assert [kept(last[number]) for number in sorted(last)] == [kept(result) for result in whole]
    for result in whole:
        meta = result["meta_info"]
        assert meta["completion_tokens"] == len(result["output_ids"]) == len(meta["output_token_logprobs"])
        assert meta["prompt_tokens"] == len(meta["input_token_logprobs"])
        assert [token for _, token, _ in meta["output_token_logprobs"]] == result["output_ids"]
    if call == "cut":
        assert whole[0]["meta_info"]["finish_reason"]["type"] == "length"


async def drained(engine: Any, params: Any, wish: Any) -> list[Any]:
    stream = await engine.async_generate("Question: ", params, stream=True, **wish)
    return [chunk async for chunk in stream]
