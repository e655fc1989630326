"""Packed weights give the same products, are chosen for a shape once, and are left alone where they are wrong."""

import pytest
import torch
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.kernels.native.library import Library
from dslc.runtime.layers import packing
from dslc.runtime.layers.linear import Linear, MergedLinear
from dslc.runtime.layers.packing import pack_linears, use_native_linears
from dslc.runtime.model_runner import ModelRunner
from dslc.runtime.native_step import library

torch.set_num_threads(1)


def linear(inputs: int, outputs: int, dtype: torch.dtype, bias: bool) -> Linear:
    with torch.inference_mode():
        layer = Linear(inputs, outputs, bias).to(dtype)
        for param in layer.parameters():
            param.normal_(generator=torch.Generator().manual_seed(inputs))
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (33, 17), (64, 130), (99, 20)])
@torch.inference_mode()
def test_packed_products_are_the_plain_ones(inputs, outputs, dtype, bias):
    layer = linear(inputs, outputs, dtype, bias)
    plain = {
        rows: layer(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))) for rows in (0, 1, 40)
    }
    pack_linears(layer, measured=False)
    assert layer.packed is not None and layer.packed_from == 1
    for rows, expected in plain.items():
        found = layer(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)))
        assert found.dtype == torch.float32 and found.shape == (rows, outputs)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert rows == 0 or (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (33, 17), (64, 130), (99, 20), (300, 515)])
@torch.inference_mode()
def test_products_in_cpp_are_the_plain_ones_and_each_row_has_its_own_bits(inputs, outputs, dtype, bias):
    if not isinstance(library(), Library):
        pytest.skip(f"there is no library: {library()}")
    layer = linear(inputs, outputs, dtype, bias)
    x = torch.randn(77, inputs, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.linear(x.to(dtype).double(), layer.weight.double())
    expected += layer.bias.double() if bias else 0
    use_native_linears(layer, library())
    found = layer(x)
    assert found.dtype == torch.float32 and layer.native is not None
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for rows in (1, 2, 5, 8, 16, 31, 33):
        assert torch.equal(layer(x[:rows]), found[:rows]) and torch.equal(layer(x[-rows:]), found[-rows:])
    assert torch.equal(layer(x.view(7, 11, inputs)), found.view(7, 11, outputs)) and layer(x[:0]).shape == (0, outputs)


def test_what_is_slower_is_not_taken(monkeypatch):
    layer = linear(64, 64, torch.float32, False)
    monkeypatch.setattr(packing, "_seconds", lambda *ways: clock.pop(0))
    clock = [(1.0, 0.5), (1.0, 1.2), (1.0, 2.0)]  # plain and packed at 32, 8 and 1 rows: 1.2 may be noise
    pack_linears(layer)
    assert layer.packed_from == 8 and not clock
    other = linear(64, 64, torch.float32, False)
    clock += [(1.0, 2.0)]
    pack_linears(other)
    assert other.packed is None


def test_a_wrong_product_is_not_taken(monkeypatch):
    layer = linear(64, 64, torch.float32, False)
    right = packing.packed_product
    monkeypatch.setattr(packing, "packed_product", lambda *args: right(*args) + 1e3)
    pack_linears(layer, measured=False)
    assert layer.packed is None


def test_tied_weights_are_packed_once():
    path = tiny_checkpoint("llama", tie_word_embeddings=True)
    config = EngineConfig.of(model_path=str(path), max_total_tokens=64, attention_backend="torch_deterministic",
                             device="cpu", deterministic=True)  # fmt: skip
    model = ModelRunner(config).model
    layers = [module for module in model.modules() if isinstance(module, (Linear, MergedLinear))]
    assert all(layer.packed is not None for layer in layers)
    assert len({id(layer.packed) for layer in layers}) == len({id(layer.weight) for layer in layers})


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_small_weights_stand_in_float32_too_where_one_row_is_faster(bias, monkeypatch):
    small, large = linear(64, 130, torch.bfloat16, bias), linear(1024, 640, torch.bfloat16, bias)
    single = linear(64, 130, torch.float32, bias)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    expected = small(x)
    monkeypatch.setattr(packing, "_seconds", lambda *ways, **options: (2.0, 1.0))  # the second way is the faster one
    pack_linears(torch.nn.ModuleList([small, large, single]))
    assert small.single is not None and large.single is None and single.single is None
    exact = torch.nn.functional.linear(x[:1], small.weight.float(), None if small.bias is None else small.bias.float())
    torch.testing.assert_close(small(x[:1]), exact)
    torch.testing.assert_close(small(x), expected, atol=2e-2, rtol=2e-2)  # more rows as before
    slow = linear(64, 130, torch.bfloat16, bias)
    monkeypatch.setattr(packing, "_seconds", lambda *ways, **options: (1.0, 0.9))
    pack_linears(slow)
    assert slow.single is None
    pack_linears(slow, measured=False)
    assert slow.single is None


def test_ways_are_timed_in_turns():
    """So that other work on the machine, which comes and goes, does not decide between them."""
    ran = []
    took = packing._seconds(lambda: ran.append(1), lambda: ran.append(2), before=lambda: ran.append(0))
    assert ran[:8] == [0, 1, 0, 2, 0, 1, 0, 2] and len(took) == 2 and all(t >= 0 for t in took)
