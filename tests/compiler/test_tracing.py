"""Tracing against a minimal state: what the rewritten copy records, where it breaks, and what it never does."""

import pytest

from dslc.compiler.ir import Gen, Opaque, Role, Scope, Select, Set, Text, walk
from dslc.compiler.printer import print_program
from dslc.compiler.tracing import Symbol, operand, strict_error, trace
from dslc.compiler.tracing.tracer import PathTracer
from dslc.compiler.verifier import verify
from dslc.core.errors import ProgramError, SourceLoc, UndefinedVariable


class MiniState:
    """The least a state has to be for the tracer: text, gens, a role, a scope, variables."""

    __dslc_traceable__ = True

    def __init__(self, sink, stream=0):
        self.sink, self.stream = sink, stream

    def __iadd__(self, value):
        if isinstance(value, (str, Symbol)):
            self.sink.emit(Text(text=operand(value), stream=self.stream))
        else:
            value(self)
        return self

    def __getitem__(self, var):
        return self.sink.get(self.stream, var, None)

    def __setitem__(self, var, value):
        self.sink.emit(Set(var=var, value=operand(value), stream=self.stream))

    def __contains__(self, var):
        return self.sink.has(self.stream, var, None)

    def role(self, name):
        return _Region(self, Role(role=name, stream=self.stream))

    def scope(self, var):
        return _Region(self, Scope(out=self.sink.new_ref(), var=var, stream=self.stream))


class _Region:
    __dslc_traceable__ = True

    def __init__(self, state, op):
        self.state, self.op = state, op

    def __enter__(self):
        self.state.sink.enter(self.op)
        return self.state

    def __exit__(self, *error):
        self.state.sink.leave(self.op)


def gen(var, **options):
    def append(state):
        sampling = tuple(sorted((k, operand(v)) for k, v in options.items()))
        state.sink.emit(Gen(out=state.sink.new_ref(), var=var, sampling=sampling, stream=state.stream))

    append.__dslc_traceable__ = True
    return append


gen.__dslc_traceable__ = True


def select(var, choices):
    def append(state):
        state.sink.emit(Select(out=state.sink.new_ref(), var=var, choices=operand(choices), stream=state.stream))

    append.__dslc_traceable__ = True
    return append


select.__dslc_traceable__ = True


def program_of(body, **bound):
    program = trace(body, MiniState, bound=bound).program
    verify(program)
    return program


def body_text(body, **bound):
    lines = print_program(program_of(body, **bound)).splitlines()[1:-1]
    return [line.strip() for line in lines]


def breaks(body, **bound):
    return [op for op in walk(program_of(body, **bound).body) if isinstance(op, Opaque)]


def test_straight_line_with_f_strings_and_methods():
    def qa(s, question, style="short"):
        s += "Q: " + question.strip() + "\n"
        s += f"A ({style!s:>8}): "
        s += gen("answer", max_new_tokens=8)
        s += "%s%%" % s["answer"]  # noqa: UP031
        s += "{} and {0}".replace("{0}", "{}").format(s["answer"], question)
        s += ", ".join([question, "x", s["answer"]])

    assert body_text(qa) == [
        '%0 = arg "question"',
        '%1 = arg "style"',
        "%2 = strip %0 none",
        '%3 = add "Q: " %2',
        '%4 = add %3 "\\n"',
        "text %4",
        "%5 = str %1",
        '%6 = format %5 ">8"',
        '%7 = concat "A (" %6 "): "',
        "text %7",
        '%8 = gen "answer" sampling=(max_new_tokens=8)',
        "%9 = str %8",
        '%10 = concat %9 "%"',
        "text %10",
        '%11 = concat %8 " and " %0',
        "text %11",
        '%12 = join ", " [%0, "x", %8]',
        "text %12",
    ]


def test_branch_becomes_a_switch_and_paths_meet_again():
    def triage(s, ticket):
        s += ticket
        s += select("label", ["bug", "billing"])
        if s["label"] == "bug":
            s += "Steps: "
            s += gen("steps")
        else:
            s += "Thanks."
        s += "\nBye."
        s += gen("end")

    assert body_text(triage) == [
        '%0 = arg "ticket"',
        "text %0",
        '%1 = select "label" ["bug", "billing"]',
        '%2 = eq %1 "bug"',
        "switch %2 {",
        "case true {",
        'text "Steps: "',
        '%3 = gen "steps"',
        "}",
        'case false { text "Thanks." }',
        "}",
        'text "\\nBye."',
        '%4 = gen "end"',
    ]


def test_a_value_set_on_both_sides_is_read_by_name_afterwards():
    def both(s, q):
        if q == "a":
            s += gen("x", temperature=0)
        else:
            s += gen("x", temperature=1)
        s += "got " + s["x"]

    text = body_text(both)
    assert text[-3:] == ['%4 = get "x"', '%5 = add "got " %4', "text %5"]
    assert sum(line.startswith("text") for line in text) == 1


def test_many_ifs_do_not_multiply_the_program():
    def steps(s, a):
        for i in range(6):
            if a == str(i):
                s += f"is {i}\n"
            s += f"step {i}\n"

    program = program_of(steps)
    assert program.is_whole
    assert sum(isinstance(op, Text) for op in walk(program.body)) == 12


def test_values_computed_on_one_side_only_do_not_keep_paths_apart():
    def extra(s, q):
        if q == "a":
            len(q)
            s += "A"
        s += gen("x")
        s += "got " + s["x"]

    assert body_text(extra)[2:] == [
        'switch %1 { case true { text "A" } }',
        '%2 = gen "x"',
        '%3 = add "got " %2',
        "text %3",
    ]


def test_early_return_inside_a_role_ends_the_program_there():
    def early(s, a):
        with s.role("assistant"):
            s += gen("x")
            if s["x"] == "stop":
                return "stopped"
            s += " more"
        s += "after"
        return None

    text = body_text(early)
    assert 'case true { return "stopped" }' in text
    assert text[-1] == 'text "after"'
    assert program_of(early).is_whole


def test_loops_over_plain_data_unroll_and_helpers_are_followed():
    examples = [("France", "Paris"), ("Italy", "Rome")]

    def shot(country, capital):
        return f"Q: {country}? A: {capital}\n"

    def few_shot(s, q):
        for country, capital in examples:
            s += shot(country, capital)
        s += shot(q, "")

    assert body_text(few_shot)[1:3] == ['text "Q: France? A: Paris\\n"', 'text "Q: Italy? A: Rome\\n"']


def test_and_or_in_not_become_decisions():
    def logic(s, a, b):
        if a == "x" and b not in ["y", "z"]:
            s += "both"
        elif not (a or b):
            s += "none"

    program = program_of(logic)
    assert program.is_whole
    assert {op.fn for op in walk(program.body) if op.name == "expr"} == {"eq", "contains", "not", "bool"}


def test_side_effects_wait_for_the_run():
    seen = []
    log = {"n": 0}

    def effects(s, q):
        s += q
        seen.append(q)
        s += "after"

    def plain_effects(s, q):
        s += q
        log["n"] = 1

    def printing(s, q):
        s += q
        print("hello")

    for body, words in [
        (effects, '%2 = host ".append" %1 %0'),
        (plain_effects, '%2 = host "_operator:setitem" %1 "n" 1'),
        (printing, '%1 = host "builtins:print" "hello"'),
    ]:
        assert words in body_text(body)
        op = next(op for op in walk(program_of(body).body) if op.name == "host")
        assert op.where.line == body.__code__.co_firstlineno + 2
        assert op.where.file == __file__
    assert not seen
    assert log == {"n": 0}


def test_assignments_to_several_places_at_once():
    def places(s, q):
        local = {}
        (s["a"], local["b"]), [first, *rest] = (q, "B"), "xyz"
        s += f"{s['a']}{local['b']}{first}{len(rest)}"

    assert body_text(places)[1:] == ['set "a" %0', '%1 = concat %0 "Bx2"', "text %1"]


def test_imports_of_loaded_modules_only():
    def loaded(s, q):
        from collections import Counter

        s += f"{Counter('aab')['a']}{q}"

    def unloaded(s, q):
        import this_module_is_nowhere

        s += this_module_is_nowhere.text + q

    assert body_text(loaded)[1:] == ['%1 = concat "2" %0', "text %1"]
    assert "this_module_is_nowhere, which is not loaded" in breaks(unloaded)[0].reason


def test_local_containers_may_change():
    def local(s, q):
        parts = []
        counts = {}
        for word in ("a", "b"):
            parts.append(f"{word}:{q}")
            counts[word] = len(parts)
        s += " ".join(parts) + str(counts["b"])

    assert not breaks(local)


def test_what_cannot_be_followed_is_named():
    def loop(s, docs):
        for d in docs:
            s += d

    def frame(s, q):
        s += q
        vars()

    def boom(s, q):
        if q == "x":
            raise ValueError("bad x")
        s += q

    assert not breaks(loop)
    assert "vars, which needs the running code" in breaks(frame)[0].reason
    (op,) = breaks(boom)
    assert op.reason == "raises ValueError: bad x"
    assert op.where.line == boom.__code__.co_firstlineno + 2


def test_errors_that_hold_for_all_arguments_are_raised():
    def undefined(s, q):
        s += q + s["nothing"]

    def nested(s, q):
        with s.role("user"), s.role("system"):
            s += q

    with pytest.raises(UndefinedVariable, match="'nothing'"):
        trace(undefined, MiniState)
    with pytest.raises(ProgramError, match="roles do not nest"):
        trace(nested, MiniState)


def test_too_many_paths_of_ifs_are_one_path_behind_each():
    def wide(s, q):
        n = 0  # each path has another value alive, so no two meet
        if q == "a":
            n += 1
        if q == "b":
            n += 2
        if q == "c":
            n += 4
        if q == "d":
            n += 8
        if q == "e":
            n += 16
        if q == "f":
            n += 32
        if q == "g":
            n += 64
        if q == "h":
            n += 128
        if q == "i":
            n += 256
        s += f"{n} {q}"

    assert not breaks(wide)


def test_too_many_paths_end_as_unexplored():
    def wide(s, q):
        n = 0  # each path has another value alive, and no statement to meet behind
        n += 1 if q == "a" else 0
        n += 2 if q == "b" else 0
        n += 4 if q == "c" else 0
        n += 8 if q == "d" else 0
        n += 16 if q == "e" else 0
        n += 32 if q == "f" else 0
        n += 64 if q == "g" else 0
        n += 128 if q == "h" else 0
        n += 256 if q == "i" else 0
        s += f"{n} {q}"

    assert any("unexplored" in op.reason for op in breaks(wide))


def test_a_long_unrolled_loop_without_branches_is_bounded():
    def long(s, q):
        for _ in range(5):
            for _ in range(1000):
                s += q
                s += gen("x")

    assert not breaks(long)  # no longer unrolled
    assert {op.name for op in walk(program_of(long).body)} == {"arg", "loop", "text", "gen", "next"}


def test_endless_loops_are_loops():
    def endless(s, q):
        while True:
            s += q

    assert body_text(endless)[1:] == ["loop {", "text %0", "next", "}"]


def test_bound_arguments_are_constants_and_tracing_twice_is_equal():
    def prog(s, a, b):
        if a:
            s += f"{a}-{b}"

    assert body_text(prog, a="A") == ['%0 = arg "b"', '%1 = concat "A-" %0', "text %1"]
    assert print_program(program_of(prog)) == print_program(program_of(prog))


THRESHOLDS = [1]


def test_guards_notice_changed_globals_and_defaults():
    def prog(s, q, items=[1, 2]):  # noqa: B006
        s += f"{THRESHOLDS[0]}{q}"

    traced = trace(prog, MiniState)
    assert traced.guards.hold()
    THRESHOLDS[0] = 2
    assert not traced.guards.hold()
    THRESHOLDS[0] = 1
    assert traced.guards.hold()
    prog.__defaults__[0].append(3)
    assert not traced.guards.hold()


def test_strict_error_names_line_and_advice():
    def prog(s, q):
        s += q
        vars()

    error = strict_error(program_of(prog), "vars()")
    assert error.where == SourceLoc(__file__, prog.__code__.co_firstlineno + 2, "prog")
    assert "vars" in str(error)
    assert "prog.run(...) still works" in str(error)


def test_none_checks_and_defaults():
    def prog(s, q, context=None):
        if context is not None:
            s += context
        s += q

    program = program_of(prog)
    assert program.is_whole
    assert program.params[1].has_default
    assert [op.fn for op in walk(program.body) if op.name == "expr"] == ["is_none", "not"]


def test_a_loop_on_a_generated_value_is_bounded():
    def until(s, q):
        s += gen("x")
        while s["x"] != "stop":
            s += gen("x")

    assert [op.name for op in walk(program_of(until).body)] == [
        "arg", "gen", "loop", "expr", "expr", "switch", "gen", "next", "break",
    ]  # fmt: skip


def found_in(value):
    return next((word for word in ("one", "two") if word in value), "none")


def test_what_one_path_has_attempted_in_vain_the_next_does_not_attempt_again(monkeypatch):
    def body(s):
        for step in range(3):
            s += gen(f"x{step}")
            if s[f"x{step}"] == "stop":
                return
            s += found_in(s[f"x{step}"])

    attempts = []
    attempted = PathTracer._attempted

    def counting(self, compute):
        found = attempted(self, compute)
        attempts.extend([found] if not self._num_inline else [])
        return found

    monkeypatch.setattr(PathTracer, "_attempted", counting)
    text = "\n".join(body_text(body))
    assert attempts == [None] * 3  # a branch on what is not known yet: the run calls the function
    assert text.count("= host") == 3 and text.count("switch") == 3
