"""Prompts of texts, pictures and videos, run by an engine; and what transformers makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from support.tiny_vision import Film, vision_greedy

import dslc
from dslc.core.media import image_ref, video_ref
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams

OPTIONS: dict[str, Any] = {"max_total_tokens": 4096, "max_running_requests": 16, "random_seed": 0}
NUM = 8


def segment(part: Any) -> Segment:
    """A piece of prompt: text, a picture, the frames of a video, or such with their rate."""
    if isinstance(part, str):
        return Segment(text=part)
    if isinstance(part, Film):
        return Segment(media=replace(video_ref(part.frames, 64), fps=part.fps))
    if isinstance(part, np.ndarray):
        return Segment(media=video_ref(part, 64))
    return Segment(media=image_ref(part))


def run(engine: dslc.Engine, prompts: list[list[Any]], num: int = NUM, **wishes: Any) -> list[Any]:
    """The outputs of prompts of texts and pictures, sent at once. `sampling` may be a list, one for each."""
    ended: dict[str, Any] = {}
    own = wishes.pop("sampling", SamplingParams(max_new_tokens=num, temperature=0.0, ignore_eos=True))
    requests = [
        GenRequest(
            id=str(number),
            segments=tuple(map(segment, parts)),
            sampling=own[number] if isinstance(own, list) else own,
            **wishes,
        )
        for number, parts in enumerate(prompts)
    ]

    def sink(event: Any) -> None:
        if hasattr(event, "outputs") or hasattr(event, "error"):
            ended[event.request_id] = event

    engine.submit(requests, sink)
    engine.wait(lambda: len(ended) == len(requests))
    events = [ended[request.id] for request in requests]
    for event in events:
        if hasattr(event, "error"):
            raise event.error.exception()
    return events


def ids_of(events: list[Any]) -> list[list[int]]:
    return [list(event.outputs[0].token_ids) for event in events]


def expected(path: Any, parts: list[Any], num: int = NUM) -> list[int]:
    ids, margin = vision_greedy(path, parts, num)
    assert margin > 1e-3, "pick another seed: the reference is undecided"
    return ids
