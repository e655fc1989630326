"""The attention layer of a model: its numbers, and the way to the backend that does the work."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool


class AttentionType(Enum):
    """DECODER: a row sees what stands before it, and itself. ENCODER_ONLY: a row sees its whole sequence."""

    DECODER = "decoder"
    ENCODER_ONLY = "encoder_only"


class RadixAttention(nn.Module):
    """Attention of new rows over the KV cache: what one layer is, without projections or weights.

    scores = cap * tanh(q k^T * scaling / cap) (without the cap where `logit_cap` is 0). `sliding_window` counts the row
    itself. `sinks` [num_heads] are scores of a key that everybody sees and that has no value: the results of head h are
    multiplied by sigmoid(log(sum(exp(scores))) - sinks[h]) (gpt-oss). Query head h reads KV head
    h * num_kv_heads // num_heads.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        scaling: float,
        num_kv_heads: int,
        layer_id: int,
        *,
        logit_cap: float = 0.0,
        sliding_window: int | None = None,
        attn_type: AttentionType = AttentionType.DECODER,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads ({num_kv_heads}) must divide num_heads ({num_heads})")
        if sliding_window is not None and (sliding_window < 1 or attn_type is not AttentionType.DECODER):
            raise ValueError(f"a sliding window counts 1 or more tokens of a decoder layer, not {sliding_window}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scaling = scaling
        self.num_kv_heads = num_kv_heads
        self.layer_id = layer_id
        self.logit_cap = logit_cap
        self.sliding_window = sliding_window
        self.attn_type = attn_type
        self.sinks: Tensor | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        """q [T, num_heads * head_dim], k and v [T, num_kv_heads * head_dim] -> [T, num_heads * head_dim].

        The new k and v are written to the pool first.
        """
        q = q.view(-1, self.num_heads, self.head_dim)
        k = k.view(-1, self.num_kv_heads, self.head_dim)
        v = v.view(-1, self.num_kv_heads, self.head_dim)
        kv_pool.store(self.layer_id, fb.out_slots, k, v)
        return attn.forward(q, k, v, self, fb, kv_pool).flatten(1)
