"""`dslc.Anthropic`, `dslc.VertexAI` and `dslc.LiteLLM` through their official clients, against local servers."""

import base64
import importlib.util
import json
import time

import pytest
from support.providers import KEY, AnthropicServer, OpenAIServer, VertexServer

import dslc
from dslc.lang.remote.faults import Backoff

FAST = Backoff(base_s=0.01, max_s=0.02)
ANSWER = "Paris is the capital.\nMore."


def anthropic(server, **options):
    return dslc.Anthropic("claude-x", base_url=server.url, **{"api_key": KEY, "backoff": FAST, **options})


def vertex(server, **options):
    return dslc.VertexAI("gemini-x", base_url=server.url, **{"api_key": KEY, "backoff": FAST, **options})


def litellm(server, **options):
    options = {"api_key": KEY, "backoff": FAST, **options}
    return dslc.LiteLLM("openai/gpt-x", api_base=server.url + "/v1", **options)


# name: (backend, server, the client's module, the words of an error)
PROVIDERS = {
    "anthropic": (anthropic, AnthropicServer, "anthropic", "Anthropic claude-x, POST http"),
    "vertexai": (vertex, VertexServer, "google.genai", "VertexAI gemini-x, generateContent at http"),
    "litellm": (litellm, OpenAIServer, "litellm", "LiteLLM openai/gpt-x, completion to http"),
}


def is_there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(params=PROVIDERS)
def provider(request):
    make, server, module, words = PROVIDERS[request.param]
    if not is_there(module):
        pytest.skip(f"needs {module}")
    return make, server, words


@dslc.function
def two_turns(s, question):
    s += dslc.system("Be brief.")
    s += dslc.user(question)
    s += dslc.assistant(dslc.gen("first", max_tokens=16, stop="More"))
    s += dslc.user("Sure?")
    s += dslc.assistant(dslc.gen("second", max_tokens=2, temperature=0.5))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_two_turns(provider, stream):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server) as backend:
        state = two_turns.run(question="Capital?", backend=backend, temperature=0.25, stream=stream)
        assert state["first"] == "Paris is the capital.\n" and state["second"] == "Paris is"
        assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
        info = state.get_meta_info("second")
        assert info["finish_reason"]["type"] == "length" and info["prompt_tokens"] == 11
        assert info["cached_tokens"] == 4 and info["completion_tokens"] == 2 and info["num_tries"] == 1
        assert state.get_meta_info("first")["finish_reason"]["type"] == "stop"
        first, second = map(json.dumps, server.requests)
        assert "Be brief." in first and "Capital?" in first and "0.25" in first and "More" in first
        assert "Paris is the capital.\\n" in second and "Sure?" in second and "0.5" in second


def test_a_stream_comes_in_pieces(provider):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server) as backend:
        state = two_turns.run(question="?", backend=backend, stream=True)
        pieces = list(state.text_iter("first"))
        assert len(pieces) > 3 and "".join(pieces) == "Paris is the capital.\n"


def test_choices_and_schemas(provider):
    make, new_server, _ = provider
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.select("city", ["Rome", "Paris"]))
        s += dslc.user("n?") + dslc.assistant(dslc.gen("n", json_schema=schema, max_tokens=20))

    with new_server(lambda p: ANSWER if "n?" not in json.dumps(p) else '{"n": 3}') as server, make(server) as backend:
        state = program.run(backend=backend)
        assert state["city"] == "Paris" and json.loads(state["n"]) == {"n": 3}
        assert '"Rome"' in json.dumps(server.requests[0]) and '"integer"' in json.dumps(server.requests[1])


def test_several_outputs(provider):
    make, new_server, _ = provider

    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.gen("a", n=3, max_tokens=20))

    with new_server("same") as server, make(server) as backend:
        state = program.run(backend=backend)
        assert state["a"] == ["same"] * 3
        calls = state.get_meta_info("a")[0].get("num_calls", 1)
        assert len(server.requests) == calls == (3 if backend.provider == "Anthropic" else 1)


def test_pictures_go_as_parts_of_their_turn(provider):
    pytest.importorskip("PIL")
    make, new_server, _ = provider
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )

    @dslc.function
    def program(s):
        s += dslc.user("What is " + dslc.image(picture) + " this?") + dslc.assistant(dslc.gen("a", max_tokens=9))
        s += dslc.user("And this <image>?") + dslc.assistant(dslc.gen("b", max_tokens=9))

    with new_server(ANSWER) as server, make(server) as backend:
        assert program.run(backend=backend)["b"] == ANSWER
        for body in server.requests:
            said = json.dumps(body).replace("-", "+").replace("_", "/")  # one of them writes base64 for URLs
            assert said.count(base64.b64encode(picture).decode()) == 1 and "image/png" in said
            assert said.index("What is ") < said.index("image/png") < said.index(" this?")
        assert "And this <image>?" in json.dumps(server.requests[1])


REFUSALS = {
    "regex": lambda s: s.append(dslc.assistant(dslc.gen("a", regex="[0-9]+"))),
    "return_logprob": lambda s: s.append(dslc.assistant(dslc.gen("a", return_logprob=True))),
    "min_p": lambda s: s.append(dslc.assistant(dslc.gen("a", min_p=0.5))),
    "whitespace": lambda s: s.append(dslc.assistant(dslc.gen("a", dslc.json({"type": "null"}, whitespace="compact")))),
    "outside of the chat turns": lambda s: s.append(dslc.gen("a")),
}


@pytest.mark.parametrize("word", REFUSALS)
def test_what_it_cannot_do_is_refused_by_name(provider, word):
    make, new_server, _ = provider

    @dslc.function
    def program(s):
        s += dslc.user("?")
        REFUSALS[word](s)

    with new_server(ANSWER) as server, make(server) as backend:
        with pytest.raises(dslc.RequestError) as caught:
            program.run(backend=backend)
        assert word in str(caught.value) and backend.provider in str(caught.value)
        assert caught.value.where.file == __file__ and server.requests == []


@dslc.function
def ask(s):
    s += dslc.user("Capital?")
    s += dslc.assistant(dslc.gen("a", max_tokens=9))  # the line of the errors


LINE = ask.where.line + 3


def limit(fault):
    """Seconds for a try: short only where the server is not to be in time (the machine may be busy)."""
    return 0.8 if fault == "timeout" else 30.0


def wait_until(ready):
    end = time.monotonic() + 10
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    assert ready()


@pytest.mark.parametrize("fault", ["429", "500", "timeout", "cut"])
def test_what_passes_is_tried_again_and_counted(provider, fault):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server, timeout=limit(fault)) as backend:
        server.faults = [fault]
        state = ask.run(backend=backend)
        assert state["a"] == ANSWER and state.get_meta_info("a")["num_tries"] == 2
        assert len(server.requests) == 2 and backend.usage()["num_retries"] == 1


@pytest.mark.parametrize("fault", ["429", "500", "timeout", "cut", "malformed", "wrong"])
def test_what_does_not_pass_names_provider_request_and_line(provider, fault):
    make, new_server, words = provider
    with new_server(ANSWER) as server, make(server, timeout=limit(fault), max_retries=1) as backend:
        server.faults = [fault] * 9
        with pytest.raises(dslc.RemoteError) as caught:
            ask.run(backend=backend)
        text = str(caught.value)
        assert caught.value.where.line == LINE and words in text and "request run" in text
        tries = 2 if fault in ("429", "500", "timeout", "cut") else len(server.requests)
        assert f"after {tries} tr" in text and len(server.requests) == tries
        assert {"429": "429: ", "500": "500: ", "timeout": "in"}.get(fault, "") in text


def test_a_wrong_key_is_not_tried_again(provider):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server, api_key="wrong") as backend:
        with pytest.raises(dslc.RemoteError, match="answered 401") as caught:
            ask.run(backend=backend)
        assert caught.value.field == "401" and server.requests == ["wrong key"]


def test_a_stream_that_was_shown_is_not_sent_again(provider):
    make, new_server, _ = provider
    with new_server(ANSWER, cuts_streams=True) as server, make(server) as backend:
        state = ask.run(backend=backend, stream=True)
        with pytest.raises(dslc.RemoteError, match="shown already, so it was not sent again"):
            list(state.text_iter("a"))
        assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_ends_the_connection(provider, stream):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server) as backend:
        server.faults = ["timeout"]
        if stream:
            state = ask.run(backend=backend, stream=True)
            while not server.requests:
                time.sleep(0.01)
            state.cancel()
            assert isinstance(state.error(), dslc.Aborted)
        else:
            with pytest.raises(dslc.DeadlineExceeded, match="after 1 try"):
                ask.run(backend=backend, timeout=1.5)
        wait_until(lambda: server.cancelled == 1)
        assert len(server.requests) == 1


def test_it_waits_as_long_as_the_server_asks(provider):
    make, new_server, _ = provider
    with new_server(ANSWER) as server, make(server) as backend:
        server.faults, server.retry_after = ["429"], "0.7"
        began = time.monotonic()
        assert ask.run(backend=backend).get_meta_info("a")["num_tries"] == 2
        assert time.monotonic() - began >= 0.65 and len(server.requests) == 2


# -- what only one of them has


@pytest.mark.skipif(not is_there("anthropic"), reason="needs anthropic")
@pytest.mark.parametrize("fault", ["500", "cut"])
def test_anthropic_asks_again_for_the_missing_outputs_only(fault):
    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.gen("a", n=3, max_tokens=9))

    with AnthropicServer("same") as server, anthropic(server) as backend:
        server.faults = [fault]
        state = program.run(backend=backend)
        assert state["a"] == ["same"] * 3 and len(server.requests) == 4
        info = state.get_meta_info("a")[0]
        assert (info["num_calls"], info["num_tries"], info["prompt_tokens"]) == (3, 2, 33)


@pytest.mark.skipif(not is_there("anthropic"), reason="needs anthropic")
@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_goes_on_with_a_turn_and_finds_stops_of_white_space(stream):
    @dslc.function
    def program(s):
        s += dslc.user("?")
        s += dslc.assistant(
            "The capital: " + dslc.gen("a", max_tokens=20, stop="\n") + "!" + dslc.gen("b", max_tokens=1)
        )

    answer = lambda m: " Paris\nMore" if m[-1]["content"].endswith(":") else "Yes"  # noqa: E731
    with AnthropicServer(answer) as server, anthropic(server) as backend:
        state = program.run(backend=backend, stream=stream)
        assert state["a"] == "Paris" and state["b"] == "Yes"
        assert state.text().endswith("ASSISTANT:The capital: Paris!Yes\n")
        assert server.requests[0]["messages"][-1] == {"role": "assistant", "content": "The capital:"}
        assert server.requests[1]["messages"][-1] == {"role": "assistant", "content": "The capital: Paris!"}
        assert state.get_meta_info("a")["finish_reason"] == {"type": "stop", "matched": "\n"}
        assert state.get_meta_info("a")["stopped_here"] is True


@pytest.mark.skipif(not is_there("anthropic"), reason="needs anthropic")
def test_anthropic_takes_a_system_turn_at_the_beginning_only():
    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.system("Late.") + dslc.assistant(dslc.gen("a"))

    caught = pytest.raises(dslc.RequestError, match="at the beginning only")
    with AnthropicServer() as server, anthropic(server) as backend, caught:
        program.run(backend=backend)


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    import sys

    for name, make in {"anthropic": dslc.Anthropic, "litellm": dslc.LiteLLM, "openai": dslc.OpenAI}.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(dslc.ConfigError, match=rf"pip install 'dslc\[{name}\]'"):
            make("m")
