"""Law: interpreted = compiled where objects change between two looks at them: a value that is asked again after a call,
an f-string that is appended after one, `+=` in place, a question asked in each round of a loop."""

import pytest
from support.both_ways import both_ways

import dslc


def load(q):
    return [q, "b"]


def push(xs, v):
    xs.append(v)
    return len(xs)


class Note:
    def __init__(self, text):
        self.text = text
        self.marks = []

    def __str__(self):
        return f"<{self.text}>"

    def mark(self, what):
        self.marks.append(what)


@dslc.function
def attributes(s, q):
    note = Note(q)
    note.mark(q)
    note.text += "!"
    s += note.text
    note.text = "new"
    s += note.text
    note.marks += ["x"]
    s += str(len(note.marks)) + dslc.gen("x", max_tokens=1)


@dslc.function
def late_text(s, q):
    notes = load(q)
    shown = f"Notes: {notes};"
    push(notes, "c")
    s += shown
    s += f"Notes: {notes};"
    s += dslc.gen("x", max_tokens=1)


@dslc.function
def late_object(s, q):
    n = Note(q)
    shown = f"Note: {n};"
    n.text = "other"
    s += shown + f"{n}"
    s += dslc.gen("x", max_tokens=1)


@dslc.function
def late_arg(s, items):
    shown = f"Items: {items};"
    push(items, "c")
    s += shown + str(len(items))
    s += dslc.gen("x", max_tokens=1)


@dslc.function
def hoist(s, items):
    todo = load("a")
    for item in items:
        s += f"{item}" + dslc.gen("x", max_tokens=1)
        if todo:
            s += "more" + str(todo.pop())
        if not items:
            s += "never"


@dslc.function
def asked_twice(s, q):
    notes = load(q)
    if len(notes) > 2:
        s += "long"
    push(notes, "c")
    if len(notes) > 2:
        s += "now long"
    while len(notes) < 6:
        s += "."
        push(notes, q)
    s += str(notes) + dslc.gen("x", max_tokens=1)


@dslc.function
def splits(s, q):
    a = q.split()
    b = q.split()
    push(a, "new")
    s += f"{a} {b}"
    a += ["z"]
    other = a
    a += ["y"]
    s += f"{other is a} {other}" + dslc.gen("x", max_tokens=1)


@dslc.function
def arg_changed(s, items):
    items += ["new"]
    s += ",".join(items)
    for _ in range(2):
        items += [dslc_text(s)]
    s += str(items)


def dslc_text(s):
    s += dslc.gen("x", max_tokens=1)
    return s["x"]


@dslc.function
def loop_list(s, n):
    seen = []
    for i in range(n):
        s += f"{i}" + dslc.gen("x", max_tokens=1)
        seen += [s["x"]]
        s += ",".join(seen)
    total = 0
    for i in range(n):
        total += i
    s += f"{total} {seen}"


@dslc.function
def set_ops(s, items):
    a = set(items)
    b = a | {"z"}
    a |= {"y"}
    s += str(sorted(a)) + str(sorted(b & set(items))) + str(sorted(a ^ b))
    n = len(items)
    s += f"{n << 2} {n | 1} {~n} {+n} {n & 1}" + dslc.gen("x", max_tokens=1)


@dslc.function
def arg_in_loop(s, items, rows):
    if items:
        s += "some"
    for row in rows:
        if items:
            s += f"{row}has"
            items.pop()
        else:
            s += f"{row}none"
    s += dslc.gen("x", max_tokens=1)


@pytest.mark.parametrize(
    "function, arguments",
    [
        (attributes, {"q": "Why a"}),
        (late_text, {"q": "Why a"}),
        (late_object, {"q": "Why a"}),
        (late_arg, {"items": ["one", "two"]}),
        (hoist, {"items": ["one", "two", "three"]}),
        (asked_twice, {"q": "Why a"}),
        (splits, {"q": "Why a"}),
        (arg_changed, {"items": ["one", "two"]}),
        (loop_list, {"n": 3}),
        (set_ops, {"items": ["one", "two"]}),
        (arg_in_loop, {"items": ["one", "two"], "rows": ["r", "t", "u"]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_call_has_changed_is_looked_at_again(function, arguments):
    both_ways(function, **arguments)


def test_what_no_call_can_change_is_asked_once():
    @dslc.function
    def program(s, q, verbose):
        if verbose:
            s += "more" + str(load(q))
        notes = Note(q)
        if verbose:
            s += str(notes.text)
        if verbose:
            s += "end"
        s += dslc.gen("x", max_tokens=1)

    assert str(both_ways(program, q="a", verbose=True)) and str(program.compile()).count("switch") == 1
