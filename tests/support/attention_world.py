"""Attention backends against attention written out row by row."""

from __future__ import annotations

import numpy as np
import torch
from support.batches import Slots, make_batch

from dslc.runtime.attention import trees
from dslc.runtime.attention.base import attention_backend
from dslc.runtime.layers.attention import AttentionType, RadixAttention
from dslc.runtime.memory.kv_pool import KVPool, KVShape
from dslc.runtime.memory.request_table import ReqToTokenPool

OPTIONS = {
    "mha": {"heads": 4, "kv_heads": 4},
    "gqa": {"heads": 4, "kv_heads": 2},
    "mqa": {"heads": 4, "kv_heads": 1},
    "wide-group": {"heads": 8, "kv_heads": 1},
    "scaling": {"scaling": 0.7},
    "soft-cap": {"logit_cap": 3.0},
    "window": {"sliding_window": 5},
    "window-1": {"sliding_window": 1},
    "window-cap": {"sliding_window": 9, "logit_cap": 2.0},
    "encoder": {"attn_type": AttentionType.ENCODER_ONLY},
}


class World:
    """A pool, a table, a layer and a backend; remembers every sequence's q, k, v to check against."""

    def __init__(self, backend, *, heads=4, kv_heads=2, dim=16, scaling=None, **options):
        self.layer = RadixAttention(heads, dim, scaling or dim**-0.5, kv_heads, 0, **options)
        self.table = ReqToTokenPool(32, 2048)
        self.pool = KVPool(4096, KVShape(1, kv_heads, dim))
        self.pool.k[0].normal_(std=50)  # what is not a sequence's own must have no influence
        self.pool.v[0].normal_(std=50)
        self.slots = Slots(self.table, 4096)
        self.backend = attention_backend(backend)(self.table)
        self.rng = torch.Generator().manual_seed(0)
        self.kv = {}  # by sequence: (keys, values, index), each in the order of its slots

    def sequence(self, share=None, shared_len=0):
        seq = self.slots.sequence(share=share, shared_len=shared_len)
        self.kv[seq] = [x[:shared_len] for x in self.kv[share]] if share else [torch.empty(0)] * 3
        return seq

    def run(self, work, groups=(), parents=None, blocks=None):
        """Append the given numbers of rows to the sequences; returns (got, expected).

        `blocks[b]`: the (start, end) of runs of indices whose rows see each other.
        """
        layer = self.layer
        fb = make_batch(self.slots, [(seq, [0] * n) for seq, n in work], groups=groups, parents=parents)
        if blocks is not None:
            fb.last_keys = tuple(
                _last_keys(prefix, n, own) if own else None
                for prefix, n, own in zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, blocks, strict=True)
            )
        q = torch.randn(fb.num_rows, layer.num_heads, layer.head_dim, generator=self.rng) * 2
        k, v = (torch.randn(fb.num_rows, layer.num_kv_heads, layer.head_dim, generator=self.rng) for _ in range(2))
        with torch.inference_mode():
            self.backend.init_forward_metadata(fb)
            got = layer(q.flatten(1), k.flatten(1), v.flatten(1), fb, self.pool, self.backend)
        expected, row = [], 0
        for b, (seq, n) in enumerate(work):
            keys, values, index = self.kv[seq]
            prefix = len(index)
            new = slice(row, row + n)
            keys, values = (
                torch.cat([keys.view(-1, *k.shape[1:]), k[new]]),
                torch.cat([values.view(-1, *v.shape[1:]), v[new]]),
            )
            index = torch.cat([index.long(), fb.positions[new]])
            self.kv[seq] = [keys, values, index]
            tree = parents[b] if parents else None
            for i in range(n):
                sees = index <= index[prefix + i]
                if tree is not None:
                    sees = torch.zeros(prefix + n, dtype=torch.bool)
                    sees[:prefix] = True
                    sees[[prefix + j for j in trees.path(tree, i)]] = True
                for start, end in blocks[b] or () if blocks else ():
                    if start <= prefix + i < end:
                        sees[max(start, 0) : end] = True
                if layer.attn_type is AttentionType.ENCODER_ONLY:
                    sees = torch.ones_like(sees)
                if layer.sliding_window is not None:
                    sees = sees & (index > index[prefix + i] - layer.sliding_window)
                expected.append(self.attend_row(q[row + i], keys[sees], values[sees]))
            row += n
        return got, torch.stack(expected)

    def attend_row(self, q, keys, values):
        layer, out = self.layer, []
        for head in range(layer.num_heads):
            kv_head = head * layer.num_kv_heads // layer.num_heads
            scores = keys[:, kv_head] @ q[head] * layer.scaling
            if layer.logit_cap:
                scores = layer.logit_cap * torch.tanh(scores / layer.logit_cap)
            out.append(scores.softmax(0) @ values[:, kv_head])
        return torch.cat(out)


def _last_keys(prefix, num_rows, blocks):
    found = np.arange(prefix, prefix + num_rows)
    for start, end in blocks:
        found[max(0, start - prefix) : max(0, end - prefix)] = end - 1
    return found


def check(pair):
    torch.testing.assert_close(*pair, atol=2e-5, rtol=1e-4)
