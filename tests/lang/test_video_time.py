"""How many frames of a video stand for a second: from the file, from the program, and in what the engine gets."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.scripted import ScriptedBackend

import dslc
from dslc.core.media import video_ref


def frames(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 16, 24, 3), dtype=np.uint8)


def moving(kind: str, num: int, shown_ms: int | list[int]) -> bytes:
    out = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames(num)]
    first.save(out, kind, save_all=True, append_images=rest, duration=shown_ms)
    return out.getvalue()


def film(kind: str, codec: str, num: int, rate: Fraction) -> bytes:
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
        for frame in frames(num):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001)])
def test_the_frames_kept_of_a_film_are_as_many_a_second_as_it_lasts(kind, codec, rate):
    data = film(kind, codec, 20, rate)
    assert video_ref(data, 5).fps == pytest.approx(float(rate) * 5 / 20, rel=1e-3)
    assert video_ref(data, 50).fps == pytest.approx(float(rate), rel=1e-3)
    assert video_ref(data, 5, fps=40).fps == 10  # the program knows better


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_a_picture_that_moves_says_how_long_its_frames_are_shown(kind):
    assert video_ref(moving(kind, 10, 250), 5).fps == pytest.approx(2.0)
    assert video_ref(moving(kind, 3, [100, 200, 300]), 8).fps == pytest.approx(5.0)


def test_frames_that_say_nothing_get_the_rate_of_the_program(tmp_path):
    all_frames = frames(10)
    path = tmp_path / "film.npy"
    np.save(path, all_frames)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(all_frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    ways: list[Any] = [all_frames, list(all_frames), path, path.read_bytes(), folder]
    for way in ways:
        assert video_ref(way, 5).fps is None
        assert video_ref(way, 5, fps=6).fps == 3.0
        assert video_ref(way, 50, fps=6).fps == 6.0
    names = {video_ref(all_frames, 5, fps=fps).digest for fps in (None, 6, 3)}
    assert len(names) == 3  # the same pixels at another pace are another video


@pytest.mark.parametrize("fps", [0, -1.0, float("inf"), float("nan"), True, "2"])
def test_a_rate_that_cannot_be_is_refused(fps):
    with pytest.raises(dslc.RequestError, match="fps: must be a positive number"):
        video_ref(frames(2), 2, fps=fps)


@dslc.function
def watch(s, film):
    s += dslc.video(film, 4, fps=5) + "x" + dslc.gen("a", max_tokens=3)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_program_hands_its_rate_on(compiled):
    backend = ScriptedBackend(media={"image", "video"})
    watch.run(film=frames(8), backend=backend, compiled=compiled)
    [media] = [segment.media for segment in backend.requests[0].segments if segment.media is not None]
    assert media.fps == 2.5 and media == video_ref(frames(8), 4, fps=5)
    program = str(watch.compile())
    assert "options=(num_frames=4, fps=5)" in program
