"""Engines whose decodes are captured: the ids of launched ones at any length, and a reason where there are none.

A stand-in for a GPU's graphs records what a forward does to tensors and does just that again, on the same tensors: what
Python decided while it was recorded stays as it was.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from support.batches import Slots, make_batch
from support.families import FAMILIES, GENERIC, family_folder
from support.tiny_models import tiny_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError
from dslc.runtime import graph_buckets, model_runner
from dslc.runtime.attention import base
from dslc.runtime.attention.ops import attend_plain
from dslc.runtime.batch import PrefixGroup
from dslc.runtime.engine import Engine
from dslc.runtime.layers.moe import Experts
from dslc.runtime.model_runner import ModelRunner
from dslc.runtime.platform import CpuPlatform

torch.set_num_threads(1)
PROMPTS = [list(range(40 * i, 40 * i + n)) for i, n in enumerate((3, 1, 30, 17, 9), 1)]
NEW = [9, 4, 12, 2, 7]  # batches of 5, 4, 3, 2 and 1 decodes
aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.lift_fresh, aten.bincount, aten.unique_dim}


class Recorder(TorchDispatchMode):
    """Notes every operation on tensors; refuses those that wait for the device or bring values of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITS:
            raise RuntimeError(f"{func} is not permitted when a stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.noted.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.noted:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordingPlatform(CpuPlatform):
    """The host, as if it had graphs."""

    name = "recording"
    supports_graphs = True

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def capture(self, forward: Any) -> Any:
        recorder = Recorder()
        with recorder:
            out = forward()
        self.captured.append(len(out))

        def replay() -> torch.Tensor:
            recorder.replay()
            self.replayed.append(len(out))
            return out

        return replay


class StaticAttention(base.AttentionBackend):
    """Decodes in plain torch over whole rows of the request table: the same shapes at any length."""

    def captures_decodes(self, head_dim: int) -> bool:
        return True

    def init_forward_metadata(self, fb: Any) -> None:
        fb.scratch["zeros"] = torch.zeros(fb.num_requests, 1, 1, self.req_to_token.device.shape[1])

    def forward(self, q: Any, k: Any, v: Any, layer: Any, fb: Any, kv_pool: Any) -> torch.Tensor:
        keys, values = kv_pool.layer(layer.layer_id)
        slots = self.req_to_token.device.index_select(0, fb.req_rows).long()
        place = torch.arange(slots.shape[1])
        ahead = place >= fb.seq_lens[:, None]
        if layer.sliding_window is not None:
            ahead |= place < fb.seq_lens[:, None] - layer.sliding_window
        mask = fb.scratch["zeros"].masked_fill(ahead[:, None, None], float("-inf"))
        k, v = (x.index_select(0, slots.flatten()).view(*slots.shape, *x.shape[1:]) for x in (keys, values))
        out, _ = attend_plain(
            q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), mask, layer.scaling, layer.logit_cap
        )
        return out.squeeze(2)


@pytest.fixture
def platform(monkeypatch):
    platform = RecordingPlatform()
    monkeypatch.setattr(model_runner, "platform_of", lambda device: platform)
    monkeypatch.setitem(base._BACKENDS, "static", StaticAttention)
    return platform


def config_of(family: str = "llama", **options: Any) -> EngineConfig:
    given = {
        "max_running_requests": 5, "max_total_tokens": 512, "context_length": 96, "dtype": "float32",
        "prefill_attention_backend": "torch_native", "decode_attention_backend": "static",
    }  # fmt: skip
    folder = family_folder(family) if family in FAMILIES else tiny_checkpoint(family)
    return EngineConfig.of(model_path=str(folder), **{**given, **options})


def generated(config: EngineConfig, new: list[int] = NEW) -> tuple[list[Any], dict[str, Any]]:
    """Ids and their log-probs, and the engine's own account of itself."""
    params = [{"max_new_tokens": n, "temperature": 0.0, "ignore_eos": True} for n in new]
    with Engine.of_parts(config, ModelRunner(config), check_when_idle=True) as engine:
        outputs = engine.generate(input_ids=PROMPTS[: len(new)], sampling_params=params, return_logprob=True)
        info = engine.get_server_info()
    return [(out["output_ids"], out["meta_info"]["output_token_logprobs"]) for out in outputs], info


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for (ids, logprobs), (other_ids, others) in zip(found, expected, strict=True):
        assert ids == other_ids
        for one, other in zip(logprobs, others, strict=True):
            assert one[1:] == other[1:] and one[0] == pytest.approx(other[0], abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])  # with windows, caps
@pytest.mark.parametrize("disable_overlap_schedule", [False, True])
def test_captured_decodes_give_the_ids_of_launched_ones(family, disable_overlap_schedule, platform) -> None:
    options = {"disable_overlap_schedule": disable_overlap_schedule}
    expected, info = generated(config_of(family, disable_cuda_graph=True, **options))
    assert info["decode_graphs"] == "switched off by disable_cuda_graph" and not platform.captured
    found, info = generated(config_of(family, **options))
    assert_same(found, expected)
    assert info["decode_graphs"] == "batches of [1, 2, 4, 5]" and platform.captured == [5, 4, 2, 1]
    assert set(platform.replayed) == {1, 2, 4, 5}  # 3 of them ran in the graph of 4


def test_every_family_can_be_captured_or_says_why(platform) -> None:
    """Those written here, but mixtures; logits of a replay are those of a launch."""
    written = [name for name in FAMILIES if name not in GENERIC]
    assert len(written) > 20
    for name in written:
        runner = ModelRunner(config_of(name, max_running_requests=2))
        if runner.graphs is None:
            assert any(isinstance(module, Experts) for module in runner.model.modules()), name
            continue
        slots = Slots(runner.req_to_token, runner.num_tokens)
        seqs = [slots.sequence() for _ in range(2)]
        runner.forward(make_batch(slots, [(seqs[0], [3, 4, 5, 6]), (seqs[1], [7])]))
        fb = make_batch(slots, [(seq, [9]) for seq in seqs])
        replayed = runner.forward(fb).clone()
        runner.graphs = None
        torch.testing.assert_close(replayed, runner.forward(fb), atol=1e-4, rtol=1e-4)


def test_padding_touches_nothing_of_others(platform) -> None:
    """Logits and the whole pool but slot 0 are those of launched forwards."""
    runners = [ModelRunner(config_of(**options)) for options in ({}, {"disable_cuda_graph": True})]
    for runner in runners:
        slots = Slots(runner.req_to_token, runner.num_tokens)
        runner.seqs = [slots.sequence() for _ in PROMPTS]
        runner.slots = slots
        runner.forward(make_batch(slots, list(zip(runner.seqs, PROMPTS, strict=True))))
    for step, chosen in enumerate([(0, 1, 2), (4,), (0, 1, 2, 3, 4), (3, 1), (0, 2, 4), (2,)]):
        logits = []
        for runner in runners:
            fb = make_batch(runner.slots, [(runner.seqs[i], [7 + step + i]) for i in chosen])
            assert (runner.graphs is not None) == (runner is runners[0])
            logits.append(runner.forward(fb).clone())
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    assert platform.replayed == [4, 1, 5, 2, 4, 1]
    for number in range(runners[0].kv_shape.num_layers):
        for one, other in zip(*(runner.kv_pool.layer(number) for runner in runners), strict=True):
            torch.testing.assert_close(one[1:], other[1:], atol=1e-4, rtol=1e-4)


def test_with_attention_in_triton(platform) -> None:
    """Its launches again over the static buffers, under the interpreter, which no recorder sees."""
    options = {"prefill_attention_backend": None, "decode_attention_backend": None, "attention_backend": "triton"}
    options["max_running_requests"] = 3
    expected, _ = generated(config_of(disable_cuda_graph=True, **options), [3, 2, 2])
    platform.capture = lambda forward: forward
    found, info = generated(config_of(**options), [3, 2, 2])
    assert_same(found, expected)
    assert info["decode_graphs"] == "batches of [1, 2, 3]"


def test_a_limit_on_what_is_captured(platform) -> None:
    found, info = generated(config_of(cuda_graph_max_bs=2))
    assert info["decode_graphs"] == "batches of [1, 2]" and set(platform.replayed) == {1, 2}
    assert_same(found, generated(config_of(disable_cuda_graph=True))[0])
    for options, said in (
        ({"cuda_graph_max_bs": 0}, "must be a positive integer"),
        ({"cuda_graph_max_bs": 2, "disable_cuda_graph": True}, "means nothing with disable_cuda_graph"),
    ):
        with pytest.raises(ConfigError, match=f"cuda_graph_max_bs: {said}"):
            config_of(**options)


@pytest.mark.parametrize(
    "family, options, environment, reason",
    [
        ("llama", {"decode_attention_backend": "torch_native"}, {}, "the attention backend plans each decode"),
        ("mixtral", {}, {}, "the model is a mixture"),
        ("llama", {"model_impl": "transformers"}, {}, "transformers' code"),
        ("llama", {}, {"DSLC_CHECK_SLOTS": "1"}, "DSLC_CHECK_SLOTS=1 reads slots"),
    ],
)
def test_what_cannot_be_captured_is_launched(family, options, environment, reason, platform, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, info = generated(config_of(family, **options))
    assert reason in info["decode_graphs"] and not platform.captured
    assert [len(ids) for ids, _ in found] == NEW


def test_a_mixture_would_not_pass_for_captured(platform, monkeypatch) -> None:
    """What is not known to wait for the device fails when it is captured, and is launched from then on."""
    monkeypatch.setattr(graph_buckets, "Experts", ())
    found, info = generated(config_of("mixtral"))
    assert "a capture failed: aten.bincount.default is not permitted" in info["decode_graphs"]
    assert [len(ids) for ids, _ in found] == NEW


def test_a_cpu_has_no_graphs() -> None:
    config = config_of(prefill_attention_backend=None, decode_attention_backend="torch_native", device="cpu")
    assert ModelRunner(config).how_forwards_run == {
        "forward": "torch: an attention backend was asked for by name",
        "decode_graphs": "the platform cpu has no graphs",
    }


def test_who_looks_into_the_modules_sees_them_run(platform) -> None:
    runner = ModelRunner(config_of())
    slots = Slots(runner.req_to_token, runner.num_tokens)
    seq, seen = slots.sequence(), []
    runner.forward(make_batch(slots, [(seq, [5, 6, 7])]))
    hook = runner.model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    runner.forward(make_batch(slots, [(seq, [8])]))
    assert seen == [1] and platform.replayed == []
    hook.remove()
    runner.forward(make_batch(slots, [(seq, [9])]))
    assert seen == [1] and platform.replayed == [1]


def test_what_a_graph_reads_stays(platform) -> None:
    """Tensors made ready for a captured batch live as long as its graph, which knows only their addresses."""
    made: list[Any] = []

    class Noting(StaticAttention):
        def init_forward_metadata(self, fb: Any) -> None:
            super().init_forward_metadata(fb)
            made.append(weakref.ref(fb.scratch["zeros"]))

    platform.capture = lambda forward: torch.zeros(1).clone  # forgets the forward, as a graph does
    base._BACKENDS["static"] = Noting
    runner = ModelRunner(config_of())
    gc.collect()
    assert len(made) == len(runner.graphs.buckets) and all(ref() is not None for ref in made)


def test_requests_that_share_much_are_launched_together(platform, monkeypatch) -> None:
    """A graph reads a shared prefix once for each request; where that costs more than launching, there is none."""
    prefix = list(range(10, 80))

    def replays(threshold: int) -> list[int]:
        monkeypatch.setattr(graph_buckets, "LAUNCHES_OF_A_LAYER_BYTES", threshold)
        runner = ModelRunner(config_of())
        slots = Slots(runner.req_to_token, runner.num_tokens)
        seqs = [slots.sequence() for _ in range(5)]
        runner.forward(make_batch(slots, [(seq, prefix) for seq in seqs]))
        platform.replayed.clear()
        groups = (PrefixGroup(tuple(range(5)), 70),)
        fb = make_batch(slots, [(seq, [7]) for seq in seqs], groups=groups)
        assert graph_buckets.spared_keys(fb) == 4 * 70
        runner.forward(fb)
        runner.forward(make_batch(slots, [(seq, [8]) for seq in seqs]))
        return list(platform.replayed)

    per_token = 2 * 2 * 16 * 4  # bytes of a layer: K and V, 2 heads of 16, float32
    assert replays(280 * per_token) == [5, 5] and replays(279 * per_token) == [5]
