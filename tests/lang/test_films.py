"""Films in programs: their chosen frames, whatever the container; what is refused before it is decoded, and why."""

from __future__ import annotations

import builtins
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core import film
from dslc.core.media import MediaLimits, decode_frames, media_limits, video_ref

av = pytest.importorskip("av")
NUM, RATE = 20, 10
SIZE = 64, 48  # width, height


@pytest.fixture(autouse=True)
def _default_limits():
    before = media_limits()
    yield
    media_limits(**{name: getattr(before, name) for name in MediaLimits.__dataclass_fields__})


def shades(num: int = NUM) -> list[int]:
    """The grey of each frame."""
    return [20 + 10 * number for number in range(num)]


def clip(kind: str = "mp4", codec: str = "mpeg4", num: int = NUM, **options: str) -> bytes:
    """A film whose frame i is grey of shade i, its upper left corner white."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for shade in shades(num):
            picture = np.full((SIZE[1], SIZE[0], 3), shade, dtype=np.uint8)
            picture[:16, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def found_shades(frames: np.ndarray) -> list[int]:
    return [round(float(frame[24:, 24:].mean())) for frame in frames]


def assert_are(frames: np.ndarray, numbers: list[int]) -> None:
    assert frames.shape == (len(numbers), SIZE[1], SIZE[0], 3)
    wanted = [shades()[number] for number in numbers]
    assert np.abs(np.array(found_shades(frames)) - wanted).max() <= 4  # codecs lose a little


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [
        ("mp4", "mpeg4", {}),
        ("mp4", "libx264", {"bf": "2"}),  # frames are stored in another order than they are shown
        ("mov", "mpeg4", {}),
        ("webm", "libvpx", {}),  # its header has no number of frames
        ("matroska", "mpeg4", {}),
        ("avi", "mpeg4", {}),
        ("mpegts", "mpeg2video", {}),
        ("flv", "flv1", {}),
    ],
)
def test_a_film_gives_the_frames_that_transformers_would_take(kind, codec, options):
    data = clip(kind, codec, **options)
    assert_are(decode_frames(video_ref(data, 4)), [0, 5, 10, 15])
    assert_are(decode_frames(video_ref(data, 1)), [0])
    assert_are(decode_frames(video_ref(data, 3)), [0, 6, 13])
    assert_are(decode_frames(video_ref(data, 50)), list(range(NUM)))


def test_frames_equal_those_of_transformers(tmp_path):
    from transformers.video_utils import default_sample_indices_fn, read_video_pyav

    path = tmp_path / "clip.mp4"
    path.write_bytes(clip())
    wanted, _ = read_video_pyav(str(path), lambda metadata: default_sample_indices_fn(metadata, num_frames=7))
    assert (decode_frames(video_ref(path, 7)) == np.stack([np.asarray(frame) for frame in wanted])).all()


def test_a_film_is_turned_as_the_camera_says():
    data = clip("mov")
    upright = (b"\0\1\0\0" + b"\0" * 12) * 2 + b"\x40\0\0\0"
    at = data.index(b"tkhd")
    place = data.index(upright, at)
    # 90 degrees clockwise
    turned = b"\0\0\0\0" + b"\0\1\0\0" + b"\0" * 4 + b"\xff\xff\0\0" + b"\0" * 16 + b"\x40\0\0\0"
    assert len(turned) == len(upright)
    frames = decode_frames(video_ref(data[:place] + turned + data[place + len(upright) :], 2))
    assert frames.shape == (2, SIZE[0], SIZE[1], 3)
    assert frames[0, :8, -8:].min() > 230 and frames[0, :8, :8].max() < 60  # the white corner went to the right


@dslc.function
def watch(s, clip):
    s += "Film: " + dslc.video(clip, num_frames=4) + dslc.gen("a", max_tokens=1)


def seeing() -> ScriptedBackend:
    backend = ScriptedBackend(lambda prompt: "yes")
    backend.capabilities = replace(backend.capabilities, media=frozenset({"image", "video"}))
    return backend


def sent(backend: ScriptedBackend) -> list[Any]:
    return [segment.media for segment in backend.requests[0].segments if segment.media is not None]


def test_a_film_is_an_argument_of_a_program(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip())
    for compiled in (True, False):
        for given in (str(path), path, path.read_bytes()):
            backend = seeing()
            state = watch.run(clip=given, backend=backend, compiled=compiled)
            assert_are(decode_frames(sent(backend)[0]), [0, 5, 10, 15])
            assert state.text() == "Film: <video>yes"


def test_limits_are_checked_before_anything_is_decoded(monkeypatch):
    data = clip()

    def never(*args: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(film, "_decoded", never)
    for limits, message in (
        ({"max_seconds": 1.5}, r"lasts 2.0 s, more than max_seconds=1.5"),
        ({"max_frames": 19}, "more than max_frames=19"),
        ({"max_pixels": 4 * 64 * 48 - 1}, "4 frames of 64 x 48: 12288 pixels are more than max_pixels=12287"),
        ({"max_bytes": len(data) - 1}, "more than max_bytes"),
    ):
        before = media_limits()
        media_limits(**limits)
        with pytest.raises(dslc.RequestError, match=message):
            video_ref(data, 4)
        media_limits(**{name: getattr(before, name) for name in limits})


def only_sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def test_what_is_broken_is_named_with_the_users_line(tmp_path):
    cut, empty = tmp_path / "cut.mp4", tmp_path / "empty"
    cut.write_bytes(clip()[:300])
    empty.mkdir()
    for given, message in (
        (str(cut), "is damaged, or no film"),
        (b"\x1aE\xdf\xa3" + b"\0" * 64, "is damaged, or no film"),
        (only_sound(), "has no pictures, only sound"),
        ("missing.mp4", "cannot be read"),
        (empty, "has no pictures"),
    ):
        with pytest.raises(dslc.ProgramError, match=rf"test_films.py:\d+: video: .*({message})"):
            watch.run(clip=given, backend=seeing())


def test_what_is_there_of_a_cut_film_is_seen():
    whole = clip("matroska")
    frames = decode_frames(video_ref(whole[: len(whole) * 2 // 3], 4))
    found = found_shades(frames)
    assert len(found) == 4 and found == sorted(found) and found[-1] < shades()[15]


def test_a_file_that_names_other_files_is_no_film(tmp_path):
    """Play lists and their like would be read by a decoder that guesses what it is given."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip())
    for text in (f"ffconcat version 1.0\nfile '{secret}'\n", f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"):
        with pytest.raises(dslc.RequestError, match=r"cannot be read|is damaged"):
            video_ref(text.encode(), 2)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    data = clip()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(dslc.ProgramError, match=r"test_films.py:\d+: video: films need PyAV: .*dslc\[video\]"):
        watch.run(clip=data, backend=seeing())
