"""Logit processors of one's own: named, never unpickled, off by default; what they see and what they may change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.standin import StandIn
from support.tiny_models import tiny_checkpoint

from dslc.core.config import EngineConfig
from dslc.core.errors import EngineError, RequestError
from dslc.core.request import GenRequest, Segment, decode, encode
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine
from dslc.runtime.sampling.processors import (
    logit_processor,
    register_logit_processor,
    unregister_logit_processor,
)

torch.set_num_threads(1)


@pytest.fixture
def register():
    names = []

    def add(name, processor):
        register_logit_processor(name, processor)
        names.append(name)

    yield add
    for name in names:
        unregister_logit_processor(name)


def make_engine(*, overlap: bool = False, **options: Any) -> Engine:
    given = {"max_running_requests": 8, "random_seed": 1, "enable_custom_logit_processor": True, **options}
    config = EngineConfig.of(**given)
    return Engine.of_parts(config, StandIn(num_rows=8), overlap=overlap, check_when_idle=True)


def only(logits, rows):
    """Bars all ids but `ids` of the parameters."""
    for row, found in zip(logits, rows, strict=True):
        keep = row[found.params["ids"]].clone()
        row.fill_(float("-inf"))
        row[found.params["ids"]] = keep


@pytest.mark.parametrize("overlap", [False, True])
def test_each_request_has_its_own_and_the_others_none(register, overlap):
    register("only", only)
    with make_engine(overlap=overlap) as engine:
        prompts = [[1, 2], [3], [4, 5, 6]]
        plain: Any = engine.generate(input_ids=prompts, sampling_params={"max_new_tokens": 12, "seed": 5})
        mixed = []
        ours = [SamplingParams(max_new_tokens=12, seed=5, custom_params={"ids": ids}) for ids in ([7], [8, 9])]
        requests = [
            GenRequest(id="a", segments=(Segment(ids=(1, 2)),), sampling=ours[0], logit_processor="only"),
            GenRequest(id="b", segments=(Segment(ids=(3,)),), sampling=SamplingParams(max_new_tokens=12, seed=5)),
            GenRequest(id="c", segments=(Segment(ids=(4, 5, 6)),), sampling=ours[1], logit_processor="only"),
        ]
        assert [decode(encode(request)) for request in requests] == requests
        engine.submit(requests, mixed.append)
        assert engine.wait(lambda: sum(event.__class__.__name__ == "Finished" for event in mixed) == 3, timeout=20)
    ids = {e.request_id: list(e.outputs[0].token_ids) for e in mixed if e.__class__.__name__ == "Finished"}
    assert ids["a"] == [7] * 12 and set(ids["c"]) <= {8, 9}
    assert ids["b"] == plain[1]["output_ids"]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_processor_sees_the_prompt_and_every_token_so_far(register, overlap):
    seen = []

    def count_up(logits, rows):
        for row, found in zip(logits, rows, strict=True):
            seen.append((tuple(found.prompt_ids.tolist()), found.output_ids))
            row.fill_(float("-inf"))
            row[10 + len(found.output_ids)] = 0.0

    register("count-up", count_up)
    with make_engine(overlap=overlap) as engine:
        result: Any = engine.generate(
            input_ids=[1, 2, 3], sampling_params={"max_new_tokens": 4}, custom_logit_processor="count-up"
        )
    assert result["output_ids"] == [10, 11, 12, 13]
    assert seen == [((1, 2, 3), tuple(range(10, 10 + n))) for n in range(4)]


def test_a_constraint_is_never_widened(register):
    register("want-z", lambda logits, rows: logits.fill_(0.0))
    with Engine(
        model_path=str(tiny_checkpoint("llama")), device="cpu", max_total_tokens=512, random_seed=1,
        enable_custom_logit_processor=True,
    ) as engine:  # fmt: skip
        result: Any = engine.generate(
            "Hi", {"regex": "[ab]{3}c", "max_new_tokens": 20, "temperature": 2.0}, custom_logit_processor="want-z"
        )
    assert result["text"][:3].strip("ab") == "" and result["text"].endswith("c")


def test_off_by_default_unknown_names_and_bad_params_are_refused(register):
    register("only", only)
    with make_engine(enable_custom_logit_processor=False) as engine:
        with pytest.raises(RequestError, match="logit_processor: 'only': logit processors are off in this engine"):
            engine.generate(input_ids=[1], custom_logit_processor="only")
        with pytest.raises(RequestError, match="custom_params: are for a logit processor"):
            engine.generate(input_ids=[1], sampling_params={"custom_params": {"a": 1}})
    with make_engine() as engine:
        with pytest.raises(RequestError, match=r"logit_processor: no processor 'onyl'; choices: .*\bonly"):
            engine.generate(input_ids=[1], custom_logit_processor="onyl")
        with pytest.raises(RequestError, match="custom_params: must be a dict of JSON values"):
            engine.generate(input_ids=[1], sampling_params={"custom_params": "[1]"}, custom_logit_processor="only")
    with pytest.raises(ValueError, match="'only' is registered already"):
        register_logit_processor("only", lambda logits, rows: None)
    assert logit_processor("only") is only


def test_a_processor_that_raises_ends_its_request_alone(register):
    def fail(logits, rows):
        raise ZeroDivisionError("oh")

    register("fails", fail)
    with make_engine() as engine:
        events = []
        params = SamplingParams(max_new_tokens=5, temperature=0.0)
        bad = GenRequest(id="bad", segments=(Segment(ids=(1, 2)),), sampling=params, logit_processor="fails")
        good = GenRequest(id="good", segments=(Segment(ids=(1, 2)),), sampling=params)
        engine.submit([bad, good], events.append)
        done = lambda: [e for e in events if e.__class__.__name__ in ("Finished", "Failed")]  # noqa: E731
        assert engine.wait(lambda: len(done()) == 2, timeout=20)
        last = {event.request_id: event for event in done()}
        alone: Any = engine.generate(input_ids=[1, 2], sampling_params=params)
    assert list(last["good"].outputs[0].token_ids) == alone["output_ids"]
    with pytest.raises(EngineError, match="the logit processor 'fails' failed: ZeroDivisionError"):
        raise last["bad"].error.exception()
