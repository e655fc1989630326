"""`dslc check-env` on a machine without a GPU, and its advice."""

from __future__ import annotations

import pytest
import torch

from dslc import cli
from dslc.runtime import check_env, platform


def test_the_command_prints_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-env"]) == 0
    facts, _, advice = capsys.readouterr().out.partition("\n\n")
    found = dict(line.split("  ", 1) for line in facts.splitlines())
    found = {name.strip(): value.strip() for name, value in found.items()}
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert "GiB free, attention: torch_native" in found["device cpu"]
    assert "torch_deterministic" in found["attention backends"] and found["kernel rms_norm"]
    assert all(line.startswith("- ") for line in advice.strip().splitlines()) and advice.strip()
    if not torch.cuda.is_available():
        assert found["device cuda"] == "none here" and found['device="auto" means'] == "cpu"


def test_advice_follows_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.CudaPlatform, "is_available", classmethod(lambda cls: False))
    monkeypatch.setattr(platform.CpuPlatform, "free_memory", lambda self: 1 << 28)
    monkeypatch.setattr(check_env.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(check_env, "cuda_build", lambda: "12.8")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    text = str(check_env.check_environment())
    for part in ("less than 2 GiB free", "sees no GPU", "OMP_NUM_THREADS is unset"):
        assert part in text
    monkeypatch.setattr(platform.CpuPlatform, "free_memory", lambda self: 1 << 36)
    monkeypatch.setattr(check_env, "cuda_build", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert check_env.check_environment().advice == ()
    assert "nothing to improve" in str(check_env.check_environment())
