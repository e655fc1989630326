"""Which implementation of an operation runs: decided once, by device, dtype and shape, with a reason to print.

A file of this package holds one operation: its plain torch form, which is specification, oracle and fallback.
`@operation` enters it here; other implementations are named by where they stand, and imported when they are chosen:

    @operation("rms_norm", Implementation("triton", ".triton.rms_norm:rms_norm", devices=("cuda",)))
    def rms_norm(x, weight, eps): ...

    kernel = choose("rms_norm", device=x.device, dtype=x.dtype, size=4096)   # when a model is loaded
    kernel.run(x, weight, eps)                                               # for each batch

Of the implementations that can do what is asked the first in order of entry runs, torch last. The environment variable
DSLC_KERNELS overrides that: `torch` for all operations, or `rms_norm=torch,sample=triton` for some. What is asked for
by name and cannot run is an error, never silently something else.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OVERRIDE = "DSLC_KERNELS"
TORCH = "torch"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_F = TypeVar("_F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to do an operation. `where` is `module:function`, the module relative to this package.

    It is preferred on `devices`, for `dtypes`; `limit` says of the shape why it cannot be done (None: it can), and
    `available` of the machine. Triton's run on the CPU too, when asked for and under its interpreter.
    """

    name: str
    where: str
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] = FLOATS
    limit: Callable[[Mapping[str, int]], str | None] | None = None
    available: Callable[[], str | None] | None = None

    def load(self) -> Callable[..., Any]:
        """The function, imported now."""
        module, _, function = self.where.partition(":")
        found: Callable[..., Any] = getattr(import_module(module, __package__), function)
        return found

    def refusal(self, device: str, dtype: torch.dtype, shape: Mapping[str, int]) -> str | None:
        """Why this cannot run here, in words; None if it can."""
        if self.name == "triton" and (why := missing_triton(device)) is not None:
            return why
        if device not in self.devices and not (self.name == "triton" and interpreted()):
            return f"it is for {' and '.join(self.devices)}, not for {device}"
        if dtype not in self.dtypes:
            return f"it does not do {str(dtype).removeprefix('torch.')}"
        if self.available is not None and (why := self.available()) is not None:
            return why
        return None if self.limit is None else self.limit(shape)


class Kernel(NamedTuple):
    """An operation's chosen implementation, ready to call, and why it was chosen."""

    operation: str
    name: str
    run: Callable[..., Any]
    reason: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.name} ({self.reason})"


@dataclass(slots=True)
class _Operation:
    twin: Callable[..., Any]
    others: list[Implementation]


_OPERATIONS: dict[str, _Operation] = {}


def operation(name: str, *others: Implementation) -> Callable[[_F], _F]:
    """Decorator of an operation's torch form. `others` in order of preference. Raises ValueError for a taken name."""

    def enter(twin: _F) -> _F:
        if name in _OPERATIONS:
            raise ValueError(f"operation {name!r} is registered already, as {_OPERATIONS[name].twin.__qualname__}")
        _OPERATIONS[name] = _Operation(twin, list(others))
        return twin

    return enter


def add_implementation(name: str, implementation: Implementation) -> None:
    """One more way to do a known operation, preferred to those that were there. Raises ValueError if its name is."""
    known = _operation(name)
    if implementation.name in (TORCH, *(other.name for other in known.others)):
        raise ValueError(f"operation {name!r} has a {implementation.name!r} implementation already")
    known.others.insert(0, implementation)


def operations() -> dict[str, tuple[str, ...]]:
    """Every operation with the names of its implementations, in order of preference."""
    return {name: (*(other.name for other in found.others), TORCH) for name, found in sorted(_OPERATIONS.items())}


def torch_form(name: str) -> Callable[..., Any]:
    """The plain torch form of an operation. Raises ValueError for an unknown one."""
    return _operation(name).twin


def choose(name: str, *, device: torch.device | str, dtype: torch.dtype, **shape: int) -> Kernel:
    """The implementation of an operation for tensors of `dtype` on `device`. Not cheap: call it once, keep `run`.

    `shape` is what the operation's file says that a limit may look at. Raises ValueError for an unknown operation, and
    for an implementation that DSLC_KERNELS asks for and that is unknown or cannot run.
    """
    known = _operation(name)
    kind = torch.device(device).type
    asked = overrides().get(name)
    if asked is not None:
        return _asked_for(name, asked, known, kind, dtype, shape)
    reasons = []
    for other in known.others:
        why = other.refusal(kind, dtype, shape)
        if why is None and kind in other.devices:
            return Kernel(name, other.name, other.load(), f"the first that can, on {kind}")
        if kind in other.devices:
            reasons.append(f"{other.name}: {why}")
            if other.name == "triton" and missing_triton(kind) is not None:
                _warn_once(f"no Triton kernels on {kind}: {why}; plain torch runs instead, slower")
    return Kernel(name, TORCH, known.twin, "; ".join(reasons) or f"no other is for {kind}")


def _asked_for(
    name: str, asked: str, known: _Operation, kind: str, dtype: torch.dtype, shape: Mapping[str, int]
) -> Kernel:
    reason = f"{OVERRIDE} asks for it"
    if asked == TORCH:
        return Kernel(name, TORCH, known.twin, reason)
    for other in known.others:
        if other.name == asked:
            if (why := other.refusal(kind, dtype, shape)) is not None:
                raise ValueError(f"{OVERRIDE} asks for {name}={asked}, which cannot run: {why}")
            return Kernel(name, asked, other.load(), reason)
    choices = ", ".join([*(other.name for other in known.others), TORCH])
    raise ValueError(f"{OVERRIDE} asks for {name}={asked}; choices: {choices}")


def overrides() -> dict[str, str]:
    """What DSLC_KERNELS asks for, by operation. Raises ValueError for an operation that does not exist.

    A bare name means every operation that has such an implementation.
    """
    asked: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in os.environ.get(OVERRIDE, "").split(","))):
        name, given, implementation = part.partition("=")
        if given:
            _operation(name)
            asked[name] = implementation
            continue
        having = [op for op, names in operations().items() if part in names]
        if not having:
            raise ValueError(f"{OVERRIDE}={part}: no operation has such an implementation")
        asked |= dict.fromkeys(having, part)
    return asked


def explain(device: torch.device | str, dtype: torch.dtype) -> list[Kernel]:
    """What `choose` gives for every operation, limits of shapes aside, to be printed."""
    return [choose(name, device=device, dtype=dtype) for name in operations()]


def interpreted() -> bool:
    """Whether Triton kernels are run by its interpreter (TRITON_INTERPRET=1 when triton was first imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing_triton(device: str) -> str | None:
    """Why Triton kernels cannot run on this kind of device; None if they can."""
    if not _has_triton():
        return "triton is not installed"
    if interpreted() or device == "cuda":
        return None
    return f"triton does not run on {device} without TRITON_INTERPRET=1"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _operation(name: str) -> _Operation:
    if name not in _OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; known: {', '.join(sorted(_OPERATIONS))}")
    return _OPERATIONS[name]
