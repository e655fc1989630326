"""Pictures and videos on their way into a prompt: read, checked against limits, and named by what they hold.

A picture travels as the bytes of its file, a video as its chosen frames (`.npy`, uint8 [F, H, W, 3]). Both are values
of a `GenRequest`: they survive serialisation and name no file of the machine that made them. Decoding needs pillow.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigError, RequestError
from .film import decode_film, film_format
from .request import MediaRef

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")  # of the frames in a folder
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none that starts another program to be read
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}  # in a program's text
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What pictures and videos may be; more is refused by the limit's name.

    `max_bytes`: of one file as it is stored. `max_pixels`: of one picture, or of all chosen frames of a video, once
    decoded; read from the header, before anything is decoded. `max_count`: pictures and videos of one prompt.
    `max_frames` and `max_seconds`: of a video that is read (`num_frames` of its frames are kept). `allow_urls`: False,
    True (public addresses only), or the names of the hosts that may be asked. `url_timeout_s`: seconds of a download.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000
    max_count: int = 64
    max_frames: int = 20_000
    max_seconds: float = 600.0
    allow_urls: bool | tuple[str, ...] = False
    url_timeout_s: float = 10.0

    def verify(self) -> None:
        """Raise ConfigError naming the first impossible value."""
        for name in ("max_bytes", "max_pixels", "max_count", "max_frames"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"must be a positive integer, not {value!r}", field=name)
        hosts = self.allow_urls
        if not isinstance(hosts, bool) and not (isinstance(hosts, tuple) and all(isinstance(h, str) for h in hosts)):
            raise ConfigError(f"must be True, False or a tuple of host names, not {hosts!r}", field="allow_urls")
        for name in ("max_seconds", "url_timeout_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"must be a positive number of seconds, not {value!r}", field=name)


_limits = MediaLimits()


def media_limits(**changes: Any) -> MediaLimits:
    """The limits of this process, after `changes` to their fields: `media_limits(allow_urls=("example.org",))`.

    Raises ConfigError for an unknown name or an impossible value.
    """
    global _limits
    for name in changes:
        if name not in MediaLimits.__dataclass_fields__:
            known = ", ".join(MediaLimits.__dataclass_fields__)
            raise ConfigError(f"unknown limit; known are {known}", field=name)
    if isinstance(changes.get("allow_urls"), list):
        changes["allow_urls"] = tuple(changes["allow_urls"])
    changed = replace(_limits, **changes)
    changed.verify()
    _limits = changed
    return changed


def image_ref(source: Any) -> MediaRef:
    """The picture as a value: from a path, a URL (if allowed), `data:` text, base64 text, bytes, PIL image or array.

    An array is uint8 [H, W], [H, W, 3] or [H, W, 4]. Raises RequestError naming what is wrong.
    """
    if isinstance(source, MediaRef):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        data = _named(source, "image")
    else:
        data = _png(_as_image(source))
    _check_bytes(data, "image")
    if not data.startswith(_MAGIC):
        raise RequestError(f"is no picture in a known format ({', '.join(FORMATS)})", field="image")
    return _ref("image", data)


def video_ref(source: Any, num_frames: int, fps: float | None = None) -> MediaRef:
    """The video as a value: `num_frames` of its frames, evenly spread (all, where it has fewer).

    `fps`: how many frames a second the source has, where it does not say itself, or says it wrongly. That of the frames
    kept follows from it.

    `source` is a path, URL or bytes of a film (mp4, webm, ...; needs PyAV), a GIF, an animated WebP or PNG, a
    multi-page TIFF or an `.npy` of uint8 [F, H, W, 3]; or the path of a folder of pictures, in the order of the numbers
    in their names; or a list of frames, each as `image_ref` takes it; or an array. Raises RequestError.
    """
    if type(num_frames) is not int or num_frames < 1:
        raise RequestError(f"must be a positive integer, not {num_frames!r}", field="num_frames")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf")):
        raise RequestError(f"must be a positive number of frames a second, not {fps!r}", field="fps")
    if isinstance(source, MediaRef):
        return source
    frames, num_all, own_fps = _frames_of(source, num_frames)
    data = _frames_as_npy(frames, num_frames)
    rate = own_fps if fps is None else float(fps)
    return _ref("video", data, None if rate is None else rate * min(num_frames, num_all) / num_all)


def _frames_of(source: Any, num_frames: int) -> tuple[Any, int, float | None]:
    """The chosen frames (or all), how many there are of all, and how many of these a second, where the file says."""
    if isinstance(source, (str, os.PathLike)) and (folder := _folder(source)) is not None:
        return _listed(folder, num_frames), len(folder), None
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = _named(source, "video") if isinstance(source, (str, os.PathLike)) else bytes(source)
        _check_bytes(data, "video")
        if not data.startswith(b"\x93NUMPY"):
            is_film = film_format(data) is not None
            return decode_film(data, num_frames, _limits, frame_indices) if is_film else _animation(data, num_frames)
        source = _npy(data)
    elif isinstance(source, Sequence):
        return _listed(source, num_frames), len(source), None
    shape = tuple(getattr(source, "shape", ()))
    return source, shape[0] if len(shape) == 4 else 1, None


def frame_indices(num_all: int, num_frames: int) -> list[int]:
    """Which frames are used: the first of each of `num_frames` equal parts, as in transformers; all where there are
    fewer."""
    num_frames = min(num_frames, num_all)
    return [i * num_all // num_frames for i in range(num_frames)]


def decode_image(ref: MediaRef) -> Any:
    """The PIL image in RGB, turned as its camera says. Raises RequestError for what is damaged or too large."""
    from PIL import ImageOps

    image = _open(ref.data, "image")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, IndexError) as error:
        raise RequestError(f"the picture is damaged: {error}", field="image") from None


def image_size(path: str) -> tuple[int, int] | None:
    """(height, width) of a picture on disk, as it will be seen, from its header; None where that cannot be read."""
    try:
        image = _open(_named(path, "image"), "image")
        turned = image.getexif().get(0x0112, 1) >= 5  # the camera lay on its side
    except (RequestError, OSError, ValueError, SyntaxError, IndexError):
        return None
    height, width = int(image.height), int(image.width)
    return (width, height) if turned else (height, width)


def decode_frames(ref: MediaRef) -> Frames:
    """The frames of a video, uint8 [F, H, W, 3]."""
    frames = _npy(ref.data)
    _check_frames(frames)
    return frames


def _ref(kind: Literal["image", "video"], data: bytes, fps: float | None = None) -> MediaRef:
    named = kind if fps is None else f"{kind} {fps!r}"
    return MediaRef(kind, hashlib.sha256(named.encode() + b"\0" + data).hexdigest(), data, fps)


def _check_bytes(data: bytes, field: str) -> None:
    if len(data) > _limits.max_bytes:
        raise _too_many_bytes(len(data), field)
    if not data:
        raise RequestError("is empty", field=field)


def _too_many_bytes(num: int, field: str) -> RequestError:
    return RequestError(
        f"has {num} bytes, more than max_bytes={_limits.max_bytes}; dslc.media_limits(max_bytes=...) allows more",
        field=field,
    )


def _too_many_pixels(what: str, num: int, field: str) -> RequestError:
    return RequestError(
        f"{what}: {num} pixels are more than max_pixels={_limits.max_pixels}; dslc.media_limits(max_pixels=...) "
        "allows more",
        field=field,
    )


def _named(source: str | os.PathLike[str], field: str) -> bytes:
    """The bytes that a path, a URL or encoded text stands for."""
    text = os.fspath(source)
    if not isinstance(text, str):
        raise RequestError(f"a path must be text, not {text!r}", field=field)
    scheme = text[:8].partition(":")[0].lower() if ":" in text[:8] else ""
    if scheme == "data":
        head, comma, body = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError("data: text must be base64 (data:image/png;base64,...)", field=field)
        return _base64(body, field)
    if scheme in ("http", "https"):
        if _limits.allow_urls is False:
            raise RequestError(
                f"{text[:80]!r} is a URL, and URLs are off; dslc.media_limits(allow_urls=True or host names) allows "
                "them",
                field=field,
            )
        from .media_fetch import fetch

        return fetch(text, _limits, field)
    if "://" in text[:16]:
        raise RequestError(f"{text[:80]!r}: only http and https URLs can be read; give a path as a path", field=field)
    path = Path(text).expanduser()
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _limits.max_bytes:
                raise _too_many_bytes(size, field)
            return stream.read(_limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        if len(text) >= 64 and text[:1] in "iV/RSTUQ0" and (data := _bare_base64(text, field)) is not None:
            return data
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{text[:200]!r} cannot be read: {reason}", field=field) from None


def _bare_base64(text: str, field: str) -> bytes | None:
    """The picture that a text is, as SGLang takes them; None if it is none (a long path, most likely)."""
    try:
        data = base64.b64decode(text[:64], validate=True)
    except (binascii.Error, ValueError):
        return None
    return _base64(text, field) if data.startswith((*_MAGIC, b"\x93NUMPY")) else None


def _base64(text: str, field: str) -> bytes:
    if len(text) * 3 // 4 > _limits.max_bytes + 3:
        raise _too_many_bytes(len(text) * 3 // 4, field)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the text is no base64: {error}", field=field) from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RequestError("pictures need pillow: pip install 'dslc[vision]'", field="image") from None
    return Image


def _open(data: bytes, field: str) -> Any:
    """A PIL image whose header was read, and is within the limits."""
    pil = _pillow()
    try:
        image = pil.open(io.BytesIO(data), formats=FORMATS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise RequestError(
            f"is too large to be decoded (max_pixels={_limits.max_pixels}): {error}", field=field
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError(f"cannot be read: {error}; known formats are {', '.join(FORMATS)}", field=field) from None
    if image.width * image.height > _limits.max_pixels:
        raise _too_many_pixels(f"{image.width} x {image.height}", image.width * image.height, field)
    return image


def _as_image(source: Any) -> Any:
    """A PIL image from one, or from an array of uint8."""
    pil = _pillow()
    if isinstance(source, pil.Image):
        return source
    shape, dtype = getattr(source, "shape", None), str(getattr(source, "dtype", ""))
    if shape is None:
        raise RequestError(
            f"must be a path, URL, bytes, PIL image or array of uint8, not {type(source).__name__}", field="image"
        )
    if dtype != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise RequestError(
            f"an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], not {dtype} {list(shape)}", field="image"
        )
    return pil.fromarray(source)


def _png(image: Any) -> bytes:
    if image.width * image.height > _limits.max_pixels:
        raise _too_many_pixels(f"{image.width} x {image.height}", image.width * image.height, "image")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
        image = image.convert("RGB")
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _animation(data: bytes, num_frames: int) -> tuple[Frames, int, float | None]:
    """The chosen frames of a picture that moves, how many there are, and how many a second, by how long those chosen
    are shown."""
    import numpy as np

    image = _open(data, "video")
    try:
        num_all = int(getattr(image, "n_frames", 1))
        if num_all > _limits.max_frames:
            raise _too_many_frames(num_all)
        chosen = frame_indices(num_all, num_frames)
        num_pixels = image.width * image.height * len(chosen)
        if num_pixels > _limits.max_pixels:
            raise _too_many_pixels(f"{len(chosen)} frames of {image.width} x {image.height}", num_pixels, "video")
        frames, shown_ms = [], 0.0
        for number in chosen:
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            shown_ms += float(image.info.get("duration") or 0)
    except (OSError, SyntaxError, EOFError) as error:
        raise RequestError(f"is damaged: {error}", field="video") from None
    return np.stack(frames), num_all, 1000 * len(frames) / shown_ms if shown_ms > 0 else None


def _too_many_frames(num: int) -> RequestError:
    return RequestError(
        f"has {num} frames, more than max_frames={_limits.max_frames}; dslc.media_limits(max_frames=...) allows more",
        field="video",
    )


def _folder(source: str | os.PathLike[str]) -> list[Path] | None:
    """The pictures of a folder, by the numbers in their names; None if it is none."""
    if len(os.fspath(source)) > 4096:  # pictures may come as text
        return None
    try:
        path = Path(source).expanduser()
        if not path.is_dir():
            return None
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES]
    except (OSError, ValueError, RuntimeError):
        return None
    if not found:
        raise RequestError(f"the folder {str(path)!r} has no pictures ({', '.join(SUFFIXES)})", field="video")

    def key(entry: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", entry.name)]

    return sorted(found, key=key)


def _listed(source: Sequence[Any], num_frames: int) -> Frames:
    """The chosen ones of a list of frames."""
    import numpy as np

    if not source:
        raise RequestError("has no frames", field="video")
    if len(source) > _limits.max_frames:
        raise _too_many_frames(len(source))
    chosen = [source[number] for number in frame_indices(len(source), num_frames)]
    frames = [np.asarray(decode_image(image_ref(frame))) for frame in chosen]
    if len({frame.shape for frame in frames}) > 1:
        sizes = sorted({(frame.shape[1], frame.shape[0]) for frame in frames})
        raise RequestError(f"its frames have different sizes: {sizes}", field="video")
    return np.stack(frames)


def _npy(data: bytes) -> Frames:
    """The array in an .npy file, its size checked before it is read; never a pickle."""
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)
        if dtype != np.uint8 or is_fortran:
            raise ValueError(f"it must be uint8 in C order, not {dtype} {list(shape)}")
        frames = np.frombuffer(data, dtype=np.uint8, offset=stream.tell()).reshape(shape)
    except (ValueError, EOFError, SyntaxError) as error:
        raise RequestError(f"is no array of frames: {error}", field="video") from None
    return frames


def _check_frames(frames: Any) -> None:
    shape, dtype = tuple(getattr(frames, "shape", ())), str(getattr(frames, "dtype", ""))
    if dtype != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise RequestError(
            f"frames must be uint8 [F, H, W, 3], not {dtype or type(frames).__name__} {list(shape)}", field="video"
        )
    num_pixels = shape[0] * shape[1] * shape[2]
    if num_pixels > _limits.max_pixels:
        raise _too_many_pixels(f"{shape[0]} frames of {shape[2]} x {shape[1]}", num_pixels, "video")


def _frames_as_npy(frames: Any, num_frames: int) -> bytes:
    import numpy as np

    if len(getattr(frames, "shape", ())) == 4 and frames.shape[0] > num_frames:
        frames = frames[frame_indices(frames.shape[0], num_frames)]
    _check_frames(frames)
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(frames), allow_pickle=False)
    return out.getvalue()
