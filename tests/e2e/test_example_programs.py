"""The examples on the built-in model, through the whole chain: interpreted = compiled, optimised = unoptimised."""

import json
import sys
from pathlib import Path

import pytest
import torch

import dslc
from dslc.compiler.ir import walk
from dslc.compiler.parser import parse_program
from dslc.compiler.passes.base import CompileOptions
from dslc.compiler.pipeline import PASSES
from dslc.compiler.printer import print_program
from dslc.compiler.serial import from_json, to_json

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
TICKETS = json.loads((ROOT / "examples" / "data" / "tickets.json").read_text("utf-8"))

PROGRAMS = {
    "demo:triage": [{"ticket": t["ticket"]} for t in TICKETS[:6]],
    "few_shot_qa:few_shot_qa": [{"question": f"What is the capital of {c}?"} for c in ("Germany", "Spain", "Peru")],
    "multi_turn_chat:multi_turn_chat": [{"name": n} for n in ("Emma", "Noah")],
    "tip_suggestion:tip_suggestion": [{"topic": "staying healthy"}, {"topic": "saving money"}],
}


def _program(name):
    module, _, attribute = name.partition(":")
    return getattr(__import__(module), attribute)


@pytest.fixture(scope="module")
def engine():
    torch.set_num_threads(1)
    with dslc.Engine(dtype="float32", deterministic=True) as engine:
        yield engine


def _texts(program, batch, engine, **options):
    engine.flush_cache()
    states = program.run_batch(batch, backend=engine, seed=7, on_error="raise", **options)
    return [(state.text(), state.ret_value) for state in states]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_compile_whole_and_round_trip(name):
    program = _program(name).compile(strict=True)
    assert program.is_whole
    assert parse_program(print_program(program)) == program
    assert from_json(to_json(program)) == program
    assert all(op.where is not None for op in walk(program.body))


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreted_equals_compiled_equals_unoptimised(name, temperature, engine):
    program, batch = _program(name), PROGRAMS[name]
    interpreted = _texts(program, batch, engine, compiled=False, temperature=temperature)
    compiled = _texts(program, batch, engine, compiled=True, temperature=temperature)
    assert compiled == interpreted
    optional = tuple(item.name for item in PASSES if item.name != "verify")
    plain = CompileOptions(disabled=optional)
    assert _texts(program, batch, engine, compiled=True, compile_options=plain, temperature=temperature) == compiled
    for name_off in optional:
        off = CompileOptions(disabled=(name_off,))
        assert (
            _texts(program, batch[:1], engine, compiled=True, compile_options=off, temperature=temperature)
            == compiled[:1]
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_batched_equals_single(name, engine):
    program, batch = _program(name), PROGRAMS[name]
    batched = _texts(program, batch, engine, temperature=0)
    assert [_texts(program, [row], engine, temperature=0)[0] for row in batch] == batched


def test_the_demo_says_what_a_person_would(engine):
    states = _program("demo:triage").run_batch(
        [{"ticket": t["ticket"]} for t in TICKETS], backend=engine, temperature=0, on_error="raise"
    )
    right = sum(state["label"] == ticket["label"] for state, ticket in zip(states, TICKETS, strict=True))
    assert right >= 29, f"{right} of {len(TICKETS)} labels"
    for state in states:
        assert state["urgency"] in set("12345")
        if state["label"] == "bug":
            report = json.loads(state["report"])
            assert list(report) == ["summary", "component", "severity"]
            assert report["severity"] in ("low", "medium", "high")
    assert [m["role"] for m in states[0].messages()][:3] == ["system", "user", "assistant"]


def test_detokenised_prompts_begin_the_text_of_their_stream(engine, monkeypatch):
    sent = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda requests, sink: (sent.extend(requests), submit(requests, sink))[1])
    for name, batch in PROGRAMS.items():
        sent.clear()
        states = _program(name).run_batch(batch, backend=engine, temperature=0, on_error="raise")
        texts = {
            (state.sink.instance, stream.path): stream.text()
            for state in states
            for stream in state.sink.streams.values()
        }
        assert sent
        for request in sent:
            ids = [token for segment in request.segments for token in segment.ids]
            shown = engine.tokenizer.decode(ids, skip_special_tokens=False)
            assert texts[request.origin.instance, request.origin.stream].startswith(shown)


def test_a_shared_prefix_is_computed_once(engine):
    """Exactly the nodes of the trie of prompts, and one token for each request found wholly cached."""

    @dslc.function
    def shared(s, n):
        s += "You are given a number. Say something about it. " * 8
        s += f"Number {n % 60}: "
        s += dslc.gen("x", max_tokens=1)

    engine.flush_cache()
    before = engine.counters()
    apart = CompileOptions(disabled=("common-gens",))  # else equal prompts would be one request
    rows = [{"n": n} for n in range(64)]
    states = shared.run_batch(rows, backend=engine, temperature=0, on_error="raise", compile_options=apart)
    used = engine.counters() - before
    prompts = [tuple(engine.tokenizer.encode_prompt("") + engine.tokenizer.encode(_prompt(n))) for n in range(64)]
    nodes = {prompt[:k] for prompt in prompts for k in range(1, len(prompt) + 1)}
    assert used.prompt_tokens == sum(map(len, prompts))
    assert used.prefilled_tokens == len(nodes) + _wholly_cached(prompts)
    assert used.cached_tokens == used.prompt_tokens - used.prefilled_tokens
    assert len({state["x"] for state in states if state.text().startswith("Y")}) >= 1


def _prompt(n):
    return "You are given a number. Say something about it. " * 8 + f"Number {n % 60}: "


def _wholly_cached(prompts):
    """How many requests find their whole prompt computed by another: equal to an earlier one, or a beginning of one."""
    longer = {prompt[:k] for prompt in set(prompts) for k in range(1, len(prompt))}
    return sum(prompt in longer or prompt in prompts[:i] for i, prompt in enumerate(prompts))
