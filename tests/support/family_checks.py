"""What is compared of a family with transformers: used by the tests, and by the script that prints docs/models.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dslc.core.config import EngineConfig
from dslc.runtime.model_runner import ModelRunner

from .batches import Slots, make_batch
from .families import FAMILIES, VOCAB, family_folder, family_reference

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
MARGIN = 2 * TOLERANCE  # where the reference's best two are closer than this, either may be taken
NUM_GREEDY = 12
LENGTHS = (1, 2, 3, 5, 9, 14, 20, 25, 31, 40, 48, 55, 64, 77, 90, 100)  # of the 16 prompts of the greedy batch


class Logits(NamedTuple):
    """Largest differences from transformers' logits: of a prompt at once, and of chunks and decodes in mixed batches.

    `is_same_bits`: chunks and decodes gave what the prompt at once gave. `spread` is the standard deviation of the
    reference's logits: flat ones would be close to anything.
    """

    at_once: float
    in_parts: float
    is_same_bits: bool
    spread: float


class Greedy(NamedTuple):
    """Of `total` greedy ids of a batch, `clear` have a clear best in the reference, `same` of these are that one."""

    same: int
    clear: int
    total: int
    kinds: int  # different ids


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random ids."""
    return torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def runner_for(name: str, **options: Any) -> ModelRunner:
    """The family's tiny checkpoint, loaded."""
    options.setdefault("context_length", FAMILIES[name].context_length)
    path = str(family_folder(name))
    return ModelRunner(EngineConfig.of(model_path=path, max_total_tokens=4096, max_running_requests=64, **options))


def reference_logits(name: str, ids: list[int]) -> Tensor:
    """[T, vocab] of transformers, float32."""
    with torch.inference_mode():
        logits: Tensor = family_reference(name)(torch.tensor([ids])).logits[0].float()
    return logits


def compare_logits(name: str, runner: ModelRunner) -> Logits:
    """A prompt at once; then in chunks and single tokens, beside another request's."""
    slots = Slots(runner.req_to_token, runner.num_tokens)
    longest = min(70, runner.context_length)
    whole, other = prompt(longest), prompt(longest // 2, seed=1)
    a, b, c = slots.sequence(), slots.sequence(), slots.sequence()
    expected, expected_other = reference_logits(name, whole), reference_logits(name, other)
    at_once = runner.forward(make_batch(slots, [(a, whole)]))
    cuts = [0, 1, 8, longest * 4 // 7, longest - 2, longest - 1, longest]
    half = len(other)
    other_cuts = [0, half - 5, half - 4, half - 3, half - 2, half - 1, half]
    got, got_other = [], []
    for i in range(6):
        mine, theirs = whole[cuts[i] : cuts[i + 1]], other[other_cuts[i] : other_cuts[i + 1]]
        out = runner.forward(make_batch(slots, [(b, mine), (c, theirs)]))
        got.append(out[: len(mine)])
        got_other.append(out[len(mine) :])
    parts = torch.cat(got)
    in_parts = max(float((parts - expected).abs().max()), float((torch.cat(got_other) - expected_other).abs().max()))
    return Logits(float((at_once - expected).abs().max()), in_parts, torch.equal(parts, at_once), float(expected.std()))


def compare_greedy(name: str, runner: ModelRunner) -> Greedy:
    """16 prompts of 1 to 100 tokens, greedily continued together; each id against transformers given those before."""
    slots = Slots(runner.req_to_token, runner.num_tokens)
    shortest, room = FAMILIES[name].shortest_prompt, runner.context_length - NUM_GREEDY
    prompts = [prompt(max(shortest, min(n, room)), seed=i + 1) for i, n in enumerate(LENGTHS)]
    seqs = [slots.sequence() for _ in prompts]
    logits = runner.forward(make_batch(slots, list(zip(seqs, prompts, strict=True)), all_logits=False))
    outputs = [[int(i)] for i in logits.argmax(-1)]
    for _ in range(NUM_GREEDY - 1):
        work = [(seq, out[-1:]) for seq, out in zip(seqs, outputs, strict=True)]
        for out, token in zip(outputs, runner.forward(make_batch(slots, work)).argmax(-1).tolist(), strict=True):
            out.append(token)
    same = clear = 0
    for ids, out in zip(prompts, outputs, strict=True):
        best = reference_logits(name, ids + out[:-1])[len(ids) - 1 :].topk(2)
        is_clear = best.values[:, 0] - best.values[:, 1] > MARGIN
        clear += int(is_clear.sum())
        same += int((torch.tensor(out) == best.indices[:, 0])[is_clear].sum())
    return Greedy(same, clear, NUM_GREEDY * len(prompts), len({token for out in outputs for token in out}))
