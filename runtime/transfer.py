"""Between host and device without waiting: a copy from or to pageable memory would hold the host until all queued
work is done, and with it the overlap of launch and resolve. On the CPU nothing is copied at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The values as a tensor on the device, in stream order; they must not be changed afterwards."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """Tensors on their way to the host. Made right after the work that computes them was queued; `wait` then waits for
    that work and for nothing queued later."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        device = next((tensor.device for tensor in tensors.values() if tensor.device.type != "cpu"), None)
        self._event = None
        if device is not None:
            self._event = torch.Event(device)
            self._event.record()

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
