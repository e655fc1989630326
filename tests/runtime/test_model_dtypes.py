"""bfloat16 weights: float32 activations on the CPU bring the logits nearer to the exact ones than transformers'."""

import pytest
import torch
from support.batches import Slots, make_batch
from support.tiny_models import VOCAB_SIZE, reference_model, tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)


def relative(logits, exact):
    return float((logits - exact).pow(2).mean().sqrt() / exact.std())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_bfloat16_is_as_near_as_transformers(family, deterministic):
    from transformers import AutoModelForCausalLM

    path = tiny_checkpoint(family, dtype="bfloat16")
    runner = ModelRunner(
        EngineConfig.of(
            model_path=str(path),
            dtype="bfloat16",
            max_total_tokens=512,
            max_running_requests=4,
            deterministic=deterministic,
        )
    )
    assert runner.dtype is torch.bfloat16 and runner.kv_pool.k[0].dtype is torch.float32
    assert runner.model.lm_head.weight.dtype is torch.bfloat16
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = torch.randint(4, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    seq = slots.sequence()
    prefill = runner.forward(make_batch(slots, [(seq, ids[:60])]))
    ours = torch.cat([prefill, *(runner.forward(make_batch(slots, [(seq, [i])])) for i in ids[60:])])
    with torch.inference_mode():
        exact = reference_model(path)(torch.tensor([ids])).logits[0]  # the same weights, float32 arithmetic
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)(torch.tensor([ids])).logits[0].float()
    assert ours.dtype is torch.float32
    assert relative(ours, exact) <= min(0.03, relative(theirs, exact))


def test_auto_means_float32_on_the_cpu_whatever_the_checkpoint_holds():
    path = tiny_checkpoint("llama", dtype="bfloat16")
    runner = ModelRunner(EngineConfig.of(model_path=str(path), max_total_tokens=64, max_running_requests=1))
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = list(range(10, 40))
    with torch.inference_mode():
        exact = reference_model(path)(torch.tensor([ids])).logits[0]
    ours = runner.forward(make_batch(slots, [(slots.sequence(), ids)]))
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)
