"""Pictures and videos in programs: what a request holds of them, wherever the program put them."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.scripted import ScriptedBackend

import dslc
from dslc.core.media import MediaLimits, decode_frames, decode_image, frame_indices, image_ref, media_limits, video_ref
from dslc.core.request import decode, encode


@pytest.fixture(autouse=True)
def _default_limits():
    before = media_limits()
    yield
    media_limits(**{name: getattr(before, name) for name in MediaLimits.__dataclass_fields__})


def seeing(answer: Any = "yes") -> ScriptedBackend:
    backend = ScriptedBackend(lambda prompt: answer)
    backend.capabilities = replace(backend.capabilities, media=frozenset({"image", "video"}))
    return backend


def picture(seed: int = 0, size: tuple[int, int] = (6, 4)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pixels(ref: Any) -> np.ndarray:
    return np.asarray(decode_image(ref))


def shape_of(request: Any) -> list[str]:
    """Kinds of the segments of a prompt, neighbours of one kind joined."""
    kinds: list[str] = []
    for segment in request.segments:
        kind = segment.media.kind if segment.media is not None else "ids"
        if not kinds or kinds[-1] != kind or kind != "ids":
            kinds.append(kind)
    return kinds


def flat(request: Any) -> list[Any]:
    """Ids and media in order, however they lie in segments."""
    return [item for s in request.segments for item in (s.ids if s.media is None else [s.media])]


def media_of(request: Any) -> list[Any]:
    return [segment.media for segment in request.segments if segment.media is not None]


@dslc.function
def describe(s, image):
    s += "Look: "
    s += dslc.image(image)
    s += " What is it? "
    s += dslc.gen("answer", max_tokens=4)


def test_a_picture_stands_where_the_program_put_it_and_the_text_shows_a_placeholder():
    backend = seeing()
    state = describe.run(image=picture(), backend=backend)
    assert state.text() == "Look: <image> What is it? yes"
    assert shape_of(backend.requests[0]) == ["ids", "image", "ids"]
    assert (pixels(media_of(backend.requests[0])[0]) == np.asarray(picture())).all()


def test_every_way_to_give_a_picture_gives_its_pixels(tmp_path):
    image = picture(1)
    path = tmp_path / "one.png"
    path.write_bytes(png(image))
    text = base64.b64encode(png(image)).decode()
    ways = [str(path), path, png(image), image, np.asarray(image), f"data:image/png;base64,{text}", text]
    for way in ways:
        backend = seeing()
        describe.run(image=way, backend=backend)
        assert (pixels(media_of(backend.requests[0])[0]) == np.asarray(image)).all(), type(way)


def test_the_same_program_compiled_and_interpreted_sends_the_same_requests():
    for source in (picture(2), png(picture(2))):
        sent = []
        for compiled in (True, False):
            backend = seeing()
            describe.run(image=source, backend=backend, compiled=compiled)
            sent.append(flat(backend.requests[0]))
        assert sent[0] == sent[1]
    program = describe.compile()
    assert 'media "image"' in str(program) or "media image" in str(program)


def test_a_request_with_a_picture_survives_serialisation():
    backend = seeing()
    describe.run(image=picture(), backend=backend)
    request = backend.requests[0]
    assert decode(encode(request)) == request


@dslc.function
def everywhere(s, first, second):
    s += dslc.system("Rules.")
    s += dslc.user(dslc.image(first) + "and" + dslc.image(second) + "differ?")
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += dslc.assistant(dslc.gen("part", max_tokens=2))
        fork += dslc.user(dslc.image([first, second][i]))
    forks.join()
    s += dslc.assistant(dslc.select("verdict", ["yes", "no"]))


def test_pictures_in_roles_forks_and_before_a_select():
    backend = seeing()
    a, b = png(picture(3)), png(picture(4))
    state = everywhere.run(first=a, second=b, backend=backend)
    assert state["verdict"] in ("yes", "no")
    for request in backend.requests:
        assert media_of(request) == [image_ref(a), image_ref(b)]
        assert shape_of(request) == ["ids", "image", "ids", "image", "ids"]
    assert state.messages()[1]["content"] == "<image>and<image>differ?"


@dslc.function
def joined(s, first, second):
    s += "A:"
    forks = s.fork(2)
    forks[0] += " x " + dslc.image(first) + dslc.gen("a", max_tokens=2)
    forks[1] += " y " + dslc.image(second) + dslc.gen("b", max_tokens=2)
    forks.join("concate_and_append")
    s += " end " + dslc.gen("c", max_tokens=2)


def test_a_join_appends_the_pictures_of_its_branches():
    backend = seeing()
    a, b = png(picture(5)), png(picture(6))
    state = joined.run(first=a, second=b, backend=backend)
    last = backend.requests[-1]
    assert media_of(last) == [image_ref(a), image_ref(b)]
    assert shape_of(last) == ["ids", "image", "ids", "image", "ids"]
    assert state.text().count("<image>") == 2


@dslc.function
def inner(s, image):
    s += dslc.image(image)


@dslc.function
def outer(s, image):
    s += "see "
    inner(s, image)
    with s.copy() if hasattr(s, "never") else s.var_scope("scope"):
        s += "x"
    s += dslc.gen("z", max_tokens=1)


def test_a_picture_goes_through_a_called_function():
    backend = seeing()
    outer.run(image=picture(7), backend=backend)
    assert shape_of(backend.requests[0]) == ["ids", "image", "ids"]


def test_a_path_in_the_body_stands_in_the_plan_and_a_picture_does_not(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png(picture(8)))
    where, held = str(path), picture(8)

    @dslc.function
    def by_path(s):
        s += dslc.image(where) + dslc.gen("a", max_tokens=1)

    @dslc.function
    def by_value(s):
        s += dslc.image(held) + dslc.gen("a", max_tokens=1)

    @dslc.function
    def by_path_object(s):
        s += dslc.image(path) + dslc.gen("a", max_tokens=1)

    assert where in str(by_path.compile(strict=True)) and where in str(by_path_object.compile(strict=True))
    with pytest.raises(dslc.TraceError, match="image that is not given by its path"):
        by_value.compile(strict=True)
    backend = seeing()
    by_value.run(backend=backend)
    assert (pixels(media_of(backend.requests[0])[0]) == np.asarray(held)).all()


def test_a_backend_without_vision_refuses_with_the_users_line():
    with pytest.raises(dslc.ProgramError, match=r"test_media_values.py:\d+: .*takes no images"):
        describe.run(image=picture(), backend=ScriptedBackend(lambda prompt: "x"))


BROKEN: list[tuple[Any, str]] = [
    (b"", "empty"),
    (b"GIF89a", "cannot be read"),
    (png(picture())[:60], "damaged|cannot be read"),
    (b"<svg/>", "no picture in a known format"),
    (b"%!PS-Adobe", "no picture in a known format"),
    ("no/such/file.png", "cannot be read: No such file"),
    ("/no/such/folder" * 8 + "/file.png", "cannot be read: No such file"),  # may be, but is no base64
    ("ftp://example.org/x.png", "only http and https"),
    ("file:///etc/hostname", "only http and https"),
    ("http://example.org/x.png", "URLs are off"),
    ("data:image/png,abc", "must be base64"),
    ("data:image/png;base64,%%%", "no base64"),
    (np.zeros((2, 2, 3), dtype=np.float32), "must be uint8"),
    (17, "must be a path"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_picture_is_refused_by_name(source, message):
    with pytest.raises(dslc.RequestError, match=message):
        decode_image(image_ref(source))


def test_an_error_of_reading_names_the_users_line():
    with pytest.raises(dslc.ProgramError, match=r"test_media_values.py:\d+: image: 'no.png' cannot be read"):
        describe.run(image="no.png", backend=seeing())


def test_limits_refuse_large_files_and_bombs_before_decoding(tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 50 kB, 400 million pixels
    assert bomb.stat().st_size < 200_000
    with pytest.raises(dslc.RequestError, match="max_pixels"):
        decode_image(image_ref(bomb))
    media_limits(max_pixels=10)
    with pytest.raises(dslc.RequestError, match=r"6 x 4.*24 pixels are more than max_pixels=10"):
        decode_image(image_ref(png(picture())))
    media_limits(max_bytes=50)
    with pytest.raises(dslc.RequestError, match="more than max_bytes=50"):
        image_ref(png(picture()))
    with pytest.raises(dslc.RequestError, match="more than max_bytes=50"):
        image_ref(bomb)
    with pytest.raises(dslc.ConfigError, match="max_sise"):
        media_limits(max_sise=3)
    with pytest.raises(dslc.ConfigError, match="max_bytes"):
        media_limits(max_bytes=0)


class _Site(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/one.png")
            self.end_headers()
            return
        body = png(picture(9)) if self.path == "/one.png" else b"x" * 10_000
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = HTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls_are_read_only_where_allowed(site):
    with pytest.raises(dslc.RequestError, match="URLs are off"):
        image_ref(f"{site}/one.png")
    media_limits(allow_urls=True)
    for bad in (site, "http://localhost", "http://169.254.169.254/latest", "http://[::1]/x", "http://0.0.0.0/"):
        with pytest.raises(dslc.RequestError, match=r"not a public address|not found"):
            image_ref(f"{bad}/one.png")
    for bad in ("http://example.org\\@127.0.0.1/x", "http://user@example.org/x", "http:///x", "http://a b/"):
        with pytest.raises(dslc.RequestError, match=r"characters that no URL|must name a host"):
            image_ref(bad)
    media_limits(allow_urls=["other.example"])
    with pytest.raises(dslc.RequestError, match="not among allow_urls"):
        image_ref(f"{site}/one.png")
    media_limits(allow_urls=("127.0.0.1",))
    assert (pixels(image_ref(f"{site}/one.png")) == np.asarray(picture(9))).all()
    with pytest.raises(dslc.RequestError, match="302: redirects are not followed"):
        image_ref(f"{site}/moved")
    media_limits(max_bytes=5_000)
    with pytest.raises(dslc.RequestError, match="more than max_bytes"):
        image_ref(f"{site}/large")


def test_frames_are_spread_evenly():
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    assert frame_indices(10, 3) == [0, 3, 6]
    assert frame_indices(2, 8) == [0, 1]
    assert frame_indices(5, 1) == [0]
    for num_all in range(1, 40):
        for num in range(1, num_all + 1):
            found = frame_indices(num_all, num)
            assert len(found) == num == len(set(found)) and found == sorted(found) and found[-1] < num_all
            assert found == default_sample_indices_fn(VideoMetadata(total_num_frames=num_all), num_frames=num).tolist()


def frames(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 4, 6, 3), dtype=np.uint8)


def test_every_way_to_give_a_video_gives_the_chosen_frames(tmp_path):
    film = frames(9)
    array = tmp_path / "film.npy"
    np.save(array, film)
    moving = tmp_path / "film.webp"
    first, *rest = [Image.fromarray(frame) for frame in film]
    first.save(moving, save_all=True, append_images=rest, lossless=True)
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "notes.txt").write_text("no frame")
    for number, frame in enumerate(film):
        Image.fromarray(frame).save(folder / f"frame-{number + 4}.png")  # 10 comes after 9, not after 1
    wanted = film[[0, 3, 6]]
    for way in (
        str(folder),
        folder,
        film,
        list(film),
        [Image.fromarray(frame) for frame in film],
        str(array),
        array.read_bytes(),
        moving,
    ):
        assert (decode_frames(video_ref(way, 3)) == wanted).all(), type(way)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no frames"),
        ([np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)], "different sizes"),
        (np.zeros((2, 2, 3), np.uint8), r"must be uint8 \[F, H, W, 3\]"),
        (b"\x93NUMPY\x01\x00garbage", "no array of frames"),
    ],
)
def test_what_is_no_video_is_refused_by_name(source, message):
    with pytest.raises(dslc.RequestError, match=message):
        video_ref(source, 4)


def test_a_video_in_a_program_travels_as_its_frames():
    @dslc.function
    def watch(s, film, n):
        s += "Film: " + dslc.video(film, n) + dslc.gen("a", max_tokens=1)

    backend = seeing()
    state = watch.run(film=frames(6), n=2, backend=backend)
    assert (decode_frames(media_of(backend.requests[0])[0]) == frames(6)[[0, 3]]).all()
    assert state.text().startswith("Film: <video>")
