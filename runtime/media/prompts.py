"""Pictures in a prompt that is given whole: one for each place that the text (or the ids) holds for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import RequestError
from ...core.media import image_ref
from ...core.request import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .library import MediaLibrary


def with_images(
    prompts: Sequence[tuple[Segment, ...]], image_data: Any, is_one: bool, library: MediaLibrary | None
) -> list[tuple[Segment, ...]]:
    """The prompts (of ids) with pictures in the places of the model's placeholder token.

    `image_data` is for one prompt a picture or a list of them, for several a list with None, a picture or a list for
    each. Raises RequestError unless there are as many places as pictures.
    """
    if library is None:
        raise RequestError("the model takes no images, only text", field="image_data")
    entries = [image_data] if is_one else image_data
    if not isinstance(entries, (list, tuple)) or len(entries) != len(prompts):
        raise RequestError(f"must be a list with an entry for each of {len(prompts)} prompts", field="image_data")
    made = []
    for number, (segments, entry) in enumerate(zip(prompts, entries, strict=True)):
        field = "image_data" if is_one else f"image_data[{number}]"
        images = [] if entry is None else list(entry) if isinstance(entry, (list, tuple)) else [entry]
        made.append(_placed([i for segment in segments for i in segment.ids], images, library, field))
    return made


def _placed(ids: list[int], images: list[Any], library: MediaLibrary, field: str) -> tuple[Segment, ...]:
    place, before, after = library.processor.image_place
    places = [at for at, token_id in enumerate(ids) if token_id == place]
    if len(places) != len(images):
        raise RequestError(
            f"{len(images)} pictures for {len(places)} places: the prompt needs the token {place} once for each",
            field=field,
        )
    segments: list[Segment] = []
    start = 0
    for at, image in zip(places, images, strict=True):
        # What the model wants around a picture comes with it: not twice where the prompt has written it too.
        begin = at - len(before) if before and tuple(ids[max(0, at - len(before)) : at]) == before else at
        end = at + 1 + len(after) if after and tuple(ids[at + 1 : at + 1 + len(after)]) == after else at + 1
        if begin > start:
            segments.append(Segment(ids=tuple(ids[start:begin])))
        try:
            segments.append(Segment(media=image_ref(image)))
        except RequestError as error:
            raise RequestError(error.message, field=field) from None
        start = end
    if start < len(ids):
        segments.append(Segment(ids=tuple(ids[start:])))
    return tuple(segments)
