"""Two backends as one: one for forwards with prompt tokens in them, one for forwards of decodes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..batch import ForwardMode
from .base import AttentionBackend

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool
    from ..memory.request_table import ReqToTokenPool


class ByPhaseBackend(AttentionBackend):
    """`decode` runs the forwards of mode DECODE, `prefill` all others. Both read and write the same KV pool."""

    def __init__(self, req_to_token: ReqToTokenPool, prefill: AttentionBackend, decode: AttentionBackend) -> None:
        super().__init__(req_to_token)
        self.prefill = prefill
        self.decode = decode

    def _of(self, fb: ForwardBatch) -> AttentionBackend:
        return self.decode if fb.mode is ForwardMode.DECODE else self.prefill

    def captures_decodes(self, head_dim: int) -> bool:
        return self.decode.captures_decodes(head_dim)

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        self._of(fb).init_forward_metadata(fb)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        return self._of(fb).forward(q, k, v, layer, fb, kv_pool)
