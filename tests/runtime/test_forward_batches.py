"""What each launch hands to the model, field by field: worked out by hand, and as laws over random mixes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from support.standin import StandIn

from dslc.core.config import EngineConfig
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.batch import ForwardBatch, ForwardMode
from dslc.runtime.engine import Engine


class Watched(StandIn):
    """Keeps every ForwardBatch, with the table rows as they were when it came."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[ForwardBatch, np.ndarray]] = []

    def forward(self, fb: ForwardBatch) -> torch.Tensor:
        self.seen.append((fb, self.req_to_token.host[fb.req_rows.numpy()].copy()))
        return super().forward(fb)


def make_engine(**options: Any) -> tuple[Engine, Watched]:
    config = EngineConfig.of(**{"max_running_requests": 8, "random_seed": 1, **options})
    model = Watched(num_rows=config.max_running_requests, page_size=config.page_size, num_tokens=256)
    return Engine.of_parts(config, model, check_when_idle=True), model


def request(name: str, ids: tuple[int, ...], new: int, **options: Any) -> GenRequest:
    params = SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True)
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params, **options)


def serve(engine: Engine, requests: list[GenRequest]) -> dict[str, Finished]:
    last: dict[str, Event] = {}

    def sink(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            last[event.request_id] = event

    engine.submit(requests, sink)
    assert engine.wait(lambda: len(last) == len(requests), timeout=30)
    assert all(isinstance(event, Finished) for event in last.values())
    return last  # type: ignore[return-value]


def fields(fb: ForwardBatch) -> dict[str, Any]:
    names = ("positions", "prefix_lens", "extend_lens", "seq_lens", "logits_rows")
    return {"mode": fb.mode, **{name: getattr(fb, name).tolist() for name in names}}


def test_extend_decode_and_mixed_by_hand() -> None:
    """A prompt of 3; then a decode of it beside a prompt of 5 that begins the same; then two decodes."""
    engine, model = make_engine(chunked_prefill_size=4)
    with engine:
        done: list[Event] = []
        engine.submit([request("a", (1, 2, 3), 4)], done.append)
        with engine._drive:
            engine.step()
        engine.submit([request("b", (1, 2, 9, 8, 7, 6, 5), 2)], done.append)
        assert engine.wait(lambda: sum(isinstance(event, Finished) for event in done) == 2, timeout=20)
    found = [fields(fb) for fb, _ in model.seen]
    assert found[0] == {
        "mode": ForwardMode.EXTEND, "positions": [0, 1, 2], "prefix_lens": [0], "extend_lens": [3], "seq_lens": [3],
        "logits_rows": [2],
    }  # fmt: skip
    assert found[1] == {  # two tokens of b are cached, four are the chunk: nothing is drawn for it yet
        "mode": ForwardMode.MIXED, "positions": [3, 2, 3, 4, 5], "prefix_lens": [3, 2], "extend_lens": [1, 4],
        "seq_lens": [4, 6], "logits_rows": [0],
    }  # fmt: skip
    assert found[2] == {
        "mode": ForwardMode.MIXED, "positions": [4, 6], "prefix_lens": [4, 6], "extend_lens": [1, 1],
        "seq_lens": [5, 7], "logits_rows": [0, 1],
    }  # fmt: skip
    assert found[3]["mode"] is ForwardMode.DECODE and found[3]["extend_lens"] == [1, 1] and len(found) == 4
    first, second = model.seen[0][0], model.seen[1][0]
    assert first.input_ids.tolist() == [1, 2, 3] and second.input_ids[1:].tolist() == [9, 8, 7, 6]
    a = next(event for event in done if isinstance(event, Finished) and event.request_id == "a")
    assert second.input_ids[0] == a.outputs[0].token_ids[0]


def test_every_field_of_every_launch_over_random_mixes() -> None:
    for seed in range(6):
        rng = random.Random(seed)
        options = rng.choice([{}, {"page_size": 4}, {"chunked_prefill_size": 7}, {"disable_radix_cache": True}])
        engine, model = make_engine(**options)
        stem = [rng.randrange(64) for _ in range(20)]
        requests = [request(str(n), (*stem[: rng.randrange(21)], n), rng.randrange(1, 12)) for n in range(20)]
        with engine:
            serve(engine, requests)
        modes = set()
        for fb, table in model.seen:
            modes.add(fb.mode)
            check(fb, table)
        assert modes == {ForwardMode.EXTEND, ForwardMode.MIXED, ForwardMode.DECODE}


def check(fb: ForwardBatch, table: np.ndarray) -> None:
    num = fb.num_requests
    for name in ("input_ids", "positions", "out_slots", "req_rows", "seq_lens", "prefix_lens", "extend_lens"):
        tensor = getattr(fb, name)
        assert tensor.dtype is torch.int64 and tensor.dim() == 1, name
    for name in ("seq_lens", "prefix_lens", "extend_lens"):
        assert tuple(getattr(fb, name).tolist()) == getattr(fb, f"{name}_cpu") and len(getattr(fb, name)) == num
    assert sum(fb.extend_lens_cpu) == len(fb.input_ids) == len(fb.positions) == len(fb.out_slots) == fb.num_rows
    assert len(set(fb.req_rows.tolist())) == num and len(set(fb.out_slots.tolist())) == fb.num_rows
    at = 0
    for b, (prefix, extend, end) in enumerate(
        zip(fb.prefix_lens_cpu, fb.extend_lens_cpu, fb.seq_lens_cpu, strict=True)
    ):
        rows = slice(at, at + extend)
        assert prefix + extend == end and extend >= 1
        assert fb.positions[rows].tolist() == list(range(prefix, end))
        assert fb.out_slots[rows].tolist() == table[b, prefix:end].tolist()
        assert 0 not in table[b, :end]  # the padding slot
        at += extend
    wanted = fb.logits_rows.tolist()
    assert wanted == sorted(set(wanted)) and all(0 <= row < fb.num_rows for row in wanted)
    if fb.mode is ForwardMode.DECODE:
        assert set(fb.extend_lens_cpu) == {1} and wanted == list(range(num))


def test_the_host_s_batch_holds_no_tensor() -> None:
    engine, _ = make_engine()
    batches = []
    launch = engine.worker.launch
    engine.worker.launch = lambda batch: (batches.append(batch), launch(batch))[1]  # type: ignore[method-assign]
    with engine:
        serve(engine, [request(str(n), (1, 2, n), 4) for n in range(5)])
    assert len(batches) > 3
    for batch in batches:
        values = [getattr(batch, name) for name in batch.__dataclass_fields__]
        assert not any(isinstance(value, torch.Tensor) for value in values)
        assert not any(isinstance(value, torch.Tensor) for extend in batch.extends for value in extend)


def test_admission_stops_at_each_limit() -> None:
    """Rows, prompt tokens of a forward, and the pool: none is ever passed, and each is reached."""
    for seed in range(8):
        rng = random.Random(seed)
        chunk, rows = rng.choice([9, 16, 40]), rng.choice([2, 5])
        engine, model = make_engine(chunked_prefill_size=chunk, max_running_requests=rows, page_size=rng.choice([1, 4]))
        requests = [
            request(str(n), tuple(rng.randrange(64) for _ in range(rng.randrange(1, 60))), rng.randrange(1, 30))
            for n in range(24)
        ]
        with engine:
            serve(engine, requests)
            allocator = engine.scheduler.memory.allocator
            assert allocator.num_pages * allocator.page_size == 256
        prompt_rows = [sum(n for n in fb.extend_lens_cpu if n > 1) for fb, _ in model.seen]
        assert max(prompt_rows) <= chunk and max(fb.num_requests for fb, _ in model.seen) == rows
        assert max(prompt_rows) == chunk
        assert all(sum(fb.seq_lens_cpu) <= 256 for fb, _ in model.seen)  # these prompts share nothing


def test_who_admits_only_what_fits_for_certain_never_retracts() -> None:
    rng = random.Random(0)
    requests = [request(str(n), tuple(rng.randrange(64) for _ in range(rng.randrange(1, 40))), 40) for n in range(20)]
    preemptions = {}
    for conservativeness in (0.01, 10.0):  # at 10 the expected share never sinks below the whole
        config = EngineConfig.of(
            max_running_requests=8, random_seed=1, schedule_conservativeness=conservativeness, disable_radix_cache=True
        )
        engine = Engine.of_parts(config, StandIn(num_rows=8, num_tokens=256), check_when_idle=True)
        with engine:
            serve(engine, requests)
            preemptions[conservativeness] = engine.counters().preemptions
    hasty, careful = preemptions.values()
    assert hasty > 0 and careful == 0
