"""What this machine has to offer, and what could be better: `dslc check-env`, or `python -m dslc.runtime.check_env`."""

from __future__ import annotations

import os
import platform as host
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata

import torch

from ..kernels.registry import Kernel, explain
from .attention.base import backend_names
from .loader import BUILTIN_MODEL
from .platform import cuda_build, platform_of, platforms

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "msgspec", "greenlet", "triton", "flashinfer-python",
    "llguidance", "xgrammar", "huggingface-hub",
)  # fmt: skip
GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB


@dataclass(frozen=True, slots=True)
class Environment:
    """Facts by name, in order, and advice in sentences."""

    facts: dict[str, str]
    advice: tuple[str, ...]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.advice or ("nothing to improve",))])


def check_environment() -> Environment:
    """Look at versions, devices, kernels and memory. Changes nothing and needs no network."""
    facts = {
        "dslc": _version("dslc") or "not installed as a package",
        "python": f"{sys.version.split()[0]} at {sys.executable}",
        "system": f"{host.system()} {host.release()}, {host.machine()}, {os.cpu_count()} processors",
    }
    for name in LIBRARIES:
        facts[name] = _version(name) or "not installed"
    facts["torch build"] = (
        f"{torch.backends.cpu.get_cpu_capability()}, mkl {_yes(torch._C.has_mkl)}, "
        f"oneDNN {_yes(torch._C._has_mkldnn)}, CUDA {cuda_build() or 'no'}"
    )
    facts["threads"] = f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})"
    for name, platform in platforms().items():
        if not platform.is_available():
            facts[f"device {name}"] = "none here"
            continue
        found = platform()
        free, total = found.free_memory(), found.total_memory()
        backends = ", ".join(found.attention_backends())
        facts[f"device {name}"] = (
            f"{found.describe()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, attention: {backends}"
        )
    facts['device="auto" means'] = platform_of("auto").name
    facts["attention backends"] = ", ".join(backend_names())
    facts |= {f"kernel {kernel.operation}": f"{kernel.name} ({kernel.reason})" for kernel in _kernels()}
    facts["C++ compiler"] = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or "none"
    facts["built-in model"] = str(BUILTIN_MODEL) if (BUILTIN_MODEL / "config.json").exists() else "not installed"
    return Environment(facts, tuple(_advice(facts)))


def _kernels() -> list[Kernel]:
    """What the device that "auto" means would run, for activations of the dtype of a bfloat16 checkpoint."""
    device = platform_of("auto")
    return explain(device.device, device.act_dtype(device.default_dtype(torch.bfloat16)))


def _advice(facts: dict[str, str]) -> list[str]:
    found = []
    device = platform_of("auto")
    if device.free_memory() < LITTLE_MEMORY:
        found.append(f"{device.name} has less than 2 GiB free: set max_total_tokens, or the KV pool may take it all.")
    if device.name == "cpu" and cuda_build():
        found.append("torch is built for CUDA, but sees no GPU: is the driver installed, and CUDA_VISIBLE_DEVICES set?")
    if device.name == "cpu" and (os.cpu_count() or 1) > 1 and "OMP_NUM_THREADS" not in os.environ:
        found.append("OMP_NUM_THREADS is unset: on a machine that does other work too, 1 is often far faster.")
    if facts["torch build"].startswith("DEFAULT"):
        found.append("torch finds no vector instructions (AVX2 or AVX-512) on this processor: everything will be slow.")
    if device.name == "cuda" and facts["triton"] == "not installed":
        found.append("triton is not installed: GPU kernels fall back to plain torch.")
    if facts["built-in model"] == "not installed":
        found.append("the built-in model is not installed: give Engine(model_path=...).")
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


if __name__ == "__main__":
    print(check_environment())
