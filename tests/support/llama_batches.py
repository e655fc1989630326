"""Tiny models of Llama's shape with odd sizes, and batches of every kind, for tests of the forwards made for them."""

from __future__ import annotations

from typing import Any

import torch
from support.batches import Slots, make_batch
from support.tiny_models import VOCAB_SIZE, tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.runtime.batch import PrefixGroup
from dslc.runtime.layers.embedding import Embedding
from dslc.runtime.layers.linear import Linear
from dslc.runtime.model_runner import ModelRunner

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "odd": ("llama", {"hidden_size": 52, "head_dim": 10, "num_key_value_heads": 1, "intermediate_size": 99}),
    "heads of 80": ("llama", {"hidden_size": 66, "head_dim": 80, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "heads of 256, bias": ("llama", {"head_dim": 256, "attention_bias": True, "mlp_bias": True}),
    "few inputs": ("llama", {"hidden_size": 40, "intermediate_size": 17, "tie_word_embeddings": True}),
    "window": ("mistral", {"sliding_window": 24}),
    "window of one": ("mistral", {"sliding_window": 1}),
    "windows in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1}),
    "head norms": ("qwen3", {"head_dim": 24}),
}
TAU = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest logit


def runner_for(name: str, dtype: str = "float32", **options: Any) -> ModelRunner:
    family, overrides = MODELS[name]
    given = {"max_total_tokens": 4096, "max_running_requests": 64, "dtype": dtype, "device": "cpu", **options}
    return ModelRunner(EngineConfig.of(model_path=str(tiny_checkpoint(family, **overrides)), **given))


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(4, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def many_batches(runner: ModelRunner) -> list[torch.Tensor]:
    """Logits of prompts of many lengths, chunks, decodes, a shared prefix with a nested one, and trees."""
    slots = Slots(runner.req_to_token, runner.num_tokens)
    lengths = (1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 130)
    work = [(slots.sequence(), prompt(n, n)) for n in lengths]
    out = [runner.forward(make_batch(slots, work))]
    out.append(runner.forward(make_batch(slots, [(seq, [7 + i]) for i, (seq, _) in enumerate(work)], all_logits=False)))
    out.append(runner.forward(make_batch(slots, [(seq, prompt(1 + 5 * i, i)) for i, (seq, _) in enumerate(work[:6])])))

    base, longer = work[-1][0], slots.sequence()
    runner.forward(make_batch(slots, [(longer, prompt(200, 5))]))
    near = [slots.sequence(share=longer, shared_len=200) for _ in range(3)]
    far = [slots.sequence(share=longer, shared_len=129) for _ in range(3)]
    groups = (PrefixGroup(tuple(range(6)), 129), PrefixGroup((0, 1, 2), 200))
    shared = [(seq, prompt(1 + i % 2, i)) for i, seq in enumerate(near + far)]
    out.append(runner.forward(make_batch(slots, shared, groups=groups)))

    trees = [[-1, 0, 0, 1, -1, 3], None, [-1, 0, 1, 2, 2, 4], [-1, -1, -1]]
    seqs = [slots.sequence(share=base, shared_len=n) for n in (75, 64, 126, 1)]
    rows = [(seq, prompt(6 if tree is None else len(tree), 9)) for seq, tree in zip(seqs, trees, strict=True)]
    out.append(runner.forward(make_batch(slots, rows, parents=trees)))
    return out


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tau: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=tau * float(theirs.abs().max().clamp(min=1)), rtol=0)


def exact_batches(name: str) -> list[torch.Tensor]:
    """Logits in float32 arithmetic with weights rounded to bfloat16: the truth of a bfloat16 model."""
    exact = runner_for(name, attention_backend="torch_native")
    for module in exact.model.modules():
        if isinstance(module, (Linear, Embedding)):
            with torch.inference_mode():
                module.weight.copy_(module.weight.bfloat16().float())
            module.packed = None
    return many_batches(exact)


def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The largest mean error of a batch, of the standard deviation of its logits."""
    pairs = zip(found, truth, strict=True)
    return max(float((ours - exactly).square().mean().sqrt() / exactly.std()) for ours, exactly in pairs)
