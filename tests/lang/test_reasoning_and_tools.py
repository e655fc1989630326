"""Reasoning split from answers, whole and in pieces; functions that a model calls."""

import json
import re
from dataclasses import dataclass
from typing import Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted import ScriptedBackend, ScriptedTokenizer

import dslc
from dslc.lang.reasoning_format import FORMATS, Splitter

THOUGHT = "<think>\nIt is a\ncapital.\n</think>\n\nParis."


@dslc.function
def thinks(s):
    s += dslc.user("Where?")
    s += dslc.assistant(dslc.separate_reasoning(dslc.gen("a") + "!", model_type="qwen3"))
    s += dslc.user("Sure?")
    s += dslc.assistant(dslc.gen("b", max_tokens=3))


def test_the_answer_goes_on_and_the_reasoning_is_kept_apart():
    backend = ScriptedBackend(lambda prompt: THOUGHT if "Sure" not in prompt else "yes")
    state = thinks.run(backend=backend)
    assert state["a"] == "Paris." and state["a_reasoning_content"] == "It is a\ncapital."
    assert state.messages()[1]["content"] == "Paris.!" and "think" not in state.text()
    assert backend.prompts[1].endswith("Paris.!<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n")
    assert state.get_meta_info("a")["completion_tokens"] > 10


def test_streamed_reasoning_is_apart_too():
    backend = ScriptedBackend(lambda prompt: THOUGHT if "Sure" not in prompt else "yes", tokens_per_step=1)
    state = thinks.run(backend=backend, stream=True)
    assert "".join(state.text_iter("a")) == "Paris." == state["a"]
    pieces = list(state.text_iter("a_reasoning_content"))
    assert "".join(pieces) == "It is a\ncapital." and len(pieces) > 3
    assert "".join(state.text_iter()) == state.text()


def test_several_outputs_and_no_reasoning():
    @dslc.function
    def program(s):
        s += "x" + dslc.separate_reasoning(dslc.gen("a", n=2), model_type="Qwen3")

    answers = iter([THOUGHT, "plain <think>no</think>"])
    state = program.run(backend=ScriptedBackend(lambda prompt: next(answers)))
    assert state["a"] == ["Paris.", "plain <think>no</think>"]
    assert state["a_reasoning_content"] == ["It is a\ncapital.", ""]


def test_a_failed_gen_fails_its_reasoning_too():
    backend = ScriptedBackend(lambda prompt: dslc.EngineError("broken"))

    @dslc.function
    def program(s):
        s += "x" + dslc.separate_reasoning(dslc.gen("a"), model_type="qwen3")
        return s["a_reasoning_content"]

    with pytest.raises(dslc.EngineError, match="broken"):
        program.run(backend=backend)


def test_wrong_uses_of_reasoning():
    with pytest.raises(dslc.RequestError, match=r"test_reasoning_and_tools.py:\d+: model_type: must be one of .*qwen3"):
        dslc.separate_reasoning(dslc.gen("a"), model_type="gpt-2")

    @dslc.function
    def program(s):
        s += "x" + dslc.separate_reasoning(dslc.gen("a", regex="a+"), model_type="qwen3")

    with pytest.raises(dslc.RequestError, match="cannot constrain what comes after reasoning"):
        program.run(backend=ScriptedBackend("ok"))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "\n", "a", " ", "◁think▷", "◁/think▷", "▷"])),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_pieces_make_up_the_whole_split(name, parts, sizes):
    text = "".join(parts)
    thought, answer = FORMATS[name].split(text)
    splitter = Splitter(FORMATS[name])
    shown_thought = shown_answer = ""
    at = 0
    for size in sizes * (len(text) + 1):
        new_thought, new_answer = splitter.feed(text[at : at + size])
        shown_thought += new_thought
        shown_answer += new_answer
        at += size
        assert thought.startswith(shown_thought) and answer.startswith(shown_answer), (shown_thought, shown_answer)
    assert shown_answer == answer or FORMATS[name].begin.startswith(text.strip())


# -- tools


@dataclass
class Point:
    x: float
    y: float


def search(query: str, limit: int = 3) -> list[str]:
    """Search the web."""
    return [query] * limit


def move(to: Point, how: Literal["fast", "slow"]) -> str:
    """Move somewhere."""
    return f"moved to {to.x},{to.y} {how}"


def broken(x: int) -> int:
    """Always fails."""
    return 1 // (x - x)


def call_of(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


@dslc.function
def uses_tools(s, q):
    s += dslc.user(q)
    s += dslc.assistant(dslc.gen("call", tools=[search, move, broken]))
    s += dslc.tool_result(s["call"].run())
    s += dslc.assistant(dslc.gen("answer", max_tokens=5))


def test_a_call_is_constrained_parsed_run_and_answered():
    replies = iter([call_of("move", to={"x": 1, "y": 2.5}, how="fast"), "done"])
    backend = ScriptedBackend(lambda prompt: next(replies))
    state = uses_tools.run(q="go", backend=backend)
    call = state["call"]
    assert call.name == "move" and call.arguments == {"to": Point(1.0, 2.5), "how": "fast"} and call.function is move
    assert [m["role"] for m in state.messages()] == ["user", "assistant", "tool", "assistant"]
    assert state.messages()[2]["content"] == "moved to 1.0,2.5 fast"
    schema = json.loads(backend.requests[0].constraint.source)
    jsonschema.validate(json.loads(state.raw("call")), schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(json.loads(call_of("search", query="x")))
    for wrong in ("search", "none"), ("search", "query", 5), ("move", "how", "fast"), ("other", "x", 1):
        arguments = dict([wrong[1:]]) if len(wrong) == 3 else {}
        assert not validator.is_valid(json.loads(call_of(wrong[0], **arguments)))


def test_results_become_text():
    replies = iter([call_of("search", query="é", limit=2), "done"])
    state = uses_tools.run(q="go", backend=ScriptedBackend(lambda prompt: next(replies)))
    assert state.messages()[2]["content"] == '["é", "é"]'


def test_a_failing_tool_is_an_error_with_the_line_of_the_call():
    backend = ScriptedBackend(call_of("broken", x=4))
    with pytest.raises(
        dslc.ToolError, match=r"test_reasoning_and_tools.py:\d+: broken\(x=4\) raised ZeroDivisionError"
    ) as caught:
        uses_tools.run(q="go", backend=backend)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "text",
    ["not json", '{"name": "search"}', call_of("nope"), call_of("search", limit=1), call_of("search", query="a", z=1)],
)
def test_a_call_that_does_not_fit_says_so(text):
    with pytest.raises(dslc.ProgramError, match="the text of 'call' is no ToolCall"):
        uses_tools.run(q="go", backend=ScriptedBackend(text))


def test_functions_that_cannot_be_tools():
    def untyped(x):
        return x

    def starred(*x: int) -> int:
        return 1

    for functions, match in [
        ([untyped], "parameter 'x' of untyped has no type"), ([starred], "a tool needs named parameters"),
        ([], "at least one"), ([search, search], "same name"), (search, "must be a list"), ([5], "cannot be a tool"),
    ]:  # fmt: skip
        with pytest.raises(dslc.RequestError, match=rf"test_reasoning_and_tools.py:\d+: tools: .*{match}"):
            dslc.gen("call", tools=functions)
    with pytest.raises(dslc.RequestError, match="tools: cannot be combined with regex"):
        dslc.gen("call", tools=[search], regex="a")


def test_a_tools_schema_is_what_templates_describe():
    schema = dslc.tool_of(search).schema["function"]
    assert schema["name"] == "search" and schema["description"] == "Search the web."
    assert schema["parameters"]["required"] == ["query"]
    assert re.fullmatch(r"\w+", schema["name"])


def test_a_template_without_tool_turns_says_so():
    refusal = "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    template = "{% for m in messages %}" + refusal + "{{ m['content'] }}{% endfor %}"
    backend = ScriptedBackend(call_of("search", query="x"), tokenizer=ScriptedTokenizer(chat_template=template))
    with pytest.raises(dslc.TemplateError, match=r"test_reasoning_and_tools.py:\d+: .*no tools"):
        uses_tools.run(q="go", backend=backend)
