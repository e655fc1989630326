"""RMSNorm, add + RMSNorm and the gated activations: Triton, interpreted, against the torch twins."""

import pytest
import torch
from support.kernel_cases import ODD, assert_twins

from dslc.kernels import activation, rms_norm

pytest.importorskip("triton")
from dslc.kernels.triton import activation as triton_activation
from dslc.kernels.triton import rms_norm as triton_norm

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.float16]
ACTIVATIONS = ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"]


def randn(*size, dtype, seed=0, std=1.0):
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * std).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*ODD, 64, 1000])
def test_rms_norm(size, dtype):
    weight = randn(size, dtype=dtype, seed=1)
    for rows in (1, 5):
        x = randn(rows, size, dtype=dtype, std=3.0)
        assert_twins(triton_norm.rms_norm(x, weight, 1e-5), rms_norm.rms_norm(x, weight, 1e-5))


def test_rms_norm_of_heads_inside_a_wider_tensor():
    x = randn(5, 6, 32, dtype=torch.float32)[:, 1:4]  # as queries stand in a merged projection
    weight = randn(32, dtype=torch.float32, seed=1)
    assert_twins(triton_norm.rms_norm(x, weight, 1e-6), rms_norm.rms_norm(x, weight, 1e-6))
    wide = randn(7, 50, dtype=torch.float32)[:, :33]
    assert_twins(
        triton_norm.rms_norm(wide, weight.repeat(2)[:33], 1e-6), rms_norm.rms_norm(wide, weight.repeat(2)[:33], 1e-6)
    )


def test_zero_rows_and_rows_of_zeros():
    weight = torch.ones(8)
    for x in (torch.empty(0, 8), torch.zeros(3, 8)):
        assert_twins(triton_norm.rms_norm(x, weight, 1e-5), rms_norm.rms_norm(x, weight, 1e-5))
        assert_twins(triton_norm.add_rms_norm(x, x, weight, 1e-5), rms_norm.add_rms_norm(x, x, weight, 1e-5))
        assert_twins(triton_activation.silu_and_mul(x), activation.silu_and_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*ODD, 64])
def test_add_rms_norm(size, dtype):
    x, residual = randn(4, size, dtype=dtype), randn(4, size, dtype=dtype, seed=2, std=5.0)
    weight = randn(size, dtype=dtype, seed=1)
    got = triton_norm.add_rms_norm(x, residual, weight, 1e-5)
    expected = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert_twins(got, expected)
    assert torch.equal(got[1], x + residual)


def test_a_row_does_not_depend_on_the_others():
    x, weight = randn(9, 129, dtype=torch.float16), randn(129, dtype=torch.float16, seed=1)
    whole = triton_norm.rms_norm(x, weight, 1e-5)
    assert torch.equal(whole[3:4], triton_norm.rms_norm(x[3:4], weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activations(name, dtype):
    for size in (*ODD, 2049):
        x = randn(2, 2 * size, dtype=dtype, std=3.0)
        assert_twins(getattr(triton_activation, name)(x), getattr(activation, name)(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_from_zero(name):
    x = torch.tensor([[-1e4, -100.0, -20.0, 20.0, 100.0, 1e4] + [1.0] * 6])
    assert_twins(getattr(triton_activation, name)(x), getattr(activation, name)(x))
