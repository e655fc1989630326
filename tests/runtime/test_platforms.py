"""Devices are asked for by name, others can be added, and nobody goes around them."""

import ast
from pathlib import Path

import pytest
import torch
from support.batches import Slots, make_batch
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.core.config import EngineConfig
from dslc.core.errors import ConfigError
from dslc.runtime import platform
from dslc.runtime.model_runner import ModelRunner

torch.set_num_threads(1)
MB = 1 << 20


class FakePlatform(platform.CpuPlatform):
    """A device with 64 MB, 16 of them taken."""

    name = "fake"

    def total_memory(self):
        return 64 * MB

    def free_memory(self):
        return 48 * MB


@pytest.fixture
def fake():
    platform.register_platform(FakePlatform)
    yield
    del platform._PLATFORMS["fake"]


def test_a_registered_platform_runs_the_model_and_sizes_the_pool(fake):
    path = str(tiny_checkpoint("llama"))
    runner = ModelRunner(EngineConfig.of(model_path=path, device="fake", mem_fraction_static=0.5, page_size=16))
    assert isinstance(runner.platform, FakePlatform)
    assert runner.kv_pool.num_bytes <= 16 * MB < runner.kv_pool.num_bytes + 2 * 16 * runner.kv_shape.bytes_per_token
    assert runner.num_tokens % 16 == 0
    slots = Slots(runner.req_to_token, 64)
    assert runner.forward(make_batch(slots, [(slots.sequence(), [5, 6, 7])])).shape == (3, 512)
    with pytest.raises(ValueError, match="platform 'fake' is registered already"):
        platform.register_platform(type("Other", (FakePlatform,), {}))
    with pytest.raises(ConfigError, match="no memory is left for a KV pool"):
        ModelRunner(EngineConfig.of(model_path=path, device="fake", mem_fraction_static=0.25))


def test_devices_by_name(fake):
    assert platform.platform_of("cpu").name == "cpu"
    assert platform.platform_of("fake:3").index == 3
    assert platform.platform_of("auto").name == "fake"  # the last one registered that is there
    for device in ("tpu", "cpu:x", "cpu:", ""):
        with pytest.raises(ConfigError, match=r"unknown device .*; choices: auto, cpu, cuda, fake"):
            platform.platform_of(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="'cuda' was asked for, but this machine has none"):
        platform.platform_of("cuda")


def test_memory_of_the_host():
    cpu = platform.CpuPlatform()
    assert 0 < cpu.free_memory() <= cpu.total_memory()


@pytest.mark.parametrize(
    "options, num_tokens",
    [
        ({"max_total_tokens": 100}, 100),
        ({"max_total_tokens": 100, "page_size": 16}, 112),
        ({"max_running_requests": 3, "context_length": 50}, 150),
        ({"max_running_requests": 3, "context_length": 50, "page_size": 64}, 192),
    ],
)
def test_the_size_of_the_pool_on_the_cpu(options, num_tokens):
    runner = ModelRunner(EngineConfig.of(model_path=str(tiny_checkpoint("llama")), **options))
    assert runner.num_tokens == runner.kv_pool.num_tokens == num_tokens


def test_the_cpu_pool_stays_under_its_limit(monkeypatch):
    from dslc.runtime import model_runner

    monkeypatch.setattr(model_runner, "CPU_KV_BYTES", 2 * MB)
    runner = ModelRunner(EngineConfig.of(model_path=str(tiny_checkpoint("llama"))))
    assert runner.kv_pool.num_bytes <= 2 * MB


def test_nobody_calls_torch_cuda_but_the_platform_and_the_kernels():
    root = Path(dslc.__file__).parent
    files = [p for room in ("core", "compiler", "lang", "runtime") for p in (root / room).rglob("*.py")]
    allowed = root / "runtime" / "platform.py"
    assert len(files) > 50 and allowed in files
    offenders = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "cuda" and path != allowed:
                offenders.append(f"{path.relative_to(root)}:{node.lineno}")
    assert offenders == []
