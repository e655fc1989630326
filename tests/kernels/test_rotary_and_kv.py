"""Rotary embedding and the KV writes: Triton, interpreted, against the torch twins."""

import pytest
import torch
from support.kernel_cases import ODD, assert_twins

from dslc.kernels import kv_cache, rotary
from dslc.runtime.layers.rotary import rotate

pytest.importorskip("triton")
from dslc.kernels.triton import kv_cache as triton_kv
from dslc.kernels.triton import rotary as triton_rotary

torch.set_num_threads(1)


def turned(num_rows, heads, dim, rotary_dim, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    wide = torch.randn(num_rows, heads + 2, dim, generator=rng).to(dtype)
    angles = torch.randn(num_rows, 1, rotary_dim // 2, generator=rng) * 10
    return wide[:, :heads], angles.cos(), angles.sin()  # queries as they stand in a merged projection


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("heads, dim, rotary_dim", [(1, 32, 32), (3, 64, 64), (9, 80, 32), (8, 128, 128), (2, 96, 24)])
def test_rotary(heads, dim, rotary_dim, dtype, interleaved):
    for num_rows in (1, 3, 17):
        x, cos, sin = turned(num_rows, heads, dim, rotary_dim, dtype)
        got = triton_rotary.rotary_embedding(x, cos, sin, interleaved)
        assert_twins(got, rotary.rotary_embedding(x, cos, sin, interleaved))
        assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


def test_rotary_is_what_models_do():
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as of_neighbours
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as of_halves

    x, cos, sin = turned(5, 4, 32, 32, torch.float32)
    full = [torch.cat([part, part], dim=-1).view(1, 5, 32) for part in (cos, sin)]
    expected, _ = of_halves(x[None], x[None], *full, unsqueeze_dim=2)
    torch.testing.assert_close(rotary.rotary_embedding(x, cos, sin), expected[0])
    assert torch.equal(rotate(x, cos, sin), rotary.rotary_embedding(x, cos, sin))
    expected = of_neighbours(x[None], *(part.view(1, 5, 16) for part in (sin, cos)))
    torch.testing.assert_close(rotary.rotary_embedding(x, cos, sin, interleaved=True), expected[0])


def test_rotary_keeps_lengths_and_depends_on_distances_only():
    x, cos, sin = turned(6, 2, 32, 32, torch.float32)
    got = triton_rotary.rotary_embedding(x, cos, sin)
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))
    freq = torch.logspace(0, -2, 16)
    q, k = torch.randn(1, 2, 32), torch.randn(1, 2, 32)
    scores = []
    for at, other in ((3, 1), (40, 38)):
        a, b = (
            triton_rotary.rotary_embedding(y, (p * freq).cos().view(1, 1, -1), (p * freq).sin().view(1, 1, -1))
            for y, p in ((q, at), (k, other))
        )
        scores.append((a * b).sum(-1))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("heads, dim", [(1, 33), (2, 80), (8, 128)])
def test_store(heads, dim, cache_dtype):
    rng = torch.Generator().manual_seed(0)
    for count in ODD[:4]:
        qkv = torch.randn(count, 3 * heads, dim, generator=rng)
        k, v = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
        slots = torch.randperm(50, generator=rng)[:count] + 1
        caches = [torch.randn(51, heads, dim, generator=rng).to(cache_dtype) for _ in range(2)]
        got, expected = [x.clone() for x in caches], [x.clone() for x in caches]
        triton_kv.store_kv(*got, slots, k, v)
        kv_cache.store_kv(*expected, slots, k, v)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


def test_copy():
    rng = torch.Generator().manual_seed(0)
    caches = [torch.randn(40, 2, 33, generator=rng) for _ in range(2)]
    order = torch.randperm(40, generator=rng)
    for count in (0, 1, 17):
        got, expected = [x.clone() for x in caches], [x.clone() for x in caches]
        triton_kv.copy_kv(*got, order[:count], order[20 : 20 + count])
        kv_cache.copy_kv(*expected, order[:count], order[20 : 20 + count])
        for one, other, before in zip(got, expected, caches, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one[order[20 : 20 + count]], before[order[:count]])


def test_repeated_slots_are_found_when_asked_for(monkeypatch):
    assert kv_cache.checked(triton_kv.store_kv) is triton_kv.store_kv
    monkeypatch.setenv("DSLC_CHECK_SLOTS", "1")
    store = kv_cache.checked(kv_cache.store_kv)
    cache, kv = [torch.zeros(5, 1, 2), torch.zeros(5, 1, 2)], torch.ones(3, 1, 2)
    store(*cache, torch.tensor([0, 4, 0]), kv, kv)  # padding rows may
    with pytest.raises(ValueError, match="two rows of one forward write KV slot 3; the second is row 2"):
        store(*cache, torch.tensor([3, 1, 3]), kv, kv)
    with pytest.raises(ValueError, match="row 1 writes KV slot 5 of a pool of 5"):
        store(*cache, torch.tensor([3, 5, 1]), kv, kv)
    assert cache[0][3].sum() == 0
