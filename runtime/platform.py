"""Devices. Nothing outside this module and `kernels` calls torch.cuda.

A platform answers what differs between kinds of device. Others can be added with `register_platform`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..core.errors import ConfigError, EngineError
from ..kernels.registry import missing_triton

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WARM_UPS = 3  # runs before a capture


class Platform(ABC):
    """One device and what it can do. `name` is the kind, as in `device="cuda"`."""

    name: ClassVar[str]
    supports_graphs: ClassVar[bool] = False
    collective_backend: ClassVar[str] = "gloo"

    def __init__(self, index: int | None = None) -> None:
        self.index = index

    @classmethod
    def is_available(cls) -> bool:
        """Whether this machine has such a device. `device="auto"` takes the last registered platform that has."""
        return True

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that may still be taken."""

    @abstractmethod
    def total_memory(self) -> int:
        """Bytes of the device."""

    @abstractmethod
    def attention_backends(self) -> tuple[str, ...]:
        """Names of the attention backends that run here, the preferred one first."""

    def act_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The dtype of activations and of the KV cache for weights of `weight_dtype`."""
        return weight_dtype

    def default_dtype(self, checkpoint_dtype: torch.dtype) -> torch.dtype:
        """What `dtype="auto"` means."""
        return checkpoint_dtype

    def describe(self) -> str:
        """The device in words, for people."""
        return str(self.device)

    def synchronize(self) -> None:
        """Return when everything queued on the device is done."""

    def capture(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what `forward` launches; the result launches it all again (`graph_buckets.GraphCapture`).

        Only where `supports_graphs`. `forward` is run a few times first.
        """
        raise EngineError(f"{self.name} has no graphs")


class CpuPlatform(Platform):
    """The host. Activations and KV are float32 whatever the weights are: half-precision attention is 2-3 times slower
    on CPUs, and a bfloat16 matrix product reads half the bytes anyway."""

    name = "cpu"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def free_memory(self) -> int:
        return _meminfo("MemAvailable") or self.total_memory()

    def total_memory(self) -> int:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def attention_backends(self) -> tuple[str, ...]:
        return ("torch_native",)

    def act_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def default_dtype(self, checkpoint_dtype: torch.dtype) -> torch.dtype:
        return torch.float32


class CudaPlatform(Platform):
    """An NVIDIA GPU."""

    name = "cuda"
    supports_graphs = True
    collective_backend = "nccl"
    _graph_pool: Any = None  # memory that all captured graphs share

    @classmethod
    def is_available(cls) -> bool:
        return torch.cuda.is_available()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index or 0)

    def free_memory(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    def total_memory(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[1])

    def attention_backends(self) -> tuple[str, ...]:
        return ("torch_native",) if missing_triton(self.name) else ("triton", "torch_native")

    def describe(self) -> str:
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"{torch.cuda.get_device_name(self.device)} (compute capability {major}.{minor})"

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):  # compiles kernels and lets libraries take their workspaces
                forward()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_pool):
            out = forward()
        self._graph_pool = graph.pool()  # the next one may use the same memory: they do not run side by side

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


_PLATFORMS: dict[str, type[Platform]] = {}


def register_platform(platform: type[Platform]) -> type[Platform]:
    """Make a platform selectable by its `name`. Raises ValueError if the name is taken."""
    if _PLATFORMS.setdefault(platform.name, platform) is not platform:
        raise ValueError(f"platform {platform.name!r} is registered already")
    return platform


for _platform in (CpuPlatform, CudaPlatform):
    register_platform(_platform)


def platforms() -> dict[str, type[Platform]]:
    """Every registered platform by name, available or not."""
    return dict(_PLATFORMS)


def cuda_build() -> str | None:
    """The CUDA version that torch was built for; None for a build without."""
    return torch.version.cuda


def platform_of(device: str) -> Platform:
    """The platform for `device`: "auto", a name, or a name and a number such as "cuda:1". Raises ConfigError."""
    if device == "auto":
        return next(cls for cls in reversed(_PLATFORMS.values()) if cls.is_available())()
    name, _, number = device.partition(":")
    if name not in _PLATFORMS or not (number.isdecimal() or ":" not in device):
        raise ConfigError(f"unknown device {device!r}; choices: auto, {', '.join(_PLATFORMS)}", field="device")
    if not _PLATFORMS[name].is_available():
        raise ConfigError(f"{device!r} was asked for, but this machine has none", field="device")
    return _PLATFORMS[name](int(number) if number else None)


def _meminfo(name: str) -> int | None:
    """A line of /proc/meminfo in bytes; None where there is no such file (not Linux)."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
