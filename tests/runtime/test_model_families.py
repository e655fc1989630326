"""Every family against transformers: logits of prefill, chunks and decodes, and greedy ids of a batch of 16.

One row of `support.families.FAMILIES` is one tiny random checkpoint. What is measured is what `docs/models.md` shows.
"""

import pytest
import torch
import transformers
from support.batches import Slots, make_batch
from support.families import COMMON, FAMILIES, GENERIC, VOCAB, family_folder, family_reference

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError, ModelLoadError
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)
TOLERANCE = 1e-4
MARGIN = 2 * TOLERANCE  # where the reference's best two are closer than this, either may be taken


NO_DECODERS = [
    ("mamba", "Mamba", {}, "'MambaForCausalLM' is not known"),
    ("lfm2", "Lfm2", {"layer_types": ["conv", "full_attention"]}, "its rows meet outside attention|layers attend"),
    ("roberta", "Roberta", {"num_key_value_heads": 4}, "its rows see what comes after them"),
]


def prompt(length, seed=0):
    return torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def runner_for(name, **options):
    options.setdefault("context_length", FAMILIES[name].context_length)
    config = EngineConfig.of(
        model_path=str(family_folder(name)), max_total_tokens=4096, max_running_requests=64, **options
    )
    return ModelRunner(config)


def reference_logits(name, ids):
    with torch.inference_mode():
        return family_reference(name)(torch.tensor([ids])).logits[0].float()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


BACKENDS = ["auto", "torch_native", "torch_deterministic"]
ROWS = [(name, backend) for name in FAMILIES for backend in (["auto"] if name in GENERIC else BACKENDS)]


@pytest.mark.parametrize("family, backend", ROWS)
def test_prefill_chunks_and_decodes_equal_transformers(family, backend):
    runner = runner_for(family, attention_backend=backend, deterministic=backend == "torch_deterministic")
    slots = Slots(runner.req_to_token, runner.num_tokens)
    longest = min(70, runner.context_length)
    whole, other = prompt(longest), prompt(longest // 2, seed=1)
    a, b, c = slots.sequence(), slots.sequence(), slots.sequence()
    expected, expected_other = reference_logits(family, whole), reference_logits(family, other)
    assert expected.std() > 0.5  # flat logits would be close to anything
    at_once = runner.forward(make_batch(slots, [(a, whole)]))
    prefill = (at_once - expected).abs().max()

    # the same in chunks, with another request's chunks and decodes beside it
    cuts = [0, 1, 8, longest * 4 // 7, longest - 2, longest - 1, longest]
    half = len(other)
    other_cuts = [0, half - 5, half - 4, half - 3, half - 2, half - 1, half]
    got, got_other = [], []
    for i in range(6):
        mine, theirs = whole[cuts[i] : cuts[i + 1]], other[other_cuts[i] : other_cuts[i + 1]]
        out = runner.forward(make_batch(slots, [(b, mine), (c, theirs)]))
        got.append(out[: len(mine)])
        got_other.append(out[len(mine) :])
    decode = (torch.cat(got) - expected).abs().max()
    beside = (torch.cat(got_other) - expected_other).abs().max()
    if runner.config.deterministic:
        assert torch.equal(torch.cat(got), at_once)
    print(f"{family}: prefill {prefill:.1e}, chunks and decodes {max(decode, beside):.1e}")
    assert max(prefill, decode, beside) < TOLERANCE


def test_what_runs_a_family():
    assert {name for name in FAMILIES if runner_for(name).model.is_generic} == set(GENERIC)
    assert len(GENERIC) >= 15


def test_transformers_code_may_be_asked_for_and_is_never_deterministic():
    assert runner_for("granite", model_impl="transformers").model.is_generic
    with pytest.raises(ModelLoadError, match="'CohereForCausalLM' is not known"):
        runner_for("cohere", model_impl="dslc")
    with pytest.raises(ConfigError, match="deterministic"):
        runner_for("cohere", deterministic=True)


@pytest.mark.parametrize("name, cls, fields, why", NO_DECODERS)
def test_what_is_no_plain_decoder_is_refused(name, cls, fields, why, tmp_path):
    config = getattr(transformers, f"{cls}Config")(**{**COMMON, **fields})
    getattr(transformers, f"{cls}ForCausalLM")(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=why):
        ModelRunner(EngineConfig.of(model_path=str(tmp_path), max_total_tokens=64, max_running_requests=2))


def test_greedy_batch_of_16_equals_transformers(family):
    runner = runner_for(family)
    slots = Slots(runner.req_to_token, runner.num_tokens)
    room = runner.context_length - 12
    shortest = FAMILIES[family].shortest_prompt
    lengths = [max(shortest, min(n, room)) for n in (1, 2, 3, 5, 9, 14, 20, 25, 31, 40, 48, 55, 64, 77, 90, 100)]
    prompts = [prompt(n, seed=i + 1) for i, n in enumerate(lengths)]
    seqs = [slots.sequence() for _ in prompts]
    logits = runner.forward(make_batch(slots, list(zip(seqs, prompts, strict=True)), all_logits=False))
    outputs = [[int(i)] for i in logits.argmax(-1)]
    for _ in range(11):
        work = [(seq, out[-1:]) for seq, out in zip(seqs, outputs, strict=True)]
        for out, token in zip(outputs, runner.forward(make_batch(slots, work)).argmax(-1).tolist(), strict=True):
            out.append(token)
    compared = 0
    for ids, out in zip(prompts, outputs, strict=True):
        logits = reference_logits(family, ids + out[:-1])[len(ids) - 1 :]
        best = logits.topk(2)
        margins = best.values[:, 0] - best.values[:, 1]
        is_clear = margins > MARGIN
        compared += int(is_clear.sum())
        assert torch.equal(torch.tensor(out)[is_clear], best.indices[:, 0][is_clear])
    assert compared >= 0.95 * 12 * len(prompts)
    assert len({token for out in outputs for token in out}) > 16  # not one token over and over
