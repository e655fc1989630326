"""On a GPU (`pytest -m gpu`): kernels against their twins at sizes that fill it, engines, captured graphs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.kernel_cases import assert_twins
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.kernels.registry import choose, operations, torch_form

pytestmark = pytest.mark.gpu
IN_PLACE = {"store_kv": 2, "copy_kv": 2, "apply_token_mask": 1}  # how many leading arguments are results


@pytest.fixture(scope="module")
def device():
    if not torch.cuda.is_available():
        pytest.fail("this test was asked for with -m gpu, but torch sees no GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(Path(dslc.__file__).parent / "benchmarks"))
    import kernels

    yield kernels
    sys.path.pop(0)
    del sys.modules["kernels"]


SIZES = {
    "8b": {},
    "odd": {"tokens": 515, "batch": 17, "context": 1031, "hidden": 4104, "inner": 1001, "head_dim": 80, "vocab": 50257},
    "mha": {"tokens": 512, "batch": 5, "context": 300, "heads": 8, "kv_heads": 8, "head_dim": 64, "page": 1},
    "gqa7": {"tokens": 512, "batch": 5, "context": 300, "heads": 28, "kv_heads": 4, "head_dim": 128},
    "wide": {"tokens": 512, "batch": 3, "context": 700, "heads": 8, "kv_heads": 2, "head_dim": 256},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_every_kernel_is_its_twin(size, dtype, device, bench):
    seen = set()
    shape = replace(bench.Size(), **{"tokens": 1024, "context": 2048, **SIZES[size]})
    for case in bench.cases(shape, device, dtype):
        seen.add(case.operation)
        vocabulary = case.operation in ("apply_token_mask", "argmax_rows", "sample_rows")
        kernel = choose(case.operation, device=device, dtype=torch.float32 if vocabulary else dtype, **case.shape)
        assert kernel.name == "triton"
        num_results = IN_PLACE.get(case.operation, 0)
        copies = [[x.clone() for x in case.args[:num_results]] + list(case.args[num_results:]) for _ in range(2)]
        got, expected = kernel.run(*copies[0]), torch_form(case.operation)(*copies[1])
        torch.cuda.synchronize()
        if num_results:
            for one, other in zip(copies[0][:num_results], copies[1][:num_results], strict=True):
                assert torch.equal(one, other), case.operation
        elif case.operation == "sample_rows":
            # sums of 1e5 weights in another order: a cut may stand one token further, and change a draw
            assert (got != expected).float().mean() <= 0.05
        else:
            assert_twins(got, expected)
    assert seen == set(operations())


def greedy(prompts, num_new, **options):
    from dslc.runtime.engine import Engine

    config = {"max_running_requests": 8, "max_total_tokens": 4096, "dtype": "float32", **options}
    with Engine(model_path=str(tiny_checkpoint("llama")), **config) as engine:
        params = {"temperature": 0.0, "max_new_tokens": num_new, "ignore_eos": True}
        return [out["output_ids"] for out in engine.generate(input_ids=prompts, sampling_params=params)]


def test_engines_on_both_devices_give_the_same_ids(device):
    prompts = [[*range(40, 140), n] for n in range(5)] + [[7]]
    expected = greedy(prompts, 12, device="cpu", attention_backend="torch_native")
    for backend in ("triton", "torch_native"):
        assert greedy(prompts, 12, device="cuda", attention_backend=backend) == expected


def test_engines_capture_their_decodes(device):
    from dslc.runtime.engine import Engine

    prompts = [[*range(40 * n, 40 * n + 9)] for n in range(1, 6)]
    launched = greedy(prompts, 12, device="cuda", disable_cuda_graph=True)
    assert greedy(prompts, 12, device="cuda") == launched
    options = {"max_running_requests": 8, "max_total_tokens": 4096, "dtype": "float32", "device": "cuda"}
    with Engine(model_path=str(tiny_checkpoint("llama")), **options) as engine:
        assert engine.get_server_info()["decode_graphs"] == "batches of [1, 2, 4, 8]"


def test_decodes_captured_by_bucket_are_decodes_launched(device):
    """Graphs of several buckets over one set of buffers, replayed with other lengths than they were captured with."""
    import argparse

    sys.path.insert(0, str(Path(dslc.__file__).parent / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.pop(0)
    from dslc.runtime.graph_buckets import DecodeGraphs, StaticInputs, decode_buckets

    args = argparse.Namespace(
        device="cuda", shape="tiny", context=1500, input_len=4, dtype="bfloat16", attention_backend="triton"
    )
    with torch.inference_mode():
        world = gpu.World(args, 9, 9 * 1504)
        graphs = DecodeGraphs(
            StaticInputs(9, world.table.padding_row, device), decode_buckets(9), world.platform.capture,
            world.forward, world.backend.init_forward_metadata,
        )  # fmt: skip
        graphs.capture_all()
        for batch, context in ((1, 1500), (3, 5), (9, 700), (2, 129), (1, 0)):
            rows = world.rows(batch, context + 1, 0)
            fb = world.batch(rows, context, 1, 0)
            expected = world.run(fb).clone()
            got = graphs.run(fb)
            torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
            gpu.free(world, rows)
