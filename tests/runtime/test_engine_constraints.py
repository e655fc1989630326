"""Constrained outputs through the engine: whole or cut, in every mode, and nobody else notices."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_checkpoint

from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.kernels.token_bitmask import unpack_mask
from dslc.runtime.engine import Engine
from dslc.runtime.scheduling.results import bar

torch.set_num_threads(1)

REGEXES = [r"[a-z]{3,8}", r"(yes|no|maybe)", r"-?\d+(\.\d+)?", r"\d{4}-\d{2}-\d{2}", r"(ab|cd)*e", r"[^x]{1,12}"]


def make_engine(overlap: bool = False, **options: Any) -> Engine:
    given = {"max_running_requests": 16, "max_total_tokens": 2048, "random_seed": 7, **options}
    engine = Engine(model_path=str(tiny_checkpoint("llama")), device="cpu", **given)
    engine.overlap, engine.check_when_idle = overlap, True
    return engine


def serve(engine: Engine, requests: list[GenRequest]) -> dict[str, Event]:
    last: dict[str, Event] = {}

    def sink(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            last[event.request_id] = event

    engine.submit(requests, sink)
    assert engine.wait(lambda: len(last) == len(requests), timeout=60)
    return last


def request(name: str, text: str = "Answer: ", regex: str | None = None, **params: Any) -> GenRequest:
    sampling = SamplingParams(**{"temperature": 1.0, "max_new_tokens": 40, "seed": 1, **params})
    constraint = Constraint("regex", regex) if regex else None
    return GenRequest(id=name, segments=(Segment(text=text),), sampling=sampling, constraint=constraint)


def mixed_requests() -> list[GenRequest]:
    """Free and constrained ones, in one batch."""
    requests = []
    for i, regex in enumerate([*REGEXES, None, None, None]):
        for seed in range(2):
            options = {"n": 2} if i % 3 == 0 else {}
            name = f"{i}-{seed}"
            requests.append(request(name, f"Question {i}: ", regex, seed=seed, **options))
    return requests


def test_completed_ones_match_and_cut_ones_say_length() -> None:
    num_complete = 0
    with make_engine() as engine:
        requests = [request(f"{i} {s}", regex=r, seed=s) for i, r in enumerate(REGEXES) for s in range(10)]
        for name, event in serve(engine, requests).items():
            assert isinstance(event, Finished), event
            regex, output = REGEXES[int(name.split()[0])], event.outputs[0]
            if output.finish_reason.type == "stop":
                assert re.fullmatch(regex, output.text), (regex, output.text)
                num_complete += 1
            else:
                assert output.finish_reason.type == "length" and len(output.token_ids) == 40
        assert num_complete > 40
        assert engine.counters().constraints_compiled <= len(REGEXES)
        cut = serve(engine, [request("cut", regex=r"\d{30}", max_new_tokens=3)])["cut"]
        assert isinstance(cut, Finished) and cut.outputs[0].finish_reason.type == "length"
        assert re.fullmatch(r"\d{1,30}", cut.outputs[0].text)


MODES: dict[str, dict[str, Any]] = {
    "overlap": {"overlap": True},
    "chunk 1": {"chunked_prefill_size": 1},
    "chunk 3, overlap": {"chunked_prefill_size": 3, "overlap": True},
    "retracting": {"max_total_tokens": 90, "schedule_conservativeness": 0.01},
    "one at a time": {"max_running_requests": 1},
}


def test_every_mode_gives_the_same_outputs_in_deterministic_arithmetic() -> None:
    requests = mixed_requests()
    with make_engine(deterministic=True) as engine:
        wanted = serve(engine, requests)
    for mode, options in MODES.items():
        with make_engine(deterministic=True, **options) as engine:
            got = serve(engine, requests)
            for name, event in got.items():
                base = wanted[name]
                assert isinstance(event, Finished) and isinstance(base, Finished)
                assert event.outputs == base.outputs, (mode, name)
            if mode == "retracting":
                assert engine.counters().preemptions > 0


def test_free_rows_are_the_same_with_and_without_constrained_mates() -> None:
    free = [request(f"free{i}", f"Text {i}", seed=i, top_p=0.9) for i in range(4)]
    bound = [request(f"bound{i}", f"Text {i}", regex=REGEXES[i], seed=i) for i in range(4)]
    with make_engine(deterministic=True) as engine:
        alone = serve(engine, free)
    with make_engine(deterministic=True) as engine:
        mixed = serve(engine, [*bound, *free])
    for name, event in alone.items():
        assert isinstance(event, Finished) and event.outputs == mixed[name].outputs  # type: ignore[attr-defined]


def test_a_finished_text_stops_though_end_of_text_is_barred() -> None:
    with make_engine() as engine:
        for options in ({"ignore_eos": True}, {"min_new_tokens": 30}):
            event = serve(engine, [request("r", regex="(yes|no)", **options)])["r"]
            assert isinstance(event, Finished)
            assert event.outputs[0].finish_reason.type == "stop" and event.outputs[0].text in ("yes", "no")


def test_outputs_are_never_shorter_than_asked_for_free_or_constrained() -> None:
    """100 seeds each; end-of-text is likely, and the regex is complete after every word."""
    with make_engine(max_running_requests=100, max_total_tokens=4096) as engine:
        ends = dict.fromkeys(engine.tokenizer.eos_ids, 8.0)  # type: ignore[union-attr]
        options: dict[str, Any] = {"min_new_tokens": 6, "max_new_tokens": 12, "logit_bias": ends}
        for regex in (None, r"([a-z]+ )*[a-z]+"):
            asked = [request(f"{seed}", regex=regex, seed=seed, **options) for seed in range(100)]
            lengths = [len(event.outputs[0].token_ids) for event in serve(engine, asked).values()]  # type: ignore[attr-defined]
            assert min(lengths) >= 6 and any(length < 12 for length in lengths)


def test_a_dead_end_fails_by_name() -> None:
    with make_engine() as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        digits = [i for i, t in enumerate(tokenizer.vocabulary.token_bytes) if t and t[:1].isdigit()]
        # end tokens are barred until min_new_tokens, and here all tokens that the regex allows are end tokens
        params = {"stop_token_ids": tuple(digits), "min_new_tokens": 5}
        last = serve(engine, [request("dead", regex="[0-9]{6}", **params), request("other", regex=r"\d\d")])
        dead, other = last["dead"], last["other"]
        assert isinstance(dead, Failed) and isinstance(dead.error.exception(), ConstraintError)
        assert "no token" in dead.error.message
        assert isinstance(other, Finished) and re.fullmatch(r"\d\d", other.outputs[0].text)


def test_stop_strings_end_a_constrained_output() -> None:
    with make_engine() as engine:
        event = serve(engine, [request("r", regex=r"[a-z]{1,5};[a-z]{30}", stop=(";",))])["r"]
        assert isinstance(event, Finished)
        assert event.outputs[0].finish_reason.matched == ";" and re.fullmatch("[a-z]{1,5}", event.outputs[0].text)


@pytest.mark.parametrize("bad", ["[.*", "a{5000}{5000}", r"(?=a)b", r"[^\s\S]"])
def test_bad_constraints_are_refused_and_others_are_served(bad: str) -> None:
    with make_engine() as engine:
        last = serve(engine, [request("bad", regex=bad), request("good")])
        failed = last["bad"]
        assert isinstance(failed, Failed) and isinstance(failed.error.exception(), ConstraintError)
        assert isinstance(last["good"], Finished)


def test_constraints_can_be_switched_off() -> None:
    with make_engine(grammar_backend="none") as engine:
        failed = serve(engine, [request("r", regex="a")])["r"]
        assert isinstance(failed, Failed) and "grammar_backend" in failed.error.message
        assert not engine.capabilities.constraints


def test_a_faulty_matcher_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dslc.compiler.constraints.matcher import AutomatonMatcher

    advance = AutomatonMatcher.advance
    calls = []

    def faulty(self: Any, token_id: int) -> None:
        calls.append(token_id)
        if len(calls) > 6:
            raise ZeroDivisionError("injected fault")
        advance(self, token_id)

    with make_engine() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(AutomatonMatcher, "advance", faulty)
            requests = [request(f"bound{i}", regex=r"[a-z]{20}", seed=i) for i in range(4)] + [request("free")]
            last = serve(engine, requests)
        assert all(isinstance(last[f"bound{i}"], Failed) for i in range(4)) and isinstance(last["free"], Finished)
        assert isinstance(serve(engine, [request("after", regex=r"[a-z]{2}")])["after"], Finished)


def test_ids_are_barred_at_every_place_of_a_mask_word() -> None:
    mask = np.full(3, -1, dtype=np.int32)
    bar(mask, [0, 31, 32, 95])
    allowed = unpack_mask(torch.from_numpy(mask)[None], 96)[0]
    assert [i for i in range(96) if not allowed[i]] == [0, 31, 32, 95]


def test_json_schemas_and_regexes_inside_sampling_params() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bob"]}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
    with make_engine() as engine:
        for source in (schema, json.dumps(schema)):
            result: Any = engine.generate("JSON: ", {"json_schema": source, "max_new_tokens": 60, "seed": 3})
            value = json.loads(result["text"])
            assert value["name"] in ("Ada", "Bob") and isinstance(value["ok"], bool) and len(value) == 2
        result = engine.generate("Number: ", {"regex": r"\d{3}", "max_new_tokens": 9})
        assert re.fullmatch(r"\d{3}", result["text"])
        with pytest.raises(ConstraintError):
            engine.generate("x", {"regex": "[.*"})


def test_looking_ahead_while_the_model_runs_changes_no_token() -> None:
    """As on an accelerator, one batch launched before the results of the last are read, or not."""
    schema = {"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": 4} for i in range(4)}}
    constraint = Constraint("json_schema", json.dumps(schema))
    outputs = []
    for looks, overlap in ((False, False), (True, False), (True, True)):
        asked: list[int] = []
        with make_engine(overlap) as engine:
            engine.looks_ahead = looks
            look_ahead = engine.scheduler.resolver.look_ahead
            engine.scheduler.resolver.look_ahead = lambda *a, f=look_ahead, n=asked: (n.append(1), f(*a))[1]  # type: ignore[method-assign]
            requests = [*mixed_requests(), GenRequest(
                id="object", segments=(Segment(text="Object: "),), constraint=constraint,
                sampling=SamplingParams(temperature=1.0, max_new_tokens=40, seed=3),
            )]  # fmt: skip
            found = serve(engine, requests)
            assert all(isinstance(event, Finished) for event in found.values())
            outputs.append({name: [o.token_ids for o in event.outputs] for name, event in found.items()})  # type: ignore[union-attr]
            engine.check_integrity()
        assert bool(asked) == looks
    assert outputs[0] == outputs[1] == outputs[2]
