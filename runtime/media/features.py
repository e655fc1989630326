"""The device half: pictures are encoded once, and their features put where a forward needs them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..models.vision.base import VisionLM
from ..transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torch import Tensor

    from ..batch import ForwardBatch
    from ..scheduling.batch import Batch, Extend
    from .picture import Picture, Placed

FEATURE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class MediaRows:
    """What a forward takes from pictures.

    `rows` [P] int64 are the rows, ascending, whose embeddings are `features` [P, hidden]; None if there are none.
    `positions` [3, T] int64 replace the rows' own in rotary embedding; None where the model knows one axis only.
    `across`: what rows look at in cross attention; rows in none of them look at nothing.
    """

    rows: Tensor | None = None
    features: Tensor | None = None
    positions: Tensor | None = None
    across: tuple[Across, ...] = ()


@dataclass(frozen=True, slots=True)
class Across:
    """The rows [first, last) of a forward look at `states` [S, ...], what the encoder gave of their pictures."""

    first: int
    last: int
    states: Tensor


class FeatureCache:
    """Features of pictures on the device, least recently used out first.

    A picture of which a part has been computed stays here until the rest has, unless others need the room: then it is
    encoded again, to the same values. `num_encoded` counts calls of the encoder.
    """

    def __init__(self, model: VisionLM, device: torch.device, max_bytes: int = FEATURE_BYTES) -> None:
        self.model = model
        self.device = device
        self.max_bytes = max_bytes
        self.num_encoded = 0
        self._known: OrderedDict[int, Tensor] = OrderedDict()
        self._num_bytes = 0

    def of(self, picture: Picture) -> Tensor:
        """[num_features, hidden]."""
        known = self._known.get(picture.id)
        if known is not None:
            self._known.move_to_end(picture.id)
            return known
        pixels = {name: tensor.to(self.device) for name, tensor in picture.processed.pixels.items()}
        made = self.model.encode_media(pixels)
        num = picture.processed.num_states or picture.processed.num_features
        if made.shape[0] != num:
            raise RuntimeError(f"the encoder gave {made.shape[0]} rows where {num} should be")
        self.num_encoded += 1
        self._known[picture.id] = made
        self._num_bytes += made.nbytes
        if not self.model.looks_across:
            self._drop({picture.id})
        return made

    def _drop(self, needed: set[int]) -> None:
        """Make room, but keep these."""
        for number in list(self._known):
            if self._num_bytes <= self.max_bytes:
                return
            if number not in needed:
                self._num_bytes -= self._known.pop(number).nbytes

    def attach(self, fb: ForwardBatch, batch: Batch) -> None:
        """Give a forward what it takes from the pictures of its requests."""
        if self.model.looks_across:
            across = tuple(self._across(batch))
            fb.media = MediaRows(across=across) if across else None
            # Every later row of these requests looks at them again: what runs is never dropped.
            self._drop({placed.picture.id for seq in batch.seqs for placed in seq.request.media})
            return
        rows, parts = [], []
        first = len(batch.decodes)
        for extend in batch.extends:
            for placed in extend.seq.request.media:
                start, end = max(extend.start, placed.start), min(extend.end, placed.end)
                if start < end:
                    rows.append(np.arange(first + start - extend.start, first + end - extend.start))
                    parts.append(self.of(placed.picture)[start - placed.start : end - placed.start])
            first += extend.num_rows
        positions = self._positions(batch) if self.model.is_spatial else None
        fb.last_keys = _last_keys(batch)
        if rows:
            fb.media = MediaRows(to_device(np.concatenate(rows), self.device), torch.cat(parts), positions)
        elif positions is not None:
            fb.media = MediaRows(positions=positions)

    def _across(self, batch: Batch) -> Iterator[Across]:
        """What each row looks at: pictures side by side, of which the last is the last one up to it."""
        row = 0
        for seq in batch.decodes:
            if seq.request.media:
                yield Across(row, row + 1, self._states(seq.request.media, len(seq.request.prompt_ids)))
            row += 1
        for extend in batch.extends:
            media = extend.seq.request.media
            inside = [placed.start for placed in media if extend.start < placed.start < extend.end]
            bounds = [extend.start, *inside, extend.start + extend.num_rows]  # a trie's rows see what the last one sees
            for start, end in pairwise(bounds):
                if media and media[0].start <= start:
                    first = row + start - extend.start
                    yield Across(first, first + end - start, self._states(media, start))
            row += extend.num_rows

    def _states(self, media: tuple[Placed, ...], position: int) -> Tensor:
        seen: list[Placed] = []
        for placed in media:
            if placed.start > position:
                break
            seen = [*seen, placed] if seen and seen[-1].end == placed.start else [placed]
        parts = [self.of(placed.picture) for placed in seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _positions(self, batch: Batch) -> Tensor:
        num_decodes = len(batch.decodes)
        parts = []
        for seq, length in zip(batch.decodes, batch.lens[:num_decodes].tolist(), strict=True):
            rope = seq.request.rope
            parts.append(np.full((3, 1), length - 1 + (rope.shift if rope is not None else 0), dtype=np.int64))
        for extend in batch.extends:
            own = _own_positions(extend)
            rope = extend.seq.request.rope
            parts.append(rope.of(own) if rope is not None else np.broadcast_to(own, (3, len(own))))
        return to_device(np.concatenate(parts, axis=1), self.device)


def _last_keys(batch: Batch) -> tuple[npt.NDArray[np.int64] | None, ...] | None:
    """`ForwardBatch.last_keys`: the rows of a picture that is seen as a whole see its last one."""
    found: list[npt.NDArray[np.int64] | None] = [None] * len(batch.decodes)
    for extend in batch.extends:
        last = None
        for placed in extend.seq.request.media:
            start = max(extend.start, placed.start)
            if not placed.picture.processed.is_whole or start >= min(extend.end, placed.end):
                continue
            if placed.end > extend.end:
                raise RuntimeError(f"a piece that ends at {extend.end} cuts the picture of {placed.start}:{placed.end}")
            if last is None:
                last = np.arange(extend.start, extend.start + extend.num_rows, dtype=np.int64)
            last[start - extend.start : placed.end - extend.start] = placed.end - 1
        found.append(last)
    return tuple(found) if any(last is not None for last in found) else None


def _own_positions(extend: Extend) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    own = np.arange(extend.start, extend.end, dtype=np.int64)
    if extend.trie is None:
        return own
    return np.concatenate([own, extend.end - 1 + np.array(extend.trie.depths, dtype=np.int64)])


def features_of(runner: Any) -> FeatureCache | None:
    """The features of a runner's model; None where it takes text only."""
    model = getattr(runner, "model", None)
    return FeatureCache(model, runner.device) if isinstance(model, VisionLM) else None
