"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), over a cache of latents.

Per token the cache keeps one vector for all heads: c, the compressed keys and values, and k_rope, a key that turns with
the position. Head h has k_h = [W_uk_h c, k_rope] and v_h = W_uv_h c.

*Naive:* expand k_h and v_h of every cached token. *Wrong because* they are some 60 times as large as c. *So* the
matrices are moved to the other side (absorbed): q_h W_uk_h c = (W_uk_h^T q_h) c, so that queries meet the latents
themselves, and the heads' results, sums of c, go through W_uv_h once. To the attention backend this is multi-query
attention with one KV head of size rank + rope, whose values are its keys (what belongs to k_rope in the result is
dropped).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .rowwise import RowWise

if TYPE_CHECKING:
    from collections.abc import Iterator


class LatentUp(nn.Module):
    """W_uk and W_uv: from latents to each head's keys and values, weight [heads, nope + v, rank]."""

    def __init__(self, num_heads: int, nope_dim: int, value_dim: int, rank: int) -> None:
        super().__init__()
        self.num_heads, self.nope_dim, self.value_dim, self.rank = num_heads, nope_dim, value_dim, rank
        self.weight = nn.Parameter(torch.empty(num_heads, nope_dim + value_dim, rank))
        self.into_latents = AbsorbedQueries(self)
        self.out_of_latents = AbsorbedValues(self)

    def checkpoint_parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}.weight", self.weight.data.flatten(0, 1)


class _Absorbed(RowWise):
    """One half of a LatentUp, row by row; the weight stays the LatentUp's."""

    def __init__(self, up: LatentUp, in_features: int) -> None:
        super().__init__()
        self._up = (up,)  # in a tuple: it is the parent, no child
        self.in_features = in_features

    @property
    def up(self) -> LatentUp:
        return self._up[0]


class AbsorbedQueries(_Absorbed):
    """[T, heads * nope] -> [T, heads * rank]: W_uk^T q."""

    def __init__(self, up: LatentUp) -> None:
        super().__init__(up, up.num_heads * up.nope_dim)

    def rows(self, x: Tensor) -> Tensor:
        up = self.up
        q = x.view(-1, up.num_heads, up.nope_dim).transpose(0, 1).to(up.weight.dtype)
        out = torch.bmm(q, up.weight[:, : up.nope_dim])
        return out.transpose(0, 1).flatten(1).to(x.dtype)


class AbsorbedValues(_Absorbed):
    """[T, heads * rank] -> [T, heads * v]: W_uv times what attention summed up of the latents."""

    def __init__(self, up: LatentUp) -> None:
        super().__init__(up, up.num_heads * up.rank)

    def rows(self, x: Tensor) -> Tensor:
        up = self.up
        latents = x.view(-1, up.num_heads, up.rank).transpose(0, 1).to(up.weight.dtype)
        out = torch.bmm(latents, up.weight[:, up.nope_dim :].transpose(1, 2))
        return out.transpose(0, 1).flatten(1).to(x.dtype)
