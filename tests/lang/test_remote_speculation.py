"""`num_api_spec_tokens`: one call serves several gens, and results are those of a call for each."""

import itertools

import pytest
from support.providers import KEY, OpenAIServer

import dslc

pytest.importorskip("openai")
TEXT = "Name: Ada\nJob: writes programs\nAge: 36 years\nEnd of it."


def program_of(num_tokens, limits=(16, 16, 16)):
    @dslc.function(num_api_spec_tokens=num_tokens)
    def program(s):
        s += "A person.\nName:"
        s += dslc.gen("name", stop="\n", max_tokens=limits[0])
        s += "\nJob:"
        s += dslc.gen("job", stop="\n", max_tokens=limits[1])
        s += "\nAge:"
        s += dslc.gen("age", stop=[" years", "\n"], max_tokens=limits[2])

    return program


def model(prompt):
    begun = prompt.split("A person.\n")[1]
    return TEXT[len(begun) :] if TEXT.startswith(begun) else "another text.\nJob: x\nAge: 1 years\n"


def run(program, answer, **options):
    with OpenAIServer(answer) as server:
        backend = dslc.OpenAI("gpt-3.5-turbo-instruct", base_url=server.url + "/v1", api_key=KEY)
        with backend:
            state = program.run(backend=backend, temperature=0, **options)
            return state, server.requests


@pytest.mark.parametrize("compiled", [False, True])
def test_one_call_serves_three_gens(compiled):
    state, requests = run(program_of(64), model, compiled=compiled)
    plain, asked = run(program_of(None), model, compiled=compiled)
    assert len(requests) == 1 and len(asked) == 3
    assert requests[0]["max_tokens"] == 64 and "stop" not in requests[0]
    assert state.text() == plain.text() == "A person.\nName: Ada\nJob: writes programs\nAge: 36"
    assert state.variables() == plain.variables()
    for name in ("name", "job", "age"):
        ours, theirs = state.get_meta_info(name), plain.get_meta_info(name)
        assert ours["completion_tokens"] == theirs["completion_tokens"]
        assert ours["finish_reason"]["type"] == theirs["finish_reason"]["type"]
    assert [state.get_meta_info(n)["num_tries"] for n in ("name", "job", "age")] == [1, 0, 0]
    assert [state.get_meta_info(n)["speculated"] for n in ("name", "job", "age")] == [False, True, True]


@pytest.mark.parametrize("limits", list(itertools.product([1, 2, 16], repeat=3)))
def test_limits_of_tokens_give_what_calls_of_their_own_give(limits):
    state, requests = run(program_of(64, limits), model)
    plain, asked = run(program_of(None, limits), model)
    assert state.text() == plain.text() and state.variables() == plain.variables()
    assert len(requests) <= len(asked) == 3


def test_another_literal_than_the_model_wrote_asks_anew():
    @dslc.function(num_api_spec_tokens=64)
    def program(s):
        s += "A person.\nName:" + dslc.gen("name", stop="\n", max_tokens=16)
        s += "\nTown:" + dslc.gen("town", stop="\n", max_tokens=16)

    state, requests = run(program, model)
    assert len(requests) == 2 and requests[1]["prompt"].endswith("\nTown:")
    assert state["name"] == " Ada" and state["town"] == "another text."


def test_other_options_ask_anew():
    @dslc.function(num_api_spec_tokens=64)
    def program(s):
        s += "A person.\nName:" + dslc.gen("name", stop="\n", max_tokens=16)
        s += "\nJob:" + dslc.gen("job", stop="\n", max_tokens=16, temperature=0.5)

    state, requests = run(program, model)
    assert len(requests) == 2 and state["job"] == " writes programs"


def test_a_stop_that_is_not_there_gets_a_call_of_its_own():
    @dslc.function(num_api_spec_tokens=4)
    def program(s):
        s += "A person.\nName:" + dslc.gen("name", stop="of it", max_tokens=12)

    state, requests = run(program, model)
    plain, _ = run(dslc.function(program.body), model)
    assert state.text() == plain.text()
    assert len(requests) <= 2


def test_branches_do_not_share_what_was_written():
    @dslc.function(num_api_spec_tokens=64)
    def program(s):
        s += "A person.\nName:" + dslc.gen("name", stop="\n", max_tokens=16)
        for branch in s.fork(2):
            branch += "\nJob:" + dslc.gen("job", stop="\n", max_tokens=16)

    _, requests = run(program, model)
    assert [request["prompt"][-5:] for request in requests] == ["Name:", "\nJob:"]  # equal gens in flight are one


def test_a_chat_turn_of_several_gens_is_one_call():
    @dslc.function(num_api_spec_tokens=64)
    def program(s):
        s += dslc.user("Who?")
        s += dslc.assistant("" + dslc.gen("a", stop="\n") + "\nJob:" + dslc.gen("b", stop="\n"))
        s += dslc.user("More?") + dslc.assistant(dslc.gen("c", stop="\n"))

    answer = lambda messages: TEXT if len(messages) == 1 else "no\nmore"  # noqa: E731
    with OpenAIServer(answer) as server, dslc.OpenAI("gpt-x", base_url=server.url + "/v1", api_key=KEY) as backend:
        state = program.run(backend=backend)
        assert (state["a"], state["b"], state["c"]) == ("Name: Ada", " writes programs", "no")
        assert len(server.requests) == 2
        assert server.requests[1]["messages"][1]["content"] == "Name: Ada\nJob: writes programs"

        @dslc.function(num_api_spec_tokens=64)
        def other(s):
            s += dslc.user("Who?")
            s += dslc.assistant(dslc.gen("a", stop="\n") + "\nTown:" + dslc.gen("b", stop="\n"))

        with pytest.raises(dslc.RequestError, match="cannot go on with an assistant turn"):
            other.run(backend=backend)


def test_an_engine_needs_no_speculation():
    from support.scripted import ScriptedBackend

    state = program_of(64).run(backend=ScriptedBackend(lambda p: model(p).split("\n")[0]), temperature=0)
    assert state["name"] == " Ada"
