"""Logits equal transformers', for prefill, chunks, decode and mixed batches, with scattered slots."""

import pytest
import torch
from support.batches import Slots, make_batch
from support.tiny_models import VOCAB_SIZE, agreed_until, reference_margins, reference_model, tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)
TOLERANCE = 1e-4

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
}


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(4, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def runner_for(path, **options) -> ModelRunner:
    return ModelRunner(EngineConfig.of(model_path=str(path), max_total_tokens=4096, max_running_requests=64, **options))


def reference_logits(path, ids):
    with torch.inference_mode():
        return reference_model(path)(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_chunks_and_decode_equal_transformers(variant):
    family, overrides = VARIANTS[variant]
    path = tiny_checkpoint(family, **overrides)
    runner = runner_for(path)
    slots = Slots(runner.req_to_token, runner.num_tokens)
    whole, chunked, other = prompt(70), prompt(70), prompt(33, seed=1)
    a, b, c = slots.sequence(), slots.sequence(), slots.sequence()

    expected = reference_logits(path, whole)
    torch.testing.assert_close(runner.forward(make_batch(slots, [(a, whole)])), expected, atol=TOLERANCE, rtol=0)

    # the same in chunks, with another request's chunks and decodes beside it
    got, got_other = [], []
    for begin, end, o_begin, o_end in ((0, 1, 0, 20), (1, 8, 20, 31), (8, 40, 31, 32), (40, 70, 32, 33)):
        out = runner.forward(make_batch(slots, [(b, chunked[begin:end]), (c, other[o_begin:o_end])]))
        got.append(out[: end - begin])
        got_other.append(out[end - begin :])
    torch.testing.assert_close(torch.cat(got), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(torch.cat(got_other), reference_logits(path, other), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_greedy_batch_equals_transformers_generate(family):
    path = tiny_checkpoint(family)
    runner = runner_for(path)
    slots = Slots(runner.req_to_token, runner.num_tokens)
    lengths = [1, 2, 3, 5, 9, 14, 20, 25, 31, 48, 64, 77, 90, 120, 150, 200]
    prompts = [prompt(n, seed=n) for n in lengths]
    seqs = [slots.sequence() for _ in prompts]
    logits = runner.forward(make_batch(slots, list(zip(seqs, prompts, strict=True)), all_logits=False))
    outputs = [[int(i)] for i in logits.argmax(-1)]
    for _ in range(15):
        work = [(seq, out[-1:]) for seq, out in zip(seqs, outputs, strict=True)]
        logits = runner.forward(make_batch(slots, work))
        for out, token in zip(outputs, logits.argmax(-1).tolist(), strict=True):
            out.append(token)
    compared = 0
    for ids, out in zip(prompts, outputs, strict=True):
        expected, margins = reference_margins(path, ids, 16)
        same = agreed_until(margins)
        compared += same
        assert out[:same] == expected[:same]
    assert compared >= 0.95 * 16 * len(prompts)  # the rest follows a near-tie, which may go either way


def test_only_wanted_rows_reach_the_head():
    path = tiny_checkpoint("llama")
    runner = runner_for(path)
    slots = Slots(runner.req_to_token, runner.num_tokens)
    seen = []
    runner.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    fb = make_batch(slots, [(slots.sequence(), prompt(20)), (slots.sequence(), prompt(9))], all_logits=False)
    assert runner.forward(fb).shape == (2, VOCAB_SIZE)
    assert seen == [2]


def test_an_idle_batch_gives_no_logits():
    runner = runner_for(tiny_checkpoint("llama"))
    slots = Slots(runner.req_to_token, runner.num_tokens)
    assert runner.forward(make_batch(slots, [])).shape == (0, VOCAB_SIZE)
