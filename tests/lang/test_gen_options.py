"""Every option of gen() and run() reaches the request; gen's go before run's; wrong ones are refused at their line."""

import inspect
import json

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.core.errors import ConstraintError
from dslc.core.sampling import SAMPLING_FIELDS, SamplingParams

# name at gen(), field of SamplingParams, a value, what is stored
OPTIONS = [
    ("max_tokens", "max_new_tokens", 17, 17),
    ("min_tokens", "min_new_tokens", 3, 3),
    ("n", "n", 2, 2),
    ("stop", "stop", "x", ("x",)),
    ("stop", "stop", ["x", "yy"], ("x", "yy")),
    ("stop_token_ids", "stop_token_ids", [5, 6], (5, 6)),
    ("stop_regex", "stop_regex", r"\d+", (r"\d+",)),
    ("temperature", "temperature", 0.25, 0.25),
    ("top_p", "top_p", 0.5, 0.5),
    ("top_k", "top_k", 9, 9),
    ("min_p", "min_p", 0.125, 0.125),
    ("frequency_penalty", "frequency_penalty", 0.5, 0.5),
    ("presence_penalty", "presence_penalty", -0.5, -0.5),
    ("repetition_penalty", "repetition_penalty", 1.25, 1.25),
    ("ignore_eos", "ignore_eos", True, True),
    ("logit_bias", "logit_bias", {7: 2.5}, ((7, 2.5),)),
    ("seed", "seed", 12345, 12345),
    ("skip_special_tokens", "skip_special_tokens", False, False),
    ("spaces_between_special_tokens", "spaces_between_special_tokens", False, False),
    ("no_stop_trim", "no_stop_trim", True, True),
    ("jump_forward", "jump_forward", "step", "step"),
    ("jump_forward", "jump_forward", True, True),
    ("finish_valid", "finish_valid", True, True),
]
RUN_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
SGLANG_ORDER = [
    "name", "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k",
    "min_p", "frequency_penalty", "presence_penalty", "ignore_eos", "return_logprob", "logprob_start_len",
    "top_logprobs_num", "return_text_in_logprobs", "dtype", "choices", "choices_method", "regex", "json_schema",
]  # fmt: skip


def sampling_of(expr, **options):
    backend = ScriptedBackend("ok")

    @dslc.function
    def program(s):
        s += "prompt"
        s += expr

    program.run(backend=backend, compiled=False, **options)
    return backend.requests[0]


def test_the_table_is_complete():
    # custom_params belong to a logit processor, token_healing to what the program knows of its prompt.
    assert {field for _, field, _, _ in OPTIONS} == SAMPLING_FIELDS - {"custom_params", "token_healing"}


def test_positional_order_is_sglangs():
    names = [p.name for p in inspect.signature(dslc.gen).parameters.values() if p.kind != p.KEYWORD_ONLY]
    # A type or constraint may stand where max_tokens does, and max_tokens beside it: that place has a name of its own.
    assert ["max_tokens" if name == "second" else name for name in names] == SGLANG_ORDER


@pytest.mark.parametrize(("name", "field", "value", "stored"), OPTIONS)
def test_gen_option_reaches_the_request(name, field, value, stored):
    sampling = sampling_of(dslc.gen("a", **{name: value})).sampling
    assert getattr(sampling, field) == stored
    plain = sampling_of(dslc.gen("a"), seed=1).sampling
    assert all(getattr(sampling, f) == getattr(plain, f) for f in SAMPLING_FIELDS - {field, "seed"})


@pytest.mark.parametrize(("name", "field", "value", "stored"), [o for o in OPTIONS if o[0] != "seed"])
def test_run_option_reaches_every_request(name, field, value, stored):
    sampling = sampling_of(dslc.gen("a"), **{RUN_NAMES.get(name, name): value}).sampling
    assert getattr(sampling, field) == stored
    plain = sampling_of(dslc.gen("a"), seed=1).sampling
    assert all(getattr(sampling, f) == getattr(plain, f) for f in SAMPLING_FIELDS - {field, "seed"})


def other_value(field):
    return {
        "max_new_tokens": 99, "min_new_tokens": 1, "n": 3, "stop": "zz", "stop_token_ids": [9], "stop_regex": "z+",
        "temperature": 0.75, "top_p": 0.9, "top_k": 4, "min_p": 0.5, "frequency_penalty": 1.0, "presence_penalty": 1.0,
        "repetition_penalty": 1.5, "ignore_eos": False, "logit_bias": {8: 1.0}, "skip_special_tokens": True,
        "spaces_between_special_tokens": True, "no_stop_trim": False, "jump_forward": False, "finish_valid": False,
    }[field]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value", "stored"), [o for o in OPTIONS if o[0] != "seed"])
def test_gen_goes_before_run(name, field, value, stored):
    sampling = sampling_of(dslc.gen("a", **{name: value}), **{field: other_value(field)}).sampling
    assert getattr(sampling, field) == stored


def test_defaults_are_those_of_sampling_params():
    sampling = sampling_of(dslc.gen("a"), seed=1).sampling
    assert all(getattr(sampling, f) == getattr(SamplingParams(), f) for f in SAMPLING_FIELDS - {"seed"})
    assert sampling.seed is not None


def test_every_gen_has_its_own_seed():
    backend = ScriptedBackend("ok")

    @dslc.function
    def program(s):
        for _ in range(3):
            s += "x" + dslc.gen()
        forks = s.fork(2)
        forks += dslc.gen("b")

    program.run(backend=backend)
    seeds = [r.sampling.seed for r in backend.requests]
    assert len(seeds) == len(set(seeds)) == 5


@pytest.mark.parametrize("at_run", [False, True])
def test_logprob_wishes(at_run):
    wishes = {"return_logprob": True, "logprob_start_len": 2, "top_logprobs_num": 3, "return_text_in_logprobs": True}
    request = sampling_of(dslc.gen("a", **({} if at_run else wishes)), **(wishes if at_run else {}))
    wish = request.logprobs
    assert (wish.prompt_start, wish.top, wish.with_text) == (2, 3, True)
    assert sampling_of(dslc.gen("a")).logprobs is None
    assert sampling_of(dslc.gen("a", return_logprob=False)).logprobs is None


def test_positional_arguments():
    request = sampling_of(dslc.gen("a", 5, 2, 1, "s", [4], "r+", 0.5, 0.25, 6, 0.125, 0.1, 0.2, True))
    s = request.sampling
    assert (s.max_new_tokens, s.min_new_tokens, s.n, s.stop, s.stop_token_ids, s.stop_regex) == (
        5, 2, 1, ("s",), (4,), ("r+",),
    )  # fmt: skip
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.5, 0.25, 6, 0.125)
    assert (s.frequency_penalty, s.presence_penalty, s.ignore_eos) == (0.1, 0.2, True)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"min_tokens": "x"}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 5_000_000}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", None]}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"stop_token_ids": "ab"}, "stop_token_ids"),
        ({"stop_token_ids": [-4]}, "stop_token_ids"),
        ({"stop_regex": "["}, "stop_regex"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"seed": "x"}, "seed"),
        ({"return_logprob": True, "top_logprobs_num": 1_000_000}, "top_logprobs_num"),
        ({"return_logprob": True, "logprob_start_len": -5}, "logprob_start_len"),
        ({"top_logprobs_num": 3}, "top_logprobs_num"),
        ({"regex": "[.*"}, "regex"),
        ({"regex": 5}, "regex"),
        ({"regex": "a", "json_schema": "{}"}, "regex"),
        ({"dtype": int, "regex": "a"}, "dtype"),
        ({"dtype": list}, "dtype"),
        ({"choices": ["a"], "regex": "a"}, "regex"),
        ({"choices": []}, "choices"),
        ({"choices": "yes"}, "choices"),
        ({"choices": ["a", ""]}, "choices"),
        ({"choices": ["a", 5]}, "choices"),
        ({"choices": 5}, "choices"),
        ({"choices": ["a"], "choices_method": 5}, "choices_method"),
        ({"choices": ["a"], "choices_method": "guess"}, "choices_method"),
        ({"choices": ["a"], "temperature": -1}, "temperature"),
        ({"choices": ["a"], "max_tokens": 4}, "max_tokens"),
        ({"choices_method": "greedy_token_selection"}, "choices_method"),
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": '{"type": "stsring"}'}, "json_schema"),
    ],
)
def test_a_bad_option_is_refused_when_it_is_written(options, field):
    at = inspect.currentframe().f_lineno + 2
    with pytest.raises((dslc.RequestError, dslc.ProgramError)) as caught:
        dslc.gen("a", **options)
    assert f"test_gen_options.py:{at}: {field}" in str(caught.value)


def test_a_bad_name_is_refused():
    at = inspect.currentframe().f_lineno + 2
    with pytest.raises(dslc.ProgramError, match="the name of a variable must be a str, not 5") as caught:
        dslc.gen(5)
    assert f":{at}: " in str(caught.value)


def test_an_impossible_mixture_with_the_run_is_refused_at_the_gen():
    backend = ScriptedBackend("ok")

    @dslc.function
    def program(s):
        s += "x"
        s += dslc.gen("a", min_tokens=50)

    at = inspect.currentframe().f_lineno - 2
    with pytest.raises(dslc.RequestError, match=f"test_gen_options.py:{at}: .*min_new_tokens"):
        program.run(backend=backend, max_new_tokens=10)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"regex": "[ab]+"}, "regex"),
        ({"json_schema": '{"type": "integer"}'}, "json_schema"),
        ({"json_schema": {"type": "integer"}}, "json_schema"),
        ({"dtype": int}, "regex"),
        ({"dtype": "float"}, "regex"),
        ({"dtype": bool}, "regex"),
    ],
)
def test_constraints_reach_the_request(options, kind):
    assert sampling_of(dslc.gen("a", **options)).constraint.kind == kind


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (int, ["0", "-12", "+7", "123"], ["", "1.5", "a"]),
        (float, ["1.5", "-2", "0.25"], ["", "x", "1."]),
        (bool, ["True", "False"], ["true", ""]),
        (str, ['"hello there"', '""'], ["hello", '"a"b"']),
    ],
)
def test_dtypes_mean_what_python_reads(dtype, good, bad):
    import re

    pattern = sampling_of(dslc.gen("a", dtype=dtype)).constraint.source
    assert all(re.fullmatch(pattern, text) for text in good)
    assert not any(re.fullmatch(pattern, text) for text in bad)
    assert sampling_of(dslc.gen_int("a")).constraint == sampling_of(dslc.gen("a", dtype=int)).constraint
    assert sampling_of(dslc.gen_string("a")).constraint == sampling_of(dslc.gen("a", dtype=str)).constraint


@pytest.mark.parametrize("lack", ["constraints", "logprobs", "scoring"])
def test_what_a_backend_cannot_do_is_refused_by_name(lack):
    backend = ScriptedBackend("ok", unlike=[lack])
    expr = {
        "constraints": dslc.gen("a", regex="a"),
        "logprobs": dslc.gen("a", return_logprob=True),
        "scoring": dslc.select("a", ["x", "y"]),
    }[lack]

    @dslc.function
    def program(s):
        s += "x"
        s += expr

    with pytest.raises(dslc.RequestError, match=r"test_gen_options.py:\d+: .*the backend 'scripted' "):
        program.run(backend=backend)
    assert backend.requests == []


def test_unnamed_gens_do_not_collide():
    answers = iter(["one", "two", "three"])
    backend = ScriptedBackend(lambda prompt: next(answers))

    @dslc.function
    def program(s):
        s += "a:" + dslc.gen() + " b:" + dslc.gen("b") + " c:" + dslc.gen()

    state = program.run(backend=backend)
    assert state.text() == "a:one b:two c:three" and state["b"] == "two"


def test_a_line_asks_for_what_its_lists_and_dicts_hold_now():
    stops, schema = ["a"], {"const": 1}

    def line():
        return dslc.gen("x", stop=stops, json_schema=schema)

    first = line()
    assert line() is first  # the same line, the same contents
    stops.append("b")
    second = line()
    assert (dict(first.sampling)["stop"], dict(second.sampling)["stop"]) == (("a",), ("a", "b"))
    schema["const"] = True  # equal to 1, and another schema
    third = line()
    consts = [json.loads(g.constraint.source)["const"] for g in (second, third)]
    assert [type(value) for value in consts] == [int, bool]
    schema["const"] = {1}
    with pytest.raises(ConstraintError):
        line()
