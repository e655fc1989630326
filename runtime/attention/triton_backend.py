"""Attention in Triton: for GPUs, and on the CPU under Triton's interpreter (TRITON_INTERPRET=1), for tests.

A forward's requests are of three kinds, each a launch per layer: decodes (one row), extends (a run of rows), trees.
Decodes that share a prefix read it once for all of them; what they read apart, and the splits of long sequences, are
joined by log-sum-exp. Everything that all layers share is worked out once per forward, from lengths; the keys' slots
are read by the kernels themselves, in the request table.

A batch of decodes without groups touches nothing but the batch's own tensors, and its launches depend on the number of
requests alone, so it can be captured in a graph.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...kernels.registry import missing_triton
from ...kernels.token_bitmask import mask_words
from ..layers.attention import AttentionType
from ..transfer import to_device
from . import torch_native, trees
from .base import AttentionBackend, register_attention_backend
from .planner import shared_spans
from .torch_native import TorchNativeBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool
    from ..memory.request_table import ReqToTokenPool

SCRATCH = "triton"
WIDEST_HEAD = 256  # beyond, a tile of queries and its sums do not fit a multiprocessor's registers


@dataclass(slots=True)
class _Shared:
    """One level of shared prefixes: groups of decodes that have no decode in common."""

    rows: Tensor  # [G] rows of the request table
    starts: Tensor  # [G] first shared key
    ends: Tensor  # [G]
    members: Tensor  # [N] decodes, by their number among the decodes
    member_starts: Tensor  # [G + 1]
    largest: int  # number of decodes of the largest group


@dataclass(slots=True)
class _Decodes:
    """Requests with one new row, which is in the pool already."""

    q_rows: Tensor | None  # [n] rows of the batch; None: all, in order
    rows: Tensor  # [n] rows of the request table
    ends: Tensor  # [n] keys, the row's own included
    own_starts: Tensor  # [n] first key not read with a group
    nothing: Tensor  # [n] zeros
    shared: list[_Shared]


@dataclass(slots=True)
class _Extends:
    """Requests with a run of new rows, or with rows that see what masks say: a tree's, or a whole picture's."""

    rows: Tensor  # all [n]
    row_starts: Tensor
    num_rows: Tensor
    prefix_starts: Tensor
    prefix_lens: Tensor
    max_rows: int
    max_prefix: int
    sees: Tensor | None = None  # [T, W] int32, for masks
    depths: Tensor | None = None  # [T]
    causal: bool = True  # no row sees what comes after it


@dataclass(slots=True)
class _Work:
    decodes: _Decodes | None
    extends: list[_Extends]


@register_attention_backend("triton")
class TritonBackend(AttentionBackend):
    """Triton kernels; see the module. All options of the attention layer, trees, shared prefixes.

    Layers whose heads are wider than 256 (latent attention) run in plain torch, with a warning. Raises ConfigError
    where Triton cannot run.
    """

    def __init__(self, req_to_token: ReqToTokenPool) -> None:
        super().__init__(req_to_token)
        why = missing_triton(req_to_token.device.device.type)
        if why is not None:
            raise ConfigError(f"the triton backend cannot run: {why}", field="attention_backend")
        # here, for it takes a third of a second that others need not wait
        from ...kernels.triton import cascade_attention, decode_attention, extend_attention, merge_states

        self._cascade, self._decode = cascade_attention, decode_attention
        self._extend, self._merge = extend_attention, merge_states

    @cached_property
    def _torch(self) -> TorchNativeBackend:
        warnings.warn(
            f"attention heads wider than {WIDEST_HEAD} run in plain torch, slower", RuntimeWarning, stacklevel=2
        )
        return TorchNativeBackend(self.req_to_token)

    def captures_decodes(self, head_dim: int) -> bool:
        return head_dim <= WIDEST_HEAD

    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        fb.scratch.clear()
        is_decode = [n == 1 and not _tree_of(fb, b) for b, n in enumerate(fb.extend_lens_cpu)]
        decodes = _decodes(fb, is_decode) if any(is_decode) else None
        extends = [] if all(is_decode) else _extends(fb, is_decode)
        fb.scratch[SCRATCH] = _Work(decodes, extends)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        if layer.head_dim > WIDEST_HEAD:
            if torch_native.SCRATCH not in fb.scratch:
                self._torch.init_forward_metadata(fb)
            return self._torch.forward(q, k, v, layer, fb, kv_pool)
        work = fb.scratch[SCRATCH]
        assert isinstance(work, _Work)
        keys, values = kv_pool.layer(layer.layer_id)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if work.extends:  # before the decodes: joining their splits writes all rows
            self._run_extends(work.extends, q, k, v, keys, values, layer, out, lse)
        if work.decodes is not None:
            self._run_decodes(work.decodes, q, keys, values, layer, out, lse)
        if layer.sinks is not None:
            return (out * torch.sigmoid(lse - layer.sinks.float()).unsqueeze(-1)).to(q.dtype)
        return out

    def _run_extends(
        self, extends: Sequence[_Extends], q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor,
        layer: RadixAttention, out: Tensor, lse: Tensor,
    ) -> None:  # fmt: skip
        heads, kv_heads, size = layer.num_heads, layer.num_kv_heads, layer.head_dim
        tiles = sum(x.rows.shape[0] * self._extend.num_tiles(x.max_rows, heads, kv_heads, size) for x in extends)
        splits = self._extend.extend_splits(q.device, tiles * kv_heads, max(x.max_prefix for x in extends))
        outs, lses = out.unsqueeze(1), lse.unsqueeze(1)
        if splits > 1:
            outs = torch.empty((q.shape[0], splits, heads, size), dtype=torch.float32, device=q.device)
            lses = torch.empty((q.shape[0], splits, heads), dtype=torch.float32, device=q.device)
        for x in extends:
            self._extend.extend_into(
                outs, lses, q, k, v, keys, values, self.req_to_token.device, x.rows, x.row_starts, x.num_rows,
                x.prefix_starts, x.prefix_lens, layer.scaling, layer.logit_cap, layer.sliding_window,
                x.causal and layer.attn_type is AttentionType.DECODER, x.max_rows, x.sees, x.depths,
            )  # fmt: skip
        if splits > 1:
            self._merge.merge_into(out, outs, lses, None, lse)

    def _run_decodes(
        self, work: _Decodes, q: Tensor, keys: Tensor, values: Tensor, layer: RadixAttention, out: Tensor, lse: Tensor
    ) -> None:
        window = layer.sliding_window
        shared = work.shared if window is None and layer.attn_type is AttentionType.DECODER else []
        starts = work.own_starts if shared else work.nothing
        if window is not None:
            starts = (work.ends - window).clamp_(min=0)
        heads, kv_heads, size = layer.num_heads, layer.num_kv_heads, layer.head_dim
        table, num = self.req_to_token.device, work.rows.shape[0]
        # as many as the context may be worth: captured graphs are replayed with longer sequences
        own = self._decode.decode_splits(q.device, num * kv_heads, table.shape[1])
        levels = [
            self._decode.decode_splits(
                q.device,
                level.rows.shape[0] * kv_heads * self._extend.num_tiles(level.largest, heads, kv_heads, size),
                table.shape[1],
            )
            for level in shared
        ]
        parts = own + sum(levels)
        whole = parts == 1 and work.q_rows is None
        if whole:
            outs, lses = out.unsqueeze(1), lse.unsqueeze(1)
        else:
            outs = torch.empty((num, parts, heads, size), dtype=torch.float32, device=q.device)
            lses = torch.full((num, parts, heads), float("-inf"), dtype=torch.float32, device=q.device)
        scale, cap = layer.scaling, layer.logit_cap
        self._decode.decode_parts(
            q, keys, values, table, work.rows, starts, work.ends, outs[:, :own], lses[:, :own], scale, cap, work.q_rows
        )
        at = own
        for level, splits in zip(shared, levels, strict=True):
            mine = slice(at, at + splits)
            self._cascade.cascade_parts(
                q, keys, values, table, level.rows, level.starts, level.ends, level.members, level.member_starts,
                outs[:, mine], lses[:, mine], scale, cap, level.largest, work.q_rows,
            )  # fmt: skip
            at += splits
        if not whole:
            self._merge.merge_into(out, outs, lses, work.q_rows, lse)


def _tree_of(fb: ForwardBatch, request: int) -> list[int]:
    """The parents of a request's rows where they are more than a chain, else nothing."""
    tree = None if fb.tree_parents is None else fb.tree_parents[request]
    if tree is None:
        return []
    parents: list[int] = tree.tolist()
    return parents if trees.split_chain(parents)[1] else []


def _decodes(fb: ForwardBatch, is_decode: Sequence[bool]) -> _Decodes:
    everything = all(is_decode)
    device = fb.input_ids.device
    if everything:
        chosen, q_rows, rows, ends = list(range(fb.num_requests)), None, fb.req_rows, fb.seq_lens
    else:
        chosen = [b for b, yes in enumerate(is_decode) if yes]
        first_rows = np.cumsum(fb.extend_lens_cpu) - 1  # of requests with one row the last row is the first
        where = _tensor(chosen, device)
        q_rows, rows, ends = _tensor(first_rows[chosen], device), fb.req_rows[where], fb.seq_lens[where]
    nothing = torch.zeros_like(ends)
    shared, own_starts = _shared(fb, is_decode, chosen) if fb.groups else ([], nothing)
    return _Decodes(q_rows, rows, ends, own_starts, nothing, shared)


def _shared(fb: ForwardBatch, is_decode: Sequence[bool], chosen: Sequence[int]) -> tuple[list[_Shared], Tensor]:
    """Levels of groups of decodes, and the first key of each decode that is in none of its groups."""
    device = fb.input_ids.device
    number = {request: i for i, request in enumerate(chosen)}
    own_starts, depth = [0] * len(chosen), [0] * len(chosen)
    levels: list[list[tuple[list[int], int, int]]] = []  # of each level: members, first key, end
    for spans in shared_spans(fb, is_decode):
        members = [number[span.request] for span in spans]
        level = max(depth[i] for i in members)
        if level == len(levels):
            levels.append([])
        levels[level].append((members, spans[0].start, spans[0].end))
        for i in members:
            own_starts[i], depth[i] = spans[0].end, level + 1
    result = []
    for groups in levels:
        sizes = [len(members) for members, _, _ in groups]
        firsts = _tensor([chosen[members[0]] for members, _, _ in groups], device)
        result.append(
            _Shared(
                rows=fb.req_rows[firsts],
                starts=_tensor([start for _, start, _ in groups], device),
                ends=_tensor([end for _, _, end in groups], device),
                members=_tensor([i for members, _, _ in groups for i in members], device),
                member_starts=_tensor(np.concatenate([[0], np.cumsum(sizes)]), device),
                largest=max(sizes),
            )
        )
    return result, _tensor(own_starts, device)


def _extends(fb: ForwardBatch, is_decode: Sequence[bool]) -> list[_Extends]:
    """The requests with runs of rows, those with trees, and those with pictures that are seen as a whole."""
    runs: list[int] = []
    branching: list[int] = []
    seeing: list[int] = []
    for b, decode in enumerate(is_decode):
        if not decode and fb.extend_lens_cpu[b]:
            looks_ahead = fb.last_keys is not None and fb.last_keys[b] is not None
            (seeing if looks_ahead else branching if _tree_of(fb, b) else runs).append(b)
    result = [_runs(fb, runs)] if runs else []
    for chosen in filter(None, (branching, seeing)):
        work = _runs(fb, chosen)
        work.sees, work.depths = _masks(fb, chosen)
        work.causal = chosen is branching
        result.append(work)
    return result


def _runs(fb: ForwardBatch, chosen: Sequence[int]) -> _Extends:
    device = fb.input_ids.device
    counts = np.asarray(fb.extend_lens_cpu, dtype=np.int64)
    where = _tensor(chosen, device)
    prefix_lens = fb.prefix_lens[where]
    return _Extends(
        rows=fb.req_rows[where],
        row_starts=_tensor((np.cumsum(counts) - counts)[list(chosen)], device),
        num_rows=fb.extend_lens[where],
        prefix_starts=torch.zeros_like(prefix_lens),
        prefix_lens=prefix_lens,
        max_rows=max(fb.extend_lens_cpu[b] for b in chosen),
        max_prefix=max(fb.prefix_lens_cpu[b] for b in chosen),
    )


def _masks(fb: ForwardBatch, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Packed masks [T, W] and depths [T] of the rows of these requests; rows of others are left at 0."""
    words = mask_words(max(fb.extend_lens_cpu[b] for b in chosen))
    sees = np.zeros((fb.num_rows, 4 * words), dtype=np.uint8)
    depths = np.zeros(fb.num_rows, dtype=np.int64)
    ends = np.cumsum(fb.extend_lens_cpu)
    for b in chosen:
        parents = _tree_of(fb, b) or list(range(-1, fb.extend_lens_cpu[b] - 1))
        mine = slice(int(ends[b]) - len(parents), int(ends[b]))
        seen = trees.ancestors(parents)
        last_keys = None if fb.last_keys is None else fb.last_keys[b]
        if last_keys is not None:
            index = fb.prefix_lens_cpu[b] + np.arange(len(parents))
            ahead = last_keys > index
            seen[ahead] |= index <= last_keys[ahead, None]
        packed = np.packbits(seen, axis=1, bitorder="little")
        sees[mine, : packed.shape[1]] = packed
        depths[mine] = trees.depths(parents)
    device = fb.input_ids.device
    return to_device(sees.view(np.int32), device), to_device(depths, device)


def _tensor(values: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]], device: torch.device) -> Tensor:
    return to_device(np.asarray(values, dtype=np.int64), device)
