"""SGLang's frontend names and signatures, from its documentation; tracing rules; small helpers."""

import inspect
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import ScriptedBackend

import dslc
import dslc as sgl
from dslc.lang import compat
from dslc.lang.partial import MISSING, partial_json

# name -> its parameters in order ("*" before keyword-only ones that we add).
NAMES = {
    "function": ["func", "num_api_spec_tokens"],
    "gen_int": ["name"],
    "gen_string": ["name"],
    "select": ["name", "choices", "temperature", "choices_method"],
    "video": ["path", "num_frames"],
    "system": ["expr"], "user": ["expr"], "assistant": ["expr"],
    "system_begin": [], "system_end": [], "user_begin": [], "user_end": [], "assistant_begin": [], "assistant_end": [],
    "separate_reasoning": ["expr", "model_type"],
    "set_default_backend": ["backend"], "flush_cache": ["backend"], "get_server_info": ["backend"],
}  # fmt: skip
STATE_METHODS = (
    "text messages sync error fork copy text_iter text_async_iter get_var set_var get_meta_info var_scope "
    "system user assistant ret_value __contains__ __getitem__ __setitem__ __iadd__"
).split()
GROUP_METHODS = "join __getitem__ __iadd__ __len__ __iter__".split()
FUNCTION_METHODS = "run run_batch bind trace cache compile __call__".split()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_and_parameters(name):
    found = [
        p.name
        for p in inspect.signature(getattr(sgl, name)).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    assert found == NAMES[name]


def test_everything_else_that_programs_name():
    for name in "gen image Engine Runtime token_length_normalized greedy_token_selection global_config".split():
        assert getattr(sgl, name) is not None
    assert sgl.unconditional_likelihood_normalized.name == "unconditional_likelihood_normalized"
    for name in STATE_METHODS:
        assert hasattr(dslc.ProgramState, name)
    for name in GROUP_METHODS:
        assert hasattr(dslc.ProgramStateGroup, name)
    for name in FUNCTION_METHODS:
        assert hasattr(dslc.Function, name)
    for name in compat.__all__:
        assert getattr(compat, name) is not None


def test_node_names_are_our_classes():
    assert isinstance(sgl.gen("a"), compat.SglGen) and isinstance(sgl.select("a", ["b"]), compat.SglSelect)
    assert isinstance(sgl.gen("a") + "x", compat.SglExprList) and isinstance(sgl.user("x"), compat.SglExpr)


@sgl.function
def few_shot_qa(s, question):
    s += "The following are questions with answers.\n\n"
    s += "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n")


def test_trace_and_its_documented_type_error():
    program = few_shot_qa.trace()
    assert program == few_shot_qa.compile() and program.is_whole
    assert few_shot_qa.trace(question="x").params == ()

    @sgl.function
    def with_fstring(s, question):
        s += f"Q: {question}\n" + sgl.gen("a")

    with pytest.raises(TypeError, match=r"test_compatibility.py:\d+: .*use .compile\(\)"):
        with_fstring.trace()
    assert with_fstring.compile().is_whole
    with pytest.raises(dslc.ArgumentError, match="no argument 'nope'"):
        few_shot_qa.trace(nope=1)


def test_cache_sends_the_constant_beginning_only():
    backend = ScriptedBackend("ok")
    count = few_shot_qa.cache(backend)
    (request,) = backend.requests
    ids = [i for s in request.segments for i in s.ids]
    assert len(ids) == count > 20 and request.sampling.max_new_tokens == 0
    assert "The following are questions with answers.\n\nQ: What".startswith(backend.prompts[0][:48])

    @sgl.function
    def begins_with_its_argument(s, q):
        s += q + "constant" * 20 + sgl.gen("a")

    assert begins_with_its_argument.cache(backend) == 0 and len(backend.requests) == 1


def test_a_batch_pins_its_prefix_and_gives_it_back():
    backend = ScriptedBackend("ok")
    most = 0
    pin = backend.pin

    def counting(ids, cache_salt=""):
        nonlocal most
        handle = pin(ids)
        most = max(most, handle.num_tokens)
        return handle

    backend.pin = counting
    few_shot_qa.run_batch([{"question": "a"}, {"question": "b"}], backend=backend)
    assert most > 20 and backend.pins == []
    states = few_shot_qa.run_batch([{"question": "a"}] * 4, backend=backend, generator_style=True)
    next(states)
    assert len(backend.pins) == 1
    states.close()
    assert backend.pins == []


def test_global_config():
    backend = ScriptedBackend()
    try:
        sgl.global_config.default_backend = backend
        assert sgl.global_config.default_backend is backend
        assert few_shot_qa.run(question="x")["answer"] == "ok"
    finally:
        sgl.set_default_backend(None)
    with pytest.raises(AttributeError, match="global_config has no 'verbosity'"):
        sgl.global_config.verbosity = 2


def test_jsonl_and_dumped_states(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n# a comment\n[2]\n')
    assert list(sgl.read_jsonl(path)) == [{"a": 1}, [2]]
    states = few_shot_qa.run_batch([{"question": "a"}, {"question": 5}], backend=ScriptedBackend("ok"))
    sgl.dump_state_text(tmp_path / "out.txt", [*states, "plain"])
    text = (tmp_path / "out.txt").read_text()
    assert "Q: a\nA:ok\n" in text and "[failed: " in text and "plain" in text


def test_methods_of_choice_of_ones_own():
    class Last:
        name = "last"
        needs_unconditional = False

        def __call__(self, *, choices, logprobs, token_ids, unconditional):
            scores = tuple(float(i) for i in range(len(choices)))
            return dslc.ChoicesDecision(choices[-1], scores, {"note": len(logprobs)})

    last = dslc.register_choices_method(Last())

    @sgl.function
    def program(s):
        s += "x" + sgl.select("c", ["a", "b"], choices_method=last)

    state = program.run(backend=ScriptedBackend())
    assert state["c"] == "b" and state.get_meta_info("c")["note"] == 2
    assert sgl.select("c", ["a"], choices_method="last").method == "last"
    with pytest.raises(dslc.RequestError, match="a choice method called 'last' exists"):
        dslc.register_choices_method(Last())


def test_empty_duplicate_and_prefix_choices():
    with pytest.raises(dslc.RequestError, match=r"choices\[1\]: must be a non-empty string"):
        sgl.select("c", ["a", ""])

    @sgl.function
    def program(s, choices):
        s += "x" + sgl.select("c", choices)

    backend = ScriptedBackend(score=lambda prompt, token: -1.0)
    assert program.run(choices=["b", "b", "a"], backend=backend)["c"] == "b"
    state = program.run(choices=["ab", "abc", "a"], backend=backend)
    assert state["c"] == "ab" and len(state.get_meta_info("c")["normalized_prompt_logprobs"]) == 3


def test_a_select_with_a_single_choice_and_on_an_empty_prompt():
    @sgl.function
    def program(s, text):
        s += text
        s += sgl.select("c", ["only"])

    assert program.run(text="a", backend=ScriptedBackend()).text() == "aonly"
    with pytest.raises(dslc.RequestError, match=r"test_compatibility.py:\d+: choices: there must be some text"):
        program.run(text="", backend=ScriptedBackend())


# -- values of JSON that is being written

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def grows(old, new):
    """Whether `new` is `old` with more at its end."""
    if old is MISSING:
        return True
    if isinstance(old, str):
        return isinstance(new, str) and new.startswith(old)
    if isinstance(old, list):
        return (
            isinstance(new, list) and len(new) >= len(old) and all(grows(a, b) for a, b in zip(old, new, strict=False))
        )
    if isinstance(old, dict):
        return isinstance(new, dict) and list(new)[: len(old)] == list(old) and all(grows(old[k], new[k]) for k in old)
    return old == new and type(old) is type(new)


@given(json_values, st.sampled_from([None, 2]), st.booleans())
def test_partial_values_only_grow(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    last = MISSING
    has_end = type(value) not in (int, float)  # a bare number has no end that shows
    for end in range(len(text) + 1 if has_end else 0):
        found = partial_json(text[:end])
        assert grows(last, found)
        last = found
    assert partial_json(text) == value


def test_no_json():
    for text in ("{a", '{"a" 1', "[1 2", '{"a": 1]', '"a" b'):
        with pytest.raises(ValueError):
            partial_json(text)


def test_partial_values_stream():
    from dataclasses import dataclass

    @dataclass
    class Report:
        title: str
        tags: list[str]

    @sgl.function
    def program(s):
        s += "report: " + sgl.gen("r", type=Report)

    text = '{"title": "A long title", "tags": ["one", "two"]}'
    state = program.run(backend=ScriptedBackend(text, tokens_per_step=3), stream=True)
    parts = list(state.partial_iter("r"))
    assert parts[-1] == Report("A long title", ["one", "two"]) == state["r"]
    assert all(grows(a, b) for a, b in itertools.pairwise(parts[:-1])) and len(parts) > 5
    assert parts[0] == {}
