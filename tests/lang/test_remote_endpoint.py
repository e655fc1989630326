"""`dslc.RuntimeEndpoint` = the engine in process: the same programs over HTTP; and what a broken server does."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from aiohttp import web
from support.sglang_server import GenerateServer, HttpServer

import dslc
from dslc.cli_programs import BUILTIN_MODEL
from dslc.lang.remote.faults import Backoff

torch.set_num_threads(1)
EXAMPLES = Path(dslc.__file__).parent / "examples"
FAST = Backoff(base_s=0.01, max_s=0.02)

PROGRAMS = {
    "few_shot_qa:few_shot_qa": {"question": "What is the capital of Peru?"},
    "multi_turn_chat:multi_turn_chat": {"name": "Emma"},
    "multiple_choice:multiple_choice": {"question": "What?", "first": "a", "second": "b"},
    "json_by_regex:city_by_regex": {"city": "Paris"},
    "json_by_schema:city_by_type": {"city": "Rome"},
    "expert_answer:expert_answer": {"question": "What is the capital of Italy?"},
    "tool_use:tool_use": {"question": "What is 1 + 2?"},
    "tool_call:tool_call": {"question": "What is 2 + 3?"},
    "tip_suggestion:tip_suggestion": {"topic": "sleep"},
    "skeleton_of_thought:skeleton_of_thought": {"question": "How do I save money?"},
    "llm_judge:llm_judge": {"text": "The capital of France is Paris."},
    "self_consistency:self_consistency": {"question": "5 + 3?", "samples": 3},
    "character_extraction:extract_character": {"text": "Mia is 12."},
    "demo:triage": {"ticket": "The app crashes on start"},
}


def load(name):
    file, _, program = name.partition(":")
    spec = importlib.util.spec_from_file_location(f"example_{file}", EXAMPLES / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, program)


@pytest.fixture(scope="module")
def engine():
    with dslc.Engine(dtype="float32", deterministic=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine):
    with GenerateServer(engine, BUILTIN_MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server):
    with dslc.RuntimeEndpoint(server.url, backoff=FAST) as backend:
        yield backend


def gist(state):
    return state.text(), state.variables(), state.ret_value


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_give_the_same_over_http(name, temperature, engine, remote):
    program = load(name)
    here = program.run(**PROGRAMS[name], backend=engine, temperature=temperature, seed=11)
    there = program.run(**PROGRAMS[name], backend=remote, temperature=temperature, seed=11)
    assert gist(there) == gist(here)


@dslc.function
def chat(s, question):
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("a", max_tokens=8, n=2))
    s += dslc.user("Which?")
    s += dslc.assistant(dslc.select("kind", ["bug", "billing", "bugs"]))
    s += dslc.assistant("It is " + dslc.gen("b", regex="[0-9]{3} [a-z]+", max_tokens=20))


def test_meta_info_and_scores_are_those_of_the_engine(engine, remote):
    options = {"seed": 4, "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": 2}
    here, there = (chat.run(question="How?", backend=b, **options) for b in (engine, remote))
    assert gist(here) == gist(there)
    for name in ("a", "kind", "b"):
        ours, theirs = here.get_meta_info(name), there.get_meta_info(name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
        for mine, other in pairs:
            assert other.pop("num_tries") == 1
            for key in ("id", "e2e_latency", "cached_tokens"):
                mine.pop(key, None), other.pop(key, None)
            assert mine == other  # ids, log-probs, scores: bit for bit


@pytest.mark.parametrize("incremental", [False, True])
def test_a_stream_is_the_whole_in_pieces(engine, incremental):
    @dslc.function
    def program(s):
        s += "The capital of" + dslc.gen("a", max_tokens=12, stop=["is Paris", "zzz"], return_logprob=True)

    whole = program.run(backend=engine, temperature=0)
    told = GenerateServer(engine, BUILTIN_MODEL, incremental=incremental)
    with told as server, dslc.RuntimeEndpoint(server.url) as backend:
        state = program.run(backend=backend, temperature=0, stream=True)
        pieces = list(state.text_iter("a"))
        assert "".join(pieces) == state["a"] == whole["a"] and len(pieces) > 2
        ours, theirs = whole.get_meta_info("a"), state.get_meta_info("a")
        assert theirs["output_ids"] == ours["output_ids"]
        assert theirs["output_token_logprobs"] == ours["output_token_logprobs"]
        assert theirs["finish_reason"] == ours["finish_reason"]


def test_a_batch_is_in_flight_together(engine, server, remote):
    rows = [{"question": f"What is {i} + 1?"} for i in range(6)]
    here = chat.run_batch(rows, backend=engine, seed=2, on_error="raise")
    there = chat.run_batch(rows, backend=remote, seed=2, on_error="raise")
    assert [gist(a) for a in here] == [gist(b) for b in there]


def test_a_select_is_one_call(server, remote):
    @dslc.function
    def program(s):
        s += "Is it a" + dslc.select("x", ["bug", "bugs", "bill"])

    server.requests.clear()
    program.run(backend=remote)
    (body,) = server.requests
    assert len(body["input_ids"]) <= 3 and body["sampling_params"]["max_new_tokens"] == 0
    assert body["return_logprob"] is True
    scored = {tuple(ids) for ids in body["input_ids"]}
    assert not any(a != b and b[: len(a)] == a for a in scored for b in scored)  # no sequence twice


def test_a_plain_server_gets_plain_sglang(engine):
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    schema["additionalProperties"] = False

    @dslc.function
    def program(s):
        s += dslc.user("n?") + dslc.assistant(dslc.gen("n", regex="[0-9]{2}"))
        s += dslc.user("j?") + dslc.assistant(dslc.gen("j", json_schema=schema, max_tokens=30))

    with GenerateServer(engine, BUILTIN_MODEL, plain=True) as server, dslc.RuntimeEndpoint(server.url) as backend:
        state = program.run(backend=backend, temperature=0)
        assert state["n"].isdigit() and isinstance(json.loads(state["j"])["x"], int)
        first, second = server.requests
        assert first["sampling_params"]["regex"] == "[0-9]{2}" and "dslc" not in first
        assert json.loads(second["sampling_params"]["json_schema"]) == schema
        for words, build in {
            "finish_valid": lambda s: s.append(dslc.gen("a", regex="a", finish_valid=True)),
            "whitespace='compact'": lambda s: s.append(dslc.gen("a", dslc.json(schema, whitespace="compact"))),
            "seq": lambda s: s.append(dslc.seq("a", dslc.gen("b", regex="b"))),
            "token_healing": lambda s: s.append("x" + dslc.gen("a", regex="a", token_healing=True)),
        }.items():

            @dslc.function
            def other(s, build=build):
                s += "text "
                build(s)

            with pytest.raises(dslc.RequestError) as caught:
                other.run(backend=backend)
            assert words in str(caught.value) and "RuntimeEndpoint" in str(caught.value)


def test_the_servers_other_verbs(server, remote):
    assert remote.is_healthy() and "dslc_version" in remote.get_server_info()
    before = server.flushes
    dslc.flush_cache(remote)
    assert server.flushes == before + 1
    assert dslc.get_server_info(remote)["version"] == "0.5.6"
    tokens = load("few_shot_qa:few_shot_qa").cache(backend=remote)
    assert tokens > 20 and remote.usage()["num_failed"] == 0


def test_a_key_is_asked_for(engine):
    with GenerateServer(engine, BUILTIN_MODEL, api_key="secret") as server:
        with pytest.raises(dslc.RemoteError, match="/get_model_info: it answered 401"):
            dslc.RuntimeEndpoint(server.url)
        with dslc.RuntimeEndpoint(server.url, api_key="secret") as backend:
            assert chat.run(question="How?", backend=backend)["kind"] in ("bug", "billing", "bugs")
            server.api_key = "another"
            with pytest.raises(dslc.RemoteError) as caught:
                chat.run(question="How?", backend=backend)
            assert caught.value.field == "401" and len(server.requests) > 2


def test_no_server_is_named_at_once():
    with pytest.raises(dslc.RemoteError, match=r"http://127\.0\.0\.1:9/get_model_info: no connection"):
        dslc.RuntimeEndpoint("http://127.0.0.1:9")
    with pytest.raises(dslc.ConfigError, match="http://"):
        dslc.RuntimeEndpoint("localhost:30000")


def test_a_server_of_another_protocol_is_pointed_out():
    with HttpServer() as server:
        says = "/get_model_info: it answered 404.* is it a server that speaks SGLang's protocol.*dslc.OpenAI"
        with pytest.raises(dslc.RemoteError, match=says):
            dslc.RuntimeEndpoint(server.url)


def test_a_tokenizer_that_is_not_here_is_named(engine, tmp_path):
    with GenerateServer(engine, tmp_path / "not-here") as server:
        with pytest.raises(dslc.ModelLoadError, match="tokenizer= gives another place"):
            dslc.RuntimeEndpoint(server.url)
        with dslc.RuntimeEndpoint(server.url, tokenizer=str(BUILTIN_MODEL)) as backend:
            assert backend.tokenizer.hash == engine.tokenizer.hash


# -- faults


def status(code):
    async def fault(request, body):
        return web.json_response({"error": {"message": f"no {code}"}}, status=code)

    return fault


async def sleeps(request, body):
    import asyncio

    await asyncio.sleep(30)


async def cut(request, body):
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "999"})
    await response.prepare(request)
    await response.write(b'{"text": "Par')
    request.transport.close()
    return response


async def cut_stream(request, body):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    meta = {"id": "1", "prompt_tokens": 3, "completion_tokens": 1, "finish_reason": None}
    answer = {"text": "Par", "output_ids": [50], "meta_info": meta}
    await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
    return response


async def malformed(request, body):
    return web.Response(text='{"text": "Par', content_type="application/json")


async def wrong(request, body):
    return web.json_response({"text": "Paris", "meta_info": {}})


FAULTS = {
    "429": (status(429), "429: no 429", True), "500": (status(500), "500: no 500", True),
    "timeout": (sleeps, "within 0.8 s", True), "cut": (cut, "cut", True), "answer": (malformed, "no JSON", False),
    "400": (status(400), "400: no 400", False),
}  # fmt: skip


@dslc.function
def ask(s):
    s += "The capital of France is"
    s += dslc.gen("a", max_tokens=4)  # the line of the errors


LINE = ask.where.line + 3


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_name_provider_request_and_line(server, kind):
    fault, says, passes = FAULTS[kind]
    limit = 0.8 if kind == "timeout" else 30.0  # short only where the server is not to be in time
    with dslc.RuntimeEndpoint(server.url, backoff=FAST, timeout=limit, max_retries=1) as backend:
        server.requests.clear()
        server.faults = [fault] * 5
        with pytest.raises(dslc.RemoteError) as caught:
            ask.run(backend=backend)
        tries = 1 + passes
        assert caught.value.field == kind and caught.value.where.line == LINE
        text = str(caught.value)
        assert f"RuntimeEndpoint({server.url}), POST /generate, request " in text and says in text
        assert f"after {tries} tr" in text and len(server.requests) == tries
        server.faults = [fault] if passes else []
        state = ask.run(backend=backend, timeout=20)
        assert state.get_meta_info("a")["num_tries"] == tries and len({r["rid"] for r in server.requests}) == 2 * tries
        server.faults = []


def test_an_answer_without_its_parts_is_an_error(server, remote):
    server.faults = [wrong]
    with pytest.raises(dslc.RemoteError, match="not what its protocol says: KeyError: 'finish_reason'"):
        ask.run(backend=remote)


def test_a_stream_that_was_shown_is_not_sent_again(server, remote):
    server.faults = [cut_stream]
    server.requests.clear()
    state = ask.run(backend=remote, stream=True)
    with pytest.raises(dslc.RemoteError, match="3 characters of the text were shown already"):
        list(state.text_iter("a"))
    assert len(server.requests) == 1


def test_cancelling_tells_the_server(server, remote):
    server.faults = [sleeps]
    server.requests.clear()
    state = ask.run(backend=remote, stream=True)
    while not server.requests:
        time.sleep(0.01)
    state.cancel()
    assert isinstance(state.error(), dslc.Aborted)
    end = time.monotonic() + 5
    while server.requests[0]["rid"] not in server.aborted and time.monotonic() < end:
        time.sleep(0.01)
    assert server.requests[0]["rid"] in server.aborted
