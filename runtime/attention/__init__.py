"""Attention backends behind one interface; the torch one is the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import torch_native

if TYPE_CHECKING:
    from ...core.config import EngineConfig
    from ..platform import Platform

__all__ = ["choose_attention_backend", "torch_native"]


def choose_attention_backend(config: EngineConfig, platform: Platform) -> str:
    """The backend's name: the one asked for, or by this table (`attention_backend="auto"`).

    | deterministic | backend                          |
    |---------------|----------------------------------|
    | no            | the platform's preferred one     |
    """
    if config.attention_backend != "auto":
        return config.attention_backend
    return platform.attention_backends()[0]
