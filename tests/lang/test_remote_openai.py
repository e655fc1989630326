"""`dslc.OpenAI` against a local server: what it sends, what it makes of answers, and what it refuses."""

import json
import threading
import time

import pytest
from pydantic import BaseModel
from support.providers import KEY, OpenAIServer

import dslc
from dslc.lang.remote.faults import Backoff

pytest.importorskip("openai")
FAST = Backoff(base_s=0.01, max_s=0.02)


@pytest.fixture
def server():
    with OpenAIServer(lambda prompt: "Paris is the capital.\nMore.") as server:
        yield server


@pytest.fixture
def chat(server):
    with dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY, backoff=FAST) as backend:
        yield backend


@pytest.fixture
def completion(server):
    options = {"base_url": server.url + "/v1", "api_key": KEY, "backoff": FAST}
    with dslc.OpenAI("gpt-3.5-turbo-instruct", **options) as backend:
        yield backend


@dslc.function
def two_turns(s, question):
    s += dslc.system("Be brief.")
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("first", max_tokens=16, stop="\n"))
    s += dslc.user("Sure?")
    s += dslc.assistant(dslc.gen("second", max_tokens=2, temperature=0.5))


@pytest.mark.parametrize("compiled", [False, True])
def test_chat_turns_go_as_messages(server, chat, compiled):
    state = two_turns.run(question="Capital?", backend=chat, temperature=0, seed=5, compiled=compiled)
    assert state["first"] == "Paris is the capital." and state["second"] == "Paris is"
    first, second = server.requests
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital?"},
    ]
    assert (first["model"], first["temperature"], first["stop"], first["max_tokens"]) == ("gpt-x", 0, ["\n"], 16)
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "Paris is the capital."},
        {"role": "user", "content": "Sure?"},
    ]
    assert second["temperature"] == 0.5 and second["seed"] != first["seed"] and "stop" not in second
    assert state.messages() == [*second["messages"], {"role": "assistant", "content": "Paris is"}]
    assert state.text() == (
        "SYSTEM:Be brief.\nUSER:Capital?\nASSISTANT:Paris is the capital.\nUSER:Sure?\nASSISTANT:Paris is\n"
    )
    info = state.get_meta_info("second")
    assert info["finish_reason"]["type"] == "length" and info["completion_tokens"] == 2
    assert info["prompt_tokens"] == 11 and info["cached_tokens"] == 4 and info["num_tries"] == 1
    assert info["provider"] == "OpenAI" and info["model"] == "gpt-x" and info["provider_id"] == "chatcmpl-1"
    assert chat.usage()["generated_tokens"] == 6 and chat.counters().requests == 2


def test_completions_continue_the_text(server, completion):
    @dslc.function
    def program(s):
        s += "Q: capital?\nA: " + dslc.gen("a", max_tokens=16, stop="\n")
        s += "\nQ: more?\nA: " + dslc.gen("b", max_tokens=1)

    state = program.run(backend=completion, temperature=0)
    assert [request["prompt"] for request in server.requests] == [
        "Q: capital?\nA: ",
        "Q: capital?\nA: Paris is the capital.\nQ: more?\nA: ",
    ]
    assert state.text() == "Q: capital?\nA: Paris is the capital.\nQ: more?\nA: Paris"


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_streams_come_in_pieces(server, request, kind):
    backend = request.getfixturevalue(kind)

    @dslc.function
    def program(s):
        s += dslc.gen("a", max_tokens=9) if kind == "completion" else dslc.assistant(dslc.gen("a", max_tokens=9))

    state = program.run(backend=backend, stream=True)
    pieces = list(state.text_iter("a"))
    assert len(pieces) > 3 and "".join(pieces) == state["a"] == "Paris is the capital.\nMore."
    assert server.requests[0]["stream"] is True
    assert state.get_meta_info("a")["prompt_tokens"] == 11


def test_a_text_without_turns_is_one_turn_of_the_user(server, chat):
    @dslc.function
    def program(s):
        s += "Q: capital?\nA:" + dslc.gen("a", max_tokens=9)

    program.run(backend=chat)
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Q: capital?\nA:"}]


def test_branches_and_batches(server, chat):
    @dslc.function
    def program(s, topic):
        s += dslc.user(topic)
        for branch in (branches := s.fork(2)):
            branch += dslc.assistant(dslc.gen("x", max_tokens=9))
        s["both"] = [branch["x"] for branch in branches]

    states = program.run_batch([{"topic": str(i)} for i in range(5)], backend=chat, on_error="raise")
    assert all(state["both"] == ["Paris is the capital.\nMore."] * 2 for state in states)
    asked = sorted(request["messages"][0]["content"] for request in server.requests)
    assert asked == sorted([str(i) for i in range(5)] * 2)
    assert threading.active_count() < 12  # no thread for each request


def test_several_choices_of_one_call(server, chat):
    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.gen("a", max_tokens=9, n=3))

    state = program.run(backend=chat)
    assert state["a"] == ["Paris is the capital.\nMore."] * 3 and server.requests[0]["n"] == 3
    assert len(server.requests) == 1


class Person(BaseModel):
    name: str
    age: int


def test_a_schema_goes_as_response_format():
    with OpenAIServer('{"name": "Ada", "age": 36}') as server:
        with dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY) as backend:

            @dslc.function
            def program(s):
                s += dslc.user("Who?") + dslc.assistant(dslc.gen("p", Person, max_tokens=40))

            assert program.run(backend=backend)["p"] == Person(name="Ada", age=36)
        described = server.requests[0]["response_format"]["json_schema"]
        assert server.requests[0]["response_format"]["type"] == "json_schema"
        assert set(described["schema"]["properties"]) == {"name", "age"}
        assert described["strict"] is False  # the schema allows more properties, so strict mode would refuse it


def test_a_select_is_a_structured_answer(server, chat):
    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.select("a", ["Rome", "Paris", "Oslo"]))
        s += dslc.user("And?") + dslc.assistant(dslc.gen("b", max_tokens=1))

    state = program.run(backend=chat)
    assert state["a"] == "Paris"
    schema = server.requests[0]["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["properties"]["choice"]["enum"] == ["Rome", "Paris", "Oslo"]
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "Paris"}
    assert state.get_meta_info("a")["choices_method"] == "constrained"


def failure(program, backend, **options):
    with pytest.raises(dslc.DslcError) as caught:
        program.run(backend=backend, **options)
    return caught.value


def test_an_answer_outside_of_the_choices_is_an_error():
    with OpenAIServer(json.dumps({"choice": "Bonn"})) as server:
        with dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY) as backend:

            @dslc.function
            def program(s):
                s += dslc.user("?") + dslc.assistant(dslc.select("a", ["Rome", "Paris"]))

            error = failure(program, backend)
        assert isinstance(error, dslc.RemoteError) and "Bonn" in str(error) and "Rome" in str(error)


def refused(build):
    @dslc.function
    def program(s):
        s += dslc.user("?")
        build(s)

    return program


REFUSALS = {
    "regex": lambda s: s.append(dslc.assistant(dslc.gen("a", regex="[0-9]+"))),
    "ebnf": lambda s: s.append(dslc.assistant(dslc.gen("a", dslc.ebnf('start: "a"')))),
    "return_logprob": lambda s: s.append(dslc.assistant(dslc.gen("a", return_logprob=True))),
    "top_k": lambda s: s.append(dslc.assistant(dslc.gen("a", top_k=5))),
    "ignore_eos": lambda s: s.append(dslc.assistant(dslc.gen("a", ignore_eos=True))),
    "stop": lambda s: s.append(dslc.assistant(dslc.gen("a", stop=["a", "b", "c", "d", "e"]))),
    "whitespace": lambda s: s.append(dslc.assistant(dslc.gen("a", dslc.json({"type": "null"}, whitespace="compact")))),
    "unconditional": lambda s: s.append(
        dslc.assistant(dslc.select("a", ["x", "y"], choices_method=dslc.unconditional_likelihood_normalized))
    ),
    "has begun": lambda s: s.append(dslc.assistant("It is " + dslc.gen("a"))),
    "outside of the chat turns": lambda s: s.append(dslc.gen("a")),
    "text outside of them": lambda s: s.append("text" + dslc.assistant(dslc.gen("a"))),
}


@pytest.mark.parametrize("word", REFUSALS)
def test_what_it_cannot_do_is_refused_by_name(server, chat, word):
    error = failure(refused(REFUSALS[word]), chat)
    assert isinstance(error, dslc.RequestError)
    assert word in str(error) and "OpenAI" in str(error) and error.where.file == __file__
    assert server.requests == []


def test_extra_options_go_into_the_body(server):
    options = {"base_url": server.url + "/v1", "api_key": KEY}
    with dslc.OpenAI("m", extra_options=("top_k", "min_p"), **options) as backend:
        refused(lambda s: s.append(dslc.assistant(dslc.gen("a", top_k=5, min_p=0.5)))).run(backend=backend)
    assert server.requests[0]["top_k"] == 5 and server.requests[0]["min_p"] == 0.5


# -- faults


@dslc.function
def ask(s):
    s += dslc.user("Capital?")
    s += dslc.assistant(dslc.gen("a", max_tokens=9))  # the line of the errors


LINE = ask.where.line + 3


def limit(fault):
    """Seconds for a try: short only where the server is not to be in time (the machine may be busy)."""
    return 0.8 if fault == "timeout" else 30.0


@pytest.mark.parametrize("fault", ["429", "500", "timeout", "cut"])
def test_what_passes_is_tried_again_and_counted(server, fault):
    server.faults = [fault, fault]
    options = {"base_url": server.url + "/v1", "api_key": KEY, "backoff": FAST, "timeout": limit(fault)}
    with dslc.OpenAI("gpt-x", **options) as backend:
        state = ask.run(backend=backend)
        assert state["a"].startswith("Paris") and state.get_meta_info("a")["num_tries"] == 3
        assert len(server.requests) == 3 and backend.usage()["num_retries"] == 2


@pytest.mark.parametrize("fault, says", [
    ("429", "429: slow down"), ("500", "500: out of order"), ("timeout", "within 0.8 s"), ("cut", "cut"),
    ("malformed", "no JSON"), ("wrong", "not what its protocol says"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_pass_names_provider_request_and_line(server, fault, says, stream):
    server.faults = [fault] * 9
    options = {
        "base_url": server.url + "/v1",
        "api_key": KEY,
        "backoff": FAST,
        "timeout": limit(fault),
        "max_retries": 1,
    }
    with dslc.OpenAI("gpt-x", **options) as backend:
        if stream:
            state = ask.run(backend=backend, stream=True)
            with pytest.raises(dslc.RemoteError) as caught:
                list(state.text_iter())
            error = caught.value
        else:
            error = failure(ask, backend)
    assert isinstance(error, dslc.RemoteError)
    assert error.where.file == __file__ and error.where.line == LINE
    text = str(error)
    if stream and fault in ("malformed", "wrong", "cut"):
        says = ""  # the client reads no event out of such an answer: it ends too early
    assert "OpenAI chat gpt-x" in text and f"POST {server.url}/v1/chat/completions" in text and says in text
    tries = 2 if fault in ("429", "500", "timeout", "cut") else len(server.requests)
    assert f"after {tries} tr" in text and len(server.requests) == tries


def test_a_wrong_key_is_not_tried_again(server):
    with dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key="wrong", backoff=FAST) as backend:
        error = failure(ask, backend)
    assert error.field == "401" and "OPENAI_API_KEY" in str(error) and server.requests == ["wrong key"]


def test_a_stream_that_was_shown_is_not_sent_again():
    with OpenAIServer("Paris is the capital", cuts_streams=True) as server:
        with dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY, backoff=FAST) as backend:
            state = ask.run(backend=backend, stream=True)
            with pytest.raises(dslc.RemoteError, match="shown already, so it was not sent again"):
                list(state.text_iter("a"))
        assert len(server.requests) == 1


def wait_until(ready):
    end = time.monotonic() + 10
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    assert ready()


def test_it_waits_as_long_as_the_server_asks(server, chat):
    server.faults, server.retry_after = ["429"], "1"
    began = time.monotonic()
    assert ask.run(backend=chat).get_meta_info("a")["num_tries"] == 2
    assert time.monotonic() - began >= 0.95


def test_no_server_is_named():
    with dslc.OpenAI("gpt-x", base_url="http://127.0.0.1:9/v1", api_key=KEY, backoff=FAST, max_retries=1) as backend:
        error = failure(ask, backend)
    assert error.field == "connection" and "http://127.0.0.1:9/v1/chat/completions" in str(error)


def test_a_client_without_a_key_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(dslc.ConfigError, match="OpenAI: its client cannot be made"):
        dslc.OpenAI("gpt-x")


def test_a_deadline_ends_a_request(server, chat):
    server.faults = ["timeout"]
    with pytest.raises(dslc.DslcError, match="deadline"):
        ask.run(backend=chat, timeout=0.3)


def test_cancelling_ends_the_connection(server, chat):
    server.faults = ["timeout"]
    state = ask.run(backend=chat, stream=True)
    while not server.requests:
        time.sleep(0.01)
    state.cancel()
    assert isinstance(state.error(), dslc.Aborted)
    wait_until(lambda: server.cancelled == 1)


def test_closing_fails_what_is_in_flight(server):
    server.faults = ["timeout"]
    backend = dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY)
    state = ask.run(backend=backend, stream=True)
    while not server.requests:
        time.sleep(0.01)
    backend.close()
    assert "closed" in str(state.error())
    backend.close()


def test_a_deadline_holds_while_another_request_has_the_only_place(server):
    server.faults = ["timeout"]
    options = {"base_url": server.url + "/v1", "api_key": KEY, "max_concurrency": 1}
    with dslc.OpenAI("gpt-x", **options) as backend:
        slow = ask.run(backend=backend, stream=True)
        while not server.requests:
            time.sleep(0.01)
        with pytest.raises(dslc.DeadlineExceeded, match=r"POST http.*, request .*deadline .* before it could be sent"):
            ask.run(backend=backend, timeout=0.3)
        slow.cancel()
        assert ask.run(backend=backend)["a"].startswith("Paris")  # the place is free again
    assert len(server.requests) == 2


def test_a_stream_that_goes_wrong_is_closed(server, chat):
    server.faults = ["derailed"]
    state = ask.run(backend=chat, stream=True)
    with pytest.raises(dslc.RemoteError, match="not what its protocol says"):
        list(state.text_iter("a"))
    wait_until(lambda: server.cancelled == 1)
    assert len(server.requests) == 1


def test_an_address_without_its_end_is_pointed_out(server):
    with dslc.OpenAI("gpt-x", base_url=server.url, api_key=KEY) as backend:
        error = failure(ask, backend)
    assert error.field == "404" and "base_url= is where the API begins, which in most servers ends in /v1" in str(error)


def test_a_pace_is_kept(server):
    options = {"base_url": server.url + "/v1", "api_key": KEY, "requests_per_minute": 2}
    with dslc.OpenAI("gpt-x", **options) as backend:
        ask.run(backend=backend)
        ask.run(backend=backend)
        with pytest.raises(dslc.DslcError, match="deadline"):
            ask.run(backend=backend, timeout=0.3)
    assert len(server.requests) == 2
