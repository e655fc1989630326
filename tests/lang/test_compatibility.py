"""SGLang's frontend names and signatures, from its documentation; tracing rules; small helpers."""

import inspect
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted import ScriptedBackend

import dslc
import dslc as sgl
from dslc.lang import compat
from dslc.lang.partial import MISSING, partial_json

AFTER_N = (
    "stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty presence_penalty ignore_eos "
    "return_logprob logprob_start_len top_logprobs_num return_text_in_logprobs"
).split()
# name -> its parameters in order; ours may have more behind them. (Those of `gen` are in test_gen_options.)
NAMES = {
    "function": ["func", "num_api_spec_tokens"],
    "gen_int": ["name", "max_tokens", "n", *AFTER_N],
    "gen_string": ["name", "max_tokens", "n", *AFTER_N],
    "image": ["expr"],
    "select": ["name", "choices", "temperature", "choices_method"],
    "video": ["path", "num_frames"],
    "system": ["expr"], "user": ["expr"], "assistant": ["expr"],
    "system_begin": [], "system_end": [], "user_begin": [], "user_end": [], "assistant_begin": [], "assistant_end": [],
    "separate_reasoning": ["expr", "model_type"],
    "set_default_backend": ["backend"], "flush_cache": ["backend"], "get_server_info": ["backend"],
}  # fmt: skip
STATE = {
    "text": [], "messages": [], "sync": [], "error": [], "fork": ["size", "position_ids_offset"],
    "copy": ["position_ids_offset"], "text_iter": ["var_name"], "text_async_iter": ["var_name", "return_meta_data"],
    "get_var": ["name"], "set_var": ["name", "value"], "get_meta_info": ["name"], "var_scope": ["name"],
    "system": ["expr"], "user": ["expr"], "assistant": ["expr"], "__contains__": ["name"], "__getitem__": ["name"],
    "__setitem__": ["name", "value"], "__iadd__": ["other"],
}  # fmt: skip
GROUP = {
    "join": ["mode"], "__getitem__": ["i"], "__setitem__": ["i", "value"], "__iadd__": ["other"], "__len__": [],
    "__iter__": [],
}  # fmt: skip
# Of runs: keyword-only.
RUN = ["max_new_tokens", "n", *AFTER_N, "backend"]
METHODS = [
    *((dslc.ProgramState, name, names) for name, names in STATE.items()),
    *((dslc.ProgramStateGroup, name, names) for name, names in GROUP.items()),
    (dslc.Function, "cache", ["backend"]),
]


def positional(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_and_parameters(name):
    assert positional(getattr(sgl, name))[: len(NAMES[name])] == NAMES[name]


@pytest.mark.parametrize(("owner", "name", "names"), METHODS, ids=[f"{o.__name__}.{n}" for o, n, _ in METHODS])
def test_methods_and_parameters(owner, name, names):
    assert positional(getattr(owner, name))[: len(names)] == names


def test_options_of_runs():
    """All at once, as keywords; each is looked at by itself in test_gen_options."""

    @sgl.function
    def program(s, q):
        s += q + sgl.gen("a")

    values = {
        "max_new_tokens": 4, "n": 1, "stop": "x", "stop_token_ids": [7], "stop_regex": "y+", "temperature": 0.5,
        "top_p": 0.9, "top_k": 4, "min_p": 0.1, "frequency_penalty": 0.1, "presence_penalty": 0.2, "ignore_eos": True,
        "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1, "return_text_in_logprobs": True,
        "backend": ScriptedBackend("ok"),
    }  # fmt: skip
    assert list(values) == RUN
    state = program.run("Q", **values, stream=False, use_thread=True)
    assert state["a"] == "ok" and isinstance(state, dslc.ProgramState)
    states = program.run_batch([{"q": "Q"}], **values, num_threads=2, progress_bar=False, generator_style=False)
    assert [state["a"] for state in states] == ["ok"]


def test_typed_gens_have_sglangs_positions():
    """There is no min_tokens in third place, as gen() has."""
    for make, dtype in ((sgl.gen_int, int), (sgl.gen_string, str)):
        made = make("x", 16, 2, "stop", [3], "re", 0.5, 0.9, 4, 0.1, 0.2, 0.3, True, True, 0, 2, True)
        same = sgl.gen(
            "x", max_tokens=16, n=2, stop="stop", stop_token_ids=[3], stop_regex="re", temperature=0.5, top_p=0.9,
            top_k=4, min_p=0.1, frequency_penalty=0.2, presence_penalty=0.3, ignore_eos=True, return_logprob=True,
            logprob_start_len=0, top_logprobs_num=2, return_text_in_logprobs=True, dtype=dtype,
        )  # fmt: skip
        assert (made.var, made.sampling, made.logprobs) == (same.var, same.sampling, same.logprobs)
        assert made.constraint == same.constraint and make("x", min_tokens=2, seed=1).sampling[0][1] == 2


def test_everything_else_that_programs_name():
    for name in "gen image Engine Runtime token_length_normalized greedy_token_selection global_config".split():
        assert getattr(sgl, name) is not None
    assert sgl.unconditional_likelihood_normalized.name == "unconditional_likelihood_normalized"
    assert hasattr(dslc.ProgramState, "ret_value")
    for name in "run run_batch bind trace cache compile __call__".split():
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
    assert few_shot_qa.trace(question="x").params == () and few_shot_qa.trace("x") == few_shot_qa.trace(question="x")

    @sgl.function
    def with_fstring(s, question):
        s += f"Q: {question}\n" + sgl.gen("a")

    with pytest.raises(TypeError, match=r"test_compatibility.py:\d+: .*use .compile\(\)"):
        with_fstring.trace()
    assert with_fstring.compile().is_whole
    with pytest.raises(dslc.ArgumentError, match="no argument 'nope'"):
        few_shot_qa.trace(nope=1)
    backend = ScriptedBackend("ok")
    there = few_shot_qa.trace(backend=backend, question="x")
    assert there == few_shot_qa.bind(question="x").plan(backend.tokenizer).program != few_shot_qa.trace(question="x")

    @sgl.function
    def of_a_backend(s, backend):
        s += sgl.gen("a", stop=backend)

    assert of_a_backend.trace(backend="x").params == ()  # a parameter goes before the option


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


@settings(deadline=None)  # a busy machine may take long over any of them
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
