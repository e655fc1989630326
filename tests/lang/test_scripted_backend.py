"""`dslc.ScriptedBackend`, with which users test their own programs: by rule, by queue, by function."""

import pytest

import dslc


@dslc.function
def triage(s, ticket):
    s += dslc.user(ticket)
    s += dslc.assistant(dslc.select("label", ["bug", "billing"]))
    if s["label"] == "bug":
        s += dslc.user("Which version?")
        s += dslc.assistant(dslc.gen("version", max_tokens=16, stop="\n"))
    s += dslc.user("Summary?") + dslc.assistant(dslc.gen("summary", max_tokens=16))


def test_answers_by_rule():
    backend = dslc.ScriptedBackend({"Summary?": "It broke.", "version": "1.2\nmore"}, choose="bug")
    state = triage.run(ticket="It crashes", backend=backend)
    assert (state["label"], state["version"], state["summary"]) == ("bug", "1.2", "It broke.")
    assert len(backend.requests) == 3 and "It crashes" in backend.prompts[0]
    with pytest.raises(dslc.RequestError, match=r"no rule of \['x'\].*Which version\?") as caught:
        triage.run(ticket="It crashes", backend=dslc.ScriptedBackend({"x": "y"}, choose="bug"))
    assert caught.value.where.file == __file__


def test_answers_one_after_another():
    backend = dslc.ScriptedBackend(["9.9", "All is well."], choose="bug")
    state = triage.run(ticket="It crashes", backend=backend)
    assert (state["version"], state["summary"]) == ("9.9", "All is well.")
    with pytest.raises(dslc.RequestError, match="all 2 answers are used up"):
        triage.run(ticket="It crashes", backend=backend)


def test_answers_by_function_and_exceptions():
    def choose(prompt, choices):
        return "billing" if "invoice" in prompt else choices[0]

    backend = dslc.ScriptedBackend(lambda prompt: str(len(prompt)), choose=choose)
    assert triage.run(ticket="My invoice", backend=backend)["label"] == "billing"
    assert triage.run(ticket="A crash", backend=backend)["label"] == "bug"
    failing = dslc.ScriptedBackend({"": dslc.EngineError("out of order")}, choose="bug")
    with pytest.raises(dslc.EngineError, match="out of order"):
        triage.run(ticket="x", backend=failing)


@pytest.mark.parametrize("method", ["token_length_normalized", "greedy_token_selection"])
@pytest.mark.parametrize("wanted", ["a", "ab", "abc", "b"])
def test_the_wanted_choice_is_taken_by_every_method(method, wanted):
    @dslc.function
    def program(s):
        s += "Which? " + dslc.select("x", ["a", "ab", "abc", "b"], choices_method=getattr(dslc, method))

    assert program.run(backend=dslc.ScriptedBackend(choose=wanted))["x"] == wanted


def test_a_choice_that_is_none_is_an_error():
    with pytest.raises(dslc.RequestError, match="'other', which is none of"):
        triage.run(ticket="x", backend=dslc.ScriptedBackend(choose="other"))


def test_it_can_do_without():
    backend = dslc.ScriptedBackend("yes", unlike=("scoring",))
    with pytest.raises(dslc.RequestError, match="cannot score choices"):
        triage.run(ticket="x", backend=backend)

    @dslc.function
    def program(s):
        s += "text" + dslc.gen("a", max_tokens=4)

    state = program.run(backend=dslc.ScriptedBackend("yes", has_tokenizer=False), stream=True)
    assert "".join(state.text_iter()) == "textyes"
