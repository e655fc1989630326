"""Drawing, argmax and masks: Triton, interpreted, against the torch twins and against the engine's own sampler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dslc.kernels import argmax, sample, token_bitmask
from dslc.kernels.counter_hash import hash_ids
from dslc.runtime.sampling import random as draws
from dslc.runtime.sampling.filters import candidates

pytest.importorskip("triton")
from dslc.kernels.triton import argmax as triton_argmax
from dslc.kernels.triton import sample as triton_sample
from dslc.kernels.triton import token_bitmask as triton_bitmask

torch.set_num_threads(1)
OFF = 2**31


def arguments(vocab, rows, *, seed=0, std=3.0, ties=False):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=rng) * std
    if ties:
        logits = (logits * 2).round() / 2
    pick = torch.randint(0, 1000, (5, rows), generator=rng)
    temperature = torch.tensor([0.3, 1.0, 2.5])[pick[0] % 3]
    top_k = torch.tensor([OFF, 1, 5, vocab, max(1, vocab // 2)])[pick[1] % 5]
    top_p = torch.tensor([1.0, 0.9, 0.3, 1e-6])[pick[2] % 4]
    min_p = torch.tensor([0.0, 0.0, 0.1, 1.0])[pick[3] % 4]
    keys = torch.tensor([draws.stream_key(int(n), row) for row, n in enumerate(pick[4])])
    return logits, temperature, top_k, top_p, min_p, keys, torch.arange(rows) * 7


def by_the_engine(logits, temperature, top_k, top_p, min_p, keys, steps):
    """The same, by the functions that the engine's sampler uses on the CPU."""
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / temperature[:, None]).exp()
    weights, ids = candidates(weights, top_k, top_p)
    weights = weights.masked_fill(weights < min_p[:, None], 0.0)
    place = draws.race(weights, ids, keys, steps)
    return place if ids is None else ids.gather(1, place[:, None]).squeeze(1)


@pytest.mark.parametrize("vocab", [1, 3, 17, 129, 2500])
@pytest.mark.parametrize("ties", [False, True])
def test_draws(vocab, ties):
    args = arguments(vocab, 12 if vocab < 2500 else 6, seed=vocab, ties=ties)
    expected = sample.sample_rows(*args)
    assert torch.equal(triton_sample.sample_rows(*args), expected)
    assert torch.equal(by_the_engine(*args), expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-math.inf, -3.0, 0.0, 0.5, 0.5, 2.0, 40.0]), min_size=1, max_size=40),
    st.integers(1, 45),
    st.floats(2**-7, 1.0, width=32),
    st.floats(0.0, 1.0, width=32),
    st.integers(0, 2**40),
)
def test_draws_among_ties(values, k, p, min_p, seed):
    args = (
        torch.tensor([values]), torch.tensor([1.0]), torch.tensor([k]), torch.tensor([p]), torch.tensor([min_p]),
        torch.tensor([draws.stream_key(seed, 0)]), torch.tensor([seed % 100]),
    )  # fmt: skip
    expected = sample.sample_rows(*args)
    assert torch.equal(triton_sample.sample_rows(*args), expected)
    if expected >= 0:
        assert torch.equal(by_the_engine(*args), expected)


def test_rows_without_a_token_to_draw():
    logits = torch.tensor([[-math.inf] * 5, [0.0, math.nan, 1.0, 2.0, 3.0], [math.inf] * 5, [-math.inf] * 4 + [-9.0]])
    args = (logits, *arguments(5, 4)[1:])
    for draw in (sample.sample_rows, triton_sample.sample_rows):
        assert draw(*args).tolist() == [-1, -1, -1, 4]


def test_a_draw_does_not_depend_on_other_rows_or_on_ids_that_are_barred():
    args = arguments(300, 8, seed=5)
    args = (*args[:2], torch.full((8,), OFF), torch.ones(8), torch.zeros(8), *args[5:])
    drawn = triton_sample.sample_rows(*args)
    alone = torch.cat([triton_sample.sample_rows(*(x[i : i + 1] for x in args)) for i in range(8)])
    assert torch.equal(drawn, alone)
    barred = args[0].clone()
    barred[:, :20] = -math.inf
    again = triton_sample.sample_rows(barred, *args[1:])
    kept = drawn >= 20
    assert kept.any() and torch.equal(drawn[kept], again[kept])


def test_the_hash_is_the_engine_s():
    keys = torch.tensor([draws.stream_key(s, s % 3) for s in (0, 1, -5, 2**63)])
    steps = torch.tensor([0, 1, 2**31, 2**40])
    ids = torch.arange(100)
    assert torch.equal(hash_ids(ids, keys, steps), draws.counter_hash(None, 100, keys, steps))


def test_exponentials_are_log1p_of_the_hash():
    """Over all sizes of u: the race's numbers as the kernel makes them, read off a row of equal weights."""
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(ids_ptr, keys_ptr, steps_ptr, out_ptr, N: tl.constexpr):
        a, b = triton_sample.row_words(keys_ptr, steps_ptr, 0)
        at = tl.arange(0, N)
        tl.store(out_ptr + at, triton_sample.exponential(tl.load(ids_ptr + at), a, b))

    keys, steps = torch.tensor([draws.stream_key(3, 0)]), torch.tensor([11])
    n = 1 << 16
    out = torch.empty(n)
    exponentials[(1,)](torch.arange(n), keys, steps, out, N=n)
    exact = -torch.log1p(draws.exponential_arguments(None, n, keys, steps)[0].double())
    assert exact.min() < 1e-4 and exact.max() > 10
    error = ((out.double() - exact.clamp(max=30)) / exact).abs().max()
    assert error < 4e-7


@pytest.mark.parametrize("rows, size", [(1, 1), (3, 3), (1, 17), (5, 129), (2, 9000), (1, 20000)])
def test_argmax(rows, size):
    rng = torch.Generator().manual_seed(size)
    for x in (
        torch.randn(rows, size, generator=rng),
        torch.randint(0, 3, (rows, size), generator=rng).float(),  # the first of equal ones
        torch.full((rows, size), -math.inf),
        torch.randn(rows, size + 3, generator=rng)[:, :size],
    ):
        got = triton_argmax.argmax_rows(x)
        first = (x == x.amax(dim=1, keepdim=True)).int().argmax(dim=1)
        assert torch.equal(got, first) and torch.equal(got, argmax.argmax_rows(x))
        with_nan = x.clone()
        with_nan[0, size // 2 :: 7] = math.nan
        assert int(triton_argmax.argmax_rows(with_nan)[0]) == size // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab, words", [(1, 1), (33, 2), (129, 3), (4100, 129), (5000, 129)])
def test_masks(vocab, words, dtype):
    rng = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=rng).to(dtype)
    mask = torch.randint(-(2**31), 2**31, (5, words), generator=rng, dtype=torch.int64).int()
    mask[1] = token_bitmask.ALL_ALLOWED
    mask[2] = 0
    got, expected = logits.clone(), logits.clone()
    triton_bitmask.apply_token_mask_(got, mask)
    token_bitmask.apply_token_mask_(expected, mask)
    assert torch.equal(got, expected)
    assert torch.equal(got[1], logits[1]) and got[2].isneginf().all()
