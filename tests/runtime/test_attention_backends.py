"""Both torch backends against attention written out row by row, for every option of the layer."""

import itertools
import math
import random

import pytest
import torch
from support.attention_world import OPTIONS, World, check
from support.batches import Slots

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError, EngineError
from dslc.runtime.attention import (
    base,
    choose_attention_backend,
    ops,
    planner,
    torch_deterministic,
    torch_native,
    trees,
)
from dslc.runtime.attention.base import AttentionBackend, attention_backend, register_attention_backend
from dslc.runtime.attention.by_phase import ByPhaseBackend
from dslc.runtime.attention.torch_native import TorchNativeBackend
from dslc.runtime.batch import ForwardMode, PrefixGroup
from dslc.runtime.layers.attention import AttentionType, RadixAttention
from dslc.runtime.platform import CpuPlatform

torch.set_num_threads(1)
BACKENDS = ["torch_native", "torch_deterministic"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_prefill_extend_decode_and_mixed(backend, options):
    world = World(backend, **OPTIONS[options])
    a, b, c, d = (world.sequence() for _ in range(4))
    check(world.run([(a, 20)]))  # whole prompts
    if options == "encoder":  # its rows would have to be computed again with each extension
        check(world.run([(b, 7), (c, 33), (d, 1)]))
        return
    check(world.run([(b, 7), (c, 33)]))
    check(world.run([(a, 3), (b, 1), (c, 2), (d, 90)]))  # mixed: chunks, a decode, a prompt
    check(world.run([(a, 1), (b, 1), (c, 1), (d, 1)]))  # decode
    check(world.run([(d, 1)]))
    check(world.run([(c, 5), (a, 4), (b, 3)]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", ["gqa", "window", "soft-cap"])
def test_trees_beside_plain_requests(backend, options):
    world = World(backend, **OPTIONS[options])
    a, b, c = (world.sequence() for _ in range(3))
    check(world.run([(a, 30), (b, 12)]))
    parents = [None, [-1, 0, 0, 1, -1, 4, 5, 2, 3], None]
    check(world.run([(b, 1), (a, 9), (c, 6)], parents=parents))
    check(world.run([(world.sequence(), 3)], parents=[[-1, -1, 1]]))  # a tree at the very beginning


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", ["gqa", "mqa", "soft-cap", "window"])
def test_groups_that_share_a_prefix(backend, options, monkeypatch):
    calls = []
    monkeypatch.setattr(torch_native, "merge_rows", lambda *args: (calls.append(1), ops.merge_rows(*args)))
    world = World(backend, **OPTIONS[options])
    base = world.sequence()
    world.run([(base, 300)])
    branch = world.sequence(base, 200)
    world.run([(branch, 100)])
    # five share 200 tokens; three of these 300; two requests share nothing
    short = [world.sequence(base, 200) for _ in range(2)]
    long = [world.sequence(branch, 300) for _ in range(3)]
    others = [world.sequence() for _ in range(2)]
    world.run([(others[0], 40), (others[1], 3)])
    order = [short[0], long[0], others[0], long[1], short[1], others[1], long[2]]
    groups = (PrefixGroup((0, 1, 3, 4, 6), 200), PrefixGroup((1, 3, 6), 300))
    for rows in ([2, 3, 1, 2, 5, 9, 1], [1] * 7):
        check(world.run(list(zip(order, rows, strict=True)), groups=groups))
    assert bool(calls) == (backend == "torch_native" and options != "window")


def test_a_group_beyond_what_is_cached_is_not_trusted():
    """Identical prompts computed in one batch share no slots; a group that says so must not be followed."""
    world = World("torch_native")
    seqs = [world.sequence() for _ in range(4)]
    world.run([(seq, 10) for seq in seqs])
    check(world.run([(seq, 100) for seq in seqs], groups=(PrefixGroup((0, 1, 2, 3), 90),)))


def test_many_decodes_of_all_lengths():
    world = World("torch_native")
    seqs = [world.sequence() for _ in range(24)]
    world.run([(seq, 1 + 13 * i) for i, seq in enumerate(seqs)])
    check(world.run([(seq, 1) for seq in reversed(seqs)]))


def test_a_long_extend_is_done_in_blocks(monkeypatch):
    monkeypatch.setattr(planner, "QUERY_BLOCK", 32)
    for large, options in itertools.product((100, 1 << 22), ({}, {"sliding_window": 20})):
        monkeypatch.setattr(planner, "LARGE_MASK", large)  # masks kept, and masks made for each layer
        world = World("torch_native", **options)
        seq = world.sequence()
        check(world.run([(seq, 100)]))
        check(world.run([(seq, 100), (world.sequence(), 70)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbouring_slots_are_read_in_place_and_give_the_same(backend):
    worlds = []
    for scatter in (True, False):
        world = World(backend)
        world.slots = Slots(world.table, 4096, scatter)
        seq = world.sequence()
        check(world.run([(seq, 50)]))
        pair = world.run([(seq, 1)])
        check(pair)
        worlds.append(pair[0])
    torch.testing.assert_close(*worlds, atol=1e-6, rtol=0)


def test_ops_agree_with_their_plain_twin():
    rng = torch.Generator().manual_seed(0)
    for heads, kv_heads, length, keys in ((4, 2, 5, 7), (4, 4, 1, 9), (6, 1, 3, 3)):
        q = torch.randn(2, heads, length, 8, generator=rng)
        k, v = torch.randn(2, kv_heads, keys, 8, generator=rng), torch.randn(2, kv_heads, keys, 8, generator=rng)
        mask = torch.zeros(2, 1, length, keys).masked_fill(
            torch.rand(2, 1, length, keys, generator=rng) < 0.3, -math.inf
        )
        mask[..., 0] = 0
        for m in (None, mask):
            expected, lse = ops.attend_plain(q, k, v, m, 0.3)
            torch.testing.assert_close(ops.attend(q, k, v, m, 0.3), expected, atol=1e-5, rtol=1e-5)
            for got, want in zip(ops.attend_lse(q, k, v, m, 0.3), (expected, lse), strict=True):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_a_chain_split_off_a_tree_leaves_every_path(seed):
    rng = random.Random(seed)
    parents = [i - 1 if i < rng.randrange(12) else rng.randrange(-1, i) for i in range(rng.randrange(1, 14))]
    chain, tree = trees.split_chain(parents)
    for row in range(len(parents)):
        path = (
            list(range(row + 1))
            if row < chain
            else [*range(chain), *(chain + r for r in trees.path(tree, row - chain))]
        )
        assert path == trees.path(parents, row)
    sees = trees.ancestors(parents)
    assert [set(trees.path(parents, row)) for row in range(len(parents))] == [set(s.nonzero()[0]) for s in sees]


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_that_end_in_tries(backend):
    """What a scored select sends: a run of prompt tokens, and a trie of the choices on its end."""
    world = World(backend)
    seqs = [world.sequence() for _ in range(5)]
    world.run([(seqs[0], 70), (seqs[1], 5)])
    runs = [3, 0, 20, 1, 90]
    tries = [[-1, 0, 0, 2], [-1, -1], [-1, 0, -1, 2, 3], [-1, 0, 1, 0], [-1, -1, 1, 0]]
    parents = [[*range(-1, n - 1), *(p + n for p in trie)] for n, trie in zip(runs, tries, strict=True)]
    check(world.run([(s, len(p)) for s, p in zip(seqs, parents, strict=True)], parents=parents))


def test_a_parent_after_its_child_is_an_error():
    with pytest.raises(EngineError, match="tree row 1 names row 2"):
        trees.ancestors([-1, 2, 0])


def test_backends_register_by_name():
    class Toy(AttentionBackend):
        def init_forward_metadata(self, fb):
            self.seen = fb

        def forward(self, q, k, v, layer, fb, kv_pool):
            return q * 0

    register_attention_backend("toy")(Toy)
    try:
        with pytest.raises(ValueError, match="'toy' is registered already"):
            register_attention_backend("toy")(type("Other", (Toy,), {}))
        world = World("toy")
        got, _ = world.run([(world.sequence(), 3)])
        assert isinstance(world.backend, Toy) and got.abs().sum() == 0
        with pytest.raises(
            ConfigError, match="unknown backend 'flash'; choices: auto, torch_deterministic, torch_native, toy, triton"
        ):
            attention_backend("flash")
    finally:
        del base._BACKENDS["toy"]


@pytest.mark.parametrize(
    "options, chosen",
    [
        ({}, ("torch_native", "torch_native")),
        ({"deterministic": True}, ("torch_deterministic", "torch_deterministic")),
        ({"attention_backend": "torch_native"}, ("torch_native", "torch_native")),
        ({"attention_backend": "torch_deterministic"}, ("torch_deterministic", "torch_deterministic")),
        ({"attention_backend": "torch_deterministic", "deterministic": True}, ("torch_deterministic",) * 2),
        ({"prefill_attention_backend": "torch_deterministic"}, ("torch_deterministic", "torch_native")),
        ({"decode_attention_backend": "torch_deterministic"}, ("torch_native", "torch_deterministic")),
        (
            {"attention_backend": "torch_deterministic", "decode_attention_backend": "auto"},
            ("torch_deterministic", "torch_native"),
        ),
    ],
)
def test_the_table_of_backends(options, chosen):
    config = EngineConfig.of(**options)
    assert choose_attention_backend(config, CpuPlatform()) == chosen


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decode_attention_backend": "flash"}, "decode_attention_backend: unknown backend 'flash'; choices: auto, "),
        (
            {"deterministic": True, "prefill_attention_backend": "torch_native"},
            "prefill_attention_backend: 'torch_native' is not deterministic",
        ),
    ],
)
def test_impossible_backends_are_refused_by_their_option(options, message):
    with pytest.raises(ConfigError, match=message):
        choose_attention_backend(EngineConfig.of(**options), CpuPlatform())


def test_two_deterministic_backends_are_not_deterministic_together(monkeypatch):
    other = type("Other", (torch_deterministic.TorchDeterministicBackend,), {})
    monkeypatch.setitem(base._BACKENDS, "other", other)
    config = EngineConfig.of(deterministic=True, decode_attention_backend="other")
    with pytest.raises(ConfigError, match="decode_attention_backend: deterministic mode needs one backend for both"):
        choose_attention_backend(config, CpuPlatform())


def test_prefill_and_decode_run_in_their_own_backends():
    world = World("torch_native")
    seen = []

    class Noting(TorchNativeBackend):
        def init_forward_metadata(self, fb):
            seen.append((self.name, fb.mode))
            super().init_forward_metadata(fb)

    parts = {}
    for name in ("prefill", "decode"):
        parts[name] = Noting(world.table)
        parts[name].name = name
    world.backend = ByPhaseBackend(world.table, **parts)
    seqs = [world.sequence() for _ in range(2)]
    check(world.run([(seqs[0], 20), (seqs[1], 7)]))
    check(world.run([(seqs[0], 1), (seqs[1], 1)]))
    check(world.run([(seqs[0], 1), (seqs[1], 5)]))
    modes = [("prefill", ForwardMode.EXTEND), ("decode", ForwardMode.DECODE)]
    assert [name for name, _ in seen] == ["prefill", "decode", "prefill"] and seen[:2] == modes


def test_layer_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="must divide num_heads"):
        RadixAttention(4, 8, 1.0, 3, 0)
    with pytest.raises(ValueError, match="sliding window"):
        RadixAttention(4, 8, 1.0, 2, 0, sliding_window=0)
    with pytest.raises(ValueError, match="sliding window"):
        RadixAttention(4, 8, 1.0, 2, 0, sliding_window=4, attn_type=AttentionType.ENCODER_ONLY)


@pytest.mark.parametrize("lens", [[7], [1], [40, 41, 39], [5, 5], [3, 200], [60, 1, 1]])
@pytest.mark.parametrize("gathered", [1, 1 << 20])
def test_decodes_planned_at_once_are_those_planned_one_by_one(lens, gathered, monkeypatch):
    monkeypatch.setattr(torch_native, "GATHERED_BYTES", gathered)
    outs = []
    for quick in (planner.Planner._decodes_alike, lambda self: None):
        monkeypatch.setattr(planner.Planner, "_decodes_alike", quick)
        world = World("torch_native")
        seqs = [world.sequence() for _ in lens]
        if max(lens) > 1:
            world.run([(seq, n - 1) for seq, n in zip(seqs, lens, strict=True) if n > 1])
        got, expected = world.run([(seq, 1) for seq in seqs])
        check((got, expected))
        outs.append(got)
    torch.testing.assert_close(*outs)
