"""What compiling does to others: the time between tokens of a stream, alone and while hostile constraints come in."""

from __future__ import annotations

import json
import threading
import time

import numpy as np

from dslc.core.constraint import Constraint
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

NUM_TOKENS = 400
ROUNDS = 6  # of hostile constraints for a turn: more than come to their end in it


def hostile(turn: int) -> list[Constraint]:
    """Constraints that are large or wrong, other ones each turn."""
    patterns = [
        f"(a+)+b{turn}",
        "(.{1,5000}){1,5000}",
        f"(a|b)*a(a|b){{{13 + turn % 2}}}c{turn}",
        f".{{1,{4000 + turn}}}",
    ]
    schemas: list[object] = [
        {"enum": [f"value {turn} {i}" for i in range(30_000)]},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**6 + turn},
        {"type": "string", "maxLength": 20_000 + turn, "pattern": "^([a-z]+ )*[a-z]+$"},
        {"type": "object", "properties": {f"p{turn}_{i}": {"type": "string", "maxLength": i + 1} for i in range(300)}},
        {"type": "stsring"},
    ]
    return [*(Constraint("regex", p) for p in patterns), *(Constraint("json_schema", json.dumps(s)) for s in schemas)]


def request(name: str, constraint: Constraint | None, num_tokens: int) -> GenRequest:
    sampling = SamplingParams(temperature=1.0, max_new_tokens=num_tokens, seed=1, ignore_eos=constraint is None)
    text = (Segment(text="Once upon a time"),)
    return GenRequest(id=name, segments=text, sampling=sampling, constraint=constraint, stream=constraint is None)


def gaps(engine: Engine, name: str) -> list[float]:
    """Seconds between the tokens of one stream."""
    times: list[float] = []
    over = threading.Event()

    def sink(event: Event) -> None:
        times.append(time.perf_counter())
        if isinstance(event, (Finished, Failed)):
            over.set()

    engine.submit([request(name, None, NUM_TOKENS)], sink)
    over.wait()
    return list(np.diff(times[2:-1]))


def beside(turns: int = 5) -> None:
    """Print both, and how the hostile ones ended; they come one after the other for as long as the stream goes on."""
    with Engine(max_running_requests=8) as engine:
        engine.start()
        gaps(engine, "warm")
        ended: list[str] = []
        rows: dict[str, list[float]] = {"alone": [], "beside hostile constraints": []}
        for turn in range(turns):
            rows["alone"] += gaps(engine, f"alone {turn}")
            stop = threading.Event()
            prepared = [c for number in range(ROUNDS) for c in hostile(turn * ROUNDS + number)]

            def send(prepared: list[Constraint] = prepared, turn: int = turn, stop: threading.Event = stop) -> None:
                for i, constraint in enumerate(prepared):
                    if stop.is_set():
                        return
                    done = threading.Event()

                    def sink(event: Event, done: threading.Event = done) -> None:
                        if isinstance(event, (Finished, Failed)):
                            ended.append(event.error.kind if isinstance(event, Failed) else "served")
                            done.set()

                    engine.submit([request(f"hostile {turn} {i}", constraint, 1)], sink)
                    done.wait()

            sender = threading.Thread(target=send)
            sender.start()
            rows["beside hostile constraints"] += gaps(engine, f"beside {turn}")
            stop.set()
            sender.join()
        for name, found in rows.items():
            at = np.quantile(np.array(found) * 1e3, [0.5, 0.9, 0.99])
            print(f"{name:<28} ms between tokens: p50 {at[0]:.2f}, p90 {at[1]:.2f}, p99 {at[2]:.2f}")
        print({kind: ended.count(kind) for kind in sorted(set(ended))})
