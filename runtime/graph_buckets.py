"""Decode batches of a few static shapes, so that a captured graph can stand for the forward of each.

A batch of n requests runs in the smallest bucket that holds it. The missing requests are padding: one token, id 0 at
position 0, whose KV goes to slot 0 and who reads the table's padding row, so nothing of a real request is touched and
no shape or address changes from step to step. What is captured, and how, is the caller's: `capture` gets the function
to record and returns the one that replays it. Nothing here needs a GPU.

`decode_graphs` makes them for a model that has been loaded, or says what about it cannot be captured.
"""

from __future__ import annotations

import bisect
import logging
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..kernels.kv_cache import checks_slots
from .attention.planner import shared_spans
from .batch import ForwardBatch, ForwardMode
from .layers.moe import Experts
from .layers.rotary import fill_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .model_runner import ModelRunner

log = logging.getLogger(__name__)

LAUNCHES_OF_A_LAYER_BYTES = 128 << 20
"""What a GPU reads while the host launches one layer, some 15 kernels of 5 us at 1.7 TB/s: an estimate. A batch whose
requests share more keys than that is launched, with the shared keys read once, rather than replayed without sharing."""


def decode_buckets(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes worth a graph: 1, 2, 4, then steps of 8 up to 128, of 16 up to 256, of 32 beyond, and the largest.

    So at most 3 requests are padding up to 8, 7 up to 128, 15 up to 256 and 31 beyond.
    """
    if max_batch_size < 1:
        raise ConfigError(f"must be at least 1, not {max_batch_size}", field="max_running_requests")
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, max_batch_size, 32), max_batch_size]
    return tuple(sorted({size for size in sizes if size <= max_batch_size}))


def bucket_for(buckets: Sequence[int], batch_size: int) -> int | None:
    """The smallest of the ascending `buckets` that holds `batch_size` requests; None if none does."""
    place = bisect.bisect_left(buckets, batch_size)
    return buckets[place] if batch_size > 0 and place < len(buckets) else None


class StaticInputs:
    """The device buffers a captured forward reads: allocated once, for the largest bucket; a bucket is their head."""

    _FIELDS = (
        "input_ids", "positions", "out_slots", "req_rows", "seq_lens", "prefix_lens", "extend_lens", "logits_rows",
    )  # fmt: skip

    def __init__(self, max_batch_size: int, padding_row: int, device: str | torch.device = "cpu") -> None:
        self._padding = dict.fromkeys(self._FIELDS, 0) | {"req_rows": padding_row, "seq_lens": 1, "extend_lens": 1}
        self._buffers = {
            name: torch.full((max_batch_size,), self._padding[name], dtype=torch.int64, device=device)
            for name in self._FIELDS
        }
        self._buffers["logits_rows"].copy_(torch.arange(max_batch_size))

    def load(self, fb: ForwardBatch, bucket: int) -> ForwardBatch:
        """Copy a decode batch into the buffers and pad it to `bucket` requests; the padded batch reads the buffers."""
        n = fb.num_requests
        for name in self._FIELDS[:-1]:
            buffer = self._buffers[name]
            buffer[:n].copy_(getattr(fb, name), non_blocking=True)
            buffer[n:bucket].fill_(self._padding[name])
        missing = bucket - n
        head = {name: buffer[:bucket] for name, buffer in self._buffers.items()}
        return ForwardBatch(
            mode=ForwardMode.DECODE,
            input_ids=head["input_ids"],
            positions=head["positions"],
            out_slots=head["out_slots"],
            req_rows=head["req_rows"],
            seq_lens=head["seq_lens"],
            prefix_lens=head["prefix_lens"],
            extend_lens=head["extend_lens"],
            logits_rows=head["logits_rows"],
            seq_lens_cpu=fb.seq_lens_cpu + (1,) * missing,
            prefix_lens_cpu=fb.prefix_lens_cpu + (0,) * missing,
            extend_lens_cpu=(1,) * bucket,
        )

    def blank(self, bucket: int) -> ForwardBatch:
        """A batch of padding only, to warm up and to capture with."""
        empty = torch.zeros(0, dtype=torch.int64)
        return self.load(
            ForwardBatch(ForwardMode.DECODE, empty, empty, empty, empty, empty, empty, empty, (), (), (), empty), bucket
        )


class GraphCapture(Protocol):
    """Records `forward`, a function of no arguments over static buffers, and returns what repeats it."""

    def __call__(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]: ...


class DecodeGraphs:
    """One captured forward per bucket, made on first use or by `capture_all`, largest first.

    `prepare` is called outside of the graph with each padded batch before capture and before each replay (attention
    metadata, into buffers of its own); `forward` is what is captured and returns [bucket, ...]. Graphs know no groups
    of requests with a common prefix: a batch whose groups spare the reading of more than `most_shared` tokens' keys
    (None: any number) has no graph.
    """

    def __init__(
        self,
        inputs: StaticInputs,
        buckets: Sequence[int],
        capture: GraphCapture,
        forward: Callable[[ForwardBatch], Tensor],
        prepare: Callable[[ForwardBatch], None],
        most_shared: int | None = None,
    ) -> None:
        self.buckets = tuple(sorted(buckets))
        self._inputs = inputs
        self._capture = capture
        self._forward = forward
        self._prepare = prepare
        self._most_shared = most_shared
        self._replays: dict[int, Callable[[], Tensor]] = {}
        self._captured: dict[int, ForwardBatch] = {}  # a graph reads what was made ready for its batch: kept alive

    def capture_all(self) -> None:
        """Capture every bucket, largest first, so that the smaller ones can share its memory pool."""
        for bucket in reversed(self.buckets):
            self._replay_of(bucket)

    def can_run(self, fb: ForwardBatch) -> bool:
        """Whether a batch has a graph: plain decode of one row per request, all logits wanted, within the buckets."""
        return (
            fb.mode is ForwardMode.DECODE
            and fb.tree_parents is None
            and fb.media is None
            and fb.num_rows == fb.num_requests == int(fb.logits_rows.shape[0])
            and bucket_for(self.buckets, fb.num_requests) is not None
            and (self._most_shared is None or not fb.groups or spared_keys(fb) <= self._most_shared)
        )

    def run(self, fb: ForwardBatch) -> Tensor:
        """What `forward(fb)` would return, [n, ...]; the tensor is overwritten by the bucket's next run.

        Raises ValueError for a batch without a graph: ask `can_run`.
        """
        bucket = bucket_for(self.buckets, fb.num_requests)
        if bucket is None or not self.can_run(fb):
            raise ValueError(f"no graph for a {fb.mode.value} batch of {fb.num_requests} requests, {fb.num_rows} rows")
        replay = self._replay_of(bucket)
        self._prepare(self._inputs.load(fb, bucket))
        return replay()[: fb.num_requests]

    def _replay_of(self, bucket: int) -> Callable[[], Tensor]:
        if bucket not in self._replays:
            padded = self._captured[bucket] = self._inputs.blank(bucket)
            self._prepare(padded)
            self._replays[bucket] = self._capture(lambda: self._forward(padded))
        return self._replays[bucket]


def spared_keys(fb: ForwardBatch) -> int:
    """Tokens whose keys need not be read again because groups of the batch's requests read them once."""
    return sum((len(spans) - 1) * (spans[0].end - spans[0].start) for spans in shared_spans(fb))


def decode_graphs(runner: ModelRunner) -> DecodeGraphs | str:
    """The captured decodes of a runner's model for all buckets; or in a sentence why every forward is launched."""
    config, table = runner.config, runner.req_to_token
    reason = _not_capturable(runner)
    if reason is not None:
        return reason
    largest = min(config.max_running_requests, config.cuda_graph_max_bs or config.max_running_requests)
    bytes_per_token = runner.kv_shape.bytes_per_token // runner.kv_shape.num_layers
    graphs = DecodeGraphs(
        StaticInputs(largest, table.padding_row, runner.device),
        decode_buckets(largest),
        runner.platform.capture,
        runner.launch,
        runner.attention.init_forward_metadata,
        most_shared=LAUNCHES_OF_A_LAYER_BYTES // bytes_per_token,
    )
    fill_tables(runner.model, runner.context_length, runner.device)  # a table that grew would be another tensor
    try:
        graphs.capture_all()
    except RuntimeError as error:  # something waits for the device, or reads from it
        log.warning("decodes are launched one by one: a capture failed: %s", error)
        return f"a capture failed: {error}"
    return graphs


def _not_capturable(runner: ModelRunner) -> str | None:
    if runner.config.disable_cuda_graph:
        return "switched off by disable_cuda_graph"
    if not runner.platform.supports_graphs:
        return f"the platform {runner.platform.name} has no graphs"
    if runner.model.task != "generate":
        return "the model does not decode"
    if runner.model.is_generic:
        return "the model runs through transformers' code"
    if any(isinstance(module, Experts) for module in runner.model.modules()):
        return "the model is a mixture: the rows of each expert are counted on the host"
    if not runner.attention.captures_decodes(runner.kv_shape.head_dim):
        return "the attention backend plans each decode on the host"
    if checks_slots():
        return "DSLC_CHECK_SLOTS=1 reads slots on the host"
    return None
