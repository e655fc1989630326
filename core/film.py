"""Films (mp4, mov, webm, mkv, avi, flv, ogg, ts): the chosen frames of one, decoded by PyAV.

The kind of file is told by its first bytes and handed to the decoder: left to guess, it would also take play lists,
which name other files and addresses. Size, length and number of frames are checked before anything is decoded.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from .media import MediaLimits

    Frames = npt.NDArray[np.uint8]

MISSING = "films need PyAV: pip install 'dslc[video]'; or give the frames: a folder, a list, an array, a GIF"
_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"mif1")  # brands of pictures in the same box as films


def film_format(data: bytes) -> str | None:
    """The decoder's name for a file that begins so; None if it is no film."""
    if data[4:8] == b"ftyp" and data[8:12] not in _PICTURES:
        return "mov"
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free"):  # QuickTime before it had brands
        return "mov"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:1] == b"G" and data[188:189] == b"G" and data[376:377] == b"G":
        return "mpegts"
    known = {b"\x1aE\xdf\xa3": "matroska", b"OggS": "ogg", b"FLV\x01": "flv", b"\0\0\x01\xba": "mpeg"}
    return known.get(data[:4])


def decode_film(
    data: bytes, num_frames: int, limits: MediaLimits, choose: Callable[[int, int], list[int]]
) -> tuple[Frames, int, float | None]:
    """uint8 [F, H, W, 3]: the frames `choose(number of all, num_frames)`, turned as the camera says; how many all are,
    and how many of all are shown in a second, where the file says.

    Raises RequestError for what is no film, broken, or beyond the limits.
    """
    import numpy as np

    try:
        import av
    except ImportError:
        raise RequestError(MISSING, field="video") from None
    try:
        # No protocol may be opened from inside the file.
        options = {"protocol_whitelist": "none"}
        with av.open(io.BytesIO(data), format=film_format(data), options=options, metadata_errors="ignore") as film:
            if not film.streams.video:
                raise RequestError("has no pictures, only sound or text", field="video")
            num_all = _num_frames(film, limits)
        chosen = choose(num_all, num_frames)
        with av.open(io.BytesIO(data), format=film_format(data), options=options, metadata_errors="ignore") as film:
            stream = film.streams.video[0]
            _check_size(stream.width, stream.height, len(chosen), limits)
            rate = stream.average_rate
            frames = _decoded(film, stream, chosen)
    except av.FFmpegError as error:
        raise RequestError(f"is damaged, or no film: {error.strerror}", field="video") from None
    return np.stack(frames), num_all, float(rate) if rate else None


def _num_frames(film: Any, limits: MediaLimits) -> int:
    """How many frames the first stream of pictures has, from the packets: no header is trusted, nothing decoded."""
    stream = film.streams.video[0]
    seconds = 0.0
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif film.duration is not None:
        seconds = float(Fraction(film.duration, 1_000_000))
    if seconds > limits.max_seconds:
        raise RequestError(
            f"lasts {seconds:.1f} s, more than max_seconds={limits.max_seconds:g}; dslc.media_limits(max_seconds=...) "
            "allows more",
            field="video",
        )
    num = 0
    for packet in film.demux(stream):
        num += packet.size > 0
        if num > limits.max_frames:
            raise RequestError(
                f"has more than max_frames={limits.max_frames} frames; dslc.media_limits(max_frames=...) allows more",
                field="video",
            )
    if not num:
        raise RequestError("has no frames", field="video")
    return num


def _check_size(width: int, height: int, num: int, limits: MediaLimits) -> None:
    if width * height * num > limits.max_pixels:
        raise RequestError(
            f"{num} frames of {width} x {height}: {width * height * num} pixels are more than "
            f"max_pixels={limits.max_pixels}; dslc.media_limits(max_pixels=...) allows more, fewer frames need less",
            field="video",
        )


def _decoded(film: Any, stream: Any, chosen: list[int]) -> list[Frames]:
    """The chosen frames, by their number in the order in which they are shown."""
    import numpy as np

    size = stream.width, stream.height
    stream.thread_type = "AUTO"
    wanted, found, last = set(chosen), [], None
    for number, frame in enumerate(film.decode(stream)):
        if (frame.width, frame.height) != size:
            raise RequestError(
                f"frame {number} is {frame.width} x {frame.height}, the film {size[0]} x {size[1]}", field="video"
            )
        last = frame
        if number in wanted:
            found.append(_rgb(frame))
        if number >= chosen[-1]:
            break
    # Some files have a packet or two that gives no frame: the last one stands for it.
    if last is None or len(found) < len(chosen) - 1:
        raise RequestError(f"is damaged: {len(found)} of its {len(chosen)} chosen frames can be decoded", field="video")
    while len(found) < len(chosen):
        found.append(_rgb(last))
    return [np.ascontiguousarray(frame) for frame in found]


def _rgb(frame: Any) -> Frames:
    import numpy as np

    pixels: Frames = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90) % 4)
