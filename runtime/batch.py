"""What the scheduler hands to the model: which rows to compute, where their KV goes, which logits are wanted.

`ForwardBatch` is built by the engine for each launch, from lengths and slots; it holds device tensors and no request.
The model runner and the attention backends only read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from .media.features import MediaRows


class ForwardMode(Enum):
    """EXTEND: every request adds a run of tokens after its cached prefix. DECODE: each adds one. MIXED: some of both.

    IDLE: no rows (a rank that only takes part in collectives).
    """

    EXTEND = "extend"
    DECODE = "decode"
    MIXED = "mixed"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows of the batch whose first `shared_len` KV entries are the same pages: they may be read once for all."""

    rows: tuple[int, ...]
    shared_len: int


@dataclass(slots=True)
class ForwardBatch:
    """B requests, T new token rows; request b owns rows extend_starts[b] : extend_starts[b] + extend_lens[b].

    All index tensors are int64 on the model's device. KV of row t is written to pool slot `out_slots[t]`. Request b
    attends to the pool slots `req_to_token[req_rows[b], :seq_lens[b]]`, where seq_len = prefix_len + extend_len and
    its own new slots are already in the table.

    `tree_parents`: for tree-masked requests (a trie of choices, a draft tree) an int64 tensor [extend_len] per request,
    giving for each new row its parent row within the request's new rows (-1: the prefix); a row sees the prefix, its
    ancestors and itself. None for ordinary causal requests.

    `last_keys`: for requests with rows that see what comes after them (those of a picture which is seen as a whole) an
    int64 array [extend_len] on the host, giving for each new row the index of the last key that it sees, within the
    request's new rows; a sliding window cuts below as ever. None for requests whose rows end with themselves.
    """

    mode: ForwardMode
    input_ids: Tensor  # [T]
    positions: Tensor  # [T]
    out_slots: Tensor  # [T]
    req_rows: Tensor  # [B]
    seq_lens: Tensor  # [B]
    prefix_lens: Tensor  # [B]
    extend_lens: Tensor  # [B]
    seq_lens_cpu: tuple[int, ...]
    prefix_lens_cpu: tuple[int, ...]
    extend_lens_cpu: tuple[int, ...]
    logits_rows: Tensor  # [R] row numbers in [0, T) whose logits are wanted, ascending
    groups: tuple[PrefixGroup, ...] = ()
    tree_parents: tuple[Tensor | None, ...] | None = None
    media: MediaRows | None = None  # what it takes from pictures
    last_keys: tuple[npt.NDArray[np.int64] | None, ...] | None = None
    scratch: dict[str, object] = field(default_factory=dict)  # an attention backend's metadata for this forward

    @property
    def num_requests(self) -> int:
        return len(self.seq_lens_cpu)

    @property
    def num_rows(self) -> int:
        return int(self.input_ids.shape[0])
