"""The benchmarks of kernels and of a model on a device run, on tiny shapes, and leave no operation out."""

import sys
from pathlib import Path

import pytest
import torch
from support.kernel_cases import assert_twins

import dslc
from dslc.kernels.registry import choose, operations, torch_form

BENCHMARKS = Path(dslc.__file__).parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("kernels", "gpu"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu

    import kernels

    threads = torch.get_num_threads()
    yield kernels, gpu
    torch.set_num_threads(threads)
    for name in ("kernels", "gpu"):
        del sys.modules[name]


def test_every_operation_has_a_row(benchmarks, capsys):
    benchmarks[0].main(["--quick", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert "a large copy moves" in lines[0]
    rows = {line.split()[0] for line in lines[2:]}
    assert rows == set(operations())
    assert all("torch" in line for line in lines[2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_cases_are_what_their_twins_compute(benchmarks, dtype, monkeypatch):
    """The calls that are timed, interpreted (which multiplies no bfloat16): `-m gpu` does it at full size."""
    pytest.importorskip("triton")
    monkeypatch.setenv("DSLC_KERNELS", "triton")
    kernels, device = benchmarks[0], torch.device("cpu")
    for case in kernels.cases(kernels.QUICK, device, dtype):
        vocabulary = case.operation in ("apply_token_mask", "argmax_rows", "sample_rows")
        kernel = choose(case.operation, device=device, dtype=torch.float32 if vocabulary else dtype, **case.shape)
        assert kernel.name == "triton"
        copies = [[x.clone() if torch.is_tensor(x) else x for x in case.args] for _ in range(2)]
        got, expected = kernel.run(*copies[0]), torch_form(case.operation)(*copies[1])
        if expected is None:
            assert all(torch.equal(*pair) for pair in zip(*copies, strict=True) if torch.is_tensor(pair[0]))
        else:
            assert_twins(got, expected)


def test_the_model_s_rows(benchmarks, capsys):
    small = ["--device", "cpu", "--shape", "tiny", "--context", "70", "--input-len", "9", "--rounds", "1"]
    benchmarks[1].main([*small, "--batch", "1", "4", "--shared", "--dtype", "float32"])
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[:3] for line in lines if line.startswith(("prefill", "decode  "))]
    assert found == [["prefill", "1", "9"], ["prefill", "4", "9"], ["decode", "1", "70"], ["decode", "4", "70"]]
    assert any(line.startswith("rms_norm") for line in lines)


def test_bytes_and_products_of_the_8b_shape(benchmarks):
    """What shares are shares of: 8 billion parameters, of which decode reads all but the embedding."""
    import argparse

    gpu = benchmarks[1]
    shape = gpu.SHAPES["tiny"]
    args = argparse.Namespace(
        device="cpu", shape="tiny", context=8, input_len=4, dtype="float32", attention_backend="auto"
    )
    with torch.inference_mode():
        world = gpu.World(args, 2, 32)
    hidden, ffn = shape["hidden"], shape["ffn"]
    layer = hidden * (2 * hidden + 2 * shape["kv_heads"] * (hidden // shape["heads"]) + 3 * ffn)
    assert world.weight_products == shape["layers"] * layer
    norms = (2 * shape["layers"] + 1) * hidden
    assert world.weight_bytes == 4 * (shape["layers"] * layer + shape["vocab"] * hidden + norms)
