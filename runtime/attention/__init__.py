"""Attention backends behind one interface; the torch one is the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from . import torch_deterministic, torch_native
from .base import attention_backend

if TYPE_CHECKING:
    from ...core.config import EngineConfig
    from ..platform import Platform

__all__ = ["choose_attention_backend", "torch_deterministic", "torch_native"]


def choose_attention_backend(config: EngineConfig, platform: Platform) -> str:
    """The backend's name: the one asked for, or by this table (`attention_backend="auto"`).

    | deterministic | backend                      |
    |---------------|------------------------------|
    | no            | the platform's preferred one |
    | yes           | torch_deterministic          |

    Raises ConfigError for an unknown name, and for one that cannot do what `deterministic` asks.
    """
    if config.attention_backend == "auto":
        return "torch_deterministic" if config.deterministic else platform.attention_backends()[0]
    if config.deterministic and not attention_backend(config.attention_backend).is_deterministic:
        raise ConfigError(
            f"{config.attention_backend!r} is not deterministic; use auto or torch_deterministic",
            field="attention_backend",
        )
    return config.attention_backend
