"""What `@function` accepts, how arguments are bound, and what is said about wrong ones: at the user's line."""

import inspect

import pytest
from support.scripted import ScriptedBackend

import dslc


def line() -> int:
    """The line this is called from."""
    return inspect.currentframe().f_back.f_lineno


@dslc.function
def program(s, question, times=2, *, tone="calm"):
    """Asks."""
    s += f"{question}{times}{tone}"
    s += dslc.gen("a")
    return times


@pytest.fixture
def backend():
    return ScriptedBackend("ok")


def raises(kind, match, at):
    """`kind` with a message that matches, placed `at` this file and line."""
    return pytest.raises(kind, match=rf"test_function_arguments.py:{at}: .*{match}")


def test_keeps_what_python_shows_of_a_function():
    assert program.__name__ == "program" and program.__doc__ == "Asks." and program.__module__ == __name__
    assert list(inspect.signature(program).parameters) == ["s", "question", "times", "tone"]


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (("q",), {}, "q2calmok"),
        (("q", 3), {}, "q3calmok"),
        ((), {"question": "q", "tone": "wild"}, "q2wildok"),
        (("q",), {"times": 5}, "q5calmok"),
    ],
)
def test_arguments_are_bound_as_python_does(backend, args, kwargs, text):
    assert program.run(*args, **kwargs, backend=backend).text() == text
    assert program(*args, **kwargs, backend=backend).text() == text


def test_missing_unknown_twice_and_too_many(backend):
    with raises(dslc.ArgumentError, "program is missing the argument 'question'", line() + 1):
        program.run(backend=backend)
    with raises(dslc.ArgumentError, "program has no argument 'qestion'; did you mean 'question'", line() + 1):
        program.run(qestion="q", backend=backend)
    with raises(dslc.ArgumentError, "program has no argument 'zzz'; it takes question, times, tone", line() + 1):
        program.run("q", zzz=1, backend=backend)
    with raises(dslc.ArgumentError, "program got the argument 'question' twice", line() + 1):
        program.run("q", question="q", backend=backend)
    with raises(dslc.ArgumentError, "program takes 2 positional arguments, got 3", line() + 1):
        program.run("q", 1, "wild", backend=backend)
    with pytest.raises(TypeError):  # as a call of a Python function would
        program.run(backend=backend)
    assert backend.requests == []


def test_rows_of_a_batch_are_checked_before_anything_runs(backend):
    with raises(dslc.ArgumentError, r"batch_kwargs\[1\]: program is missing the argument 'question'", line() + 1):
        program.run_batch([{"question": "q"}, {"times": 1}], backend=backend)
    with raises(dslc.ArgumentError, r"batch_kwargs\[0\]: program takes 2 positional", line() + 1):
        program.run_batch([("a", 1, 2)], backend=backend)
    with raises(dslc.ArgumentError, r"batch_kwargs\[1\] must be a dict or a tuple, not 'q'", line() + 1):
        program.run_batch([("q",), "q"], backend=backend)
    with raises(dslc.ArgumentError, "on_error must be", line() + 1):
        program.run_batch([("q",)], on_error="ignore", backend=backend)
    with raises(dslc.ArgumentError, "num_threads must be", line() + 1):
        program.run_batch([("q",)], num_threads=0, backend=backend)
    assert backend.requests == []


def test_rows_may_be_tuples_and_shared_arguments_fill_in(backend):
    states = program.run_batch([("a",), ("b", 7), {"question": "c"}], times=4, backend=backend)
    assert [state.text() for state in states] == ["a4calmok", "b7calmok", "c4calmok"]


def test_rows_are_left_as_they_were(backend):
    rows = [{"question": "a"}, {"question": "b", "times": 1}]
    program.bind(times=9, tone="dry").run_batch(rows, backend=backend)
    assert rows == [{"question": "a"}, {"question": "b", "times": 1}]


def test_the_first_parameter_must_be_the_state():
    at = line() + 3
    with raises(dslc.ProgramError, "the first parameter of the program wrong must be 's', not 'state'", at):

        @dslc.function
        def wrong(state, q): ...

    at = line() + 3
    with raises(dslc.ProgramError, "must be 's', but it has none", at):

        @dslc.function
        def nothing(): ...

    at = line() + 3
    with raises(dslc.ProgramError, r"takes \*\*more: a program needs named parameters", at):

        @dslc.function
        def stars(s, **more): ...

    at = line() + 3
    with raises(dslc.ProgramError, "is a generator: a program must not yield", at):

        @dslc.function
        def lazy(s):
            yield 1

    with raises(dslc.ProgramError, "takes a plain function", line() + 1):
        dslc.function(int)


def test_bind_keeps_everything_and_calls_win(backend):
    @dslc.function(num_api_spec_tokens=7)
    def api(s, a, b="y"):
        s += a + b

    bound = api.bind(a="x")
    assert bound.num_api_spec_tokens == 7 and bound.__name__ == "api"
    assert bound.run(backend=backend).text() == "xy"
    assert bound.run(a="z", backend=backend).text() == "zy"
    assert bound.bind(b="w").run(backend=backend).text() == "xw"
    assert api.bind(a="x").compile().params[0].name == "b"
    with raises(dslc.ArgumentError, "api has no argument 'c'", line() + 1):
        api.bind(c=1)


def test_a_parameter_named_like_an_option_belongs_to_the_program(backend):
    @dslc.function
    def sampler(s, n, stop="!", seed=0):
        s += f"{n}{stop}{seed}"
        s += dslc.gen("a")

    assert sampler.run(n=3, stop="?", seed=5, temperature=0, backend=backend).text() == "3?5ok"
    assert backend.requests[0].sampling.n == 1 and backend.requests[0].sampling.stop == ()


def test_a_program_called_inside_another_appends_in_line(backend):
    @dslc.function
    def outer(s):
        s += "<"
        times = program(s, "q", tone="soft")
        s += f"{times}>"

    assert outer.run(backend=backend).text() == "<q2softok2>"
    assert outer.run(backend=backend, compiled=False).text() == "<q2softok2>"
    assert outer.compile().is_whole

    @dslc.function
    def wrong(s):
        program(s, tone="soft")

    with raises(dslc.ArgumentError, "program is missing the argument 'question'", line() - 2):
        wrong.run(backend=backend)


def test_no_backend_uses_the_default_one(backend):
    dslc.set_default_backend(backend)
    try:
        assert program.run("q").text() == "q2calmok"
        assert dslc.flush_cache() is True and backend.num_flushes == 1
    finally:
        dslc.set_default_backend(None)


def test_bad_run_options_are_refused_where_they_are_given(backend):
    with raises(dslc.ArgumentError, "seed must be an integer", line() + 1):
        program.run("q", seed="x", backend=backend)
    with raises(dslc.RequestError, "top_p: must be", line() + 1):
        program.run("q", top_p=3.0, backend=backend)
    with raises(dslc.RequestError, "top_logprobs_num: needs return_logprob=True", line() + 1):
        program.run("q", top_logprobs_num=3, backend=backend)
    with raises(dslc.ArgumentError, "timeout must be", line() + 1):
        program.run("q", timeout=-1, backend=backend)
    with raises(dslc.ArgumentError, "history must be", line() + 1):
        program.run("q", history="both", backend=backend)
    assert backend.requests == []
