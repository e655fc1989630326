"""Forced text: its tokens are taken without a draw, and nobody can tell from the output how they were computed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from support.tiny_models import tiny_checkpoint

import dslc
from dslc.compiler.constraints import compile_constraint
from dslc.core.constraint import Constraint
from dslc.core.errors import ConfigError, ProgramError, RequestError
from dslc.core.events import Event, Failed, Finished, Forced, Tokens
from dslc.core.request import GenRequest, LogprobWish, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

torch.set_num_threads(1)

WORDS = ["name", "age", "city", "is_open", "kind", "first name", "Zeit", "n", "été"]


def make_engine(overlap: bool = False, **options: Any) -> Engine:
    given = {"max_running_requests": 64, "max_total_tokens": 16384, "random_seed": 7, "deterministic": True, **options}
    engine = Engine(model_path=str(tiny_checkpoint("llama")), device="cpu", **given)
    engine.overlap, engine.check_when_idle = overlap, True
    return engine


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    with make_engine() as engine:
        yield engine


def run(engine: Engine, requests: list[GenRequest]) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    done: set[str] = set()

    def sink(event: Event) -> None:
        assert event.request_id not in done
        events[event.request_id].append(event)
        if isinstance(event, (Finished, Failed)):
            done.add(event.request_id)

    engine.submit(requests, sink)
    assert engine.wait(lambda: len(done) == len(requests), timeout=120)
    return events


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def request(
    name: str, constraint: Constraint | str, *, stream: bool = False, logprobs: LogprobWish | None = None, **params: Any
) -> GenRequest:
    bound = Constraint("regex", constraint) if isinstance(constraint, str) else constraint
    sampling = SamplingParams(**{"max_new_tokens": 60, "seed": 3, **params})
    segments = (Segment(text=f"Question {sampling.seed}: "),)
    return GenRequest(id=name, segments=segments, sampling=sampling, constraint=bound, stream=stream, logprobs=logprobs)


def with_jump(requests: list[GenRequest], how: bool | str) -> list[GenRequest]:
    return [replace(r, sampling=replace(r.sampling, jump_forward=how)) for r in requests]


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["boolean", "integer", "string", "enum", "const", "null"] + (["object", "array"] if depth else [])
    kind = rng.choice(kinds)
    if kind == "integer":
        return {"type": "integer", "minimum": -5, "maximum": rng.choice([7, 99])}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randrange(6)}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, 20, None], rng.randrange(1, 4))}
    if kind == "const":
        return {"const": rng.choice(["a longer constant, as text", 12345, [1, 2, "three"]])}
    if kind == "object":
        names = rng.sample(WORDS, rng.randrange(1, 4))
        return {
            "type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": names[: rng.randrange(len(names) + 1)], "additionalProperties": False,
        }  # fmt: skip
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 2}
    return {"type": kind}


def random_regex(rng: random.Random) -> str:
    parts = ["Name: ", "yes|no", "[a-z]{1,4}", r"\d{2}", "the answer is ", "(, and so on)?", "#", "été ", "[^x]"]
    return "".join(f"({part})" for part in rng.sample(parts, rng.randrange(1, 5)))


def constraints(num: int) -> list[Constraint]:
    rng = random.Random(5)
    found = []
    for i in range(num):
        if i % 2:
            found.append(Constraint("regex", random_regex(rng)))
        else:
            found.append(Constraint("json_schema", json.dumps(random_schema(rng))))
    return found


def test_taken_at_once_is_taken_one_by_one(shared: Engine) -> None:
    """200 schemas and 50 regexes, greedy and at temperature 1: the same ids, ends and runs; the texts are whole."""
    bound = [c for i, c in enumerate(constraints(400)) if c.kind == "json_schema" or i < 100]
    requests = [
        request(f"{i}-{temperature}", c, temperature=temperature)
        for i, c in enumerate(bound)
        for temperature in (0.0, 1.0)
    ]
    at_once, one_by_one = run(shared, with_jump(requests, True)), run(shared, with_jump(requests, "step"))
    num_forced = num_tokens = num_whole = 0
    for asked in requests:
        output = finished(at_once[asked.id]).outputs[0]
        assert finished(one_by_one[asked.id]).outputs[0] == output
        assert asked.constraint is not None
        num_forced += output.num_forced_tokens
        num_tokens += len(output.token_ids)
        if output.finish_reason.type == "stop":
            num_whole += 1
            if asked.constraint.kind == "regex":
                assert re.fullmatch(asked.constraint.source, output.text)
            else:
                jsonschema.validate(json.loads(output.text), json.loads(asked.constraint.source))
    assert num_whole >= 0.95 * len(requests)
    assert num_forced > 0.3 * num_tokens


def test_forwards_and_draws_drop_by_the_forced_tokens() -> None:
    """A request alone. "step" needs a forward more for each forced token that something is drawn after."""
    for constraint in constraints(24):
        counted, outputs = {}, {}
        for how in (True, "step"):
            with make_engine(disable_radix_cache=True) as engine:
                asked = with_jump([request("r", constraint, temperature=1.0)], how)
                outputs[how] = finished(run(engine, asked)["r"]).outputs[0]
                counted[how] = engine.counters()
        output, at_once, stepwise = outputs[True], counted[True], counted["step"]
        assert output == outputs["step"]
        num_forced = output.num_forced_tokens
        num_last = sum(count for start, count in output.forced_runs if start + count == len(output.token_ids))
        assert at_once.forced_tokens == stepwise.forced_tokens == num_forced
        assert at_once.generated_tokens == stepwise.generated_tokens == len(output.token_ids)
        assert stepwise.forwards - at_once.forwards == num_forced - num_last
        assert at_once.forwards == len(output.token_ids) - num_forced  # one for each draw, nothing else
        assert at_once.rows == stepwise.rows
        if at_once.forwards:  # the last token and what is forced after it need no KV
            ends_drawn = num_last == 0
            assert at_once.rows == at_once.prompt_tokens + len(output.token_ids) - num_last - 1
            assert ends_drawn or num_last > 0


MODES: dict[str, dict[str, Any]] = {
    "overlap": {"overlap": True},
    "chunk 1": {"chunked_prefill_size": 1},
    "chunk 3, overlap": {"chunked_prefill_size": 3, "overlap": True},
    "whole prompts": {"chunked_prefill_size": -1},
    "not mixed": {"enable_mixed_chunk": False, "chunked_prefill_size": 5},
    "pages of 4": {"page_size": 4},
    "no cache": {"disable_radix_cache": True},
    "retracting": {"max_total_tokens": 64, "schedule_conservativeness": 0.01},
    "retracting, overlap, chunk 3": {
        "max_total_tokens": 64, "schedule_conservativeness": 0.01, "overlap": True, "chunked_prefill_size": 3,
    },
    "one at a time": {"max_running_requests": 1},
}  # fmt: skip


def matrix_requests() -> list[GenRequest]:
    """Constrained in all ways, with n, log-probs, penalties and stops; and free ones beside them."""
    requests = []
    for i, constraint in enumerate(constraints(18)):
        options: dict[str, Any] = {"temperature": 1.0, "seed": i, "max_new_tokens": 30}
        if i % 3 == 0:
            options["n"] = 2
        if i % 4 == 1:
            options |= {"frequency_penalty": 0.7, "repetition_penalty": 1.2}
        if i % 5 == 2:
            options["stop"] = (":", "e")
        wish = LogprobWish(prompt_start=1 if i % 2 else -1, top=2) if i % 3 == 1 else None
        requests.append(request(f"r{i}", constraint, logprobs=wish, stream=i % 4 == 0, **options))
    for i in range(4):
        requests.append(request(f"long{i}", f"[a-z ]{{30,40}}, and so on, {i} times", seed=i, max_new_tokens=40))
    for i in range(4):
        requests.append(replace(request(f"free{i}", "", seed=i, max_new_tokens=20, top_p=0.9), constraint=None))
    return requests


@pytest.fixture(scope="module")
def wanted() -> dict[bool | str, dict[str, list[Event]]]:
    found: dict[bool | str, dict[str, list[Event]]] = {}
    for how in (True, False):
        with make_engine() as engine:
            found[how] = run(engine, with_jump(matrix_requests(), how))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_outputs(mode: str, wanted: dict[bool | str, dict[str, list[Event]]]) -> None:
    """Ids, texts and bit-equal log-probs, in deterministic arithmetic."""
    for how in (True, "step", False):
        with make_engine(**MODES[mode]) as engine:
            got = run(engine, with_jump(matrix_requests(), how))
            if "retracting" in mode:
                assert engine.counters().preemptions > 0
        for name, events in got.items():
            base = finished(wanted[how is not False][name])
            assert finished(events).outputs == base.outputs, (how, name)
            assert finished(events).prompt_logprobs == base.prompt_logprobs, (how, name)


def test_free_rows_do_not_notice(wanted: dict[bool | str, dict[str, list[Event]]]) -> None:
    free = [r for r in matrix_requests() if r.constraint is None]
    with make_engine() as engine:
        alone = run(engine, free)
    for name, events in alone.items():
        assert finished(events).outputs == finished(wanted[True][name]).outputs


def test_logprobs_of_forced_tokens_are_those_of_the_text(shared: Engine) -> None:
    """What the model gives the same ids as a prompt."""
    asked = [
        request(f"r{i}", constraint, logprobs=LogprobWish(top=3), temperature=1.0)
        for i, constraint in enumerate(constraints(12))
    ]
    num_whole = 0
    for name, events in run(shared, asked).items():
        output, source = finished(events).outputs[0], next(r for r in asked if r.id == name)
        assert shared.tokenizer is not None
        prompt = tuple(shared.tokenizer.encode(source.segments[0].text))
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
        again = GenRequest(
            id=f"{name} again", segments=(Segment(ids=prompt + output.token_ids),),
            sampling=SamplingParams(max_new_tokens=0), logprobs=LogprobWish(len(prompt), top=3),
        )  # fmt: skip
        read = finished(run(shared, [again])[again.id]).prompt_logprobs
        assert read == output.logprobs
        num_whole += output.num_forced_tokens == len(output.token_ids)
    assert num_whole > 0


def test_streams_bring_forced_tokens_with_the_drawn_ones(shared: Engine) -> None:
    for wish in (None, LogprobWish()):
        asked = [
            request(f"r{i}", c, stream=True, logprobs=wish, temperature=1.0) for i, c in enumerate(constraints(16))
        ]
        for events in run(shared, asked).values():
            output = finished(events).outputs[0]
            tokens = [event for event in events if isinstance(event, Tokens)]
            forced = [event for event in events if isinstance(event, Forced)]
            assert tuple(token for event in tokens for token in event.token_ids) == output.token_ids
            assert "".join(event.text for event in tokens) == output.text
            if wish is not None:
                assert tuple(entry for event in tokens for entry in event.logprobs) == output.logprobs
                assert all(len(event.logprobs) == len(event.token_ids) for event in tokens)
            assert tuple((event.start, len(event.token_ids)) for event in forced) == output.forced_runs
            for event in forced:
                assert output.token_ids[event.start :][: len(event.token_ids)] == event.token_ids


def test_a_whole_output_can_be_forced(shared: Engine) -> None:
    """No draw, no forward, and the prompt is not read."""
    before = shared.counters()
    asked = [request("one", r"The answer is 42, as always\.", n=3), request("cut", "z{40}", max_new_tokens=4)]
    events = run(shared, asked)
    counted = shared.counters() - before
    one, cut = finished(events["one"]), finished(events["cut"])
    for output in one.outputs:
        assert output.text == "The answer is 42, as always." and output.finish_reason.type == "stop"
        assert output.num_forced_tokens == len(output.token_ids)
        assert shared.tokenizer is not None and list(output.token_ids) == shared.tokenizer.encode(output.text)
    assert len(cut.outputs[0].token_ids) == 4 and cut.outputs[0].finish_reason.type == "length"
    assert counted.forwards == counted.rows == counted.prompt_tokens == 0
    assert counted.generated_tokens == counted.forced_tokens > 0
    assert one.num_cached_tokens == 0


def test_a_run_is_cut_at_the_limit_and_at_a_stop(shared: Engine) -> None:
    text = "[ab] and then a long, long text that must come after it"
    whole = finished(run(shared, [request("r", text, temperature=0.0)])["r"]).outputs[0]
    assert whole.num_forced_tokens == len(whole.token_ids) - 1
    for limit in range(1, len(whole.token_ids) + 1):
        for how in (True, "step"):
            asked = request("r", text, temperature=0.0, max_new_tokens=limit, jump_forward=how)
            output = finished(run(shared, [asked])["r"]).outputs[0]
            assert output.token_ids == whole.token_ids[:limit]
            assert output.finish_reason.type == ("length" if limit < len(whole.token_ids) else "stop")
    for how in (True, "step"):
        asked = request("r", text, temperature=0.0, stop=("long, l",), jump_forward=how)
        output = finished(run(shared, [asked])["r"]).outputs[0]
        assert output.text in ("a and then a ", "b and then a ") and output.finish_reason.matched == "long, l"
        asked = request("r", text, temperature=0.0, stop=("long, l",), min_new_tokens=50, jump_forward=how)
        assert finished(run(shared, [asked])["r"]).outputs[0].text == whole.text
    stop = whole.token_ids[5]
    asked = request("r", text, temperature=0.0, stop_token_ids=(stop,))
    output = finished(run(shared, [asked])["r"]).outputs[0]
    assert output.token_ids == whole.token_ids[:6] and output.finish_reason.matched == stop


def test_penalties_hear_of_forced_tokens(shared: Engine) -> None:
    """Where masks leave but one token, sampling under them and forcing are the same, penalties included."""
    num_forced = 0
    for seed in range(12):
        options = {"seed": seed, "temperature": 1.0, "frequency_penalty": 1.5, "repetition_penalty": 1.3}
        asked = [request("r", "([acegik]z){12}", **options)]
        sampled = finished(run(shared, with_jump(asked, False))["r"]).outputs[0]
        jumped = finished(run(shared, with_jump(asked, True))["r"]).outputs[0]
        assert sampled.token_ids[: len(jumped.token_ids)] == jumped.token_ids  # the end of text is not drawn
        num_forced += jumped.num_forced_tokens
    assert num_forced >= 12 * 12


def test_an_aborted_request_leaves_nothing_behind() -> None:
    with make_engine(max_running_requests=8) as engine:
        asked = [request(f"r{i}", c, stream=True, temperature=1.0) for i, c in enumerate(constraints(12))]
        seen: list[Event] = []
        engine.submit(asked, seen.append)
        for number in range(12):
            engine.step()
            engine.abort([f"r{number}"])
        assert engine.wait(lambda: sum(isinstance(e, (Finished, Failed)) for e in seen) == 12, timeout=60)
        assert any(isinstance(e, Failed) for e in seen)
        engine.check_integrity()
        with make_engine() as other:
            again = run(engine, [replace(r, id=f"{r.id} again") for r in asked])
            base = run(other, asked)
        for name, events in base.items():
            assert finished(again[f"{name} again"]).outputs == finished(events).outputs


def test_the_option_is_checked() -> None:
    with pytest.raises(ConfigError, match="jump_forward"):
        make_engine(jump_forward="fast")
    with make_engine(jump_forward=False) as engine:
        output = finished(run(engine, [request("r", "abc abc")])["r"]).outputs[0]
        assert output.num_forced_tokens == 0 and output.text == "abc abc"
        output = finished(run(engine, [request("r", "abc abc", jump_forward=True)])["r"]).outputs[0]
        assert output.num_forced_tokens == len(output.token_ids)
        failed = run(engine, [request("r", "abc", jump_forward="fast")])["r"][-1]
        assert isinstance(failed, Failed) and isinstance(failed.error.exception(), RequestError)
        assert "jump_forward" in str(failed.error.exception())


ENDINGS: list[Constraint | str] = [
    r"[a-z]{3,40}", r"\d{1,30}(\.\d{2,30})?", r"(ab|cd){2,20}e{3}", r"[^x]{0,50}y",
    Constraint("json_schema", json.dumps({"type": "object", "properties": {
        "name": {"type": "string"}, "notes": {"type": "array", "items": {"type": "string", "minLength": 2}}},
        "required": ["name", "notes"], "additionalProperties": False})),
    Constraint("json_schema", json.dumps({"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "properties": {"value": {"type": "integer"}, "child": {"$ref": "#/$defs/tree"}},
        "required": ["value"], "additionalProperties": False}}})),
]  # fmt: skip


@pytest.mark.parametrize("how", [True, "step", False])
def test_an_output_that_must_be_valid_is_whole_when_its_tokens_run_out(shared: Engine, how: bool | str) -> None:
    """Under every limit from the least that suffices; as without the option where it ends by itself."""
    num_cut = num_turned = 0
    for number, constraint in enumerate(ENDINGS):
        plain = request("r", constraint)
        assert plain.constraint is not None and shared.tokenizer is not None
        compiled = compile_constraint(plain.constraint, shared.tokenizer.vocabulary, encode=shared.tokenizer.encode)
        way = compiled.start().shortest_end()
        assert way is not None
        asked = []
        for limit in (max(1, len(way)), len(way) + 1, len(way) + 3, len(way) + 9, 30):
            for seed in range(4):
                one = request(f"{limit} {seed}", constraint, max_new_tokens=limit, seed=seed, jump_forward=how)
                valid = replace(one, sampling=replace(one.sampling, finish_valid=True))
                asked += [valid, replace(one, id=f"{one.id} cut")]
        events = run(shared, [replace(r, id=f"{number} {r.id}") for r in asked])
        for name, found in events.items():
            output = finished(found).outputs[0]
            if name.endswith("cut"):
                num_cut += output.finish_reason.type == "length"
                assert output.is_complete or output.finish_reason.type == "length"
                continue
            assert output.is_complete and output.finish_reason.type == "stop", (name, output)
            if plain.constraint.kind == "regex":
                assert re.fullmatch(plain.constraint.source, output.text)
            else:
                jsonschema.validate(json.loads(output.text), json.loads(plain.constraint.source))
            assert len(output.token_ids) <= int(name.split()[1])
            cut = finished(events[f"{name} cut"]).outputs[0]
            if cut.finish_reason.type == "stop":
                assert cut.text == output.text
            num_turned += cut.text != output.text
    assert num_cut > 30 and num_turned > 30


def test_a_budget_below_the_shortest_end_cuts(shared: Engine) -> None:
    output = finished(run(shared, [request("r", "[ab]{9}", max_new_tokens=2, finish_valid=True)])["r"]).outputs[0]
    assert output.finish_reason.type == "length" and output.is_complete is False
    assert len(output.token_ids) == 2


def test_a_forced_end_has_its_logprobs_and_counts(shared: Engine) -> None:
    before = shared.counters()
    asked = request(
        "r", "[^x]{0,50}yyyyyyyy", max_new_tokens=20, finish_valid=True, logprobs=LogprobWish(), stream=True
    )
    events = run(shared, [asked])["r"]
    output, counted = finished(events).outputs[0], shared.counters() - before
    assert output.text.endswith("yyyyyyyy") and len(output.token_ids) <= 20
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    assert counted.generated_tokens == len(output.token_ids) and counted.forced_tokens == output.num_forced_tokens > 0
    tokens = [event for event in events if isinstance(event, Tokens)]
    assert tuple(token for event in tokens for token in event.token_ids) == output.token_ids


def test_a_program_hears_of_forced_tokens_and_of_what_was_cut(shared: Engine) -> None:
    @dslc.function
    def program(s: Any, limit: int, valid: bool, jump: Any) -> None:
        s += "The answer: "
        s += dslc.gen("value", list[str], max_tokens=limit, finish_valid=valid, jump_forward=jump)

    def one(limit: int, valid: bool, jump: Any) -> Any:
        return program.run(limit=limit, valid=valid, jump=jump, backend=shared, seed=4, temperature=1.0)

    cut = one(9, False, True)
    assert cut.get_meta_info("value")["is_complete"] is False and cut.raw("value").startswith("[")
    with pytest.raises(ProgramError, match="not complete: it was cut by max_tokens after"):
        cut["value"]
    whole = one(9, True, True)
    info = whole.get_meta_info("value")
    assert whole["value"] == json.loads(whole.raw("value")) and info["is_complete"] is True
    assert info["forced_tokens"] > 0 and info["completion_tokens"] <= 10  # with the one that was healed
    assert one(9, True, "step").raw("value") == whole.raw("value")
