"""Deterministic mode: a token's logits have the same bits alone, in a batch, chunked, cached, scattered, in a tree."""

import pytest
import torch
from support.batches import Slots, make_batch
from support.tiny_models import VOCAB_SIZE, reference_model, tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError
from dslc.runtime.attention import torch_deterministic
from dslc.runtime.batch import PrefixGroup
from dslc.runtime.layers import rowwise
from dslc.runtime.model_runner import ModelRunner
from dslc.runtime.native_step import library

torch.set_num_threads(1)

MODELS = {
    "llama": ("llama", {}, "float32"),
    "llama-odd": ("llama", {"num_key_value_heads": 1, "head_dim": 20, "intermediate_size": 99}, "float32"),
    "mistral": ("mistral", {}, "float32"),
    "qwen3-bfloat16": ("qwen3", {"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1}, "bfloat16"),
}  # fmt: skip


def prompt(length, seed=0):
    return torch.randint(4, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=[(name, way) for name in MODELS for way in ("torch", "native")], ids="-".join)
def runner(request):
    name, way = request.param
    family, overrides, dtype = MODELS[name]
    backend = "auto" if way == "native" else "torch_deterministic"
    runner = deterministic_runner(tiny_checkpoint(family, **overrides), dtype, attention_backend=backend)
    if way == "native" and runner.native is None:
        pytest.skip(f"no native forward here: {library()}")
    return runner


def deterministic_runner(path, dtype="float32", **options):
    """In torch, unless `attention_backend` says otherwise."""
    options = {
        "max_total_tokens": 8192, "max_running_requests": 64, "dtype": dtype, "deterministic": True,
        "attention_backend": "torch_deterministic", **options,
    }  # fmt: skip
    return ModelRunner(EngineConfig.of(model_path=str(path), **options))


def logits_in_chunks(runner, slots, seq, ids, chunks):
    out, at = [], 0
    for chunk in chunks:
        out.append(runner.forward(make_batch(slots, [(seq, ids[at : at + chunk])])))
        at += chunk
    assert at == len(ids)
    return torch.cat(out)


def test_chunks_batches_and_caches_leave_the_bits(runner):
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = prompt(140)
    whole = slots.sequence()
    alone = runner.forward(make_batch(slots, [(whole, ids)]))

    for chunks in ([1] * 140, [7] * 20, [100, 40], [63, 1, 1, 75]):
        assert torch.equal(logits_in_chunks(runner, slots, slots.sequence(), ids, chunks), alone)

    cached = slots.sequence(share=whole, shared_len=77)  # the prefix is another sequence's, computed whole
    assert torch.equal(runner.forward(make_batch(slots, [(cached, ids[77:])])), alone[77:])

    # in a batch of 16: prefills, chunks and decodes of others around it, then its own decodes among theirs
    mates = [(slots.sequence(), prompt(n, seed=n)) for n in (1, 2, 5, 16, 17, 33, 64, 65, 90, 3, 1, 128, 40, 8, 12)]
    seq = slots.sequence()
    fb = make_batch(slots, [*mates[:7], (seq, ids[:100]), *mates[7:]])
    first = sum(len(tokens) for _, tokens in mates[:7])
    assert torch.equal(runner.forward(fb)[first : first + 100], alone[:100])
    for at in range(100, 110):
        work = [
            *((mate, [at]) for mate, _ in mates[:9]),
            (seq, ids[at : at + 1]),
            *((mate, [at]) for mate, _ in mates[9:]),
        ]
        assert torch.equal(runner.forward(make_batch(slots, work))[9], alone[at])


def test_a_shared_group_leaves_the_bits(runner):
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = prompt(130)
    base = slots.sequence()
    alone = runner.forward(make_batch(slots, [(base, ids)]))
    seqs = [slots.sequence(share=base, shared_len=128) for _ in range(6)]
    group = (PrefixGroup(tuple(range(6)), 128),)
    out = runner.forward(make_batch(slots, [(seq, ids[128:]) for seq in seqs], groups=group))
    for i in range(6):
        assert torch.equal(out[2 * i : 2 * i + 2], alone[128:])


def test_a_tree_row_has_the_bits_of_its_path(runner):
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = prompt(75)
    base = slots.sequence()
    runner.forward(make_batch(slots, [(base, ids)]))
    tokens, parents = [9, 10, 11, 12, 13, 14], [-1, 0, 0, 1, -1, 3]
    tree = slots.sequence(share=base, shared_len=75)
    out = runner.forward(make_batch(slots, [(tree, tokens)], parents=[parents]))
    for path in ([0, 1, 3, 5], [0, 2], [4]):
        seq = slots.sequence(share=base, shared_len=75)
        assert torch.equal(out[path], runner.forward(make_batch(slots, [(seq, [tokens[i] for i in path])])))


@pytest.mark.parametrize("page_size", [1, 16])
def test_page_size_and_slots_leave_the_bits(page_size):
    runner = deterministic_runner(tiny_checkpoint("llama"), page_size=page_size)
    results = []
    for scatter in (False, True):
        runner.req_to_token.host[:] = 0
        slots = Slots(runner.req_to_token, runner.num_tokens, scatter)
        results.append(runner.forward(make_batch(slots, [(slots.sequence(), prompt(90))])))
    assert torch.equal(*results)


def test_logits_stay_those_of_transformers(runner):
    slots = Slots(runner.req_to_token, runner.num_tokens)
    ids = prompt(140)
    out = runner.forward(make_batch(slots, [(slots.sequence(), ids)]))
    with torch.inference_mode():
        expected = reference_model(runner.folder)(torch.tensor([ids])).logits[0]
    if runner.dtype is torch.float32:
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
    else:  # weights rounded to 8 bits: the comparison with transformers in bfloat16 is in test_model_dtypes
        assert torch.nn.functional.cosine_similarity(out, expected).min() > 0.99


def test_a_layer_whose_rows_depend_on_their_place_works_row_by_row(monkeypatch):
    monkeypatch.setattr(rowwise, "place_independent", lambda *args: False)
    runner = deterministic_runner(tiny_checkpoint("llama"))
    assert {m.counts for m in runner.model.modules() if isinstance(m, rowwise.RowWise)} == {(1,)}
    slots = Slots(runner.req_to_token, runner.num_tokens)
    alone = runner.forward(make_batch(slots, [(slots.sequence(), prompt(30))]))
    pair = runner.forward(make_batch(slots, [(slots.sequence(), prompt(9, 1)), (slots.sequence(), prompt(30))]))
    assert torch.equal(pair[9:], alone)


def test_place_independence_is_really_looked_for():
    rows = torch.arange(4.0)[:, None]
    assert rowwise.place_independent(lambda x: x * 2, torch.randn(4, 3))
    assert not rowwise.place_independent(lambda x: x + rows, torch.randn(4, 3))


def test_row_counts_at_which_a_library_changes_its_kernel_are_left_out():
    def rows(x):
        return x * 2 if len(x) < 8 else x * 3 if len(x) == 64 else x + x / 3

    counts = rowwise.agreeing_counts(rows, torch.randn(256, 5))
    assert counts == (8, 16, 32, 48, 128, 256)
    for num in (*range(1, 70), 255, 256, 257, 300, 1000):
        x = torch.randn(num, 5)
        assert torch.equal(rowwise.in_pieces(rows, x, counts), x + x / 3)
    assert rowwise.agreeing_counts(lambda x: x + torch.arange(float(len(x)))[:, None], torch.randn(256, 5)) == (1,)


@pytest.mark.parametrize("counts", [(1,), (4, 16, 64), rowwise.COUNTS])
def test_pieces_cover_everything_once_with_little_padding(counts):
    for num in range(600):
        found = list(rowwise.pieces(num, counts))
        assert [i for start, end, _ in found for i in range(start, end)] == list(range(num))
        assert all(count in counts and end - start <= count for start, end, count in found)
        assert all(end - start == count for start, end, count in found[:-1])
        assert sum(count for *_, count in found) <= max(1.5 * num, num + 15)


def test_a_backend_that_is_not_deterministic_is_refused():
    with pytest.raises(ConfigError, match="'torch_native' is not deterministic"):
        deterministic_runner(tiny_checkpoint("llama"), attention_backend="torch_native")


def test_rows_and_blocks_done_together_and_one_by_one_have_the_same_bits(monkeypatch):
    path = tiny_checkpoint("mistral")
    work = [prompt(n, seed=n) for n in (130, 40, 7, 64, 1, 16, 90)]
    results = []
    for together in (True, False):
        torch_deterministic._shapes.cache_clear()
        if not together:  # as on a machine where the number of rows or of products matters
            monkeypatch.setattr(torch_deterministic._Shapes, "_agrees", lambda self, *shapes: False)
        runner = deterministic_runner(path)
        slots = Slots(runner.req_to_token, runner.num_tokens)
        results.append(runner.forward(make_batch(slots, [(slots.sequence(), ids) for ids in work])))
    torch_deterministic._shapes.cache_clear()
    assert torch.equal(*results)


def test_a_long_prompt_in_bundles_has_the_bits_of_its_rows(monkeypatch):
    results = []
    for kept in (torch_deterministic.MAX_KEPT_ROWS, 200):
        monkeypatch.setattr(torch_deterministic, "MAX_KEPT_ROWS", kept)
        runner = deterministic_runner(tiny_checkpoint("llama"))
        slots = Slots(runner.req_to_token, runner.num_tokens)
        results.append(runner.forward(make_batch(slots, [(slots.sequence(), prompt(250)), (slots.sequence(), [9])])))
    assert torch.equal(*results)


def test_shapes_that_agree_are_really_looked_for(monkeypatch):
    plain = torch_deterministic._attend_blocks

    def other_kernels(q, k, v, bars, scaling, logit_cap):
        out, best, top = plain(q, k, v, bars, scaling, logit_cap)
        few = q.shape[3] < 4 or q.shape[0] == 8
        return (out * 1.001, best, top) if few else (out, best, top)

    monkeypatch.setattr(torch_deterministic, "_attend_blocks", other_kernels)
    shapes = torch_deterministic._Shapes(2, 2, 16, 0.0, torch.device("cpu"))
    assert shapes.row_counts == (4, 8, 16, 64)
    assert shapes.pair_counts(4) == (1, 2, 4, 16, 32, 64, 128, 256)
