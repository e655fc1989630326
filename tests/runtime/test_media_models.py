"""Models that see: programs with pictures equal transformers, however they are batched, cached, chunked or forked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_vision import IMAGE_ID, SOFT_ID, Film, picture, tiny_vision, vision_inputs, vision_logprobs
from support.vision_runs import NUM, OPTIONS, expected, ids_of, run

import dslc
from dslc.core.media import image_ref
from dslc.core.request import LogprobWish
from dslc.core.sampling import SamplingParams

torch.set_num_threads(1)
FAMILIES = ["gemma3", "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl"]


@pytest.fixture(scope="module", params=FAMILIES)
def path(request):
    return tiny_vision(request.param)


@pytest.fixture
def engine(path):
    with dslc.Engine(model_path=str(path), **OPTIONS) as made:
        made.check_when_idle = True
        yield made


@pytest.fixture
def any_engine():
    """Of one family: for laws that no family changes."""
    with dslc.Engine(model_path=str(tiny_vision("qwen2_vl")), **OPTIONS) as made:
        made.check_when_idle = True
        yield made


PROMPTS: list[list[Any]] = [
    ["Look: ", picture(0), " What is it?"],
    [picture(1, (31, 50)), "Question: Which animal? Answer:"],
    ["A ", picture(2), " and ", picture(0, (64, 28)), " differ in"],
    ["The quick brown fox"],
    [picture(3), picture(4), picture(3), "How many?"],
]


def test_each_prompt_equals_transformers_alone_and_in_a_batch(path, engine):
    wanted = [expected(path, parts) for parts in PROMPTS]
    assert [ids_of(run(engine, [parts]))[0] for parts in PROMPTS] == wanted
    engine.flush_cache()
    assert ids_of(run(engine, PROMPTS)) == wanted
    assert ids_of(run(engine, PROMPTS)) == wanted  # from the cache


@dslc.function
def compare(s, first, second):
    s += "See "
    s += dslc.image(first)
    s += " and "
    s += dslc.image(second)
    s += " now"
    forks = s.fork(3)
    for number, fork in enumerate(forks):
        fork += f" branch {number}:"
        fork += dslc.gen("part", max_tokens=NUM, temperature=0.0, ignore_eos=True)
    forks.join()


def test_a_program_with_two_pictures_and_a_fork_equals_transformers_and_computes_them_once(path, engine):
    first, second = picture(5), picture(6)
    for compiled in (True, False):
        engine.flush_cache()
        before = engine.counters()
        state = compare.run(first=first, second=second, backend=engine, compiled=compiled)
        used = engine.counters() - before
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        for number, text in enumerate(state["part"]):
            prompt = ["See ", first, " and ", second, f" now branch {number}:"]
            assert text == tokenizer.decode(expected(path, prompt))
        ids = vision_inputs(path, prompt)["input_ids"][0].tolist()
        num_shared = max(at for at, token_id in enumerate(ids) if token_id in (IMAGE_ID, SOFT_ID)) + 1
        # Each picture is encoded once for the three branches; the second round finds the features of the first.
        assert used.encoded_media == (2 if compiled else 0)
        # What the branches share, pictures included, was computed by one of them; the others have its keys and values.
        assert used.requests == 3
        assert used.cached_tokens >= 2 * num_shared
        assert used.prefilled_tokens == used.prompt_tokens - used.cached_tokens


def test_the_same_picture_is_cached_and_another_one_never_shared(path, engine):
    a = [picture(21), " What is it?"]
    b = [picture(22), " What is it?"]
    first = run(engine, [a])[0]
    again = run(engine, [a])[0]
    other = run(engine, [b])[0]
    assert again.num_cached_tokens == again.num_prompt_tokens - 1 and first.num_cached_tokens == 0
    assert other.num_cached_tokens <= 3  # line breaks and a marker before the picture may be shared
    assert ids_of([other])[0] == expected(path, b)
    assert engine.counters().encoded_media == 2


def test_equal_pixels_are_one_picture_whatever_file_they_came_from(any_engine):
    import io

    out = io.BytesIO()
    picture(9).save(out, "WEBP", lossless=True)
    first = run(any_engine, [[picture(9), "x"]])[0]
    second = run(any_engine, [[out.getvalue(), "x"]])[0]
    assert second.num_cached_tokens == first.num_prompt_tokens - 1
    assert any_engine.counters().encoded_media == 1


def test_chunks_that_end_inside_a_picture_give_the_same_and_encode_it_once(path):
    wanted = [expected(path, parts) for parts in PROMPTS]
    with dslc.Engine(model_path=str(path), chunked_prefill_size=7, page_size=4, **OPTIONS) as engine:
        assert ids_of(run(engine, PROMPTS)) == wanted
        assert engine.counters().encoded_media == 6  # of 8 places, 2 pictures stand twice; sizes tell them apart
        engine.check_integrity()


def test_features_that_had_to_go_are_computed_again():
    path = tiny_vision("qwen2_5_vl")
    with dslc.Engine(model_path=str(path), **{**OPTIONS, "chunked_prefill_size": 5}) as engine:
        assert engine.worker.features is not None
        engine.worker.features.max_bytes = 1
        assert ids_of(run(engine, PROMPTS)) == [expected(path, parts) for parts in PROMPTS]
        assert engine.counters().encoded_media > 6


def frames(seed: int, num: int) -> np.ndarray:
    return np.stack([np.asarray(picture(seed + i, (32, 24))) for i in range(num)])


@dslc.function
def watch(s, film):
    s += "Film: " + dslc.video(film, 4) + " what?" + dslc.gen("a", max_tokens=NUM, ignore_eos=True)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen2_vl"])
def test_a_video_among_pictures_equals_transformers(family):
    path = tiny_vision(family)
    prompts: list[list[Any]] = [
        ["Film: ", frames(30, 4), " and ", picture(0), " what happens?"],
        [picture(1), frames(40, 5), " what happens?"],
    ]
    with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
        assert engine.capabilities.media == {"image", "video"}
        assert ids_of(run(engine, prompts)) == [expected(path, parts) for parts in prompts]
        assert ids_of(run(engine, prompts)) == [expected(path, parts) for parts in prompts]  # from the cache
        assert engine.counters().encoded_media == 4
        for parts, event in zip(prompts, run(engine, prompts, logprobs=LogprobWish()), strict=True):
            found = event.outputs[0].logprobs
            wanted = vision_logprobs(path, parts, [token.token_id for token in found])
            assert [token.logprob for token in found] == pytest.approx(wanted, abs=1e-4)
        state = watch.run(film=list(frames(50, 4)), backend=engine, temperature=0.0)
        assert engine.tokenizer is not None
        assert state["a"] == engine.tokenizer.decode(expected(path, ["Film: ", frames(50, 4), " what?"]))
    with dslc.Engine(model_path=str(path), chunked_prefill_size=5, **OPTIONS) as engine:
        assert ids_of(run(engine, prompts)) == [expected(path, parts) for parts in prompts]


@dslc.function
def paced(s, film):
    s += "Film: " + dslc.video(film, 4, fps=6) + " what?" + dslc.gen("a", max_tokens=NUM, ignore_eos=True)


def test_the_time_between_frames_is_in_the_positions_of_qwen2_5_vl():
    """6 frames a second: pairs are 2 / 6 s apart, 2/3 of a position; 0.7: 5.71 positions. Both are rounded down."""
    path = tiny_vision("qwen2_5_vl")
    film = frames(60, 8)
    prompts: list[list[Any]] = [
        ["Film: ", picture(0), Film(film, 6.0), "and", Film(film, 0.7), " what happens?"],
        ["Film: ", Film(film, 0.7), " what happens?"],
        ["Film: ", Film(film, 6.0), " what happens?"],
        ["Film: ", film, " what happens?"],
    ]
    wanted = [expected(path, parts) for parts in prompts]
    with dslc.Engine(model_path=str(path), **OPTIONS) as engine:
        for parts, event, ids in zip(prompts, run(engine, prompts, logprobs=LogprobWish()), wanted, strict=True):
            found = event.outputs[0].logprobs
            assert [token.token_id for token in found] == ids
            assert [token.logprob for token in found] == pytest.approx(vision_logprobs(path, parts, ids), abs=1e-4)
        # The same pixels at another pace are another film.
        again = run(engine, [["Film: ", Film(film, 6.0), " what happens?"], ["Film: ", Film(film, 3.0), "x"]])
        assert again[0].num_cached_tokens == again[0].num_prompt_tokens - 1
        assert again[1].num_cached_tokens < 16

        state = paced.run(film=film, backend=engine, temperature=0.0)
        assert engine.tokenizer is not None
        assert state["a"] == engine.tokenizer.decode(expected(path, ["Film: ", Film(film[::2], 3.0), " what?"]))


def test_a_model_of_pictures_refuses_videos():
    blind = dslc.Engine(model_path=str(tiny_vision("llava")), **OPTIONS)
    with blind, pytest.raises(dslc.ProgramError, match="takes no videos"):
        watch.run(film=list(frames(50, 4)), backend=blind)


def test_select_scores_after_a_picture(path, engine):
    @dslc.function
    def pick(s, image):
        s += dslc.image(image)
        s += " It is"
        s += dslc.select("it", [" a dog", " a cat", " nothing"])

    tokenizer = engine.tokenizer
    assert tokenizer is not None
    state = pick.run(image=picture(10), backend=engine)
    other = pick.run(image=picture(11), backend=engine, compiled=False)
    for found, seed in ((state, 10), (other, 11)):
        scores = found.get_meta_info("it")["normalized_prompt_logprobs"]
        assert scores == pytest.approx(
            [_score(path, picture(seed), c) for c in (" a dog", " a cat", " nothing")], abs=1e-4
        )


def _score(path: Any, image: Any, choice: str) -> float:
    from support.tiny_vision import vision_inputs, vision_reference

    model, _ = vision_reference(path)
    inputs = vision_inputs(path, [image, " It is" + choice])
    num_choice = inputs["input_ids"].shape[1] - vision_inputs(path, [image, " It is"])["input_ids"].shape[1]
    with torch.inference_mode():
        logprobs = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    total = [float(logprobs[at - 1, ids[at]]) for at in range(len(ids) - num_choice, len(ids))]
    return sum(total) / len(total)


def test_deterministic_engines_give_equal_bits(path):
    found = []
    for options in ({}, {"chunked_prefill_size": 5}, {"disable_radix_cache": True}):
        with dslc.Engine(model_path=str(path), **{**OPTIONS, "deterministic": True, **options}) as engine:
            events = run(engine, PROMPTS, logprobs=LogprobWish())
            found.append([[(t.token_id, t.logprob) for t in event.outputs[0].logprobs] for event in events])
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_asked_is_refused_by_name(engine):
    with pytest.raises(dslc.RequestError, match=r"logprobs.prompt_start.*pictures have none"):
        run(engine, [["x", picture(0), "y"]], logprobs=LogprobWish(prompt_start=0))
    before = dslc.media_limits()
    dslc.media_limits(max_count=2)
    with pytest.raises(dslc.RequestError, match=r"segments\[3\].media.*max_count=2"):
        run(engine, [["x", *[picture(0)] * 3]])
    dslc.media_limits(max_count=before.max_count)
    with pytest.raises(dslc.RequestError, match=r"segments\[0\].media.*cannot be read"):
        bad = replace(image_ref(picture(0)), data=b"\x89PNG nonsense")
        run(engine, [[bad, "x"]])
    with dslc.Engine() as text_only, pytest.raises(dslc.RequestError, match="takes no images, only text"):
        run(text_only, [["x", picture(0)]])


def test_generate_takes_image_data_for_the_places_of_the_text(path, engine):
    around = "<|im_start|>{}<|pad|>" if "_vl" in engine.runner.model_config.model_type else "{}"
    options = {"temperature": 0.0, "max_new_tokens": NUM, "ignore_eos": True}
    for place in ("<|endoftext|>", around.format("<|endoftext|>")):
        one = engine.generate(f"Look: {place} What?", options, image_data=picture(0))
        assert one["output_ids"] == expected(path, ["Look: ", picture(0), " What?"])
        two = engine.generate(
            [f"{place}{place}{place}How many?", "The quick brown fox"],
            options,
            image_data=[[picture(3), picture(4), picture(3)], None],
        )
        assert two[0]["output_ids"] == expected(path, PROMPTS[4])
        assert two[1]["output_ids"] == expected(path, ["The quick brown fox"])
    for given, message in (
        ([picture(0), picture(1)], "image_data: 2 pictures for 1 places"),
        ("none.png", "image_data: image: 'none.png' cannot be read"),
    ):
        with pytest.raises(dslc.RequestError, match=message):
            engine.generate("Look: <|endoftext|>", options, image_data=given)
    with dslc.Engine() as text_only, pytest.raises(dslc.RequestError, match="image_data: the model takes no images"):
        text_only.generate("x", options, image_data=picture(0))


def test_penalties_and_sampling_work_after_a_picture(any_engine):
    sampling = SamplingParams(max_new_tokens=6, temperature=1.0, seed=7, repetition_penalty=1.3)
    found = [ids_of(run(any_engine, [["x", picture(0)]], sampling=sampling)) for _ in range(2)]
    assert found[0] == found[1]
