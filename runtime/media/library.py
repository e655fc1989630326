"""From a `MediaRef` to a `Picture`: decoded, processed as the model wants it, and interned.

*Naive:* give all places of pictures the model's placeholder id. *Wrong because* the prefix cache compares ids, and
would take one picture's keys and values for another's. *So* each picture has an id of its own above the vocabulary,
found by the full SHA-256 of its pixels and of the processor's settings; equal pictures share their cache whatever file
they came from, and no two different ones ever do.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...core.errors import RequestError
from ...core.media import decode_frames, decode_image, media_limits
from ..models.vision.base import VisionLM
from .picture import Picture, Placed, Processed, RopePositions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.request import MediaRef
    from .picture import Pixels, Positions

PROCESSED_BYTES = 256 << 20  # of pictures that no request needs any more, kept for those that send them again


class MediaProcessor(Protocol):
    """What a family makes of pictures."""

    @property
    def kinds(self) -> frozenset[str]:
        """Of "image" and "video"."""

    @property
    def settings(self) -> str:
        """All that its results depend on besides the pixels."""

    @property
    def image_place(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """The token that stands for a picture in a prompt, and the ids that `image` puts before and after one."""

    @property
    def is_spatial(self) -> bool:
        """Whether positions follow the grids of pictures (M-RoPE)."""

    def image(self, pixels: Pixels) -> Processed:
        """uint8 [H, W, 3]."""

    def video(self, frames: Pixels, fps: float | None) -> Processed:
        """uint8 [F, H, W, 3], `fps` of them a second; None where nobody said."""


class MediaLibrary:
    """The pictures of one engine. Thread-safe: requests are prepared in several."""

    def __init__(self, processor: MediaProcessor, first_id: int) -> None:
        self.processor = processor
        self.num_processed = 0
        self._first_id = first_id
        self._ids: dict[str, int] = {}  # by digest of pixels and settings
        self._recent: OrderedDict[str, Picture] = OrderedDict()  # by digest of the file
        self._num_bytes = 0
        self._making: dict[str, Future[Picture]] = {}  # by digest of the file
        self._lock = threading.Lock()
        self._settings = hashlib.sha256(processor.settings.encode()).digest()

    @property
    def kinds(self) -> frozenset[str]:
        return self.processor.kinds

    def picture(self, ref: MediaRef) -> Picture:
        """The picture of a request, made once however many ask for it at the same time.

        Raises RequestError for what cannot be decoded or processed.
        """
        if ref.kind not in self.kinds:
            raise RequestError(f"the model takes no {ref.kind}s")
        key = hashlib.sha256(f"{ref.kind} {ref.fps}\0".encode() + ref.data).hexdigest()
        with self._lock:
            known = self._recent.get(key)
            if known is not None:
                self._recent.move_to_end(key)
                return known
            making = self._making.get(key)
            if making is None:
                own = self._making[key] = Future()
        if making is not None:
            return making.result()
        try:
            made = self._made(ref)
            with self._lock:
                self._keep(key, made)
            own.set_result(made)
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._making[key]
        return made

    def _made(self, ref: MediaRef) -> Picture:
        pixels: Pixels = np.asarray(decode_image(ref)) if ref.kind == "image" else decode_frames(ref)
        is_image = ref.kind == "image"
        digest = self._digest(ref.kind if is_image else f"{ref.kind} {ref.fps}", pixels)
        processed = self.processor.image(pixels) if is_image else self.processor.video(pixels, ref.fps)
        with self._lock:
            self.num_processed += 1
            return Picture(self._ids.setdefault(digest, self._first_id + len(self._ids)), digest, processed)

    def check_count(self, number: int) -> None:
        """Refuse a prompt with more pictures than allowed."""
        most = media_limits().max_count
        if number > most:
            raise RequestError(f"{number} pictures are more than max_count={most} of one prompt")

    def positions(self, num_prompt: int, placed: Sequence[Placed]) -> RopePositions | None:
        """Where the prompt's tokens stand, if the model's positions follow the grids of pictures."""
        if not self.processor.is_spatial or not placed:
            return None
        return spatial_positions(num_prompt, placed)

    def _digest(self, kind: str, pixels: Pixels) -> str:
        digest = hashlib.sha256(self._settings)
        digest.update(f"{kind} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def _keep(self, key: str, picture: Picture) -> None:
        if key in self._recent:
            return
        self._recent[key] = picture
        self._num_bytes += _num_bytes(picture)
        while self._num_bytes > PROCESSED_BYTES and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)


def _num_bytes(picture: Picture) -> int:
    return sum(tensor.nbytes for tensor in picture.processed.pixels.values())


def spatial_positions(num_prompt: int, placed: Sequence[Placed]) -> RopePositions:
    """M-RoPE (Qwen2-VL, arXiv 2409.12191): text advances all three axes by one; the features of a picture stand at
    (frame, row, column) of their grid, counted from where the text has got to; what follows begins after the last row
    or column.
    """
    table = np.zeros((3, num_prompt), dtype=np.int64)
    at = next_position = 0
    for picture, start in placed:
        _text(table, at, start, next_position)
        next_position += start - at
        processed = picture.processed
        assert processed.grid is not None
        frames, rows, columns = processed.grid
        grid = np.indices((frames, rows, columns)).reshape(3, -1)
        # In float32, as in transformers: what falls next to a whole number must fall on the same side.
        grid[0] = (grid[0].astype(np.float32) * np.float32(processed.frame_step)).astype(np.int64)
        at = start + processed.num_features
        table[:, start:at] = next_position + grid
        next_position += max(rows, columns)
    _text(table, at, num_prompt, next_position)
    next_position += num_prompt - at
    return RopePositions(table, next_position - num_prompt)


def _text(table: Positions, start: int, end: int, first: int) -> None:
    table[:, start:end] = first + np.arange(end - start)


def library_of(runner: Any) -> MediaLibrary | None:
    """The library of a runner's model; None where the model takes text only. Raises ModelLoadError."""
    model = getattr(runner, "model", None)
    if not isinstance(model, VisionLM):
        return None
    return MediaLibrary(model.processor(), runner.vocab_size)
