"""A picture (or video) as the engine has it, and where it stands in a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Positions = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Processed:
    """What a model makes of a picture's pixels, before any forward.

    `pixels` are the encoder's inputs by name, on the CPU. In the prompt stand the ids `before`, `num_features` places
    for what the encoder gives, and the ids `after`. `grid` is (frames, rows, columns) of the features, where the
    model's positions follow it; `frame_step` how far apart frames stand in them.

    `text_before` and `text_after` are text that comes with the picture: it is tokenised together with what stands next
    to it. `is_whole`: the rows of its places see each other, those that come later too. Then no forward may end inside
    it, and something must stand after it.

    `num_states`: the rows that the encoder gives where they do not stand in the prompt, but are looked at from there
    (cross attention).
    """

    pixels: dict[str, Tensor]
    num_features: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    grid: tuple[int, int, int] | None = None
    frame_step: float = 1.0
    text_before: str = ""
    text_after: str = ""
    is_whole: bool = False
    num_states: int = 0

    def __post_init__(self) -> None:
        if self.is_whole and not self.after:
            raise ValueError("a picture that is seen as a whole needs an id after it")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A processed picture under its interned `id`, which is above the vocabulary and no other picture has.

    `digest` is the SHA-256 of pixels and processor settings: equal digests are equal pictures.
    """

    id: int
    digest: str
    processed: Processed = field(repr=False)

    @property
    def ids(self) -> list[int]:
        """What stands in the prompt, between `text_before` and `text_after`."""
        what = self.processed
        return [*what.before, *([self.id] * what.num_features), *what.after]


class Placed(NamedTuple):
    """A picture in a prompt: `start` is the position of its first feature."""

    picture: Picture
    start: int

    @property
    def end(self) -> int:
        return self.start + self.picture.processed.num_features


@dataclass(frozen=True, slots=True, eq=False)
class RopePositions:
    """Positions of rotary embedding in three axes (time, height, width) where a prompt has pictures.

    `table` [3, P] those of the prompt; a later token at position p stands at p + `shift` in each axis.
    """

    table: Positions
    shift: int

    def of(self, positions: Positions) -> Positions:
        """[T] -> [3, T]."""
        known = self.table.shape[1]
        inside = np.minimum(positions, known - 1)
        return np.where(positions < known, self.table[:, inside], positions + self.shift)
