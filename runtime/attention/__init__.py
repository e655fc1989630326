"""Attention backends behind one interface; the torch one is the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import ConfigError
from . import torch_deterministic, torch_native, triton_backend
from .base import AttentionBackend, attention_backend
from .by_phase import ByPhaseBackend

if TYPE_CHECKING:
    from ...core.config import EngineConfig
    from ..memory.request_table import ReqToTokenPool
    from ..platform import Platform

__all__ = ["AttentionChoice", "choose_attention_backend", "torch_deterministic", "torch_native", "triton_backend"]


class AttentionChoice(NamedTuple):
    """Names of the backends for forwards with prompt tokens in them, and for those of decodes only."""

    prefill: str
    decode: str

    def make(self, req_to_token: ReqToTokenPool) -> AttentionBackend:
        """The backend, or one made of both."""
        prefill = attention_backend(self.prefill)(req_to_token)
        if self.decode == self.prefill:
            return prefill
        return ByPhaseBackend(req_to_token, prefill, attention_backend(self.decode)(req_to_token))


def choose_attention_backend(config: EngineConfig, platform: Platform) -> AttentionChoice:
    """The backends' names: those asked for, or by this table ("auto").

    | deterministic | backend                      |
    |---------------|------------------------------|
    | no            | the platform's preferred one |
    | yes           | torch_deterministic          |

    `prefill_attention_backend` and `decode_attention_backend` go before `attention_backend`. Raises ConfigError for an
    unknown name, and for what cannot do what `deterministic` asks: a backend that is not deterministic, or two of them
    (a token would have other bits when it is read again than when it was made).
    """
    auto = "torch_deterministic" if config.deterministic else platform.attention_backends()[0]
    chosen: list[str] = []
    for field in ("prefill_attention_backend", "decode_attention_backend"):
        asked = getattr(config, field)
        if asked is None:
            field, asked = "attention_backend", config.attention_backend
        chosen.append(auto if asked == "auto" else asked)
        if not attention_backend(chosen[-1], field).is_deterministic and config.deterministic:
            raise ConfigError(f"{chosen[-1]!r} is not deterministic; use auto or torch_deterministic", field=field)
    if config.deterministic and chosen[0] != chosen[1]:
        raise ConfigError(
            f"deterministic mode needs one backend for both phases, not {chosen[0]!r} and {chosen[1]!r}",
            field="decode_attention_backend",
        )
    return AttentionChoice(chosen[0], chosen[1])
