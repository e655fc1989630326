"""Which implementation runs, and why: by device, dtype, shape, what is installed, and what is asked for."""

import pytest
import torch

from dslc.kernels import registry
from dslc.kernels.registry import Implementation, add_implementation, choose, explain, operation, operations
from dslc.kernels.rms_norm import rms_norm


@pytest.fixture
def toy(monkeypatch):
    """An operation with implementations of every kind; the registry is as before afterwards."""
    monkeypatch.setattr(registry, "_OPERATIONS", dict(registry._OPERATIONS))

    def limit(shape):
        return "rows of more than 8" if shape.get("size", 0) > 8 else None

    @operation(
        "toy",
        Implementation("triton", ".triton.rms_norm:rms_norm", limit=limit),
        Implementation("native", ".rms_norm:rms_norm", devices=("cpu",), dtypes=(torch.float32,), limit=limit),
    )
    def twin(x):
        return x

    return twin


def test_the_first_that_can_runs(toy, monkeypatch):
    monkeypatch.setattr(registry, "interpreted", lambda: False)
    on_gpu = choose("toy", device="cuda:1", dtype=torch.bfloat16, size=8)
    assert on_gpu.name == "triton" and str(on_gpu) == "toy: triton (the first that can, on cuda)"
    on_cpu = choose("toy", device="cpu", dtype=torch.float32)
    assert on_cpu.name == "native" and on_cpu.run is rms_norm
    for wanted, why in (
        ({"device": "cpu", "dtype": torch.bfloat16}, "native: it does not do bfloat16"),
        ({"device": "cpu", "dtype": torch.float32, "size": 9}, "native: rows of more than 8"),
        ({"device": "cuda", "dtype": torch.float64}, "triton: it does not do float64"),
        ({"device": "cuda", "dtype": torch.float32, "size": 9}, "triton: rows of more than 8"),
        ({"device": "mps", "dtype": torch.float32}, "no other is for mps"),
    ):
        found = choose("toy", **wanted)
        assert found.name == "torch" and found.run is toy and found.reason == why


def test_what_is_added_later_goes_first(toy):
    add_implementation("toy", Implementation("vector", ".rms_norm:rms_norm", devices=("cpu",)))
    assert choose("toy", device="cpu", dtype=torch.float32).name == "vector"
    assert operations()["toy"] == ("vector", "triton", "native", "torch")
    with pytest.raises(ValueError, match="'toy' has a 'vector' implementation already"):
        add_implementation("toy", Implementation("vector", ".rms_norm:rms_norm"))
    with pytest.raises(ValueError, match="'toy' is registered already"):
        operation("toy")(rms_norm)


def test_an_override_is_followed_or_refused(toy, monkeypatch):
    def asked(text, **shape):
        monkeypatch.setenv("DSLC_KERNELS", text)
        return choose("toy", device="cpu", dtype=torch.float32, **shape)

    assert asked("torch").reason == "DSLC_KERNELS asks for it"
    assert asked("rms_norm=triton, toy=torch").name == "torch"
    assert asked("rms_norm=torch").name == "native"
    monkeypatch.setattr(registry, "interpreted", lambda: True)
    assert asked("triton").name == "triton"  # on the CPU only because it is asked for
    with pytest.raises(ValueError, match="asks for toy=triton, which cannot run: rows of more than 8"):
        asked("toy=triton", size=9)
    with pytest.raises(ValueError, match="toy=fast; choices: triton, native, torch"):
        asked("toy=fast")
    with pytest.raises(ValueError, match=r"unknown operation .tyo.; known: .*toy"):
        asked("tyo=torch")
    with pytest.raises(ValueError, match="DSLC_KERNELS=fast: no operation has such an implementation"):
        asked("fast")
    monkeypatch.setattr(registry, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="triton does not run on cpu without TRITON_INTERPRET=1"):
        asked("triton")


def test_without_triton_torch_runs_with_one_warning(toy, monkeypatch):
    monkeypatch.setattr(registry, "_has_triton", lambda: False)
    registry._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no Triton kernels on cuda: triton is not installed") as seen:
        found = [choose(name, device="cuda", dtype=torch.float16) for name in ("toy", "rms_norm", "toy")]
    assert [kernel.name for kernel in found] == ["torch"] * 3 and len(seen) == 1
    assert found[1].reason == "triton: triton is not installed"


def test_every_implementation_can_be_loaded():
    pytest.importorskip("triton")
    for name, names in operations().items():
        assert names[-1] == "torch"
        for other in registry._OPERATIONS[name].others:
            if other.name == "triton":
                assert callable(other.load()), name
    assert {kernel.operation for kernel in explain("cpu", torch.float32)} == set(operations())
