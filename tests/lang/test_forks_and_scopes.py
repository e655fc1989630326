"""Branches, joins, copies, scopes and variables, with and without a plan."""

import inspect

import pytest
from support.scripted import ScriptedBackend

import dslc


def line():
    return inspect.currentframe().f_back.f_lineno


@pytest.fixture(params=[False, True], ids=["interpreted", "compiled"])
def compiled(request):
    return request.param


def count_answer(prompt):
    return f"[{len(prompt)}]"


def run(program, compiled, answer=count_answer, **kwargs):
    backend = ScriptedBackend(answer)
    return program.run(backend=backend, compiled=compiled, **kwargs), backend


def test_a_fork_is_a_copy(compiled):
    @dslc.function
    def forked(s):
        s += "common "
        s += dslc.gen("x")
        forks = s.fork(3)
        for i in range(3):
            forks[i] += f" part {i} "
            forks[i] += dslc.gen("y")
        forks.join()

    @dslc.function
    def alone(s, i):
        s += "common "
        s += dslc.gen("x")
        s += f" part {i} "
        s += dslc.gen("y")

    state, backend = run(forked, compiled)
    assert state["y"] == [run(alone, compiled, i=i)[0]["y"] for i in range(3)]
    assert backend.max_in_flight == 3
    assert state.text() == "common [7]"


def test_group_forms(compiled):
    @dslc.function
    def program(s):
        s += "p"
        forks = s.fork(2)
        forks += "text "
        forks += ["a ", "b "]
        forks += lambda i: f"{i} "
        forks += dslc.gen("x")
        assert len(forks) == 2
        for f in forks:
            f += "!"
        _first, second = forks
        second += dslc.gen("z")
        forks.join()

    state, backend = run(program, compiled)
    assert sorted(backend.prompts) == ["ptext a 0 ", "ptext b 1 ", "ptext b 1 [10]!"]
    assert state["x"] == ["[10]", "[10]"] and state["z"] == ["[15]"]


def test_join_lists_what_branches_set_also_over_names_the_parent_has(compiled):
    @dslc.function
    def program(s):
        s["x"] = "before"
        s["y"] = "kept"
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f["x"] = f"new {i}"
        forks[1]["only"] = 5
        forks.join()
        return s["x"]

    state, _ = run(program, compiled)
    assert state["x"] == ["new 0", "new 1"] == state.ret_value
    assert state["y"] == "kept" and state["only"] == [5]


def test_join_brings_the_meta_info_back(compiled):
    @dslc.function
    def program(s):
        s += "x"
        forks = s.fork(2)
        forks += dslc.gen("a")
        forks.join()

    state, _ = run(program, compiled)
    infos = state.get_meta_info("a")
    assert [info["completion_tokens"] for info in infos] == [4, 4]


def test_concate_and_append_is_exact(compiled):
    @dslc.function
    def program(s):
        s += "the start ab"
        forks = s.fork(2)
        forks += lambda i: f"c{i}: "
        forks += dslc.gen("x", stop="]")
        forks += "d "
        forks.join("concate_and_append")
        s += "e" + dslc.gen("end")

    state, backend = run(program, compiled)
    assert state.text() == "the start abc0: [16d c1: [16d e[31]"
    tokenizer = backend.tokenizer
    ids = [i for s in backend.requests[-1].segments for i in s.ids]
    # Text is tokenised as it stands after the join; what was generated keeps its ids.
    expected = [
        *tokenizer.encode("the start abc0: "), *tokenizer.encode("[16"),
        *tokenizer.encode("d c1: "), *tokenizer.encode("[16"), *tokenizer.encode("d e"),
    ]  # fmt: skip
    assert ids == expected


def test_concate_and_append_brings_turns(compiled):
    @dslc.function
    def program(s):
        s += dslc.system("rules")
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += dslc.user(f"question {i}")
            f += dslc.assistant(dslc.gen("a"))
        forks.join("concate_and_append")

    state, _ = run(program, compiled)
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert "".join(state.text().split("question 1")[0]).count("question 0") == 1


def test_forks_within_forks(compiled):
    @dslc.function
    def program(s):
        s += "root"
        outer = s.fork(2)
        for f in outer:
            inner = f.fork(2)
            inner += lambda i: f" leaf {i} "
            inner += dslc.gen("x")
            inner.join()
            f += " " + f["x"][0] + f["x"][1]
        outer.join()
        return s["x"]

    state, backend = run(program, compiled)
    assert state.ret_value == [["[12]", "[12]"]] * 2
    assert sorted({r.origin.stream for r in backend.requests}) == ["0.0.0", "0.0.1", "0.1.0", "0.1.1"]


def test_a_plan_runs_branches_beside_each_other_where_the_body_reads_one_by_one():
    @dslc.function
    def program(s):
        s += "root"
        forks = s.fork(4)
        for f in forks:
            f += dslc.gen("x")
            f += f["x"] + " and "
            f += dslc.gen("y")
        forks.join()

    interpreted, one_by_one = run(program, False)
    compiled, together = run(program, True)
    assert interpreted["y"] == compiled["y"]
    assert one_by_one.max_in_flight < together.max_in_flight == 4


def test_branches_start_while_the_parent_generates(compiled):
    @dslc.function
    def program(s):
        s += "a"
        s += dslc.gen("x")
        forks = s.fork(2)
        forks += dslc.gen("y")
        s += "b" + dslc.gen("z")
        forks.join()

    state, backend = run(program, compiled)
    assert backend.batches[0] == 1 and backend.max_in_flight == 3
    assert state["z"] == "[5]" and state["y"] == ["[4]"] * 2 and state.text() == "a[1]b[5]"


def test_copy_is_never_joined(compiled):
    @dslc.function
    def program(s):
        s += "a"
        s["v"] = 1
        with s.copy() as t:
            t += "b" + dslc.gen("x")
            t["v"] = 2
            value = t["x"]
        s += "c" + value
        return s["v"]

    state, _ = run(program, compiled)
    assert state.text() == "ac[2]" and state.ret_value == 1 and "x" not in state


def test_var_scope_holds_exactly_what_was_appended_inside(compiled):
    @dslc.function
    def program(s):
        s += "before "
        with s.var_scope("all"):
            s += "inside " + dslc.gen("x")
            with s.var_scope("part"):
                s += "!"
            s += dslc.select("y", ["yes", "no"])
        s += " after"
        return s["all"]

    state, _ = run(program, compiled)
    assert state["all"] == f"inside [14]!{state['y']}" == state.ret_value and state["part"] == "!"


def test_reading_a_variable_inside_its_own_scope_raises(compiled):
    @dslc.function
    def program(s):
        with s.var_scope("x"):
            s += "a"
            return s["x"]

    at = line() - 2
    with pytest.raises(dslc.UndefinedVariable, match=f"test_forks_and_scopes.py:{at}: 'x' is read inside its own"):
        run(program, False)


def test_reading_before_it_exists_raises(compiled):
    @dslc.function
    def program(s):
        s["b"] = 1
        return s["a"]

    at = line() - 2
    with pytest.raises(
        dslc.UndefinedVariable, match=rf":{at}: 'a' is read before any op sets it; variables so far: 'b'"
    ):
        program.run(backend=ScriptedBackend())
    with pytest.raises(KeyError):
        program.run(backend=ScriptedBackend())


def test_variables_set_and_tested(compiled):
    @dslc.function
    def program(s):
        s.set_var("n", 3)
        s["list"] = ["a", "b"]
        s["none"] = None
        s += "x" + dslc.gen("g")
        found = ["n" in s, "g" in s, "nope" in s]
        s += f" {s.get_var('n') + 1} {', '.join(s['list'])}"
        return found

    state, _ = run(program, compiled)
    assert state.ret_value == [True, True, False] and state.text() == "x[1] 4 a, b"
    assert state["list"] == ["a", "b"] and state["none"] is None


def test_gen_n_gives_a_list_and_appends_the_first(compiled):
    answers = iter(["one", "two", "three", "end"])

    @dslc.function
    def program(s):
        s += "x" + dslc.gen("many", n=3)
        s += "|" + dslc.gen("end")

    state, backend = run(program, compiled, lambda prompt: next(answers))
    assert state["many"] == ["one", "two", "three"] and state.text() == "xone|end"
    assert len(backend.requests) == 2 and len(state.get_meta_info("many")) == 3


def test_roles_as_values_as_methods_as_regions_and_as_edges_are_the_same(compiled):
    @dslc.function
    def values(s):
        s += dslc.system("a") + dslc.user("b") + dslc.assistant(dslc.gen("x") + "!")

    @dslc.function
    def methods(s):
        s.system("a")
        s.user("b")
        s.assistant(dslc.gen("x") + "!")

    @dslc.function
    def with_regions(s):
        with s.system():
            s += "a"
        with s.user():
            s += "b"
        with s.assistant():
            s += dslc.gen("x")
            s += "!"

    @dslc.function
    def edges(s):
        s += dslc.system_begin() + "a" + dslc.system_end()
        s += dslc.user_begin() + "b" + dslc.user_end()
        s += dslc.assistant_begin()
        s += dslc.gen("x") + "!"
        s += dslc.assistant_end()

    states = [run(program, compiled)[0] for program in (values, methods, with_regions, edges)]
    assert len({state.text() for state in states}) == 1
    assert all(state.messages() == states[0].messages() for state in states)
    assert states[0].messages()[2] == {"role": "assistant", "content": states[0]["x"] + "!"}


def test_nested_and_unmatched_roles_are_refused(compiled):
    @dslc.function
    def nested(s):
        with s.user():
            s += "a"
            s += dslc.assistant("b")

    at = line() - 2
    with pytest.raises(dslc.ProgramError, match=f":{at}: roles do not nest"):
        nested.run(backend=ScriptedBackend())

    @dslc.function
    def unmatched(s):
        s += dslc.user_begin() + "a" + dslc.system_end()

    at = line() - 2
    with pytest.raises(dslc.ProgramError, match=rf":{at}: system_end\(\) without system_begin\(\): .* 'user'"):
        unmatched.run(backend=ScriptedBackend())


def test_an_exception_inside_a_role_closes_it():
    @dslc.function
    def program(s):
        try:
            with s.user():
                s += "a"
                raise ValueError("mine")
        except ValueError:
            pass
        with s.user():
            s += "b"

    state, _ = run(program, False)
    assert [m["content"] for m in state.messages()] == ["a", "b"]


def test_bad_uses_of_groups():
    backend = ScriptedBackend()
    cases = []

    @dslc.function
    def wrong_size(s):
        s.fork(0)

    cases.append((wrong_size, line() - 2, r"fork\(\) needs a positive number of branches, not 0"))

    @dslc.function
    def wrong_list(s):
        forks = s.fork(2)
        forks += ["a"]

    cases.append((wrong_list, line() - 2, "1 things for 2 branches"))

    @dslc.function
    def joined_twice(s):
        forks = s.fork(2)
        forks.join()
        forks.join()

    cases.append((joined_twice, line() - 2, "joined"))

    @dslc.function
    def after_join(s):
        forks = s.fork(2)
        forks.join()
        forks[0] += "x"

    cases.append((after_join, line() - 2, "a branch is used after its join"))

    @dslc.function
    def wrong_mode(s):
        s.fork(2).join("sum")

    cases.append((wrong_mode, line() - 2, "unknown join mode 'sum'"))

    @dslc.function
    def not_text(s):
        s += 5

    cases.append((not_text, line() - 2, "an int cannot be appended to a program"))

    @dslc.function
    def not_text_inside(s):
        s += "a" + dslc.gen("x") + 5

    cases.append((not_text_inside, line() - 2, "an int cannot be appended to a program"))
    for program, at, message in cases:
        with pytest.raises(dslc.ProgramError, match=rf"test_forks_and_scopes.py:{at}: .*{message}"):
            program.run(backend=backend)
    assert backend.requests == []


def test_a_joined_branch_can_still_be_read(compiled):
    @dslc.function
    def program(s):
        s += "a"
        forks = s.fork(2)
        forks += lambda i: f"{i}"
        forks += dslc.gen("x")
        forks.join()
        s += forks[0]["x"] + forks[1].text()

    state, _ = run(program, compiled)
    assert state.text() == "a[2]a1[2]"


def test_a_finished_state_can_be_read_and_not_appended_to(compiled):
    @dslc.function
    def program(s):
        s += "a" + dslc.gen("x")

    state, _ = run(program, compiled)
    assert state["x"] == "[1]" and state.error() is None
    at = line() + 2
    with pytest.raises(dslc.ProgramError, match=f":{at}: the program 'program' has ended"):
        state += "more"
    with pytest.raises(dslc.UndefinedVariable):
        state["y"]


@pytest.mark.parametrize("compiled", [False, None])
def test_a_list_that_only_the_run_knows_gives_each_branch_its_own(compiled):
    """However many branches there are; a text goes to all of them."""

    @dslc.function
    def encodes(s, documents, note):
        s += "Documents:"
        forks = s.fork(len(documents))
        forks += [f"\n- {document}" for document in documents]
        forks += f" ({note})"
        forks += note
        forks.join("concate_and_append")

    state = encodes.run(documents=["a", "b"], note="n", backend=ScriptedBackend("ok"), compiled=compiled)
    assert state.text() == "Documents:\n- a (n)n\n- b (n)n"

    @dslc.function
    def same(s, documents, note):
        forks = s.fork(len(documents))
        forks += f" ({note})"
        forks.join("concate_and_append")

    assert same.compile(strict=True).is_whole
    assert same.run(documents=[1, 2], note="n", backend=ScriptedBackend(), compiled=compiled).text() == " (n) (n)"
