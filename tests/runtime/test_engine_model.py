"""The engine on tiny random models against transformers: greedy ids, log-probs, scores; text, stops and streams."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from typing import Any

import pytest
import torch
from support.tiny_models import reference_model, tiny_checkpoint

from dslc.core.errors import ConfigError, ConstraintError, RequestError
from dslc.core.events import Event, Failed, Finished, Tokens
from dslc.core.request import GenRequest, LogprobWish, ScoreTrie, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

torch.set_num_threads(1)
TAU = 1e-4


def make_engine(family: str = "llama", path: Any = None, **options: Any) -> Engine:
    given = {"max_running_requests": 16, "max_total_tokens": 2048, "random_seed": 7, **options}
    engine = Engine(model_path=str(path or tiny_checkpoint(family)), device="cpu", **given)
    engine.check_when_idle = True
    return engine


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(4, 512) for _ in range(20)]
    return [
        (shared[: rng.randrange(21)] + [rng.randrange(4, 512) for _ in range(rng.randrange(1, 15))]) for _ in range(num)
    ]


@torch.no_grad()
def log_softmax_of(model: Any, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def assert_greedy(model: Any, prompt: list[int], output: list[int]) -> bool:
    """Teacher-forced: each id is the reference's likeliest.

    False if one is not, but is behind by less than 2 tau: from there on the output is free.
    """
    logprobs = log_softmax_of(model, prompt + output)
    for i, token in enumerate(output):
        row = logprobs[len(prompt) + i - 1]
        if int(row.argmax()) != token:
            assert float(row.max() - row[token]) < 2 * TAU, f"token {i} of {prompt}"
            return False
    return True


VARIANTS = {
    "plain": {},
    "cache off": {"disable_radix_cache": True},
    "chunk 1": {"chunked_prefill_size": 1},
    "chunk 7": {"chunked_prefill_size": 7},
    "whole": {"chunked_prefill_size": -1},
    "a pool that must evict and retract": {"max_total_tokens": 120, "schedule_conservativeness": 0.01},
    "pages of 16": {"page_size": 16},
}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_sixteen_prompts_together_are_greedy_equal_to_transformers(family: str) -> None:
    model = reference_model(tiny_checkpoint(family))
    all_prompts = prompts(16)
    cut = 0
    for name, options in VARIANTS.items():
        with make_engine(family, **options) as engine:
            for _ in range(2):  # cold, then against a warm cache
                results = engine.generate(
                    input_ids=all_prompts,
                    sampling_params={"temperature": 0, "max_new_tokens": 16, "ignore_eos": True},
                )
                for prompt, result in zip(all_prompts, results, strict=True):
                    assert len(result["output_ids"]) == 16, name  # type: ignore[index]
                    cut += not assert_greedy(model, prompt, result["output_ids"])  # type: ignore[index]
            if "retract" in name:
                counters = engine.counters()
                assert counters.preemptions > 0 and counters.evicted_tokens > 0
    assert cut <= 0.05 * 2 * 16 * len(VARIANTS)


@pytest.mark.parametrize("chunk", [8192, 5])
def test_logprobs_equal_transformers_across_cached_prefixes_and_chunks(chunk: int) -> None:
    model = reference_model(tiny_checkpoint("llama"))
    with make_engine(chunked_prefill_size=chunk) as engine:
        for prompt in [*prompts(4, seed=2), *prompts(4, seed=2)]:  # the second time cached
            start = len(prompt) // 2
            result: Any = engine.generate(
                input_ids=prompt,
                sampling_params={"temperature": 0.9, "max_new_tokens": 6, "frequency_penalty": 0.5, "ignore_eos": True},
                return_logprob=True,
                logprob_start_len=start,
                top_logprobs_num=3,
                token_ids_logprob=[5, 9],
                return_text_in_logprobs=True,
            )
            meta, output = result["meta_info"], result["output_ids"]
            reference = log_softmax_of(model, prompt + output)
            assert [token for _, token, _ in meta["output_token_logprobs"]] == output
            assert [token for _, token, _ in meta["input_token_logprobs"]] == prompt[start:]
            assert len(meta["input_top_logprobs"]) == len(prompt) - start
            every = meta["input_token_logprobs"] + meta["output_token_logprobs"]
            tops = meta["input_top_logprobs"] + meta["output_top_logprobs"]
            chosen = meta["input_token_ids_logprobs"] + meta["output_token_ids_logprobs"]
            for position, (triple, top, given) in enumerate(zip(every, tops, chosen, strict=True), start):
                value, token, text = triple
                if position == 0:
                    assert value is None and top is None
                    continue
                row = reference[position - 1]
                assert value == pytest.approx(float(row[token]), abs=TAU)
                assert text == engine.tokenizer.decode([token], False)  # type: ignore[union-attr]
                best = row.topk(3)
                assert [v for v, _, _ in top] == pytest.approx(best.values.tolist(), abs=TAU)
                assert [t for _, t, _ in given] == [5, 9]
                assert [v for v, _, _ in given] == pytest.approx(row[[5, 9]].tolist(), abs=TAU)


def test_prompt_logprobs_of_whole_prompts_start_with_none() -> None:
    with make_engine() as engine:
        result: Any = engine.generate(
            input_ids=[5, 6, 7],
            sampling_params={"max_new_tokens": 0},
            return_logprob=True,
            logprob_start_len=0,
        )
    assert [token for _, token, _ in result["meta_info"]["input_token_logprobs"]] == [5, 6, 7]
    assert result["meta_info"]["input_token_logprobs"][0][0] is None
    assert result["output_ids"] == [] and result["meta_info"]["output_token_logprobs"] == []


def score(engine: Engine, prompt: list[int], sequences: list[list[int]], **options: Any) -> Finished:
    seen: list[Event] = []
    trie = ScoreTrie(tuple(tuple(seq) for seq in sequences))
    request = GenRequest(id="score", segments=(Segment(ids=tuple(prompt)),), score=trie, **options)
    engine.submit([request], seen.append)
    engine.wait(lambda: bool(seen) and isinstance(seen[-1], (Finished, Failed)), timeout=30)
    last = seen[-1]
    assert isinstance(last, Finished), last
    return last


@pytest.mark.parametrize("options", [{}, {"chunked_prefill_size": 4}, {"page_size": 16}, {"disable_radix_cache": True}])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_scores_equal_transformers_sequence_by_sequence(family: str, options: dict[str, Any]) -> None:
    model = reference_model(tiny_checkpoint(family))
    rng = random.Random(1)
    with make_engine(family, **options) as engine:
        for prompt in prompts(3, seed=3):
            stem = [rng.randrange(4, 512) for _ in range(3)]
            sequences = [[7], [8], stem, [*stem, 9], [*stem, 10, 11], [7, 12, 13, 14], stem[:1]]
            before = engine.counters()
            result = score(engine, prompt, sequences)
            used = engine.counters() - before
            for seq, scores in zip(sequences, result.scores, strict=True):
                reference = log_softmax_of(model, prompt + seq)
                wanted = [float(reference[len(prompt) + i - 1][token]) for i, token in enumerate(seq)]
                assert list(scores) == pytest.approx(wanted, abs=TAU)
            # inner nodes of the trie: stem (3), [*stem, 10] (1), [7], [7, 12], [7, 12, 13] (3)
            assert used.scored_tokens == 7 and used.rows == used.prefilled_tokens + 7
            if "chunked_prefill_size" not in options:
                assert used.forwards == 1
            assert engine.scheduler.memory.num_leases == 0


def test_a_trie_too_large_for_one_forward_is_scored_in_parts() -> None:
    model = reference_model(tiny_checkpoint("llama"))
    rng = random.Random(5)
    prompt = prompts(1)[0]
    sequences = [[rng.randrange(4, 8) for _ in range(rng.randrange(1, 12))] for _ in range(60)]
    with make_engine(context_length=len(prompt) + 16) as engine:
        result = score(engine, prompt, sequences)
        assert engine.counters().forwards > 2
    for seq, scores in zip(sequences, result.scores, strict=True):
        reference = log_softmax_of(model, prompt + seq)
        wanted = [float(reference[len(prompt) + i - 1][token]) for i, token in enumerate(seq)]
        assert list(scores) == pytest.approx(wanted, abs=TAU)


def test_long_prompts_are_scored_in_two_forwards() -> None:
    rng = random.Random(5)
    prompt = [rng.randrange(4, 512) for _ in range(700)]
    with make_engine(path=tiny_checkpoint("llama", max_position_embeddings=1024)) as engine:
        result = score(engine, prompt, [[5, 6], [5, 7]])
        counters = engine.counters()
    assert (counters.forwards, counters.rows, counters.prefilled_tokens) == (2, 701, 700)
    assert result.num_prompt_tokens == 700 and result.outputs == ()


# Text, stops, streams


def collect(engine: Engine, **options: Any) -> tuple[list[Tokens], Finished]:
    seen: list[Event] = []
    engine.submit([GenRequest(id="r", stream=True, **options)], seen.append)
    engine.wait(lambda: bool(seen) and isinstance(seen[-1], (Finished, Failed)), timeout=30)
    last = seen[-1]
    assert isinstance(last, Finished), last
    return [event for event in seen if isinstance(event, Tokens)], last


@pytest.mark.parametrize("interval", [1, 3])
def test_streams_never_take_text_back_and_add_up(interval: int) -> None:
    with make_engine(stream_interval=interval) as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        for seed in range(30):
            params = SamplingParams(max_new_tokens=20, temperature=1.0, seed=seed)
            pieces, last = collect(engine, segments=(Segment(text="Ein kleines"),), sampling=params)
            output = last.outputs[0]
            assert "".join(piece.text for piece in pieces) == output.text
            assert tuple(i for piece in pieces for i in piece.token_ids) == output.token_ids
            body = output.token_ids[:-1] if output.finish_reason.type == "stop" else output.token_ids
            assert output.text == tokenizer.decode(body)
            assert tokenizer.decode(output.kept_ids) + output.kept_tail == output.text
            assert not any("\ufffd" in piece.text for piece in pieces if "\ufffd" not in output.text)


def test_stop_strings_across_tokens_never_leak() -> None:
    """For every place in an output: stop at the text there, 1 to 9 characters long."""
    with make_engine() as engine:
        base = {"max_new_tokens": 24, "temperature": 1.0, "seed": 4, "ignore_eos": True}
        segments = (Segment(text="Question: "),)
        _, whole = collect(engine, segments=segments, sampling=SamplingParams(**base))
        text = whole.outputs[0].text
        rng = random.Random(0)
        for _ in range(40):
            at = rng.randrange(len(text) - 1)
            stop = text[at : at + rng.randrange(1, 10)]
            for no_trim in (False, True):
                params = SamplingParams(**base, stop=(stop, "never so"), no_stop_trim=no_trim)
                pieces, last = collect(engine, segments=segments, sampling=params)
                output = last.outputs[0]
                end = text.index(stop)
                kept = text[: end + len(stop)] if no_trim else text[:end]
                assert output.text == kept == "".join(piece.text for piece in pieces)
                assert (output.finish_reason.type, output.finish_reason.matched) == ("stop", stop)
                assert engine.tokenizer.decode(output.kept_ids) + output.kept_tail == kept  # type: ignore[union-attr]
                assert output.token_ids == whole.outputs[0].token_ids[: len(output.token_ids)]
                if "\ufffd" not in stop:  # an unfinished character shows only with the next id
                    before_last = engine.tokenizer.decode(output.token_ids[:-1])  # type: ignore[union-attr]
                    assert len(before_last) < end + len(stop)


def test_stop_regex_min_new_tokens_and_end_of_text() -> None:
    with make_engine() as engine:
        eos = engine.tokenizer.eos_ids  # type: ignore[union-attr]
        # end-of-text is likely: biased
        biased = {"logit_bias": {eos[0]: 100.0}, "temperature": 0}
        result: Any = engine.generate("abc", {**biased, "max_new_tokens": 9})
        assert result["output_ids"] == [eos[0]] and result["text"] == ""
        assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": eos[0]}
        result = engine.generate("abc", {**biased, "max_new_tokens": 9, "min_new_tokens": 4})
        assert len(result["output_ids"]) == 5
        result = engine.generate("abc", {**biased, "max_new_tokens": 9, "ignore_eos": True})
        assert len(result["output_ids"]) == 9 and result["meta_info"]["finish_reason"]["type"] == "length"
        result = engine.generate("abc", {**biased, "max_new_tokens": 3, "skip_special_tokens": False, "ignore_eos": 1})
        assert result["text"] == engine.tokenizer.decode([eos[0]], False) * 3  # type: ignore[union-attr]
        params = {"temperature": 0, "max_new_tokens": 30, "ignore_eos": True}
        whole: Any = engine.generate("abc", params)
        cut: Any = engine.generate("abc", {**params, "stop_regex": "[aeiou]."})
        import re

        found = re.search("[aeiou].", whole["text"])
        assert found is not None and cut["text"] == whole["text"][: found.start()]
        assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": "[aeiou]."}
        late: Any = engine.generate("abc", {**params, "stop": [" ", "a", "e"], "min_new_tokens": 20})
        assert len(late["output_ids"]) >= 20


def test_text_segments_are_tokenised_as_one_continuation() -> None:
    with make_engine() as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        _, split = collect(engine, segments=(Segment(ids=(5,)), Segment(text="The qu"), Segment(text="ick brown")))
        assert split.num_prompt_tokens == 1 + len(tokenizer.encode("The quick brown"))


def test_generate_takes_what_sglang_takes() -> None:
    with make_engine() as engine:
        greedy = {"temperature": 0, "max_new_tokens": 5}
        one: Any = engine.generate("The quick", greedy)
        many: Any = engine.generate(["The quick", "brown"], [greedy, {**greedy, "max_new_tokens": 2}])
        assert many[0]["output_ids"] == one["output_ids"] and len(many[1]["output_ids"]) == 2
        sampled: Any = engine.generate("The", {"n": 3, "max_new_tokens": 4, "sampling_seed": 9})
        assert len(sampled) == 3 and {r["meta_info"]["seed"] for r in sampled} == {9}
        again: Any = engine.generate("The", {"n": 3, "max_new_tokens": 4, "seed": 9})
        assert [r["output_ids"] for r in again] == [r["output_ids"] for r in sampled]
        unseeded: Any = engine.generate(["The", "The"], {"max_new_tokens": 8})
        seeds = [r["meta_info"]["seed"] for r in unseeded]
        assert seeds[0] != seeds[1]
        replayed: Any = engine.generate(["The", "The"], [{"max_new_tokens": 8, "seed": seed} for seed in seeds])
        assert [r["output_ids"] for r in replayed] == [r["output_ids"] for r in unseeded]
        assert unseeded[0]["meta_info"]["prompt_tokens"] == len(engine.tokenizer.encode_prompt("The"))  # type: ignore
        assert unseeded[0]["meta_info"]["e2e_latency"] > 0
        chunks: Any = list(engine.generate("The quick", greedy, stream=True))  # type: ignore[arg-type]
        texts = [chunk["text"] for chunk in chunks]
        assert texts[-1] == one["text"] and all(b.startswith(a) for a, b in itertools.pairwise(texts))
        assert chunks[-1]["meta_info"]["finish_reason"] == one["meta_info"]["finish_reason"]
        for bad in ({"temprature": 1}, {"regex": "a", "ebnf": "b"}, {"temperature": "hot"}):
            with pytest.raises(ValueError, match=r"sampling_params|temperature"):
                engine.generate("The", bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="prompt"):
            engine.generate()
        assert engine.get_server_info()["max_total_num_tokens"] == 2048
        assert engine.flush_cache() > 0 and engine.generate("The quick", greedy)["output_ids"] == one["output_ids"]  # type: ignore


def test_without_a_tokenizer_ids_go_in_and_out_and_the_model_s_end_tokens_end() -> None:
    """As with the tokenizer, only that there is no text; what needs one is refused by name."""
    ids = prompts(24, seed=3)
    params = {"max_new_tokens": 100, "temperature": 1.0, "seed": 5}
    with make_engine() as engine:
        wanted: Any = engine.generate(input_ids=ids, sampling_params=params)
        end = engine.tokenizer.eos_ids  # type: ignore[union-attr]
    assert {result["meta_info"]["finish_reason"].get("matched") for result in wanted} > set(end), "some must end by it"
    with make_engine(skip_tokenizer_init=True) as engine:
        got: Any = engine.generate(input_ids=ids, sampling_params=params)
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine["output_ids"] == theirs["output_ids"] and mine["text"] == ""
            assert mine["meta_info"]["finish_reason"] == theirs["meta_info"]["finish_reason"]
        for options in ({"prompt": "text"}, {"input_ids": [5], "sampling_params": {"stop": "x"}}):
            with pytest.raises(RequestError, match="tokenizer"):
                engine.generate(**options)  # type: ignore[arg-type]
        with pytest.raises(ConstraintError, match="tokenizer"):
            engine.generate(input_ids=[5], sampling_params={"regex": "a"})
    with pytest.raises(ConfigError, match="tokenizer_path: names a tokenizer"):
        make_engine(skip_tokenizer_init=True, tokenizer_path="x")


def test_an_event_loop_is_served_while_threads_wait() -> None:
    """Two event loops and three threads at once on one engine, and no thread left after close."""
    before = set(threading.enumerate())
    engine = make_engine()
    greedy = {"temperature": 0, "max_new_tokens": 12}
    texts = ["The quick", "brown fox", "jumps over", "the lazy dog"]
    wanted = [result["text"] for result in engine.generate(texts, greedy)]  # type: ignore[union-attr,index]
    got: list[list[str]] = []

    async def ask() -> list[str]:
        results = await asyncio.gather(*(engine.async_generate(text, greedy) for text in texts))
        chunks = [chunk async for chunk in await engine.async_generate(texts[0], greedy, stream=True)]  # type: ignore
        assert chunks[-1]["text"] == wanted[0]
        return [result["text"] for result in results]  # type: ignore[index]

    def threaded() -> None:
        got.append([engine.generate(text, greedy)["text"] for text in texts])  # type: ignore[index]

    def looped() -> None:
        got.append(asyncio.run(ask()))

    threads = [threading.Thread(target=target) for target in (threaded, looped, threaded, looped, threaded)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [wanted] * 5
    with make_engine() as second:
        assert second.generate(texts[0], greedy)["text"] == wanted[0]  # type: ignore[index]
    engine.close()
    left = {t for t in threading.enumerate() if "dslc" in t.name} - before
    assert not left


def test_leaving_a_stream_aborts_its_request() -> None:
    with make_engine() as engine:
        stream: Any = engine.generate("The quick", {"max_new_tokens": 5000, "ignore_eos": True}, stream=True)
        next(stream)
        stream.close()
        assert engine.wait(lambda: not engine.scheduler.has_work, timeout=10)
    with make_engine() as engine:

        async def cancelled() -> None:
            task = asyncio.create_task(engine.async_generate("The", {"max_new_tokens": 5000, "ignore_eos": True}))  # type: ignore
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(cancelled())
        assert engine.wait(lambda: not engine.scheduler.has_work, timeout=10)


def test_wish_for_logprobs_streams_them_too() -> None:
    with make_engine() as engine:
        params = SamplingParams(max_new_tokens=6, temperature=0)
        pieces, last = collect(engine, segments=(Segment(text="a"),), sampling=params, logprobs=LogprobWish(top=2))
        streamed = tuple(logprob for piece in pieces for logprob in piece.logprobs)
        assert streamed == last.outputs[0].logprobs and len(streamed) == len(last.outputs[0].token_ids)
