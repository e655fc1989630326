"""What is compared of a model that sees with transformers: used by the tests, and by the script of docs/models.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import dslc
from dslc.core.sampling import SamplingParams
from dslc.runtime.sampling.processors import register_logit_processor, unregister_logit_processor

from .tiny_vision import IMAGE_ID, VIDEO_ID, picture, tiny_vision, vision_logits, vision_reference
from .vision_runs import NUM, OPTIONS, run

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
MARGIN = 2 * TOLERANCE
WITH_VIDEO = ("llava_onevision", "qwen2_5_vl", "qwen2_vl")
VISION_FAMILIES = ("gemma3", "llava", "llava_next", *WITH_VIDEO, "mllama")
BARRED = [IMAGE_ID, VIDEO_ID]  # transformers would take them for places without a picture
SIZES = ((40, 30), (31, 50), (64, 28), (28, 28), (90, 60), (33, 100))


class Compared(NamedTuple):
    """Largest differences from transformers' logits of the prompts' last rows and all generated ones: computed at once,
    found in the cache, and in chunks that end inside pictures. Of `total` greedy ids, `clear` have a clear best in
    transformers, `same` of these are that one. `spread` is the standard deviation of the reference's logits.
    """

    at_once: float
    cached: float
    in_parts: float
    same: int
    clear: int
    total: int
    spread: float


def vision_label(family: str) -> str:
    """What the table calls it; text-only Gemma 3 has a row in the other one."""
    return "gemma3-vision" if family == "gemma3" else family.replace("_", "-")


def vision_architecture(family: str) -> str:
    """The name in the family's config.json."""
    name: str = json.loads((tiny_vision(family) / "config.json").read_text())["architectures"][0]
    return name


def frames(seed: int, num: int, size: tuple[int, int] = (32, 24)) -> Any:
    """The frames of a film of random pictures, uint8 [num, H, W, 3]."""
    return np.stack([np.asarray(picture(seed + i, size)) for i in range(num)])


def sixteen_prompts(family: str) -> list[list[Any]]:
    """Texts with one to three pictures of several shapes anywhere; films among them where the family takes them."""
    made: list[list[Any]] = [["The quick brown fox"]]
    for number in range(15):
        one, two = picture(number, SIZES[number % 6]), picture(number + 1, SIZES[(number + 2) % 6])
        ways: list[list[Any]] = [
            [one, f" Question {number}: Which animal?"],
            ["Look: ", one, " What is it?"],
            ["A ", one, " and ", two, " differ in"],
            [one, two, one, "How many?"],
            ["First", "The", one, " then text, and then ", two, ":"],
        ]
        if family in WITH_VIDEO and number % 3 == 0:
            ways[number % 5] = ["Film: ", frames(number, 3 + number % 4), " and ", one, " what happens?"]
        parts = ways[number % 5]
        # Text before all pictures sees them in transformers, but not in the model's own code, nor here.
        while family == "mllama" and isinstance(parts[0], str):
            parts = parts[1:]
        made.append(parts)
    return made


def compare_vision(family: str) -> Compared:
    """16 prompts, continued greedily together, three times."""
    path = tiny_vision(family)
    prompts = sixteen_prompts(family)
    vision_reference(path)
    taken: dict[int, list[Tensor]] = {}

    def take(logits: Tensor, rows: Any) -> None:
        for row, found in zip(logits, rows, strict=True):
            taken.setdefault(found.params["number"], []).append(row.clone())
            row[BARRED] = float("-inf")

    wishes = [
        SamplingParams(max_new_tokens=NUM, temperature=0.0, ignore_eos=True, custom_params={"number": number})
        for number in range(len(prompts))
    ]
    options = {**OPTIONS, "enable_custom_logit_processor": True, "max_total_tokens": 8192}
    errors = []
    same = clear = 0
    spread = 0.0
    name = f"take {family}"
    register_logit_processor(name, take)
    try:
        for chunk, rounds in ((None, 2), (5, 1)):
            given = options if chunk is None else {**options, "chunked_prefill_size": chunk}
            with dslc.Engine(model_path=str(path), **given) as engine:
                for _ in range(rounds):
                    taken.clear()
                    events = run(engine, prompts, sampling=wishes, logit_processor=name)
                    worst = 0.0
                    for number, (parts, event) in enumerate(zip(prompts, events, strict=True)):
                        ids = list(event.outputs[0].token_ids)
                        wanted = vision_logits(path, parts, ids)
                        got = torch.stack(taken[number])
                        worst = max(worst, float((got - wanted).abs().max()))
                        spread = max(spread, float(wanted.std()))
                        if not errors:
                            wanted[:, BARRED] = float("-inf")
                            best = wanted.topk(2)
                            is_clear = best.values[:, 0] - best.values[:, 1] > MARGIN
                            clear += int(is_clear.sum())
                            same += int((torch.tensor(ids) == best.indices[:, 0])[is_clear].sum())
                    errors.append(worst)
    finally:
        unregister_logit_processor(name)
    return Compared(errors[0], errors[1], errors[2], same, clear, NUM * len(prompts), spread)
