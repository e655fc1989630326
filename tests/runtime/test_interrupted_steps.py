"""Ctrl-C at any line of the loop: every request still gets its last event, and the engine goes on with sound memory."""

from __future__ import annotations

import random
import sys
from types import FrameType
from typing import Any

import pytest
from support.standin import StandIn, draw_alone

from dslc.core.config import EngineConfig
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

VARIANTS: list[dict[str, Any]] = [
    {},
    {"overlap": True, "page_size": 4},
    {"num_tokens": 96, "chunked_prefill_size": 6},
    {"num_tokens": 96, "overlap": True, "enable_priority_scheduling": True},
]


def make_engine(*, overlap: bool = False, num_tokens: int = 2048, **options: Any) -> Engine:
    config = EngineConfig.of(max_running_requests=8, random_seed=1, **options)
    model = StandIn(num_rows=8, page_size=config.page_size, num_tokens=num_tokens)
    return Engine.of_parts(config, model, overlap=overlap, check_when_idle=True)


def random_request(rng: random.Random, name: str) -> GenRequest:
    ids = tuple([7] * rng.randrange(1, 20) + [rng.randrange(64) for _ in range(rng.randrange(1, 20))])
    params = SamplingParams(max_new_tokens=rng.randrange(1, 16), n=rng.choice([1, 1, 2]), seed=rng.randrange(999))
    return GenRequest(id=name, segments=(Segment(ids=ids),), sampling=params, priority=rng.randrange(2))


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that is run of the engine's own modules."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        return self.line if "/runtime/" in name and "/tests/" not in name else None

    def line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self.line


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_ctrl_c_at_any_line_loses_no_request_and_no_page(variant: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    for seed in range(20):
        rng = random.Random(100 * variant + seed)
        engine = make_engine(**VARIANTS[variant])
        last: dict[str, Event] = {}

        def sink(event: Event, last: dict[str, Event] = last) -> None:
            if isinstance(event, (Finished, Failed)):
                assert event.request_id not in last
                last[event.request_id] = event

        requests = [random_request(rng, f"r{i}") for i in range(6)]
        engine.submit(requests, sink)
        interrupt = Interrupt(rng.randrange(2, 4000))
        traced = sys.gettrace()
        sys.settrace(interrupt)
        try:
            while len(last) < len(requests):
                engine.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(traced)
        assert engine.wait(lambda last=last: len(last) == 6, timeout=10), interrupt.where  # type: ignore[misc]
        engine.check_integrity()
        again = [random_request(rng, f"again{i}") for i in range(3)]
        engine.submit(again, sink)
        assert engine.wait(lambda last=last: len(last) == 9, timeout=10), interrupt.where  # type: ignore[misc]
        for request in requests + again:
            event = last[request.id]
            if isinstance(event, Failed):
                assert "KeyboardInterrupt" in event.error.message and request in requests, interrupt.where
                continue
            assert isinstance(event, Finished)
            params, ids = request.sampling, request.segments[0].ids
            wanted = [draw_alone(engine.runner, ids, params, params.seed or 0, i)[0] for i in range(params.n)]  # type: ignore[arg-type]
            assert [list(output.token_ids) for output in event.outputs] == wanted, interrupt.where
        engine.close()
