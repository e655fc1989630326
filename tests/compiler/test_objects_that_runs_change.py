"""Law: interpreted = compiled where a program, or what it calls, changes lists, dicts, objects and globals of the
process that the program reads too. What only looks changes nothing: such data stays a constant under a guard."""

import json

import pytest
from support.both_ways import answers

import dslc
from dslc.compiler.tracing.effects import effects_of

LOG = []
MEMORY = ["born"]
STATE = {"n": 0, "rows": []}
COUNT = 0


class Agent:
    def __init__(self):
        self.mood = "calm"
        self.notes = []

    def see(self, x):
        self.notes.append(x)
        self.mood = x


AGENT = Agent()
EXAMPLES = [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}]


def reset():
    global COUNT
    LOG.clear()
    MEMORY[:] = ["born"]
    STATE.update(n=0, rows=[])
    COUNT = 0
    AGENT.mood, AGENT.notes = "calm", []


def remember(x):
    MEMORY.append(x)


def bump():
    global COUNT
    COUNT += 1


def bump_state(k):
    STATE["n"] += k


def look(k):
    out = []
    for e in EXAMPLES:
        out.append(e["q"])
    LOG.append("looked")
    return out[k]


@dslc.function
def memory(s, q):
    s += "Memory: " + "; ".join(MEMORY)
    remember(q)
    s += "Memory: " + "; ".join(MEMORY)
    s += dslc.gen("x", max_tokens=2)
    remember(s["x"])
    s += f"{len(MEMORY)} {MEMORY[-1]} {MEMORY}"
    for m in MEMORY:
        s += m
    if len(MEMORY) > 2:
        s += "many"


@dslc.function
def direct(s, q):
    MEMORY.append(q)
    s += f"{MEMORY}" + dslc.gen("x", max_tokens=2)
    MEMORY.append(s["x"])
    s += "-".join(MEMORY) + str(len(MEMORY))
    STATE["n"] += 1
    STATE["rows"].append(q)
    s += f"{STATE['n']} {STATE['rows']} {json.dumps(STATE)}"


@dslc.function
def glob(s, q):
    s += f"{COUNT}"
    bump()
    s += f"{COUNT}" + dslc.gen("x", max_tokens=2)
    bump_state(2)
    s += f"{STATE['n']}"


@dslc.function
def objects(s, q):
    s += AGENT.mood
    AGENT.see(q)
    s += AGENT.mood + str(AGENT.notes) + dslc.gen("x", max_tokens=2)
    AGENT.see(s["x"])
    s += AGENT.mood + str(len(AGENT.notes))
    AGENT.mood = "end"
    s += AGENT.mood


@dslc.function
def constants(s, q):
    for e in EXAMPLES:
        s += f"Q: {e['q']} A: {e['a']}\n"
    s += q + dslc.gen("x", max_tokens=2)
    s += look(1)


def outer():
    kept = []

    @dslc.function
    def closed(s, items):
        for item in items:
            kept.append(item)
            LOG.append(item)
            s += item + dslc.gen("x", max_tokens=1)
        s += str(len(kept) > 1)
        kept.clear()

    return closed


closed = outer()


@dslc.function
def inner_list(s, items):
    seen = []

    def note(t, xs):
        for item in xs:
            seen.append(item)
            t += item + dslc.gen("x", max_tokens=1)
        return len(seen)

    n = note(s, items)
    s += f"{n} {seen}"
    for item in items:
        note(s, [item])
    s += f"{seen}"


@dslc.function
def inner_nonlocal(s, items):
    count = 0

    def bump(t, k):
        nonlocal count
        count += k
        t += str(count)

    for item in items:
        bump(s, len(item))
    s += f"{count}" + dslc.gen("x", max_tokens=1)
    if s["x"] == "a":
        bump(s, 2)
    return count


@dslc.function
def inner_loop_nonlocal(s, items):
    count = 0

    def bump(t, xs):
        nonlocal count
        for x in xs:
            count += len(x)
            t += str(count)

    bump(s, items)
    s += f"{count}" + dslc.gen("x", max_tokens=1)
    return count


def shown(function, compiled, **arguments):
    reset()
    state = function.run(**arguments, backend=answers(), compiled=compiled, seed=1)
    return state.text(), state.variables(), state.ret_value, [*LOG]


@pytest.mark.parametrize(
    "function, arguments, is_whole",
    [
        (memory, {"q": "Why a"}, True),
        (direct, {"q": "Why a"}, True),
        (glob, {"q": "Why a"}, False),
        (objects, {"q": "Why a"}, True),
        (constants, {"q": "Why a"}, True),
        (closed, {"items": ["one", "two"]}, True),
        (inner_list, {"items": ["one", "two"]}, False),
        (inner_nonlocal, {"items": ["one", "two"]}, True),
        (inner_loop_nonlocal, {"items": ["one", "two"]}, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_run_changes_of_the_process_it_reads_itself(function, arguments, is_whole):
    expected = shown(function, False, **arguments)
    assert shown(function, None, **arguments) == expected
    assert shown(function, None, **arguments) == expected  # and again, from what was traced before
    assert function.compile().is_whole is is_whole


def test_the_break_names_the_global_and_the_call():
    assert "call of bump, which sets 'COUNT', a global that the program reads" in str(glob.compile())


def test_a_list_that_is_only_looked_at_stays_a_constant():
    assert "Q: 1+1 A: 2" in str(constants.compile())


def reads(key):
    return [row["q"] for row in EXAMPLES if key in STATE] + [len(MEMORY), MEMORY[0]]


def hands_on():
    return EXAMPLES[0]


def stores_in_a_part():
    for row in EXAMPLES:
        row["seen"] = True


def stores_by_another_name():
    rows = EXAMPLES
    rows.append({})


def calls_one_that_stores():
    return stores_in_a_part()


def test_what_a_function_may_change():
    assert effects_of(reads).objects == ()
    for function in (hands_on, stores_in_a_part, stores_by_another_name, calls_one_that_stores):
        assert any(value is EXAMPLES for value in effects_of(function).objects), function.__name__
    assert [name for _, name in effects_of(bump).names] == ["COUNT"]


def test_beyond_many_functions_and_without_source_whatever_is_read_may_change(tmp_path):
    """A chain longer than the functions whose source is read, and code that has none."""
    table, names = {}, {"LAST": [], "NUMBER": 0, "__name__": __name__}
    source = "def last():\n    global NUMBER\n    NUMBER += 1\n    return len(LAST)\n"
    exec(compile(source, str(tmp_path / "gone.py"), "exec"), names)
    found = effects_of(names["last"])
    assert names["LAST"] in found.objects and (id(names), "NUMBER") in found.names

    for number in range(300):
        scope = {"inner": table.get(number - 1), "MEMORY": MEMORY, "__name__": __name__}
        text = "def step():\n    return inner()\n" if number else "def step():\n    return MEMORY.append('x')\n"
        exec(compile(text, str(tmp_path / f"gone{number}.py"), "exec"), scope)
        table[number] = scope["step"]
    assert any(value is MEMORY for value in effects_of(table[299]).objects)


def test_closures_that_share_their_code_are_looked_into_one_by_one():
    first, second = [], []

    def keeper(kept):
        return lambda x: kept.append(x)

    keep_first, keep_second = keeper(first), keeper(second)

    def both(x):
        keep_first(x)
        keep_second(x)

    assert {id(value) for value in effects_of(both).objects} == {id(first), id(second)}
