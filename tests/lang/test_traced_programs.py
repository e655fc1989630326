"""Law: interpreted = compiled = saved and loaded, for programs with loops, tools, exceptions and plain Python between
the generations: same text, variables, turns and result, and the user's functions called as often, in the same order."""

import hashlib
import random
import types
from collections import Counter

import pytest
from support.scripted import ScriptedBackend

import dslc

CALLS = []


def lookup(x):
    CALLS.append(x)
    return x.upper() + "!"


def sixth(k):
    return 6 // (k - 1)


class Odd(Exception):
    pass


def picky(x):
    CALLS.append(x)
    if "q" in x:
        raise Odd("bad " + x)
    return x.upper()


def asked(s, i):
    s += dslc.gen("q", max_tokens=2)
    return sixth(i)


@dslc.function
def lists(s, items):
    s += "List:"
    seen = []
    n = 0
    for i, item in enumerate(items):
        s += f"\n{i}. {item}:" + dslc.gen("x", max_tokens=3)
        seen.append(s["x"])
        if "b" in s["x"]:
            n += 1
            continue
        if lookup(s["x"]) == "C!":
            break
        s += "*"
    s += f"|{n} {len(seen)} {','.join(seen)} {item}"
    return seen


@dslc.function
def until(s, q):
    s += q
    step = 0
    while True:
        step += 1
        s += dslc.gen("x", max_tokens=3)
        if s["x"] == "c" or step > 5:
            break
        answer = s["x"]
    s += f"|{step}{answer}"
    while s["x"] != "a":
        s += dslc.gen("x", max_tokens=2)
        forks = s.fork(2)
        forks += dslc.gen("y")
        forks.join()
        for y in s["y"]:
            s += y
    return step


@dslc.function
def nested(s, q, n=3):
    for i in range(n):
        for j in range(i):
            s += f"{i}{j}{q}" + dslc.gen("z")
            if s["z"] == "c":
                return [i, (j, i)]
    s += "x" if "z" in s else "y"
    left, _, right = q.partition("w")
    s += left + right
    return s["z"]


@dslc.function
def long(s, q):
    out = []
    for k in range(100):
        s += f"{q}{k}" + dslc.gen("z", max_tokens=1)
        if s["z"] == "c":
            out.append(k)
            if len(out) == 3:
                break
    return out


@dslc.function
def turns(s, items):
    for x in items:
        with s.user():
            s += x
            if x == "c":
                break
            s += dslc.gen("g")
            if s["g"] == "a":
                continue
            s += "!"
    if "g" in s:
        return s["g"]
    return None


@dslc.function
def tried(s, n):
    total = 0
    for i in range(n):
        try:
            s += f"{i}?"
            total += int(asked(s, i))
        except ZeroDivisionError as error:
            s += f"({error})"
            continue
        finally:
            s += ";"
    return total


@dslc.function
def collected(s, q):
    got = {}
    for k in q.split(","):
        s += k + dslc.gen("v")
        got[k] = (s["v"], lookup(k))
    s += f"{sorted(got)}"
    return got


@dslc.function
def numbers(s, q):
    s += q + dslc.gen("n", max_tokens=4)
    try:
        n = int(s["n"])
    except ValueError as error:
        n = f"bad: {error}"
    s += f"[{n}]"
    return n


@dslc.function
def excepted(s, q):
    seen = []
    for w in ("a", "b"):
        try:
            seen.append(picky(w + q))
        except (KeyError, Odd) as error:
            seen.append(str(error))
        finally:
            s += "|"
    s += " ".join(seen)
    return seen


@dslc.function
def computed(s, q, names):
    s += q + dslc.gen("n", max_tokens=4)
    best = max(names, key=lambda x: (len(x), q))
    s += best
    chosen = random.Random(3).choice(["x", "y"])
    votes = Counter(name.strip() for name in names if name != best)
    return [best, chosen, sorted({"b": 1, "a": q}.items()), votes.most_common(1), [lookup(name) for name in names]]


@dslc.function
def best_of(s, q):
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += f"{i}{q}" + dslc.gen("a") + dslc.select("score", ["1", "2", "3"])
    forks.join()
    ranked = sorted((int(score), answer) for score, answer in zip(s["score"], s["a"], strict=True))
    s += ranked[-1][1]
    return ranked


@dslc.function
def recursive(s, n):
    s += f"{n}" + dslc.gen("r")
    if n > 0 and s["r"] != "b":
        return 1 + recursive(s, n - 1)
    return 0


PROGRAMS = [
    (lists, [{"items": list("pqrst")}, {"items": ["z"]}, {"items": []}]),
    (until, [{"q": "x"}]),
    (nested, [{"q": "x w y"}, {"q": "a", "n": 4}, {"q": "", "n": 0}, {"q": "", "n": 1}]),
    (long, [{"q": "z"}]),
    (turns, [{"items": list("ab")}, {"items": list("bcd")}]),
    (tried, [{"n": 3}, {"n": 1}]),
    (collected, [{"q": "x,y"}]),
    (numbers, [{"q": "x"}]),
    (excepted, [{"q": "q"}, {"q": "w"}]),
    (computed, [{"q": "1", "names": ["aa", "b"]}]),
    (best_of, [{"q": "?"}]),
]


def answers(seed):
    return lambda prompt: "abc"[hashlib.sha256(f"{seed}{prompt}".encode()).digest()[0] % 3]


def outcome(program, arguments, seed, compiled):
    CALLS.clear()
    try:
        state = program.run(**arguments, backend=ScriptedBackend(answers(seed)), compiled=compiled, seed=1)
    except Exception as error:
        return type(error).__name__, str(error).splitlines()[0], list(CALLS)
    return state.text(), state.ret_value, state.variables(), state.messages(), list(CALLS)


@pytest.mark.parametrize(("program", "rows"), PROGRAMS, ids=[program.__name__ for program, _ in PROGRAMS])
def test_interpreted_equals_compiled(program, rows):
    assert program.compile(strict=True).is_whole
    for arguments in rows:
        for seed in range(12):
            assert outcome(program, arguments, seed, True) == outcome(program, arguments, seed, False)


def test_a_recursion_on_an_argument_is_bounded_and_runs():
    for seed in range(6):
        assert outcome(recursive, {"n": 3}, seed, None) == outcome(recursive, {"n": 3}, seed, False)


def test_calls_happen_once_in_their_place_and_only_when_run():
    @dslc.function
    def program(s):
        s += "a" + dslc.gen("x")
        CALLS.append("between")
        s += "b" + dslc.gen("y")
        CALLS.append(s["y"])

    CALLS.clear()
    assert program.compile(strict=True).is_whole and CALLS == []
    seen = []
    backend = ScriptedBackend(lambda prompt: seen.append(list(CALLS)) or "t")
    program.run(backend=backend, compiled=True)
    assert CALLS == ["between", "t"]
    assert seen[0] in ([], ["between"]) and seen[1] == ["between"]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_call_waits_for_the_errors_before_it(compiled):
    @dslc.function
    def program(s):
        forks = s.fork(2)
        for fork in forks:
            inner = fork.fork(2)
            inner += dslc.gen("m")
            inner.join()
        forks.join()
        s += "+".join(s["m"])  # lists of lists
        s += lookup("late")

    CALLS.clear()
    with pytest.raises(TypeError, match="expected str instance, list found"):
        program.run(backend=ScriptedBackend("x"), compiled=compiled)
    assert CALLS == []


def test_a_list_that_another_name_holds_is_no_loop_variable():
    @dslc.function
    def program(s, items):
        seen = []
        same = seen
        for item in items:
            s += item
            seen.append(item)
        return same

    assert not program.compile().is_whole
    assert program.run(items=["a", "b"], backend=ScriptedBackend("x")).ret_value == ["a", "b"]


def test_what_is_changed_behind_a_loops_back_is_left_to_python():
    @dslc.function
    def program(s, items):
        boxes = [[]]
        for item in items:
            s += item
            boxes[0].append(item)
        return boxes

    assert not program.compile().is_whole
    assert program.run(items=["a", "b"], backend=ScriptedBackend("x")).ret_value == [["a", "b"]]


def test_a_changed_global_function_is_traced_anew():
    tools = {"f": lambda x: x + "1"}

    @dslc.function
    def program(s, q):
        s += tools["f"](q)

    assert program.run(q="a", backend=ScriptedBackend("x")).text() == "a1"
    tools["f"] = lambda x: x + "2"
    assert program.run(q="a", backend=ScriptedBackend("x")).text() == "a2"


class Settings:
    """What a program may read of an object of the process."""

    loud = False

    def __init__(self):
        self.words = ["a"]
        self.inner = {"deep": ["x"]}


SETTINGS = Settings()


@dslc.function
def configured(s, q):
    if SETTINGS.loud:
        s += "LOUD"
    s += SETTINGS.words[0] + SETTINGS.inner["deep"][-1] + q + textwrap_stand_in.NAME


textwrap_stand_in = types.ModuleType("textwrap_stand_in")
textwrap_stand_in.NAME = "one"


@pytest.mark.parametrize(
    "change",
    [
        lambda: setattr(SETTINGS, "loud", True), lambda: setattr(Settings, "loud", True),
        lambda: SETTINGS.words.__setitem__(0, "b"), lambda: setattr(SETTINGS, "words", ["c"]),
        lambda: SETTINGS.inner["deep"].append("y"), lambda: setattr(textwrap_stand_in, "NAME", "two"),
        lambda: delattr(Settings, "loud"),
    ],
)  # fmt: skip
def test_a_changed_attribute_of_an_object_traces_anew(change, monkeypatch):
    monkeypatch.setitem(globals(), "SETTINGS", Settings())
    monkeypatch.setattr(Settings, "loud", False)
    monkeypatch.setattr(textwrap_stand_in, "NAME", "one")

    def shown(compiled):
        try:
            return configured.run(q="?", backend=ScriptedBackend([]), compiled=compiled).text()
        except AttributeError as error:
            return str(error)

    assert shown(True) == shown(False) == "ax?one"
    change()
    assert shown(None) == shown(False) != "ax?one"
