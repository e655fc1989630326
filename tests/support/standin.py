"""A stand-in for ModelRunner: logits are a pure function of the token sequence that lies in the KV slots.

    from support.standin import StandIn, draw_alone

It keeps the token and the position of every slot instead of K and V, and computes logits from what it finds through
the request table. So a wrong slot, a page freed too early or a stale row shows in the ids, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dslc.runtime.memory.request_table import ReqToTokenPool
from dslc.runtime.sampling.batch import SamplingBatch, SamplingRow
from dslc.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dslc.core.sampling import SamplingParams
    from dslc.runtime.batch import ForwardBatch

K1, K2, K3 = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * K2
    x = (x ^ (x >> np.uint64(27))) * K3
    return x ^ (x >> np.uint64(31))


class StandIn:
    """Implements `runtime.worker.Runner`. `fail` may raise or return True to make a forward fail; `forwards` counts."""

    def __init__(
        self,
        *,
        vocab_size: int = 64,
        context_length: int = 256,
        num_tokens: int = 4096,
        num_rows: int = 64,
        page_size: int = 1,
        fail: Callable[[ForwardBatch], bool] | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_tokens = num_tokens
        self.req_to_token = ReqToTokenPool(num_rows, context_length)
        self.fail = fail
        self.forwards: list[tuple[int, ...]] = []  # rows of each request of each forward
        self._tokens = np.full(num_tokens + page_size, -1, dtype=np.int64)
        self._positions = np.full(num_tokens + page_size, -1, dtype=np.int64)

    def forward(self, fb: ForwardBatch) -> torch.Tensor:
        if self.fail is not None and self.fail(fb):
            raise RuntimeError("injected fault")
        self.forwards.append(fb.extend_lens_cpu)
        slots = fb.out_slots.numpy()
        assert slots.min() > 0 and len(np.unique(slots)) == len(slots), "padding slot or a slot written twice"
        self._tokens[slots] = fb.input_ids.numpy()
        self._positions[slots] = fb.positions.numpy()
        states = []
        for b, row in enumerate(fb.req_rows.tolist()):
            start, end = fb.prefix_lens_cpu[b], fb.seq_lens_cpu[b]
            table = self.req_to_token.host[row, :end]
            tokens, positions = self._tokens[table], self._positions[table]
            parents = fb.tree_parents[b] if fb.tree_parents is not None else None
            if parents is None:
                assert (positions == np.arange(end)).all(), "a slot holds another position's token"
                states.append(self._states(tokens)[start:])
            else:
                assert (positions[:start] == np.arange(start)).all(), "a slot holds another position's token"
                paths: list[list[int]] = []
                for i, parent in enumerate(parents.tolist()):
                    paths.append(([] if parent < 0 else paths[parent]) + [int(tokens[start + i])])
                    assert positions[start + i] == start + len(paths[-1]) - 1, "a tree row has a wrong position"
                prefix = tokens[:start].tolist()
                states.append(np.array([self._states(np.array(prefix + path))[-1] for path in paths]))
        wanted = np.concatenate(states)[fb.logits_rows.numpy()]
        return torch.from_numpy(self._logits(wanted))

    def logits_of(self, tokens: Sequence[int]) -> np.ndarray:
        """[len(tokens), vocab] float32: the logits after each beginning of the tokens."""
        return self._logits(self._states(np.array(tokens, dtype=np.int64)))

    def _states(self, tokens: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            index = np.arange(1, len(tokens) + 1, dtype=np.uint64)
            return np.cumsum(_mix((tokens.astype(np.uint64) + np.uint64(1)) * K1 + index * K3), dtype=np.uint64)

    def _logits(self, states: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            ids = np.arange(1, self.vocab_size + 1, dtype=np.uint64)
            mixed = _mix(states[:, None] + ids * K1)
        return (8.0 * (mixed >> np.uint64(40)).astype(np.float32) / 2.0**24).astype(np.float32)


def draw_alone(
    model: StandIn, prompt: Sequence[int], params: SamplingParams, seed: int, choice: int = 0
) -> tuple[list[int], str]:
    """The ids and the finish type of one output, by the naive loop: no cache, no batch, no engine."""
    tokens, output = list(prompt), []
    stops = set(params.stop_token_ids)
    room = min(params.max_new_tokens, model.context_length - len(prompt) + 1)
    while len(output) < room:
        row = SamplingRow(
            params, seed, choice, prompt_ids=list(prompt), output_ids=tuple(output), stop_ids=tuple(stops)
        )
        logits = torch.from_numpy(model.logits_of(tokens)[-1:])
        steps = torch.tensor([len(output)])
        token = int(Sampler().sample(logits, SamplingBatch.of([row], model.vocab_size), None, steps)[0])
        output.append(token)
        tokens.append(token)
        if token in stops:
            return output, "stop"
    return output, "length"
