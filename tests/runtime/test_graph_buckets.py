"""Static decode shapes: the bucket chosen, the padding, and that a replay reads this step's inputs and no others."""

import pytest
import torch

from dslc.core.errors import ConfigError
from dslc.runtime.batch import ForwardBatch, ForwardMode
from dslc.runtime.graph_buckets import DecodeGraphs, StaticInputs, bucket_for, decode_buckets

torch.set_num_threads(1)
PADDING_ROW = 7


def decode_batch(n, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)

    def numbers(low, high):
        return torch.randint(low, high, (n,), generator=generator)

    lens = numbers(2, 30)
    fields = {
        "mode": ForwardMode.DECODE,
        "input_ids": numbers(0, 100),
        "positions": lens - 1,
        "out_slots": torch.randperm(99, generator=generator)[:n] + 1,
        "req_rows": torch.randperm(7, generator=generator)[:n],
        "seq_lens": lens,
        "prefix_lens": lens - 1,
        "extend_lens": torch.ones(n, dtype=torch.int64),
        "seq_lens_cpu": tuple(lens.tolist()),
        "prefix_lens_cpu": tuple((lens - 1).tolist()),
        "extend_lens_cpu": (1,) * n,
        "logits_rows": torch.arange(n),
    }
    return ForwardBatch(**(fields | changes))


def test_bucket_sizes():
    assert decode_buckets(1) == (1,)
    assert decode_buckets(6) == (1, 2, 4, 6)
    assert decode_buckets(32) == (1, 2, 4, 8, 16, 24, 32)
    for largest in (1, 3, 40, 129, 256, 1000):
        buckets = decode_buckets(largest)
        assert buckets[-1] == largest and list(buckets) == sorted(set(buckets))
        for n in range(1, largest + 1):
            bucket = bucket_for(buckets, n)
            assert bucket == min(size for size in buckets if size >= n)
            assert bucket - n <= (3 if n <= 8 else 7 if n <= 128 else 15 if n <= 256 else 31)
        assert bucket_for(buckets, largest + 1) is None and bucket_for(buckets, 0) is None
    with pytest.raises(ConfigError, match="max_running_requests: must be at least 1"):
        decode_buckets(0)


def test_padding_goes_to_slot_0_and_reads_the_padding_row():
    inputs = StaticInputs(8, PADDING_ROW)
    inputs.load(decode_batch(7, seed=1), 8)  # leaves other requests' values in the buffers
    fb = decode_batch(3)
    padded = inputs.load(fb, 4)
    assert padded.num_requests == padded.num_rows == 4 and padded.mode is ForwardMode.DECODE
    for name in ("input_ids", "positions", "out_slots", "req_rows", "seq_lens", "prefix_lens", "extend_lens"):
        assert getattr(padded, name)[:3].equal(getattr(fb, name)) and getattr(padded, name).dtype == torch.int64
    last = {name: int(getattr(padded, name)[3]) for name in ("input_ids", "positions", "out_slots", "prefix_lens")}
    assert set(last.values()) == {0}
    assert (int(padded.req_rows[3]), int(padded.seq_lens[3]), int(padded.extend_lens[3])) == (PADDING_ROW, 1, 1)
    assert padded.seq_lens_cpu == (*fb.seq_lens_cpu, 1) and padded.prefix_lens_cpu == (*fb.prefix_lens_cpu, 0)
    assert padded.extend_lens_cpu == (1, 1, 1, 1) and padded.logits_rows.tolist() == [0, 1, 2, 3]


class FakeGraphs:
    """Captures as a CUDA graph does: runs once on the buffers, then repeats the same kernels on the same addresses,
    writing the same output tensor, with no Python argument of a later step."""

    def __init__(self):
        self.captured = []

    def capture(self, forward):
        out = forward()
        self.captured.append(out.shape[0])

        def replay():
            out.copy_(forward())
            return out

        return replay


def graphs_for(buckets=(1, 2, 4, 8)):
    fakes, prepared = FakeGraphs(), []

    def forward(fb):
        sums = fb.input_ids * 1000 + fb.positions * 100 + fb.out_slots * 10 + fb.req_rows + fb.seq_lens
        return sums[fb.logits_rows].clone()

    graphs = DecodeGraphs(StaticInputs(8, PADDING_ROW), buckets, fakes.capture, forward, prepared.append)
    return graphs, forward, fakes, prepared


def test_a_replay_equals_the_forward_at_every_size():
    graphs, forward, fakes, prepared = graphs_for()
    graphs.capture_all()
    assert fakes.captured == [8, 4, 2, 1]
    for step, n in enumerate([1, 2, 3, 7, 5, 4, 1, 6, 2]):
        fb = decode_batch(n, seed=step)
        assert graphs.can_run(fb)
        assert graphs.run(fb).equal(forward(fb))
        assert prepared[-1].num_requests == bucket_for((1, 2, 4, 8), n)
        assert prepared[-1].seq_lens_cpu[:n] == fb.seq_lens_cpu
    assert fakes.captured == [8, 4, 2, 1]


def test_what_has_no_graph_runs_eagerly():
    graphs, _, fakes, _ = graphs_for((1, 2))
    assert graphs.can_run(decode_batch(2)) and not graphs.can_run(decode_batch(3))
    assert not graphs.can_run(decode_batch(2, mode=ForwardMode.MIXED))
    assert not graphs.can_run(decode_batch(2, logits_rows=torch.tensor([1])))
    assert not graphs.can_run(decode_batch(2, tree_parents=(None, torch.tensor([-1]))))
    for fb in (decode_batch(3), decode_batch(2, mode=ForwardMode.EXTEND)):
        with pytest.raises(ValueError, match="no graph for a"):
            graphs.run(fb)
    assert fakes.captured == []
