"""Law: interpreted = compiled with `match` on values that are not known yet, `else` of loops, names set in the
test of a `while`, containers of such values in f-strings, and operators that the IR has no function for."""

import pytest
from support.both_ways import both_ways

import dslc

CALLS = []


def search(q):
    CALLS.append(q)
    return {"title": q, "rows": [q, 1, None], "n": {"k": 3}}


def load(q):
    CALLS.append(q)
    return [q, "b"]


class Point:
    __match_args__ = ("x", "y")

    def __init__(self, x, y):
        CALLS.append("Point")
        self.x, self.y = x, y


@dslc.function
def mappings(s, q):
    match search(q):
        case {"title": str(t), "rows": [first, *rest], **more} if t:
            s += f"{t} {first} {rest} {sorted(more)}"
        case _:
            s += "nothing"
    match search(q)["rows"]:
        case [str(), int(n), None]:
            s += f"n={n}"
    match search(q)["rows"][2]:
        case True:
            s += "T"
        case None:
            s += "N"
    s += dslc.gen("x", max_tokens=2)


@dslc.function
def sequences(s, q):
    s += dslc.gen("x", max_tokens=2)
    match s["x"].split():
        case []:
            s += "empty"
        case [one]:
            s += f"one {one}"
        case [a, b, *_]:
            s += f"two {a}{b}"
    match (s["x"], q):
        case ("a", _) | (_, "Why a"):
            s += "first"
        case (other, "b"):
            s += other
    match load(q):
        case [x, "a"]:
            s += "A"
        case [x, "b"]:
            s += "B" + x


@dslc.function
def classes(s, q):
    match Point(q, 2):
        case Point("no", y=2):
            s += "no"
        case Point(x, y=int() as k) if k > 1:
            s += f"P {x} {k}"
    s += dslc.gen("x", max_tokens=2)
    match q:
        case int():
            s += "int"
        case str() as text:
            s += text
    match s["x"]:
        case "a" | "b":
            s += "one"
        case str(word) if "a" in word:
            s += word
        case rest:
            s += f"rest {rest}"


@dslc.function
def lists_in_text(s, q):
    notes = [q, s.text()]
    s += f"{notes} {notes!r} {(q, 1)} {[q]} {[[q]]}" + dslc.gen("x", max_tokens=1)
    s += str(notes) + str({"a": s["x"]})
    s += "%s" % notes  # noqa: UP031


@dslc.function
def elses(s, items):
    for item in items:
        s += item + dslc.gen("x", max_tokens=1)
        if s["x"] == "zzz":
            break
    else:
        s += "no break"


@dslc.function
def nested_elses(s, items, n):
    for item in items:
        s += item
        for other in items:
            if other == "two":
                break
        else:
            s += "inner else"
            break
        if n > 100:
            break
    else:
        s += "outer else"
    s += dslc.gen("x", max_tokens=1)


@dslc.function
def while_elses(s, items, n):
    k = 0
    while k < n:
        k += 1
        s += dslc.gen("y", max_tokens=1)
        if s["y"] == "a":
            continue
        if k == 2:
            break
    else:
        s += "while else"
    for item in items:
        if item == "one":
            break
    else:
        s += "never"
    while (word := s["y"]) != "a" and k < 6:
        s += word + dslc.gen("y", max_tokens=1)
        k += 1
    else:
        s += "found"
    return k


@dslc.function
def in_loop(s, items):
    acc = ""
    for item in items:
        match item:
            case "one" | "uno":
                acc += "1"
            case str(w):
                acc += w
        for c in item:
            if c == "t":
                break
        else:
            acc += "!"
        s += acc + dslc.gen("x", max_tokens=1)
    return acc


@dslc.function
def left_with_more_to_do(s, items):
    for item in items:
        try:
            s += item + dslc.gen("x", max_tokens=1)
            if item == "two":
                break
        finally:
            s += "finally"
        with s.user():
            s += "said"
            if item == "three":
                break
    s += "end"


@pytest.mark.parametrize(
    "function, arguments",
    [
        (mappings, {"q": "Why a"}),
        (sequences, {"q": "Why a"}),
        (sequences, {"q": "b"}),
        (classes, {"q": "Why a"}),
        (classes, {"q": 3}),
        (lists_in_text, {"q": "Why a"}),
        (elses, {"items": ["one", "two"]}),
        (nested_elses, {"items": ["two", "one"], "n": 3}),
        (nested_elses, {"items": [], "n": 300}),
        (while_elses, {"items": ["two", "one"], "n": 3}),
        (in_loop, {"items": ["one", "two", "three"]}),
        (left_with_more_to_do, {"items": ["one", "two", "three"]}),
        (left_with_more_to_do, {"items": ["one", "three", "two"]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_forms_of_python(function, arguments):
    both_ways(function, CALLS, **arguments)
