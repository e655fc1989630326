"""Pictures on their way in: who waits for them, what they are compared by, and what is refused before it costs."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_vision import picture, tiny_vision
from support.vision_runs import NUM, OPTIONS, expected, ids_of, run

import dslc
from dslc.core.media import MediaLimits, image_ref
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.media import library

torch.set_num_threads(1)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": NUM, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _default_limits():
    before = dslc.media_limits()
    yield
    dslc.media_limits(**{name: getattr(before, name) for name in MediaLimits.__dataclass_fields__})


@pytest.fixture(scope="module")
def path():
    return tiny_vision("llava")


@pytest.fixture
def engine(path):
    with dslc.Engine(model_path=str(path), **OPTIONS) as made:
        made.check_when_idle = True
        yield made


@pytest.fixture
def gate(engine, monkeypatch):
    """Holds all processing of pictures until it is set."""
    opened = threading.Event()
    inner = engine.intake.media.processor.image

    def image(pixels):
        assert opened.wait(60)
        return inner(pixels)

    monkeypatch.setattr(engine.intake.media.processor, "image", image)
    yield opened
    opened.set()


def test_twenty_requests_with_pictures_hold_up_no_text(path, engine, gate):
    async def ask() -> tuple[Any, list[Any]]:
        seeing = [
            asyncio.ensure_future(engine.async_generate("A <|endoftext|> x", GREEDY, image_data=picture(number)))
            for number in range(20)
        ]
        await asyncio.sleep(0)
        text = await engine.async_generate("The quick brown fox", GREEDY)
        assert not any(task.done() for task in seeing)
        gate.set()
        return text, await asyncio.gather(*seeing)

    text, seen = asyncio.run(ask())
    assert text["output_ids"] == expected(path, ["The quick brown fox"])
    assert seen[3]["output_ids"] == expected(path, ["A ", picture(3), " x"])
    assert engine.counters().encoded_media == 20


@dslc.function
def look(s, image):
    s += "A " + dslc.image(image) + " x" + dslc.gen("a", max_tokens=NUM, ignore_eos=True)


@dslc.function
def read(s):
    s += "The quick brown fox" + dslc.gen("a", max_tokens=NUM, ignore_eos=True)


def test_programs_without_pictures_end_before_those_whose_pictures_are_processed(path, engine, gate):
    looking = [look.run(image=picture(number), backend=engine, temperature=0.0, stream=True) for number in range(3)]
    state = read.run(backend=engine, temperature=0.0)
    assert engine.tokenizer is not None
    assert state["a"] == engine.tokenizer.decode(expected(path, ["The quick brown fox"]))
    gate.set()
    for number, looked in enumerate(looking):
        assert looked["a"] == engine.tokenizer.decode(expected(path, ["A ", picture(number), " x"]))


def test_a_picture_that_many_send_at_once_is_processed_once(path, engine):
    events = run(engine, [[f"{number} ", picture(0), " x"] for number in range(8)])
    assert engine.intake.media.num_processed == 1
    assert ids_of(events)[5] == expected(path, ["5 ", picture(0), " x"])


def test_a_request_can_be_cancelled_while_its_picture_is_processed(path, engine, gate):
    ended = []
    request = GenRequest(
        id="a", segments=(Segment(media=image_ref(picture(0))),), sampling=SamplingParams(max_new_tokens=2)
    )
    engine.submit([request], ended.append)
    engine.abort(["a"])
    assert [event.error.exception().__class__ for event in ended] == [dslc.Aborted]
    gate.set()
    assert ids_of(run(engine, [[picture(0), " x"]])) == [expected(path, [picture(0), " x"])]


def test_a_processor_that_fails_fails_its_request_only(path, engine, monkeypatch):
    processor = engine.intake.media.processor
    inner = processor.image

    def image(pixels):
        if pixels.shape[0] == 17:
            raise ZeroDivisionError("no such height")
        return inner(pixels)

    with monkeypatch.context() as patched:
        patched.setattr(processor, "image", image)
        for _ in range(2):
            with pytest.raises(dslc.DslcError, match="no such height"):
                engine.generate("<|endoftext|> x", GREEDY, image_data=picture(0, (20, 17)))
        good = engine.generate("<|endoftext|> x", GREEDY, image_data=picture(1))
        assert good["output_ids"] == expected(path, [picture(1), " x"])
    again = engine.generate("<|endoftext|> x", GREEDY, image_data=picture(0, (20, 17)))
    assert again["output_ids"] == expected(path, [picture(0, (20, 17)), " x"])


def test_a_size_that_the_processor_refuses_is_the_users_error():
    path, message = tiny_vision("qwen2_5_vl"), r"segments\[1\].media.*refuses it.*aspect ratio"
    with dslc.Engine(model_path=str(path), **OPTIONS) as engine, pytest.raises(dslc.RequestError, match=message):
        run(engine, [["x", picture(0, (400, 1))]])


def test_a_picture_is_the_same_through_every_door(path, engine, tmp_path):
    image = picture(7)
    out = io.BytesIO()
    image.save(out, "PNG")
    data = out.getvalue()
    file = tmp_path / "image.png"
    file.write_bytes(data)
    text = base64.b64encode(data).decode()
    ways = [image, data, str(file), file, text, f"data:image/png;base64,{text}", np.asarray(image)]
    wanted = expected(path, ["A ", image, " x"])
    assert engine.tokenizer is not None
    for number, way in enumerate(ways):
        result = engine.generate("A <|endoftext|> x", GREEDY, image_data=way)
        assert result["output_ids"] == wanted
        assert result["meta_info"]["cached_tokens"] == (result["meta_info"]["prompt_tokens"] - 1 if number else 0)
        state = look.run(image=way, backend=engine, temperature=0.0)
        assert state["a"] == engine.tokenizer.decode(wanted)
        event = run(engine, [["A ", way if not isinstance(way, (str, np.ndarray)) else image, " x"]])[0]
        assert ids_of([event]) == [wanted] and event.num_cached_tokens == event.num_prompt_tokens - 1
    assert engine.counters().encoded_media == 1


def test_a_digest_that_lies_shares_nothing(path, engine):
    """A request may come from elsewhere: its pictures are known by their own bytes, not by the name they bring."""
    honest, other = image_ref(picture(1)), image_ref(picture(2))
    forged = replace(other, digest=honest.digest)
    for ref, seed in ((honest, 1), (forged, 2), (replace(honest, digest="0" * 64), 1)):
        assert ids_of(run(engine, [[ref, " x"]])) == [expected(path, [picture(seed), " x"])]
    assert engine.counters().encoded_media == 2


def test_digests_are_compared_in_full(path, engine, monkeypatch):
    """Two pictures whose digests differ in the last bit only, and are equal in all that a 64-bit hash would keep."""
    seen: list[bytes] = []

    def nearly_equal(self, kind, pixels):
        data = pixels.tobytes()
        if data not in seen:
            seen.append(data)
        return "f" * 63 + str(seen.index(data))

    monkeypatch.setattr(library.MediaLibrary, "_digest", nearly_equal)
    events = [run(engine, [[picture(seed), " x"]])[0] for seed in (1, 2, 1)]
    assert ids_of(events) == [expected(path, [picture(seed), " x"]) for seed in (1, 2, 1)]
    assert [event.num_cached_tokens > 16 for event in events] == [False, False, True]


def test_pictures_in_excess_are_refused_before_any_is_decoded(engine, monkeypatch):
    def decode(ref):
        raise AssertionError("decoded")

    monkeypatch.setattr(library, "decode_image", decode)
    dslc.media_limits(max_count=2)
    with pytest.raises(dslc.RequestError, match=r"segments\[3\].media: 3 pictures are more than max_count=2"):
        run(engine, [["x", picture(0), picture(1), picture(2)]])
    with pytest.raises(dslc.RequestError, match=r"max_count=2"):
        engine.generate("<|endoftext|>" * 3, GREEDY, image_data=[picture(0)] * 3)


def test_a_bomb_in_a_request_is_refused_by_the_engine_too(path, engine):
    """A `MediaRef` may come from a plan or another process, where other limits held."""
    out = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(out, "PNG")
    assert len(out.getvalue()) < 20_000
    bomb = replace(image_ref(picture(0)), data=out.getvalue())
    with pytest.raises(dslc.RequestError, match=r"segments\[0\].media: .*more than max_pixels=64000000"):
        run(engine, [[bomb, " x"]])
    assert ids_of(run(engine, [[picture(0), " x"]])) == [expected(path, [picture(0), " x"])]


def test_urls_are_off_at_every_door(engine):
    url = "https://example.org/cat.png"
    with pytest.raises(dslc.RequestError, match=r"image_data.*URLs are off"):
        engine.generate("<|endoftext|> x", GREEDY, image_data=url)
    with pytest.raises(dslc.ProgramError, match="URLs are off"):
        look.run(image=url, backend=engine)
    with pytest.raises(dslc.RequestError, match="URLs are off"):
        image_ref(url)
