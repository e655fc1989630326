"""The triton attention backend under Triton's interpreter: rows, groups, trees, whole engines; what it refuses."""

import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from support.attention_world import OPTIONS, World, check
from support.batches import make_batch
from support.tiny_models import agreed_until, reference_margins, tiny_checkpoint

pytest.importorskip("triton")
from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError
from dslc.kernels import registry
from dslc.kernels.triton import cascade_attention, decode_attention, extend_attention
from dslc.runtime.attention import choose_attention_backend, planner
from dslc.runtime.attention.triton_backend import TritonBackend
from dslc.runtime.batch import PrefixGroup
from dslc.runtime.engine import Engine
from dslc.runtime.graph_buckets import DecodeGraphs, StaticInputs
from dslc.runtime.layers import rotary
from dslc.runtime.memory.request_table import ReqToTokenPool
from dslc.runtime.platform import CpuPlatform, CudaPlatform

torch.set_num_threads(1)


@pytest.mark.parametrize("options", OPTIONS)
def test_prefill_extend_decode_and_mixed(options):
    world = World("triton", **OPTIONS[options])
    a, b, c = (world.sequence() for _ in range(3))
    check(world.run([(a, 20)]))
    if options == "encoder":  # its rows would have to be computed again with each extension
        check(world.run([(b, 7), (c, 33)]))
        return
    check(world.run([(b, 7), (c, 17)]))
    check(world.run([(a, 3), (b, 1), (c, 2)]))  # mixed: chunks and a decode
    check(world.run([(a, 1), (b, 1), (c, 1)]))


@pytest.mark.parametrize("options", ["gqa", "window", "soft-cap"])
def test_trees_beside_plain_requests(options):
    world = World("triton", **OPTIONS[options])
    a, b, c = (world.sequence() for _ in range(3))
    check(world.run([(a, 30), (b, 12)]))
    parents = [None, [-1, 0, 0, 1, -1, 4, 5, 2, 3], None]
    check(world.run([(b, 1), (a, 9), (c, 6)], parents=parents))
    check(world.run([(world.sequence(), 3)], parents=[[-1, -1, 1]]))  # a tree at the very beginning
    d, e = (world.sequence() for _ in range(2))
    world.run([(d, 20), (e, 4)])
    check(world.run([(d, 1), (e, 3)], parents=[[-1], [-1, 0, 1]]))  # chains that come as trees


@pytest.fixture
def small_groups(monkeypatch):
    """Groups are worth it from two rows and 8 keys on, splits from 16; counts calls of the cascade kernel."""
    monkeypatch.setattr(planner, "MIN_GROUP_ROWS", 2)
    monkeypatch.setattr(planner, "MIN_GROUP_LEN", 8)
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 16)
    calls = []
    original = cascade_attention.cascade_parts

    def counted(*args, **options):
        calls.append(args[5].tolist())
        original(*args, **options)

    monkeypatch.setattr(cascade_attention, "cascade_parts", counted)
    return calls


@pytest.mark.parametrize("options", ["gqa", "soft-cap", "window"])
def test_groups_that_share_a_prefix(options, small_groups):
    world = World("triton", **OPTIONS[options])
    base = world.sequence()
    world.run([(base, 40)])
    branch = world.sequence(base, 20)
    world.run([(branch, 10)])
    # five share 20 tokens; three of these 30; two requests share nothing
    short = [world.sequence(base, 20) for _ in range(2)]
    long = [world.sequence(branch, 30) for _ in range(3)]
    others = [world.sequence() for _ in range(2)]
    world.run([(others[0], 9), (others[1], 3)])
    order = [short[0], long[0], others[0], long[1], short[1], others[1], long[2]]
    groups = (PrefixGroup((0, 1, 3, 4, 6), 20), PrefixGroup((1, 3, 6), 30))
    check(world.run([(seq, 1) for seq in order], groups=groups))
    assert small_groups == ([] if options == "window" else [[0], [20]])  # each shared key is read once for its group
    check(world.run([(seq, n) for seq, n in zip(order, [1, 1, 4, 1, 2, 1, 1], strict=True)], groups=groups))
    assert len(small_groups) == (0 if options == "window" else 4)  # decodes beside extends


def test_what_several_splits_read_is_joined(monkeypatch):
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 16)
    monkeypatch.setattr(extend_attention, "extend_splits", lambda *args: 3)
    world = World("triton")
    a, b = world.sequence(), world.sequence()
    check(world.run([(a, 70), (b, 5)]))
    check(world.run([(a, 5), (b, 1)]))
    check(world.run([(a, 7), (b, 4)], parents=[[-1, 0, 0, 1, 1, 4, 2], None]))


def test_sinks():
    world = World("triton")
    world.layer.sinks = torch.tensor([0.5, -1.0, 3.0, 0.0])
    plain = World("torch_native")
    plain.layer.sinks = world.layer.sinks
    for lens in ([20, 3], [1, 1], [1, 4]):
        got = []
        for one in (world, plain):
            if not hasattr(one, "seqs"):
                one.seqs = [one.sequence() for _ in range(2)]
            got.append(one.run(list(zip(one.seqs, lens, strict=True)))[0])
        torch.testing.assert_close(*got, atol=2e-5, rtol=1e-4)


def test_wide_heads_run_in_torch_with_a_warning():
    world = World("triton", dim=288, heads=2, kv_heads=1)
    seq = world.sequence()
    with pytest.warns(RuntimeWarning, match="wider than 256 run in plain torch"):
        check(world.run([(seq, 9)]))
    check(world.run([(seq, 1)]))


def greedy(path, prompts, num_new, **options):
    config = {"max_running_requests": 4, "max_total_tokens": 1024, "device": "cpu", "dtype": "float32", **options}
    with Engine(model_path=str(path), **config) as engine:
        outputs = engine.generate(
            input_ids=prompts, sampling_params={"temperature": 0.0, "max_new_tokens": num_new, "ignore_eos": True}
        )
        return [output["output_ids"] for output in outputs]


@pytest.mark.parametrize("family, options", [("llama", {}), ("mistral", {"page_size": 16})])
def test_engines_give_the_same_ids(family, options, small_groups):
    path = tiny_checkpoint(family)
    shared = list(range(40, 60))
    prompts = [[*shared, 7, 8, 9], [*shared, 100], [5, 6], [*shared, 7, 300, 301]]
    got = greedy(path, prompts, 5, attention_backend="triton", chunked_prefill_size=16, **options)
    plain = greedy(path, prompts, 5, attention_backend="torch_native", **options)
    for prompt, ids, others in zip(prompts, got, plain, strict=True):
        expected, margins = reference_margins(path, prompt, 5)
        agreed = agreed_until(margins)
        assert ids[:agreed] == others[:agreed] == expected[:agreed]
    if family == "llama":
        assert small_groups  # the prompts' common part was read once for all of them


def note(monkeypatch, where, called):
    """Have each call of an implementation leave its name."""
    module, name = where.split(":")
    module = import_module(module, "dslc.kernels")
    original = getattr(module, name)

    def noted(*args, **options):
        called.append(name)
        return original(*args, **options)

    monkeypatch.setattr(module, name, noted)


def test_engines_with_every_kernel_in_triton(monkeypatch):
    """Norms, activations, rotary, KV writes, masks and draws too."""
    path = tiny_checkpoint("llama")
    prompts = [[5, 6, 7], list(range(30, 50))]

    def drawn(**options):
        config = {"max_running_requests": 4, "max_total_tokens": 1024, "device": "cpu", "dtype": "float32", **options}
        params = [
            {"temperature": 1.0, "top_p": 0.8, "seed": 3, "max_new_tokens": 5, "ignore_eos": True},
            {"temperature": 0.7, "top_k": 7, "seed": 4, "max_new_tokens": 5, "regex": "[a-z ]+"},
        ]
        with Engine(model_path=str(path), **config) as engine:
            return [out["output_ids"] for out in engine.generate(input_ids=prompts, sampling_params=params)]

    expected = drawn(attention_backend="torch_native")
    monkeypatch.setenv("DSLC_KERNELS", "triton")
    called = []
    for name, implementation in ((n, o) for n, found in registry._OPERATIONS.items() for o in found.others):
        if implementation.name == "triton" and not name.endswith("_attention") and name != "merge_states":
            note(monkeypatch, implementation.where, called)
    rotary._kernel.cache_clear()
    try:
        assert drawn(attention_backend="triton") == expected
    finally:
        rotary._kernel.cache_clear()
    layers = {"rms_norm", "add_rms_norm", "silu_and_mul", "rotary_embedding", "store_kv"}
    assert set(called) == layers | {"apply_token_mask_", "sample_rows"}


def test_a_batch_of_decodes_can_be_captured():
    """Replays of a bucket's launches over static buffers, with lengths that grew after the capture."""
    world = World("triton")
    seqs = [world.sequence() for _ in range(3)]
    world.run([(seqs[0], 20), (seqs[1], 3), (seqs[2], 150)])
    table, layer, pool, backend = world.table, world.layer, world.pool, world.backend
    kv = torch.randn(4, 2 * 2, 16)
    q = torch.randn(4, 4, 16)
    launches = []
    original = decode_attention.decode_parts

    def noted(*args):
        launches.append(args[7].shape)
        original(*args)

    decode_attention.decode_parts = noted
    try:
        graphs = DecodeGraphs(
            StaticInputs(4, table.padding_row),
            (4,),
            lambda forward: forward,
            lambda fb: layer(q.flatten(1), kv[:, :2].flatten(1), kv[:, 2:].flatten(1), fb, pool, backend),
            backend.init_forward_metadata,
        )
        graphs.capture_all()
        graphs._replays[4]()  # what a capture would record
        fb = make_batch(world.slots, [(seq, [0]) for seq in seqs])
        got = graphs.run(fb)
    finally:
        decode_attention.decode_parts = original
    assert len(set(launches)) == 1  # the same grid for the blank batch and for the long one
    backend.init_forward_metadata(fb)
    expected = backend.forward(q[:3], kv[:3, :2], kv[:3, 2:], layer, fb, pool)
    torch.testing.assert_close(got, expected.flatten(1), atol=1e-5, rtol=1e-5)


def test_who_gets_the_backend(monkeypatch):
    config = EngineConfig.of(attention_backend="triton")
    assert choose_attention_backend(config, CpuPlatform()) == ("triton", "triton")
    assert choose_attention_backend(EngineConfig.of(), CudaPlatform()) == ("triton", "triton")
    assert choose_attention_backend(EngineConfig.of(), CpuPlatform()) == ("torch_native", "torch_native")
    with pytest.raises(ConfigError, match="attention_backend: 'triton' is not deterministic"):
        choose_attention_backend(EngineConfig.of(attention_backend="triton", deterministic=True), CpuPlatform())
    monkeypatch.setattr(registry, "interpreted", lambda: False)
    with pytest.raises(
        ConfigError, match=r"attention_backend: the triton backend cannot run: .* without TRITON_INTERPRET"
    ):
        TritonBackend(ReqToTokenPool(2, 16))
    monkeypatch.setattr(registry, "_has_triton", lambda: False)
    assert choose_attention_backend(EngineConfig.of(), CudaPlatform()) == ("torch_native", "torch_native")


def test_an_engine_on_the_cpu_does_not_import_triton():
    code = (
        "import sys; from dslc.runtime.engine import Engine; e = Engine(device='cpu'); "
        "e.generate('a', {'max_new_tokens': 2}); e.close(); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
