"""What earlier frontends of this kind got wrong: thirty faults, and for each the test that would have caught it."""

import threading
import types
from pathlib import Path

import pytest
from support.scripted import ScriptedBackend

import dslc
from dslc.compiler.ir import Media, Opaque, walk

CAPTURED = ["one"]
HERE = "test_known_faults"
# What was wrong -> the tests that say how it is here, as "file::test" (of this room, where no folder is named).
FAULTS = {
    "tracing stops at an f-string of an argument": ["test_compatibility::test_trace_and_its_documented_type_error"],
    "str(argument) gets into the prefix as an object": [f"{HERE}::test_str_of_an_argument_never_gets_into_the_prefix"],
    "an f-string of a value puts a placeholder into the prompt": [
        f"{HERE}::test_an_f_string_of_a_value_is_its_text_in_plan_and_body",
    ],
    "branches on values are decided while tracing": [
        f"{HERE}::test_branches_on_values_go_the_right_way_in_every_mode",
        f"{HERE}::test_a_loop_until_a_generated_word_ends",
    ],
    "anything done to a value fails": ["test_traced_programs::test_interpreted_equals_compiled"],
    "a state has fewer methods while it is traced": [
        f"{HERE}::test_everything_a_state_can_do_can_be_traced_or_breaks_with_its_line",
    ],
    "a batch fails because it is traced": [f"{HERE}::test_a_batch_never_fails_because_of_tracing"],
    "side effects happen once more": [f"{HERE}::test_side_effects_happen_once_and_only_when_run"],
    "tracing is one global for all threads": [f"{HERE}::test_one_threads_tracing_does_not_reach_another"],
    "arguments by position, and keyword-only ones, are not taken": [
        "test_compatibility::test_trace_and_its_documented_type_error",
        "test_function_arguments::test_arguments_are_bound_as_python_does",
        "test_function_arguments::test_a_program_called_inside_another_appends_in_line",
    ],
    "pictures have no place in the graph": [f"{HERE}::test_pictures_have_a_place_in_the_ir"],
    "one prefix, of constant text up to the first argument": [
        "compiler/test_plan_and_schedule::test_branches_of_a_fork_share_the_parents_prefix",
        "compiler/test_plan_and_schedule::test_programs_with_a_common_beginning_share_it_too",
    ],
    "captured values are frozen": [f"{HERE}::test_captured_values_are_read_anew_when_they_change"],
    "names collide": [
        f"{HERE}::test_a_name_used_twice_holds_the_last", "test_gen_options::test_unnamed_gens_do_not_collide",
    ],
    "the compiler optimised nothing": ["test_program_laws::test_optimised_equals_unoptimised"],
    "a compiled fork could not run": ["test_forks_and_scopes::test_a_fork_is_a_copy"],
    "a branch whose result nobody uses vanished": [
        f"{HERE}::test_branches_whose_result_nobody_uses_still_run_in_a_plan",
    ],
    "arguments were put in by their bare names": [
        f"{HERE}::test_defaults_and_equal_parameter_names_of_nested_programs",
    ],
    "a compiled run took fewer options": ["test_gen_options::test_run_option_reaches_every_request"],
    "nothing was saved between runs": ["compiler/test_plan_cache::test_a_run_finds_the_plans_of_earlier_ones"],
    "errors are swallowed": [
        "test_failures::test_a_failed_gen_raises_at_the_end_with_its_line_and_the_prompts_tail",
        "test_failures::test_one_failing_program_of_64_keeps_the_others",
    ],
    "reading after a failure hangs": ["test_failures::test_no_way_of_reading_hangs_after_a_failure"],
    "reading a variable inside its own scope hangs": [
        "test_forks_and_scopes::test_reading_a_variable_inside_its_own_scope_raises",
    ],
    "streams lose text and meta data": [
        "test_streaming::test_pieces_of_a_variable_are_there_however_late_they_are_read",
        "test_streaming::test_meta_data_are_there_for_each_piece_and_none_is_dropped",
    ],
    "an exception of the user's ends a stream like any end": [
        "test_streaming::test_a_users_exception_reaches_the_reader",
    ],
    "an exception inside a role leaves it open": ["test_forks_and_scopes::test_an_exception_inside_a_role_closes_it"],
    "a join forgets names the parent has, and meta info": [
        "test_forks_and_scopes::test_join_lists_what_branches_set_also_over_names_the_parent_has",
        "test_forks_and_scopes::test_join_brings_the_meta_info_back",
    ],
    "bind drops options and writes into the caller's rows": [
        "test_function_arguments::test_bind_keeps_everything_and_calls_win",
        "test_function_arguments::test_rows_are_left_as_they_were",
    ],
    "options are accepted and ignored, or fail late": [
        f"{HERE}::test_without_a_thread_there_is_none",
        "test_with_a_model::test_temperature_draws_from_the_softmax_of_the_scores",
        "test_gen_options::test_a_bad_option_is_refused_when_it_is_written",
    ],
    "a batch comes in chunks, each as late as its slowest": [
        "test_failures::test_generator_style_gives_states_as_they_end",
    ],
}  # fmt: skip


def test_each_of_the_thirty_faults_has_its_tests():
    tests = Path(__file__).parent
    assert len(FAULTS) == 30
    for fault, names in FAULTS.items():
        for name in names:
            file, _, test = name.partition("::")
            path = tests.parent / f"{file}.py" if "/" in file else tests / f"{file}.py"
            assert f"\ndef {test}(" in path.read_text(encoding="utf-8"), (fault, name)


def test_an_f_string_of_a_value_is_its_text_in_plan_and_body():
    @dslc.function
    def program(s, q):
        s += f"Q: {q}? " + dslc.gen("x")
        s += f" so {s['x']!r}, {s['x']:>4}, {len(s['x'])}: " + dslc.gen("y")

    backend = ScriptedBackend("ok")
    for compiled in (True, False):
        state = program.run(q="why", backend=backend, compiled=compiled)
        assert state.text() == "Q: why? ok so 'ok',   ok, 2: ok"
    assert not any("<" in prompt or "Symbol" in prompt for prompt in backend.prompts)


def test_str_of_an_argument_never_gets_into_the_prefix():
    @dslc.function
    def program(s, q):
        s += "a constant beginning " + str(q) + " end" + dslc.gen("a")

    backend = ScriptedBackend("ok")
    program.cache(backend)
    prefix = backend.prompts[0]
    assert "a constant beginning".startswith(prefix) and "object" not in prefix and "Arg" not in prefix
    assert program.run(q=[1, 2], backend=backend).text() == "a constant beginning [1, 2] endok"


@pytest.mark.parametrize("answer", ["a", "b", ""])
def test_branches_on_values_go_the_right_way_in_every_mode(answer):
    @dslc.function
    def program(s, flag):
        s += "x" + dslc.gen("c")
        if s["c"] == "a":
            s += " is a"
        elif not s["c"]:
            s += " is nothing"
        else:
            s += " is else"
        if flag and len(flag) > 1:
            s += f" {flag[0].upper()}"
        for item in flag:
            s += f" {item}"
        return s["c"].strip() or "none"

    expected = {"a": " is a", "b": " is else", "": " is nothing"}[answer]
    for flag in ("", "z", "yz"):
        for compiled in (None, False):
            state = program.run(flag=flag, backend=ScriptedBackend(answer), compiled=compiled)
            rest = (" Y" if flag == "yz" else "") + "".join(f" {c}" for c in flag)
            assert state.text() == f"x{answer}{expected}{rest}" and state.ret_value == (answer or "none")


def test_a_loop_until_a_generated_word_ends():
    @dslc.function
    def program(s):
        s += "go"
        s += dslc.gen("x")
        while s["x"] != "stop":
            s += " more " + dslc.gen("x")
        return "ended"

    answers = iter(["a", "b", "c", "stop"])
    state = program.run(backend=ScriptedBackend(lambda prompt: next(answers)))
    assert state.text() == "goa more b more c more stop" and state.ret_value == "ended"


def test_everything_a_state_can_do_can_be_traced_or_breaks_with_its_line():
    @dslc.function
    def traced(s):
        with s.system():
            s += "rules"
        s.user("question")
        with s.assistant(), s.var_scope("all"):
            s += dslc.gen("x")
        s.set_var("n", s.get_var("x"))
        forks = s.fork(2)
        forks += dslc.gen("y")
        forks.join()
        with s.copy() as t:
            t += dslc.gen("z")
        s += s.text()
        return "x" in s

    assert traced.compile(strict=True).is_whole
    for use in ("messages", "sync", "error"):

        @dslc.function
        def breaks(s, use=use):
            s += "x" + dslc.gen("a")
            getattr(s, "messages" if use == "messages" else use)()
            s += "y"

        breaks.compile()
        assert breaks.run(backend=ScriptedBackend("ok")).text() == "xoky"


def test_a_batch_never_fails_because_of_tracing():
    table = {"a": "first", "b": "second"}

    @dslc.function
    def program(s, key, number):
        assert isinstance(key, str) and number > 0
        s += table[key] + f" {number:03d} " + dslc.gen("x")

    rows = [{"key": "a", "number": 1}, {"key": "b", "number": 2}, {"key": "nope", "number": 3}]
    states = program.run_batch(rows, backend=ScriptedBackend("ok"))
    assert [s.text() for s in states[:2]] == ["first 001 ok", "second 002 ok"]
    assert isinstance(states[2].error(), KeyError)


def test_side_effects_happen_once_and_only_when_run():
    seen = []

    @dslc.function
    def program(s, q):
        seen.append(q)
        s += q + dslc.gen("a")
        seen.append(str(s["a"]))

    program.compile()
    program.cache(ScriptedBackend("ok"))
    assert seen == []
    program.run(q="x", backend=ScriptedBackend("ok"))
    assert seen == ["x", "ok"]
    program.run_batch([{"q": "y"}, {"q": "z"}], backend=ScriptedBackend("ok"))
    assert sorted(seen[2:]) == ["ok", "ok", "y", "z"]


def test_one_threads_tracing_does_not_reach_another():
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go_on.wait(20)
        return "waited"

    WAITS["wait"] = wait

    @dslc.function
    def slow(s):
        s += WAITS["wait"]() + dslc.gen("a")

    @dslc.function
    def other(s, q):
        s += q + dslc.gen("a")

    worker = threading.Thread(target=lambda: slow.run(backend=ScriptedBackend("ok")))
    worker.start()
    assert inside.wait(20)
    traced = threading.Thread(target=other.compile)
    traced.start()
    state = other(q="x", backend=ScriptedBackend("ok"))
    assert isinstance(state, dslc.ProgramState) and state["a"] == "ok"
    go_on.set()
    worker.join(20)
    traced.join(20)


WAITS = {}


def test_pictures_have_a_place_in_the_ir():
    @dslc.function
    def program(s, path):
        s += dslc.user(dslc.image(path) + "What is this?")
        s += dslc.assistant(dslc.gen("a"))

    assert any(isinstance(op, Media) for op in walk(program.compile().body))
    with pytest.raises(dslc.ProgramError, match=r"test_known_faults.py:\d+: .*takes no images"):
        program.run(path="cat.png", backend=ScriptedBackend())


def test_captured_values_are_read_anew_when_they_change():
    @dslc.function
    def program(s):
        s += " ".join(CAPTURED) + dslc.gen("a")

    assert program.run(backend=ScriptedBackend("!")).text() == "one!"
    CAPTURED.append("two")
    try:
        assert program.run(backend=ScriptedBackend("!")).text() == "one two!"
    finally:
        CAPTURED.pop()


def test_a_name_used_twice_holds_the_last():
    @dslc.function
    def program(s):
        s += "1" + dslc.gen("x") + "2" + dslc.gen("x")

    for compiled in (False, True):
        answers = iter(["first", "second"])
        state = program.run(backend=ScriptedBackend(lambda prompt, a=answers: next(a)), compiled=compiled)
        assert state["x"] == "second" and state.text() == "1first2second"


def test_branches_whose_result_nobody_uses_still_run_in_a_plan():
    @dslc.function
    def program(s):
        s += "main "
        forks = s.fork(2)
        forks += dslc.gen("unused")
        s += "end"

    backend = ScriptedBackend("ok")
    assert program.run(backend=backend, compiled=True).text() == "main end"
    assert len(backend.requests) == 2


def test_defaults_and_equal_parameter_names_of_nested_programs():
    @dslc.function
    def inner(s, q, tail="!"):
        s += q + tail

    @dslc.function
    def outer(s, q, tail="?"):
        inner(s, "inner ")
        inner(s, q, tail=tail)

    for compiled in (False, True):
        assert outer.run(q="outer ", backend=ScriptedBackend(), compiled=compiled).text() == "inner !outer ?"


def test_without_a_thread_there_is_none():
    @dslc.function
    def program(s):
        s += "x"
        forks = s.fork(4)
        forks += dslc.gen("y")
        forks.join()
        s += "z" + dslc.gen("a")
        seen.add(threading.active_count())

    seen = set()
    before = threading.active_count()
    state = program.run(backend=ScriptedBackend("ok"), stream=True, use_thread=False)
    assert seen == {before} and "".join(state.text_iter()) == "xzok" and state["y"] == ["ok"] * 4


def test_a_program_without_source_is_interpreted_and_says_so_once():
    namespace = {"dslc": dslc}
    exec(
        "def program(s, q):\n    s += f'Q: {q} ' + dslc.gen('a')\n    if s['a'] == 'ok':\n        s += '!'\n", namespace
    )
    function = namespace["program"]
    assert isinstance(function, types.FunctionType)
    program = dslc.function(function)
    with pytest.warns(UserWarning, match="program is interpreted op by op"):
        assert program.run(q="x", backend=ScriptedBackend("ok")).text() == "Q: x ok!"
    assert program.run(q="y", backend=ScriptedBackend("no")).text() == "Q: y no"


def test_a_strict_compile_names_the_line_and_what_to_do():
    @dslc.function
    def program(s):
        s += "x" + dslc.gen("a")
        vars()
        s += "y"

    at = program.where.line + 3
    with pytest.raises(dslc.TraceError, match=rf"test_known_faults.py:{at}: .*vars.*run\(...\) still works"):
        program.compile(strict=True)
    assert any(isinstance(op, Opaque) for op in walk(program.compile().body))
